"""A reviewer's word on an app: what verifies, and everything that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.vouching import Voucher, key_name, load_key, make_key, public_bytes, vouch

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
AT = "2029-06-01T10:00:00Z"


def test_a_voucher_comes_back() -> None:
    voucher = vouch(KEY, "ab" * 32, AT, "returns weights only")
    assert Voucher.parse(voucher.to_bytes()) == voucher
    assert voucher.key == key_name(KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "cd" * 32},
        {"key": key_name(OTHER)},
        {"at": "2029-06-01T10:00:01Z"},
        {"note": "another"},
        {"signature": vouch(OTHER, "ab" * 32, AT, "note").to_bytes().split(b'"signature":"')[1][:88].decode()},
        {"note": "two\nlines"},
        {"note": "x" * 501},
        {"digest": "AB" * 32},
        {"at": "yesterday"},
        {"key": "ed25519:" + "A" * 43 + "="},
        {"key": "anna"},
        {"more": 1},
        {"digest": 7},
    ],
)
def test_what_was_changed_does_not_hold(change: dict[str, object]) -> None:
    plain = json.loads(vouch(KEY, "ab" * 32, AT, "note").to_bytes())
    with pytest.raises(ComityError) as refused:
        Voucher.parse(canonical.canonical({**plain, **change}))
    assert refused.value.code in (ErrorCode.SIGNATURE_INVALID, ErrorCode.MALFORMED)


def test_too_large_and_no_json() -> None:
    for data in (b"x" * 5_000, b"{", b"[]", b"null"):
        with pytest.raises(ComityError):
            Voucher.parse(data)


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "reviewer.pem"
    made = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_name(load_key(path)) == key_name(made)
    assert len(public_bytes(key_name(made))) == 32
    with pytest.raises(ComityError, match="never overwritten"):
        make_key(path)
    path.chmod(0o644)
    with pytest.raises(ComityError, match="open to others"):
        load_key(path)
    path.write_bytes(b"-----BEGIN SECRET-----")
    with pytest.raises(ComityError) as refused:
        load_key(path)
    assert "SECRET" not in str(refused.value)
