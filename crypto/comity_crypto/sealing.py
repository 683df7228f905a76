"""Sealed payloads: from one organisation to named others, past a relay that can check digests but read nothing.

Form (architecture.md section 4, "End to end"):
* A fresh 256-bit content key for each payload, sealed to every receiver by HPKE; the context is bound to each box.
* Plain stream = lengths (u64, big-endian: 16 bits of the header's, 48 of the data's), a header of at most 4 KiB for
  what a sender says besides (its newest checkpoint), the data, zero padding up to a Padme size that tells little.
* Chunks of `PLAIN_CHUNK_BYTES`, each AES-256-GCM: nonce = chunk number (96 bit, big-endian); associated data =
  SHA-256 of the context, then 0x01 for the last chunk and 0x00 for others. One wire chunk carries one sealed chunk.
* Address = SHA-256 of all sealed bytes; the sender signs it in a statement.

Rules:
1. Sizes are checked before the first chunk: number of chunks, the bound `plain_size_max`, the Padme form.
2. No byte leaves `Opener` before its tag was checked. A receiver knows the content key too, so bytes are the *sender's*
   only once `finish` has compared the signed digest: nobody may act on them earlier. `open_to_fd` empties the file on
   failure.
3. A content key seals one payload; nonces cannot repeat, because chunk numbers only grow.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import fields, from_base64, to_base64
from comity_crypto.keys import BOX_OVERHEAD_BYTES, seal_box
from comity_crypto.padding import LENGTH_BYTES, plain_size_of
from comity_crypto.padding import PLAIN_CHUNK_BYTES as PLAIN_CHUNK_BYTES
from comity_crypto.padding import SEALED_CHUNK_BYTES as SEALED_CHUNK_BYTES
from comity_crypto.padding import TAG_BYTES as TAG_BYTES
from comity_crypto.padding import padme as padme
from comity_crypto.padding import sealed_size as sealed_size

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER_BYTES_MAX = 4_096
_DATA_BITS = 48
CONTENT_KEY_BYTES = 32
BOX_BYTES = CONTENT_KEY_BYTES + BOX_OVERHEAD_BYTES
RECEIVERS_MAX = 256
# The most that anybody may claim; callers pass the (much smaller) bound of their message.
PLAIN_SIZE_MAX = 1 << 36
SEALED_SIZE_MAX = PLAIN_SIZE_MAX + (PLAIN_SIZE_MAX >> 3)

_INFO = b"comity/seal/v1"
_ZEROS = bytes(PLAIN_CHUNK_BYTES)


@dataclass(frozen=True)
class SealedRef:
    """The address of a sealed payload, with the content key's box for each receiver.

    Args:
        digest: lower-case hexadecimal SHA-256 of all sealed bytes.
        size: number of sealed bytes.
        boxes: receiving organisation -> base64 of its HPKE box (1,168 bytes).

    Raises:
        ComityError: `MALFORMED` if a field has not its form.
    """

    digest: str
    size: int
    boxes: dict[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.digest, str):
            raise ComityError(ErrorCode.MALFORMED, "a digest is text")
        ids.sha256_hex(self.digest)
        if not isinstance(self.size, int) or isinstance(self.size, bool):
            raise ComityError(ErrorCode.MALFORMED, "a sealed size is a number")
        if not LENGTH_BYTES + TAG_BYTES <= self.size <= SEALED_SIZE_MAX:
            raise ComityError(ErrorCode.MALFORMED, "no sealed payload has this size", size_bytes=self.size)
        plain_size_of(self.size)
        if not isinstance(self.boxes, dict) or not 1 <= len(self.boxes) <= RECEIVERS_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"a payload has 1 to {RECEIVERS_MAX} receivers")
        for org, box in self.boxes.items():
            if not isinstance(org, str):
                raise ComityError(ErrorCode.MALFORMED, "a receiver is an organisation id")
            ids.org_id(org)
            from_base64(box, what="a key box", size_bytes=BOX_BYTES)

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {"digest": self.digest, "size": self.size, "boxes": dict(self.boxes)}

    @classmethod
    def from_json(cls, value: Any) -> SealedRef:
        """Read the document form. Raises `MALFORMED`."""
        found = fields(value, frozenset({"digest", "size", "boxes"}), what="a sealed reference")
        return cls(digest=found["digest"], size=found["size"], boxes=found["boxes"])


def seal_to_file(
    parts: Sequence[Buffer],
    path: Path,
    receivers: Mapping[str, bytes],
    context: bytes,
    fsync: bool,
    header: bytes = b"",
) -> SealedRef:
    """Seal `parts`, one after the other, into the new file `path` (0600), in one pass and bounded memory.

    The file appears whole or not at all.

    Args:
        parts: C-contiguous buffers.
        path: a name in an existing folder; a file of that name is replaced.
        receivers: organisation -> `MemberKeys.sealing`.
        context: what the payload belongs to; the receiver must give the same bytes.
        fsync: whether file and folder are on disk when this returns.
        header: what the sender says besides, at most 4 KiB.

    Raises:
        ComityError: `MALFORMED` for a bad receiver; `TOO_LARGE`; `SPOOL_FULL` if the disk is full.
    """
    key, views, size = _begin(parts, header)
    boxes = _boxes(key, receivers, context)
    digest = hashlib.sha256()
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            buffer = memoryview(bytearray(SEALED_CHUNK_BYTES))
            for sealed in _sealed(key, views, size, header, context, buffer):
                digest.update(sealed)
                write_all(fd, sealed)
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ComityError(ErrorCode.SPOOL_FULL) from error
        raise
    finally:
        beside.unlink(missing_ok=True)
    if fsync:
        _sync_folder(path.parent)
    return SealedRef(digest=digest.hexdigest(), size=sealed_size(size, len(header)), boxes=boxes)


def seal_to_bytes(
    parts: Sequence[Buffer], receivers: Mapping[str, bytes], context: bytes, header: bytes = b""
) -> tuple[SealedRef, bytes]:
    """Seal `parts` in memory; arguments and refusals as in `seal_to_file`."""
    key, views, size = _begin(parts, header)
    boxes = _boxes(key, receivers, context)
    buffer = memoryview(bytearray(SEALED_CHUNK_BYTES))
    data = b"".join(bytes(sealed) for sealed in _sealed(key, views, size, header, context, buffer))
    return SealedRef(digest=hashlib.sha256(data).hexdigest(), size=len(data), boxes=boxes), data


class BoxOpener(Protocol):
    """What opens the box of a content key: an organisation's keys, or a key of one session."""

    def open_box(self, box: bytes, info: bytes, aad: bytes) -> bytes:
        """Open a box that `seal_box` made. Raises `SEAL_BROKEN`."""
        ...


