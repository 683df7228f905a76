"""Payloads over a real port: cut-through, resume, truncated, oversized, wrong digest, strangers, quotas."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from comity.v1 import payload_pb2, payload_pb2_grpc
from comity_coordinator.transport.payloads import CHUNK_BYTES, Spool, SpoolLimits

DATA = os.urandom(3 * CHUNK_BYTES + 12_345)
DIGEST = hashlib.sha256(DATA).hexdigest()


def _chunks(data: bytes, offset: int = 0) -> list[bytes]:
    return [data[start : start + CHUNK_BYTES] for start in range(offset, len(data), CHUNK_BYTES)]


def _header(**changes: Any) -> payload_pb2.PutPayloadRequest:
    values = {"digest": DIGEST, "size_bytes": len(DATA), "receivers": ["beta"], "offset_bytes": 0}
    return payload_pb2.PutPayloadRequest(header=payload_pb2.PayloadHeader(**{**values, **changes}))


async def _put(stub: Any, header: Any, chunks: Sequence[bytes]) -> payload_pb2.PutPayloadResponse:
    async def pieces() -> AsyncIterator[payload_pb2.PutPayloadRequest]:
        yield header
        for chunk in chunks:
            yield payload_pb2.PutPayloadRequest(data=chunk)

    return await stub.PutPayload(pieces(), timeout=10)


async def _get(stub: Any, offset: int = 0, digest: str = DIGEST) -> bytes:
    request = payload_pb2.GetPayloadRequest(digest=digest, offset_bytes=offset)
    return b"".join([response.data async for response in stub.GetPayload(request, timeout=10)])


async def _code(awaitable: Any, error_of: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return error_of(caught.value)


@pytest.fixture
async def stubs(rig: Any) -> dict[str, Any]:
    found = {}
    for org in ("alpha", "beta", "gamma"):
        node = await rig.enrol(org)
        node.channel = node.open_channel()
        found[org] = payload_pb2_grpc.PayloadServiceStub(node.channel)
    return found


async def _stat(stub: Any) -> tuple[int, bool]:
    stat = await stub.StatPayload(payload_pb2.StatPayloadRequest(digest=DIGEST), timeout=5)
    return stat.present_bytes, stat.complete


async def test_put_then_get_by_receivers_only(rig: Any, stubs: dict[str, Any], error_of: Any) -> None:
    response = await _put(stubs["alpha"], _header(), _chunks(DATA))
    assert (response.present_bytes, response.complete) == (len(DATA), True)
    assert await _get(stubs["beta"]) == DATA
    assert await _get(stubs["beta"], 2 * CHUNK_BYTES) == DATA[2 * CHUNK_BYTES :]
    assert await _code(_get(stubs["gamma"]), error_of) == "PAYLOAD_MISSING"
    assert await _stat(stubs["gamma"]) == (0, False)
    # Whole already: taken again without its bytes.
    again = await _put(stubs["alpha"], _header(receivers=["gamma"]), [])
    assert again.complete
    assert await _get(stubs["gamma"]) == DATA


async def test_get_follows_an_upload_under_way(stubs: dict[str, Any]) -> None:
    waiting = stubs["beta"].GetPayload(payload_pb2.GetPayloadRequest(digest=DIGEST), timeout=10)
    first = asyncio.ensure_future(waiting.read())  # before the header is there
    await asyncio.sleep(0.05)
    put = stubs["alpha"].PutPayload(timeout=10)
    await put.write(_header())
    chunks = _chunks(DATA)
    for number, chunk in enumerate(chunks[:-1]):
        await put.write(payload_pb2.PutPayloadRequest(data=chunk))
        got = await asyncio.wait_for(first if number == 0 else waiting.read(), 5)
        assert got.data == chunk
    last = asyncio.ensure_future(waiting.read())
    await asyncio.sleep(0.05)
    assert not last.done()
    await put.write(payload_pb2.PutPayloadRequest(data=chunks[-1]))
    assert (await asyncio.wait_for(last, 5)).data == chunks[-1]
    await put.done_writing()
    assert (await put).complete


async def test_broken_upload_resumes_and_its_reader_never_notices(stubs: dict[str, Any]) -> None:
    reader = asyncio.ensure_future(_get(stubs["beta"]))
    put = stubs["alpha"].PutPayload(timeout=10)
    await put.write(_header())
    for chunk in _chunks(DATA)[:2]:
        await put.write(payload_pb2.PutPayloadRequest(data=chunk))
    while (await _stat(stubs["alpha"]))[0] < 2 * CHUNK_BYTES:
        await asyncio.sleep(0.01)
    put.cancel()
    assert await _stat(stubs["alpha"]) == (2 * CHUNK_BYTES, False)
    # One chunk too early on purpose: what is here already is skipped.
    response = await _put(stubs["alpha"], _header(offset_bytes=CHUNK_BYTES), _chunks(DATA, CHUNK_BYTES))
    assert response.complete
    assert await reader == DATA


async def test_upload_that_takes_over_wins(stubs: dict[str, Any], error_of: Any) -> None:
    put = stubs["alpha"].PutPayload(timeout=10)
    await put.write(_header())
    await put.write(payload_pb2.PutPayloadRequest(data=_chunks(DATA)[0]))
    assert (await _put(stubs["alpha"], _header(), _chunks(DATA))).complete
    await put.write(payload_pb2.PutPayloadRequest(data=_chunks(DATA)[1]))
    assert await _code(put, error_of) == "CONFLICT"
    assert await _get(stubs["beta"]) == DATA


async def test_truncated_upload_is_incomplete_and_its_reader_is_told(stubs: dict[str, Any], error_of: Any) -> None:
    response = await _put(stubs["alpha"], _header(), _chunks(DATA)[:2])
    assert (response.present_bytes, response.complete) == (2 * CHUNK_BYTES, False)
    assert await _code(_get(stubs["beta"]), error_of) == "PAYLOAD_TRUNCATED"


async def test_wrong_digest_is_deleted_and_its_reader_is_told(
    rig: Any, stubs: dict[str, Any], error_of: Any, tmp_path: Any
) -> None:
    reader = asyncio.ensure_future(_code(_get(stubs["beta"]), error_of))
    async with asyncio.timeout(10):
        while not rig.spool._waiters:  # who comes later finds nothing
            await asyncio.sleep(0.01)
    other = bytes(len(DATA))
    assert await _code(_put(stubs["alpha"], _header(), _chunks(other)), error_of) == "PAYLOAD_DIGEST"
    assert await reader == "PAYLOAD_DIGEST"
    assert await _stat(stubs["alpha"]) == (0, False)
    assert list((tmp_path / "spool").iterdir()) == []
    assert (await _put(stubs["alpha"], _header(), _chunks(DATA))).complete


async def test_nobody_spoils_another_owners_payload(stubs: dict[str, Any], error_of: Any) -> None:
    await _put(stubs["gamma"], _header(), _chunks(bytes(len(DATA)))[:1])
    assert (await _put(stubs["alpha"], _header(), _chunks(DATA))).complete
    assert await _get(stubs["beta"]) == DATA


@pytest.mark.parametrize(
    ("header", "chunks", "code"),
    [
        ({}, [*_chunks(DATA), b"more"], "TOO_LARGE"),
        ({}, [DATA[: CHUNK_BYTES + 1]], "MALFORMED"),
        ({}, [DATA[:1000]], "MALFORMED"),
        ({"size_bytes": (64 << 20) + 1}, [], "TOO_LARGE"),
        ({"size_bytes": 0}, [], "TOO_LARGE"),
        ({"digest": "../../etc/passwd"}, [], "MALFORMED"),
        ({"digest": DIGEST.upper()}, [], "MALFORMED"),
        ({"receivers": []}, [], "MALFORMED"),
        ({"receivers": [f"org-{number}" for number in range(65)]}, [], "MALFORMED"),
        ({"receivers": ["../beta"]}, [], "MALFORMED"),
        ({"offset_bytes": CHUNK_BYTES}, [], "PAYLOAD_TRUNCATED"),
        ({"offset_bytes": 17}, [], "PAYLOAD_TRUNCATED"),
    ],
)
async def test_bad_uploads(
    stubs: dict[str, Any], error_of: Any, header: dict[str, Any], chunks: list[bytes], code: str
) -> None:
    assert await _code(_put(stubs["alpha"], _header(**header), chunks), error_of) == code


async def test_oversized_message_is_refused_by_the_transport(stubs: dict[str, Any], error_of: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _put(stubs["alpha"], _header(), [bytes(5 << 20)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_data_without_header_and_second_header(stubs: dict[str, Any], error_of: Any) -> None:
    piece = payload_pb2.PutPayloadRequest(data=b"x")
    assert await _code(_put(stubs["alpha"], piece, []), error_of) == "MALFORMED"

    async def twice() -> AsyncIterator[payload_pb2.PutPayloadRequest]:
        yield _header()
        yield _header()

    assert await _code(stubs["alpha"].PutPayload(twice(), timeout=5), error_of) == "MALFORMED"


async def test_other_size_under_the_same_digest(stubs: dict[str, Any], error_of: Any) -> None:
    await _put(stubs["alpha"], _header(), _chunks(DATA)[:1])
    assert await _code(_put(stubs["alpha"], _header(size_bytes=len(DATA) + 1), []), error_of) == "CONFLICT"


async def test_bad_offsets_of_downloads(stubs: dict[str, Any], error_of: Any) -> None:
    await _put(stubs["alpha"], _header(), _chunks(DATA))
    for offset in (1, CHUNK_BYTES - 1, 4 * CHUNK_BYTES):
        assert await _code(_get(stubs["beta"], offset), error_of) == "MALFORMED"


async def test_whole_payloads_survive_a_restart_partial_ones_do_not(
    rig: Any, stubs: dict[str, Any], tmp_path: Any
) -> None:
    await _put(stubs["alpha"], _header(), _chunks(DATA))
    part = DATA[: 2 * CHUNK_BYTES] + b"!"
    digest = hashlib.sha256(part).hexdigest()
    await _put(stubs["alpha"], _header(digest=digest, size_bytes=len(part)), _chunks(part)[:1])
    again = Spool(tmp_path / "spool", SpoolLimits())
    assert again.stat("beta", DIGEST) == (len(DATA), True)
    assert again.stat("alpha", digest) == (0, False)
    assert b"".join([chunk async for chunk in again.read("beta", DIGEST, 0)]) == DATA
    again.close()


class TestSmallSpool:
    @pytest.fixture
    def spool_limits(self) -> SpoolLimits:
        return SpoolLimits(
            payload_bytes=64 << 20,
            owner_bytes=2 * len(DATA),
            total_bytes=3 * len(DATA),
            wait_s=0.3,
            partial_s=0.0,
            fetched_large_s=0.0,
        )

    async def test_quota_counts_what_is_announced_and_frees_what_was_fetched(
        self, rig: Any, stubs: dict[str, Any], error_of: Any
    ) -> None:
        size = len(DATA)
        await _put(stubs["alpha"], _header(), _chunks(DATA))
        await _put(stubs["alpha"], _header(digest="1" * 64, size_bytes=size), [])
        third = _header(digest="2" * 64, size_bytes=size)
        assert await _code(_put(stubs["alpha"], third, []), error_of) == "SPOOL_FULL"
        assert await _get(stubs["beta"]) == DATA
        assert not (await _put(stubs["alpha"], third, [])).complete
        assert await _stat(stubs["alpha"]) == (0, False)
        # The other owner still has room: nobody fills the spool for all.
        assert (await _put(stubs["gamma"], _header(), _chunks(DATA))).complete

    async def test_sweep_drops_expired_uploads(self, rig: Any, stubs: dict[str, Any], tmp_path: Any) -> None:
        await _put(stubs["alpha"], _header(), _chunks(DATA)[:1])
        await asyncio.sleep(0.01)
        assert rig.spool.sweep() == len(DATA)
        await _put(stubs["alpha"], _header(), _chunks(DATA))
        await asyncio.sleep(0.01)
        assert rig.spool.sweep() == 0
        await _get(stubs["beta"])
        await asyncio.sleep(0.01)
        assert rig.spool.sweep() == len(DATA)
        assert list((tmp_path / "spool").iterdir()) == []
