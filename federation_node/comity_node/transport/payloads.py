"""Sealed payloads to and from the coordinator's spool: resumable both ways, never above one sealed chunk a message.

Rules:
1. Bytes are addressed by the SHA-256 of the ciphertext; sizes are checked against the reference before and while bytes
   come; the digest is checked by whoever opens the seal (`comity_crypto.sealing.Opener`), once.
2. A break resumes at the last whole chunk that the other side has; attempts and waits are bounded.
3. The same payload may be put again at any time: the spool answers without taking its bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

import grpc.aio

from comity.v1 import payload_pb2
from comity.wire import pieces
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity_crypto.keystore import KeyStore
from comity_node.transport.addresses import Addresses
from comity_node.transport.dial import Dialer, ask

CHUNK_BYTES = 512 * 1024
WAIT_S = 60.0
ATTEMPTS_MAX = 12
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 2.0
STALL_S = 60.0

# A retry heals these; anything else is a judgement.
_PASSING = frozenset(
    {ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.BUSY, ErrorCode.PAYLOAD_TRUNCATED, ErrorCode.INTERNAL}
)

Source = Path | bytes | memoryview


class Ref(Protocol):
    """The address of a payload: a `SealedRef`, or that of a ciphertext which is not sealed besides."""

    @property
    def digest(self) -> str:
        """Lower-case hexadecimal SHA-256 of all its bytes."""
        ...

    @property
    def size(self) -> int:
        """Its number of bytes."""
        ...


class Payloads:
    """Uploads and downloads over a connection of its own, so that bulk never stands before a message."""

    def __init__(self, address: str | Addresses, keystore: KeyStore) -> None:
        """`address` is the coordinator's host:port, or where the stream finds it."""
        self._dialer = Dialer(address, keystore)

    async def close(self) -> None:
        """End the connection."""
        await self._dialer.close()

    async def put(self, source: Source, ref: Ref, receivers: tuple[str, ...]) -> None:
        """Upload the ciphertext of `ref` for `receivers`; returns once the spool has verified the whole.

        Args:
            source: the sealed bytes, or the file that holds exactly them.
            ref: digest and size.
            receivers: organisations that may fetch it.

        Raises:
            ComityError: `PAYLOAD_TRUNCATED` if `source` is not `ref.size` long, `SPOOL_FULL`, `UNAVAILABLE` once
                `ATTEMPTS_MAX` attempts without progress are used up, or the spool's refusal.
        """
        _check_size(source, ref.size)
        attempts = 0
        offset, whole = await self._present(ref, 0)
        while True:
            try:
                before = offset
                response = await self._put_once(source, ref, receivers, offset, send_data=not whole)
                if response.complete:
                    return
                offset, whole = _resume_at(response.present_bytes, ref.size), False
                if offset <= before:
                    raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the spool took no bytes")
                attempts = 0
            except ComityError as error:
                attempts += 1
                if error.code not in _PASSING or attempts >= ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(_pause_s(attempts))
                offset, whole = await self._present(ref, offset)

    async def get(self, ref: Ref) -> AsyncIterator[bytes | memoryview]:
        """Yield the ciphertext of `ref` chunk by chunk, following an upload that is still under way.

        Every chunk but the last is `CHUNK_BYTES` long; together they are `ref.size`. The opener checks the digest.

        Raises:
            ComityError: `PAYLOAD_MISSING` after `WAIT_S` seconds without it, `PAYLOAD_TRUNCATED`, `MALFORMED`,
                `UNAVAILABLE`, or the spool's refusal.
        """
        offset, attempts, missing_until = 0, 0, time.monotonic() + WAIT_S
        while offset < ref.size:
            try:
                async for chunk in self._get_once(ref, offset):
                    offset += len(chunk)
                    attempts = 0
                    yield chunk
            except ComityError as error:
                attempts += 1
                if error.code is ErrorCode.PAYLOAD_MISSING:
                    if time.monotonic() >= missing_until:
                        raise
                elif error.code not in _PASSING or attempts >= ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(_pause_s(attempts))

    async def _put_once(
        self, source: Source, ref: Ref, receivers: tuple[str, ...], offset: int, *, send_data: bool
    ) -> payload_pb2.PutPayloadResponse:
        header = payload_pb2.PayloadHeader(
            digest=ref.digest, size_bytes=ref.size, receivers=receivers, offset_bytes=offset
        )
        call = self._dialer.channel().stream_unary(
            "/comity.v1.PayloadService/PutPayload",
            request_serializer=_serialise,
            response_deserializer=payload_pb2.PutPayloadResponse.FromString,
        )()
        try:
            async with asyncio.timeout(STALL_S) as stall:
                loop = asyncio.get_running_loop()
                await call.write(payload_pb2.PutPayloadRequest(header=header))
                for data in _chunks(source, offset) if send_data else ():
                    if call.done():
                        break  # the spool had the whole already, or refused; its answer says which
                    await call.write(data)
                    stall.reschedule(loop.time() + STALL_S)
                if not call.done():
                    await call.done_writing()
                return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            return await _answer(call)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the upload stalled") from error
        finally:
            call.cancel()

    async def _get_once(self, ref: Ref, offset: int) -> AsyncIterator[bytes | memoryview]:
        request = payload_pb2.GetPayloadRequest(digest=ref.digest, offset_bytes=offset)
        call = self._dialer.channel().unary_stream(
            "/comity.v1.PayloadService/GetPayload",
            request_serializer=payload_pb2.GetPayloadRequest.SerializeToString,
            response_deserializer=_piece,
        )(request)
        try:
            while offset < ref.size:
                async with asyncio.timeout(STALL_S + WAIT_S):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the download ended early", present_bytes=offset)
                assert isinstance(response, bytes | memoryview)
                piece = response
                if len(piece) != min(CHUNK_BYTES, ref.size - offset):
                    raise ComityError(ErrorCode.MALFORMED, "a chunk of another size than announced")
                offset += len(piece)
                yield piece
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the download stalled") from error
        finally:
            call.cancel()

    async def _present(self, ref: Ref, otherwise: int) -> tuple[int, bool]:
        """Ask how much the spool has: (where to go on, whether it is whole); `otherwise` if it cannot be asked now.

        Asked before the first byte, because a call that ends while bytes are under way loses its answer.
        """
        request = payload_pb2.StatPayloadRequest(digest=ref.digest)
        try:
            stat = await ask(self._dialer.payloads().StatPayload, request)
        except ComityError as error:
            if error.code in _PASSING:
                return otherwise, False
            raise
        return (0, True) if stat.complete else (_resume_at(stat.present_bytes, ref.size), False)


