"""Vouchers at a node: kept, verified each time, and what the commands say of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.vouching import key_name, vouch
from comity_node.negotiation import vouchers
from comity_node.negotiation.vouchers import Vouchers

AT, APP = "2029-06-01T10:00:00Z", "ab" * 32


def test_only_what_verifies_counts(tmp_path: Path) -> None:
    held, keys = Vouchers(tmp_path), [Ed25519PrivateKey.generate() for _ in range(2)]
    assert held.signers(APP) == []
    for key in keys:
        held.keep(vouch(key, APP, AT).to_bytes())
        held.keep(vouch(key, APP, AT, "again").to_bytes())
    assert held.signers(APP) == sorted(map(key_name, keys))
    assert held.signers("cd" * 32) == []
    first = sorted((tmp_path / "vouchers" / APP).iterdir())[0]
    moved = tmp_path / "vouchers" / ("cd" * 32)
    moved.mkdir()
    (moved / first.name).write_bytes(first.read_bytes())
    assert held.signers("cd" * 32) == [], "a voucher for another app"
    first.write_bytes(first.read_bytes().replace(b"again", b"never"))
    assert len(held.signers(APP)) == 1, "what was changed counts nothing"


def test_what_does_not_hold_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ComityError):
        Vouchers(tmp_path).keep(b"{}")
    assert not (tmp_path / "vouchers").exists()


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouchers, "SIGNERS_MAX", 1)
    held, key = Vouchers(tmp_path), Ed25519PrivateKey.generate()
    held.keep(vouch(key, APP, AT).to_bytes())
    held.keep(vouch(key, APP, AT, "again").to_bytes())
    with pytest.raises(ComityError) as refused:
        held.keep(vouch(Ed25519PrivateKey.generate(), APP, AT).to_bytes())
    assert refused.value.code is ErrorCode.TOO_LARGE
