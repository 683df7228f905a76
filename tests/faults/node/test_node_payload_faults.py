"""Payloads through breaks: resumed at whole chunks, refused when sizes lie, never longer than announced."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from comity.v1 import payload_pb2, payload_pb2_grpc
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import abort
from comity_crypto import x509
from comity_crypto.keystore import FileKeyStore
from comity_crypto.sealing import BOX_BYTES, SealedRef
from comity_node.transport import payloads as payloads_module
from comity_node.transport.payloads import CHUNK_BYTES, Payloads

DATA = bytes(range(256)) * 2_048 * 5 + b"twenty bytes of tail"  # five chunks and a bit


@dataclass
class FakeSpool(payload_pb2_grpc.PayloadServiceServicer):
    """Holds one payload; breaks where told."""

    held: bytearray = field(default_factory=bytearray)
    break_put_after: list[int] = field(default_factory=list)
    break_get_after: list[int] = field(default_factory=list)
    missing: int = 0
    chunk_bytes: int = CHUNK_BYTES
    offsets: list[int] = field(default_factory=list)
    data_messages: int = 0
    whole: bool = False
    size: int = len(DATA)

    async def PutPayload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        header = (await anext(request_iterator)).header
        self.offsets.append(header.offset_bytes)
        if self.whole:
            return payload_pb2.PutPayloadResponse(present_bytes=header.size_bytes, complete=True)
        del self.held[header.offset_bytes :]
        limit = self.break_put_after.pop(0) if self.break_put_after else None
        async for request in request_iterator:
            assert len(request.data) <= CHUNK_BYTES
            self.data_messages += 1
            self.held += request.data
            if limit is not None and len(self.held) >= limit:
                await abort(context, ComityError(ErrorCode.UNAVAILABLE))
        return payload_pb2.PutPayloadResponse(present_bytes=len(self.held), complete=len(self.held) == self.size)

    async def StatPayload(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.whole:
            return payload_pb2.StatPayloadResponse(present_bytes=len(DATA), complete=True)
        return payload_pb2.StatPayloadResponse(present_bytes=len(self.held), complete=len(self.held) == self.size)

    async def GetPayload(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.offsets.append(request.offset_bytes)
        if self.missing:
            self.missing -= 1
            await abort(context, ComityError(ErrorCode.PAYLOAD_MISSING))
        limit = self.break_get_after.pop(0) if self.break_get_after else None
        for start in range(request.offset_bytes, len(DATA), self.chunk_bytes):
            if limit is not None and start >= limit:
                await abort(context, ComityError(ErrorCode.UNAVAILABLE))
            yield payload_pb2.GetPayloadResponse(data=DATA[start : start + self.chunk_bytes])


@pytest.fixture
async def spool(tmp_path, monkeypatch):
    monkeypatch.setattr(payloads_module, "PAUSE_FIRST_S", 0.001)
    made = FakeSpool()
    authority = x509.create_authority("demo")
    key, certificate = x509.issue_server(*authority, "demo", ["localhost"], ["127.0.0.1"])
    server = grpc.aio.server()
    payload_pb2_grpc.add_PayloadServiceServicer_to_server(made, server)
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority[1], require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    store = FileKeyStore(tmp_path / "keys")
    node_key, csr = x509.make_csr("hospital-a")
    store.store_tls(node_key, x509.issue_node(*authority, csr, "demo", "hospital-a"), authority[1])
    client = Payloads(f"127.0.0.1:{port}", store)
    yield made, client
    await client.close()
    await server.stop(0)


def ref(size: int = len(DATA)) -> SealedRef:
    box = base64.b64encode(bytes(BOX_BYTES)).decode()
    return SealedRef(hashlib.sha256(DATA).hexdigest(), size, {"hospital-b": box})


@pytest.mark.parametrize("as_file", [False, True])
async def test_an_upload_resumes_where_it_broke(spool, tmp_path, as_file) -> None:
    made, client = spool
    made.break_put_after = [2 * CHUNK_BYTES, 4 * CHUNK_BYTES]
    source: Any = DATA
    if as_file:
        source = tmp_path / "sealed"
        source.write_bytes(DATA)
    await client.put(source, ref(), ("hospital-b",))
    assert bytes(made.held) == DATA
    assert made.offsets[0] == 0
    assert all(offset % CHUNK_BYTES == 0 for offset in made.offsets)
    assert made.offsets[-1] > 0


async def test_a_payload_that_is_there_is_not_sent_again(spool) -> None:
    made, client = spool
    made.whole = True
    await client.put(DATA, ref(), ("hospital-b",))
    assert made.offsets == [0]
    assert made.data_messages == 0


async def test_a_spool_that_never_completes_is_given_up(spool) -> None:
    made, client = spool
    made.size = len(DATA) + 1
    with pytest.raises(ComityError) as refused:
        await client.put(DATA, ref(), ("hospital-b",))
    assert refused.value.code is ErrorCode.PAYLOAD_TRUNCATED
    assert len(made.offsets) <= payloads_module.ATTEMPTS_MAX + 1


async def test_an_upload_of_another_size_is_refused_before_it_starts(spool) -> None:
    made, client = spool
    with pytest.raises(ComityError) as refused:
        await client.put(DATA[:-1], ref(), ("hospital-b",))
    assert refused.value.code is ErrorCode.PAYLOAD_TRUNCATED
    assert made.offsets == []


async def test_a_download_waits_for_its_upload_and_resumes(spool) -> None:
    made, client = spool
    made.missing = 3
    made.break_get_after = [2 * CHUNK_BYTES, 4 * CHUNK_BYTES]
    got = b"".join([chunk async for chunk in client.get(ref())])
    assert got == DATA
    assert made.offsets == [0, 0, 0, 0, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES]


async def test_a_missing_payload_ends_the_wait(spool, monkeypatch) -> None:
    made, client = spool
    monkeypatch.setattr(payloads_module, "WAIT_S", 0.05)
    made.missing = 10_000
    with pytest.raises(ComityError) as refused:
        [chunk async for chunk in client.get(ref())]
    assert refused.value.code is ErrorCode.PAYLOAD_MISSING


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES + 1, CHUNK_BYTES - 1, 1])
async def test_chunks_of_another_size_are_refused(spool, chunk_bytes) -> None:
    made, client = spool
    made.chunk_bytes = chunk_bytes
    with pytest.raises(ComityError) as refused:
        [chunk async for chunk in client.get(ref())]
    assert refused.value.code is ErrorCode.MALFORMED


async def test_more_bytes_than_announced_are_never_yielded(spool) -> None:
    _made, client = spool
    got: list[bytes] = []

    async def collect() -> None:
        async for chunk in client.get(ref(CHUNK_BYTES + 40)):
            got.append(chunk)

    with pytest.raises(ComityError):
        await collect()
    assert sum(map(len, got)) <= CHUNK_BYTES


async def test_a_download_that_ends_early_is_retried_then_refused(spool, monkeypatch) -> None:
    made, client = spool
    with pytest.raises(ComityError) as refused:
        [chunk async for chunk in client.get(ref(len(DATA) + CHUNK_BYTES * 2))]
    assert refused.value.code in (ErrorCode.PAYLOAD_TRUNCATED, ErrorCode.MALFORMED)
    assert len(made.offsets) <= payloads_module.ATTEMPTS_MAX + 1