class Opener:
    """Open one sealed payload, chunk by chunk. Not thread-safe; after a refusal it refuses everything.

    Args:
        keys: the receiver's private keys, or the one that it announced for this payload.
        org: the receiver's id, as in `ref.boxes`.
        ref: where the sender's signed statement says the payload is.
        context: as given by the sender.
        plain_size_max: the most bytes of data that the caller is ready to take.

    Raises:
        ComityError: `TOO_LARGE`; `SEAL_BROKEN` if the payload is not sealed to this organisation in this context.
    """

    def __init__(
        self, keys: BoxOpener, org: str, ref: SealedRef, context: bytes, *, plain_size_max: int = PLAIN_SIZE_MAX
    ) -> None:
        padded = plain_size_of(ref.size)
        if padded > padme(LENGTH_BYTES + HEADER_BYTES_MAX + plain_size_max):
            raise ComityError(ErrorCode.TOO_LARGE, "a sealed payload is too large", limit_bytes=plain_size_max)
        box = ref.boxes.get(org)
        if box is None:
            raise ComityError(ErrorCode.SEAL_BROKEN, "the payload is not sealed to this organisation")
        key = keys.open_box(from_base64(box, what="a key box", size_bytes=BOX_BYTES), _INFO, context)
        if len(key) != CONTENT_KEY_BYTES:
            raise ComityError(ErrorCode.SEAL_BROKEN, "the key box holds something else")
        self._cipher = AESGCM(key)
        self._aad = hashlib.sha256(context).digest()
        self._ref = ref
        self._padded = padded
        self._limit = plain_size_max
        self._hash = hashlib.sha256()
        self._number = 0
        self._fed = 0
        self._size = -1  # true length; known after the first chunk
        self._head = LENGTH_BYTES  # where the data begins
        self.header = b""
        self._broken = False

    @property
    def plain_size(self) -> int | None:
        """The data's true length in bytes, once the first chunk was fed."""
        return None if self._size < 0 else self._size

    def feed(self, chunk: bytes | memoryview) -> memoryview | None:
        """Take the next sealed chunk, whole, and return its part of the data, or None if it holds only padding.

        Raises:
            ComityError: `PAYLOAD_TRUNCATED` if the chunk has not the size that is due; `SEAL_BROKEN` if it is not the
                chunk that is due, or its padding or length is not canonical; `TOO_LARGE`.
        """
        due = min(SEALED_CHUNK_BYTES, self._ref.size - self._fed)
        if self._broken or due == 0 or len(chunk) != due:
            self._broken = True
            raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "a chunk has not the size that is due", due_bytes=due)
        try:
            return self._open(chunk, last=self._fed + due == self._ref.size)
        except (ComityError, InvalidTag) as error:
            self._broken = True
            if isinstance(error, ComityError):
                raise
            raise ComityError(ErrorCode.SEAL_BROKEN, "a chunk does not open", chunk=self._number) from error

    def finish(self) -> int:
        """Return the data's true length, after everything came and the digest is the signed one.

        Raises:
            ComityError: `PAYLOAD_TRUNCATED` or `PAYLOAD_DIGEST`.
        """
        if self._broken or self._fed != self._ref.size:
            self._broken = True
            raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, missing_bytes=self._ref.size - self._fed)
        if not hmac.compare_digest(self._hash.hexdigest(), self._ref.digest):
            self._broken = True
            raise ComityError(ErrorCode.PAYLOAD_DIGEST)
        return self._size

    def _open(self, chunk: bytes | memoryview, *, last: bool) -> memoryview | None:
        aad = self._aad + (b"\x01" if last else b"\x00")
        plain = self._cipher.decrypt(self._number.to_bytes(12, "big"), chunk, aad)
        self._hash.update(chunk)
        start, offset = self._number * PLAIN_CHUNK_BYTES, 0
        if self._number == 0:
            lengths = int.from_bytes(plain[:LENGTH_BYTES], "big")
            self._size, self._head = lengths & ((1 << _DATA_BITS) - 1), LENGTH_BYTES + (lengths >> _DATA_BITS)
            if self._head > LENGTH_BYTES + HEADER_BYTES_MAX or padme(self._head + self._size) != self._padded:
                raise ComityError(ErrorCode.SEAL_BROKEN, "the true length does not fit the sealed size")
            if self._size > self._limit:
                raise ComityError(ErrorCode.TOO_LARGE, "a sealed payload is too large", limit_bytes=self._limit)
            offset = self._head
            self.header = bytes(plain[LENGTH_BYTES:offset])
        end = min(len(plain), max(offset, self._head + self._size - start))
        if end < len(plain) and plain[end:] != bytes(len(plain) - end):
            raise ComityError(ErrorCode.SEAL_BROKEN, "the padding is not zero")
        self._number += 1
        self._fed += len(chunk)
        return memoryview(plain)[offset:end] if end > offset else None