async def _answer(
    call: grpc.aio.StreamUnaryCall[payload_pb2.PutPayloadRequest | bytes, payload_pb2.PutPayloadResponse],
) -> payload_pb2.PutPayloadResponse:
    """Return what the spool answered before the last byte was written. Raises its refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error


def _serialise(request: payload_pb2.PutPayloadRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _piece(message: bytes) -> bytes | memoryview:
    piece = pieces.read(message, pieces.DOWNLOAD_FIELD)
    return payload_pb2.GetPayloadResponse.FromString(message).data if piece is None else piece


def _chunks(source: Source, offset: int) -> Iterator[bytes]:
    """Yield the messages of an upload from `offset` on."""
    if isinstance(source, Path):
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            while chunk := os.pread(descriptor, CHUNK_BYTES, offset):
                offset += len(chunk)
                yield pieces.write(chunk, pieces.UPLOAD_FIELD)
        finally:
            # Sent, it is read again only if something breaks: the memory that caches it serves better elsewhere.
            _uncache(descriptor)
            os.close(descriptor)
        return
    view = memoryview(source)
    for start in range(offset, len(view), CHUNK_BYTES):
        yield pieces.write(view[start : start + CHUNK_BYTES], pieces.UPLOAD_FIELD)


def _uncache(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _check_size(source: Source, size_bytes: int) -> None:
    found = source.stat().st_size if isinstance(source, Path) else len(memoryview(source))
    if found != size_bytes:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the sealed bytes are not of the announced size")


def _resume_at(present_bytes: int, size_bytes: int) -> int:
    """Return the offset of the first chunk that is missing, whatever the other side claims."""
    present = min(present_bytes, size_bytes - 1)
    return max(0, present - present % CHUNK_BYTES)


def _pause_s(attempts: int) -> float:
    return min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(attempts, 10))
