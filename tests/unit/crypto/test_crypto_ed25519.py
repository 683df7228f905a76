"""Ed25519 at its odd ends: what libsodium accepts OpenSSL accepts, and what both refuse stays refused (ADR-0025).

The first cases are those of Chalkias, Garillot and Nikolaenko, "Taming the many EdDSAs" (table 6), published as
`cases.json` of ed25519-speccheck; the others are made here from the curve's equations, with points of order 8 added to
key and nonce.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import ed25519
from comity_crypto.ed25519 import verify_ed25519

# Message, key, both halves of the signature.
CASES = """
8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6
c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa
c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a
0000000000000000000000000000000000000000000000000000000000000000

9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79
c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa
f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43
a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04

aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab
f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43
c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa
8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e

9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79
cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d
9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f
87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009

e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c
cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d
160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed512
5ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09

e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c
cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d
21122a84e0b5fca4052f5b1235c80a537878b38f3142356b2c2384ebad4668b7
e40bc836dac0f71076f9abe3a53f9c03c1ceeeddb658d0030494ace586687405

85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40
442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623
e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e
547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514

85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40
442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623
8ce5b96c8f26d0ab6c47958c9e68b937104cd36e13c33566acd2fe8d38aa1942
7e71f98a473474f2f13f06f97c20d58cc3f54b8bd0d272f42b695dd7e89a8c22

fdaebc429f4a735932a160da1301080c13280eea8bc280d1b392c6b9e6ba3a5a
f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43
edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
454d370c8d9fc323a41450f8d513eafeb5b0697390c1e505a0d4ddc71f566607

84b698d39be126ff55fe45079e6c8bf64a0d7db6994560b4e96b7021eb39c1a1
f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43
edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
084d5b99c2a9463d9c8bd5026916996984eeec87ddf1d3be329006ace1b37b09
"""
# Of what OpenSSL accepts, 0 to 2 have a key or an R of small order.
BY_OPENSSL = [True, True, True, True, False, False, False, False, False, False]
BY_OURS = [False, False, False, True, False, False, False, False, False, False]

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ORDER_8_Y = int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little")

Point = tuple[int, int]


def openssl(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def ours(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        verify_ed25519(public, signature, message)
    except ComityError as error:
        return error.code is not ErrorCode.SIGNATURE_INVALID
    return True


def test_published_edge_cases_are_judged_as_the_stricter_of_two_libraries() -> None:
    parts = [bytes.fromhex(part) for part in CASES.split()]
    read = [(*parts[at : at + 2], b"".join(parts[at + 2 : at + 4])) for at in range(0, len(parts), 4)]
    assert [openssl(public, signature, message) for message, public, signature in read] == BY_OPENSSL
    assert [ours(public, signature, message) for message, public, signature in read] == BY_OURS


def test_points_of_order_eight_in_key_and_nonce_are_judged_alike() -> None:
    torsion, told = (_x(_ORDER_8_Y), _ORDER_8_Y), []
    base_y = 4 * pow(5, -1, _P) % _P
    base = (_x(base_y), base_y)
    for in_key in range(8):
        for in_nonce in (0, 1, 4):
            message = bytes([in_key, in_nonce])
            secret, nonce = 1234567890123456789 + in_key, 9876543210987654321
            public = _encode(_add(_times(secret, base), _times(in_key, torsion)))
            commitment = _encode(_add(_times(nonce, base), _times(in_nonce, torsion)))
            challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little")
            signature = commitment + ((nonce + challenge * secret) % _L).to_bytes(32, "little")
            verdict = ours(public, signature, message)
            assert verdict == openssl(public, signature, message), (in_key, in_nonce)
            # The exact equation, without the cofactor: torsion has to cancel.
            assert verdict == ((in_nonce + challenge % _L * in_key) % 8 == 0), (in_key, in_nonce)
            told.append(verdict)
    assert {True, False} == set(told)


def test_keys_of_small_order_and_keys_that_are_not_canonical_verify_nothing() -> None:
    # R = identity, S = 0 holds for any message under a key of small order.
    forged = (1).to_bytes(32, "little") + bytes(32)
    for y in (*sorted(ed25519._SMALL_Y), _P, _P + 1):
        for sign in (0, 1):
            public = (y | sign << 255).to_bytes(32, "little")
            assert not any(ours(public, forged, bytes([each])) for each in range(16))


@pytest.mark.parametrize("flaw", ["s", "message", "short", "long", "key"])
def test_what_was_not_signed_so_is_refused(flaw: str) -> None:
    private = Ed25519PrivateKey.generate()
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"said")
    verify_ed25519(public, signature, b"said")
    high_s = signature[:32] + (int.from_bytes(signature[32:], "little") + _L).to_bytes(32, "little")
    bad = {
        "s": (public, high_s, b"said"),
        "message": (public, signature, b"says"),
        "short": (public, signature[:63], b"said"),
        "long": (public, signature + b"s", b"aid"),
        "key": (public[:31], signature, b"said"),
    }[flaw]
    assert not ours(*bad)
    assert not ed25519.holds(public, signature[:10])


def _add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    mixed = _D * x1 * x2 * y1 * y2 % _P
    x = (x1 * y2 + x2 * y1) * pow(1 + mixed, -1, _P) % _P
    return x, (y1 * y2 + x1 * x2) * pow(1 - mixed, -1, _P) % _P


def _times(scalar: int, point: Point) -> Point:
    total = (0, 1)
    for bit in bin(scalar)[2:]:
        total = _add(total, total)
        if bit == "1":
            total = _add(total, point)
    return total


def _x(y: int) -> int:
    """Return the even x coordinate of the point with this y."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    assert x * x % _P == square
    return x if x % 2 == 0 else _P - x


def _encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def test_nothing_else_checks_ed25519() -> None:
    root = Path(__file__).resolve().parents[3]
    layers = ("protos", "crypto", "policies", "agents", "federation_node", "coordinator", "client")
    read = {path: path.read_text() for layer in layers for path in (root / layer).rglob("*.py")}
    assert [path.name for path, text in read.items() if "crypto_sign_open" in text] == ["ed25519.py"]
    assert not [path.name for path, text in read.items() if "Ed25519PublicKey" in text or "nacl.signing" in text]