def open_to_fd(opener: Opener, chunks: Iterable[bytes], fd: int) -> int:
    """Write the data of all `chunks` to `fd` (a file or memfd, from its position on) and return its length in bytes.

    On any failure the file is emptied. Raises as `Opener.feed` and `Opener.finish` do.
    """
    done = False
    try:
        for chunk in chunks:
            part = opener.feed(chunk)
            if part is not None:
                write_all(fd, part)
        size = opener.finish()
        done = True
    finally:
        if not done:
            os.ftruncate(fd, 0)
    return size


def open_bytes(
    keys: BoxOpener,
    org: str,
    ref: SealedRef,
    context: bytes,
    data: bytes | memoryview,
    *,
    plain_size_max: int = PLAIN_SIZE_MAX,
    heard: Callable[[bytes], None] | None = None,
) -> bytes:
    """Open a whole payload in memory and tell `heard` its header; arguments and refusals as in `Opener`."""
    opener = Opener(keys, org, ref, context, plain_size_max=plain_size_max)
    view = memoryview(data)
    if len(view) != ref.size:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the payload has another size", size_bytes=len(view))
    parts = [opener.feed(view[at : at + SEALED_CHUNK_BYTES]) for at in range(0, len(view), SEALED_CHUNK_BYTES)]
    opener.finish()
    if heard is not None:
        heard(opener.header)
    return b"".join(part for part in parts if part is not None)


