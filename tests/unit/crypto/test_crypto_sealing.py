"""Sealed payloads: form on the wire, files, refusals."""

import dataclasses
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import sealing
from comity_crypto.encoding import to_base64
from comity_crypto.keys import seal_box
from comity_crypto.sealing import (
    PLAIN_CHUNK_BYTES,
    SEALED_CHUNK_BYTES,
    Opener,
    SealedRef,
    open_bytes,
    open_to_fd,
    padme,
    read_sealed,
    seal_to_bytes,
    seal_to_file,
    sealed_size,
)

CONTEXT = b"agreement/run/step/1"


@pytest.fixture
def to(alice, bob):
    return {"alice": alice.public.sealing, "bob": bob.public.sealing}


def _code(call) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize(
    "size",
    [0, 1, 7, 8, 1000, PLAIN_CHUNK_BYTES - 9, PLAIN_CHUNK_BYTES - 8, PLAIN_CHUNK_BYTES - 7, 3 * PLAIN_CHUNK_BYTES + 5],
)
def test_every_receiver_opens_what_was_sealed(alice, bob, to, size):
    data = os.urandom(size)
    ref, sealed = seal_to_bytes([data[: size // 3], memoryview(data)[size // 3 :], b""], to, CONTEXT)
    assert ref.size == len(sealed) == sealed_size(size)
    assert ref.digest == hashlib.sha256(sealed).hexdigest()
    assert open_bytes(alice, "alice", ref, CONTEXT, sealed) == data
    assert open_bytes(bob, "bob", SealedRef.from_json(ref.to_json()), CONTEXT, sealed) == data


def test_the_wire_form_is_the_documented_one(alice, to):
    data = os.urandom(2 * PLAIN_CHUNK_BYTES)
    ref, sealed = seal_to_bytes([data], to, CONTEXT)
    box = __import__("base64").b64decode(ref.boxes["alice"])
    cipher = AESGCM(alice.open_box(box, b"comity/seal/v1", CONTEXT))
    chunks = [sealed[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(sealed), SEALED_CHUNK_BYTES)]
    assert len(chunks) == 3
    plain = b"".join(
        cipher.decrypt(
            number.to_bytes(12, "big"), chunk, hashlib.sha256(CONTEXT).digest() + (b"\x01" if number == 2 else b"\x00")
        )
        for number, chunk in enumerate(chunks)
    )
    assert plain[:8] == len(data).to_bytes(8, "big")
    assert plain[8 : 8 + len(data)] == data
    assert len(plain) == padme(8 + len(data))
    assert not any(plain[8 + len(data) :])


def test_sealing_twice_gives_other_bytes(to):
    assert seal_to_bytes([b"x"], to, CONTEXT)[1] != seal_to_bytes([b"x"], to, CONTEXT)[1]


def test_padme_sizes():
    # Values by hand from the paper's rule: E = floor(log2 L), S = floor(log2 E) + 1, the last E - S bits are zero.
    assert [padme(size) for size in (0, 1, 2, 8, 9, 10, 15, 100, 1000, 1_000_001)] == [
        0, 1, 2, 8, 10, 10, 16, 104, 1024, 1_015_808,
    ]  # fmt: skip


def test_files_are_private_whole_and_the_same_form(alice, to, tmp_path):
    data = os.urandom(2_000_000)
    path = tmp_path / "payload"
    former = os.umask(0)
    try:
        ref = seal_to_file([data], path, to, CONTEXT, fsync=True)
    finally:
        os.umask(former)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["payload"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == ref.digest
    assert path.stat().st_size == ref.size
    fd = os.memfd_create("plain")
    try:
        assert open_to_fd(Opener(alice, "alice", ref, CONTEXT), read_sealed(path), fd) == len(data)
        assert os.pread(fd, len(data) + 1, 0) == data
    finally:
        os.close(fd)


def test_a_failed_seal_leaves_nothing_behind(to, tmp_path, monkeypatch):
    def full(_fd, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealing.os, "write", full)
    assert _code(lambda: seal_to_file([b"x"], tmp_path / "p", to, CONTEXT, fsync=False)) is ErrorCode.SPOOL_FULL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [0, SEALED_CHUNK_BYTES - 1, SEALED_CHUNK_BYTES, -1])
def test_a_flipped_bit_is_found_and_the_file_emptied(alice, to, where):
    ref, sealed = seal_to_bytes([os.urandom(PLAIN_CHUNK_BYTES + 100)], to, CONTEXT)
    bad = bytearray(sealed)
    bad[where] ^= 1
    chunks = [bytes(bad[at : at + SEALED_CHUNK_BYTES]) for at in range(0, len(bad), SEALED_CHUNK_BYTES)]
    fd = os.memfd_create("plain")
    try:
        opener = Opener(alice, "alice", ref, CONTEXT)
        assert _code(lambda: open_to_fd(opener, chunks, fd)) is ErrorCode.SEAL_BROKEN
        assert os.fstat(fd).st_size == 0
        assert _code(opener.finish) is ErrorCode.PAYLOAD_TRUNCATED
        assert _code(lambda: opener.feed(chunks[0])) is ErrorCode.PAYLOAD_TRUNCATED
    finally:
        os.close(fd)


def test_order_repetition_omission_and_excess_are_refused(alice, to):
    ref, sealed = seal_to_bytes([os.urandom(3 * PLAIN_CHUNK_BYTES)], to, CONTEXT)
    chunks = [sealed[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(sealed), SEALED_CHUNK_BYTES)]

    def run(order):
        opener = Opener(alice, "alice", ref, CONTEXT)
        for chunk in order:
            opener.feed(chunk)
        return opener.finish()

    assert run(chunks) == 3 * PLAIN_CHUNK_BYTES
    a, b, c, d = chunks
    assert _code(lambda: run([b, a, c, d])) is ErrorCode.SEAL_BROKEN
    assert _code(lambda: run([a, a, c, d])) is ErrorCode.SEAL_BROKEN
    assert _code(lambda: run([a, b, d])) is ErrorCode.PAYLOAD_TRUNCATED
    assert _code(lambda: run([a, b, c])) is ErrorCode.PAYLOAD_TRUNCATED
    assert _code(lambda: run([a, b, c, d, d])) is ErrorCode.PAYLOAD_TRUNCATED
    assert _code(lambda: run([])) is ErrorCode.PAYLOAD_TRUNCATED
    assert _code(lambda: run([a[:-1]])) is ErrorCode.PAYLOAD_TRUNCATED
    assert _code(lambda: open_bytes(alice, "alice", ref, CONTEXT, sealed[:-1])) is ErrorCode.PAYLOAD_TRUNCATED


def test_a_shortened_payload_with_a_matching_reference_is_refused(alice, to):
    """The relay drops the tail and forges size and digest: the last flag and the true length still tell."""
    ref, sealed = seal_to_bytes([os.urandom(2 * PLAIN_CHUNK_BYTES)], to, CONTEXT)
    short = sealed[:SEALED_CHUNK_BYTES]
    forged = SealedRef(digest=hashlib.sha256(short).hexdigest(), size=len(short), boxes=ref.boxes)
    assert _code(lambda: open_bytes(alice, "alice", forged, CONTEXT, short)) is ErrorCode.SEAL_BROKEN


def test_the_signed_digest_decides_even_if_all_tags_hold(alice, to):
    """Another receiver knows the content key; what it re-seals passes every tag, but not the digest."""
    ref, sealed = seal_to_bytes([b"x" * 500], to, CONTEXT)
    signed = dataclasses.replace(ref, digest="0" * 64)
    opener = Opener(alice, "alice", signed, CONTEXT)
    opener.feed(sealed)
    assert _code(opener.finish) is ErrorCode.PAYLOAD_DIGEST


def test_other_context_receiver_or_bound_are_refused(alice, bob, to):
    ref, _ = seal_to_bytes([b"x" * 9000], to, CONTEXT)
    assert _code(lambda: Opener(alice, "alice", ref, b"other")) is ErrorCode.SEAL_BROKEN
    assert _code(lambda: Opener(bob, "alice", ref, CONTEXT)) is ErrorCode.SEAL_BROKEN
    assert _code(lambda: Opener(alice, "carol", ref, CONTEXT)) is ErrorCode.SEAL_BROKEN
    assert _code(lambda: Opener(alice, "alice", ref, CONTEXT, plain_size_max=1000)) is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("size", [0, 5, PLAIN_CHUNK_BYTES - 40, PLAIN_CHUNK_BYTES + 1])
def test_a_header_travels_inside_the_seal_and_is_no_data(alice, to, size):
    data, header = os.urandom(size), b"the newest checkpoint"
    ref, sealed = seal_to_bytes([data], to, CONTEXT, header)
    heard = []
    assert open_bytes(alice, "alice", ref, CONTEXT, sealed, plain_size_max=size, heard=heard.append) == data
    assert heard == [header]
    assert len(sealed) == ref.size == sealed_size(size, len(header))
    assert header not in sealed
    assert _code(lambda: seal_to_bytes([data], to, CONTEXT, bytes(4097))) is ErrorCode.TOO_LARGE


def test_the_bound_is_exact(alice, to):
    ref, sealed = seal_to_bytes([b"x" * 5000], to, CONTEXT)
    assert len(open_bytes(alice, "alice", ref, CONTEXT, sealed, plain_size_max=5000)) == 5000
    # 4990 and 5000 pad to the same size, so only the first chunk can tell.
    assert _code(lambda: open_bytes(alice, "alice", ref, CONTEXT, sealed, plain_size_max=4990)) is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(("length", "padding"), [(10_000, bytes(504)), (499, bytes(504)), (500, b"\x01" + bytes(503))])
def test_a_hostile_sender_cannot_lie_about_length_or_padding(alice, length, padding):
    key = os.urandom(32)
    body = length.to_bytes(8, "big") + b"d" * 500 + padding[: padme(508) - 508]
    aad = hashlib.sha256(CONTEXT).digest() + b"\x01"
    sealed = AESGCM(key).encrypt(bytes(12), body, aad)
    box = to_base64(seal_box(key, alice.public.sealing, b"comity/seal/v1", CONTEXT))
    ref = SealedRef(digest=hashlib.sha256(sealed).hexdigest(), size=len(sealed), boxes={"alice": box})
    assert _code(lambda: open_bytes(alice, "alice", ref, CONTEXT, sealed)) is ErrorCode.SEAL_BROKEN


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "0" * 63},
        {"digest": 1},
        {"size": 23},
        {"size": True},
        {"size": 1 << 60},
        {"size": "100"},
        {"size": SEALED_CHUNK_BYTES + 16},
        {"boxes": {}},
        {"boxes": []},
        {"boxes": {"alice": "AAAA"}},
        {"boxes": {"Alice!": "AAAA"}},
        {"boxes": {"alice": 1}},
        {"more": 1},
    ],
)
def test_odd_references_are_refused(to, change):
    ref, _ = seal_to_bytes([b"x"], to, CONTEXT)
    assert _code(lambda: SealedRef.from_json(ref.to_json() | change)) is ErrorCode.MALFORMED


def test_bad_receivers_are_refused(to, tmp_path):
    assert _code(lambda: seal_to_bytes([b"x"], {}, CONTEXT)) is ErrorCode.MALFORMED
    assert _code(lambda: seal_to_bytes([b"x"], {"a": b""}, CONTEXT)) is ErrorCode.MALFORMED
    assert _code(lambda: seal_to_bytes([b"x"], {"A B": to["bob"]}, CONTEXT)) is ErrorCode.MALFORMED
    assert _code(lambda: seal_to_file([b"x"], tmp_path / "p", {"a": b""}, CONTEXT, fsync=False)) is ErrorCode.MALFORMED
    assert list(tmp_path.iterdir()) == []


def test_numpy_arrays_of_any_shape_are_parts(alice, to):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(6, dtype=numpy.float32).reshape(2, 3), numpy.zeros((0, 3)), numpy.array(7.0)]
    ref, sealed = seal_to_bytes(arrays, to, CONTEXT)
    assert open_bytes(alice, "alice", ref, CONTEXT, sealed) == b"".join(array.tobytes() for array in arrays)