def read_sealed(path: Path) -> Iterator[bytes]:
    """Yield the sealed chunks of a file, as the wire carries them."""
    with path.open("rb", buffering=0) as file:
        for _ in range(SEALED_SIZE_MAX // SEALED_CHUNK_BYTES + 1):
            chunk = file.read(SEALED_CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data` to a blocking descriptor."""
    view = memoryview(data).cast("B")
    while view:  # bounded: each call takes at least one byte or raises
        view = view[os.write(fd, view) :]


def _begin(parts: Sequence[Buffer], header: bytes) -> tuple[bytes, list[memoryview], int]:
    """Return a fresh content key, the parts as flat views, and their total size in bytes."""
    views = [memoryview(part) for part in parts]
    flat = [view.cast("B") for view in views if view.nbytes]
    size = sum(view.nbytes for view in flat)
    if len(header) > HEADER_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a payload's header is too large", limit_bytes=HEADER_BYTES_MAX)
    if size > PLAIN_SIZE_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a payload is too large", size_bytes=size, limit_bytes=PLAIN_SIZE_MAX)
    return secrets.token_bytes(CONTENT_KEY_BYTES), flat, size


def _boxes(key: bytes, receivers: Mapping[str, bytes], context: bytes) -> dict[str, str]:
    if not 1 <= len(receivers) <= RECEIVERS_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"a payload has 1 to {RECEIVERS_MAX} receivers")
    return {ids.org_id(org): to_base64(seal_box(key, receivers[org], _INFO, context)) for org in sorted(receivers)}


def _sealed(
    key: bytes, views: Sequence[memoryview], size: int, header: bytes, context: bytes, buffer: memoryview
) -> Iterator[memoryview]:
    """Yield the sealed chunks, each a view of `buffer` that holds until the next one."""
    cipher, digest = AESGCM(key), hashlib.sha256(context).digest()
    count = -(-padme(LENGTH_BYTES + len(header) + size) // PLAIN_CHUNK_BYTES)
    for number, plain in enumerate(_plain_chunks(views, size, header)):
        aad = digest + (b"\x01" if number == count - 1 else b"\x00")
        written = cipher.encrypt_into(number.to_bytes(12, "big"), plain, aad, buffer[: len(plain) + TAG_BYTES])
        yield buffer[:written]


def _plain_chunks(views: Sequence[memoryview], size: int, header: bytes) -> Iterator[memoryview]:
    """Cut lengths, header, data and padding into chunks; only a chunk that crosses a border is copied."""
    scratch = memoryview(bytearray(PLAIN_CHUNK_BYTES))
    held = 0
    for segment in _segments(views, size, header):
        at = 0
        while at < len(segment):
            take = min(PLAIN_CHUNK_BYTES - held, len(segment) - at)
            if take == PLAIN_CHUNK_BYTES:
                yield segment[at : at + take]
            else:
                scratch[held : held + take] = segment[at : at + take]
                held += take
                if held == PLAIN_CHUNK_BYTES:
                    yield scratch
                    held = 0
            at += take
    if held:
        yield scratch[:held]


def _segments(views: Sequence[memoryview], size: int, header: bytes) -> Iterator[memoryview]:
    yield memoryview((len(header) << _DATA_BITS | size).to_bytes(LENGTH_BYTES, "big"))
    if header:
        yield memoryview(header)
    yield from views
    whole = LENGTH_BYTES + len(header) + size
    rest = padme(whole) - whole
    while rest > 0:
        yield memoryview(_ZEROS)[:rest]
        rest -= len(_ZEROS)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
