"""Keys as files: modes, atomic writes, exclusive creation, TLS sets."""

import os
import threading

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import x509
from comity_crypto.keystore import FileKeyStore


def _tls_set(org: str) -> tuple[bytes, bytes, bytes]:
    ca_key, ca = x509.create_authority("med")
    key, csr = x509.make_csr(org)
    return key, x509.issue_node(ca_key, ca, csr, "med", org), ca


def _unreadable(call) -> None:
    with pytest.raises(ComityError) as caught:
        call()
    assert caught.value.code is ErrorCode.KEY_UNREADABLE


def test_created_keys_are_loaded_and_private(tmp_path):
    store = FileKeyStore(tmp_path / "a" / "keys")
    assert not store.exists()
    made = store.create()
    assert store.exists()
    assert store.load().public == made.public
    folder = tmp_path / "a" / "keys"
    assert folder.stat().st_mode & 0o777 == 0o700
    files = list(folder.iterdir())
    assert len(files) == 1
    assert files[0].stat().st_mode & 0o777 == 0o600


def test_keys_are_never_overwritten(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    made = store.create()
    with pytest.raises(ComityError, match="CONFLICT"):
        store.create()
    assert store.load().public == made.public
    assert len(list((tmp_path / "keys").iterdir())) == 1


def test_only_one_of_many_creators_wins(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    outcomes: list[object] = []

    def create() -> None:
        try:
            outcomes.append(store.create().public)
        except ComityError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    winners = [outcome for outcome in outcomes if outcome is not ErrorCode.CONFLICT]
    assert winners == [store.load().public]
    assert len(outcomes) == 6


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_looser_modes_are_refused(tmp_path, mode):
    store = FileKeyStore(tmp_path / "keys")
    store.create()
    file = tmp_path / "keys" / "organisation.keys.json"
    file.chmod(mode)
    _unreadable(store.load)
    file.chmod(0o600)
    (tmp_path / "keys").chmod(0o750)
    _unreadable(store.load)
    _unreadable(store.create)


def test_links_truncation_and_size_are_refused(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    _unreadable(store.load)
    store.create()
    file = tmp_path / "keys" / "organisation.keys.json"
    whole = file.read_bytes()
    for bad in (whole[:-1], b"", b"{}", b"\xff", whole.replace(b"keys/1", b"keys/2"), b" " * 70_000):
        file.write_bytes(bad)
        _unreadable(store.load)
    other = tmp_path / "elsewhere"
    other.write_bytes(whole)
    other.chmod(0o600)
    file.unlink()
    file.symlink_to(other)
    _unreadable(store.load)


def test_refusals_do_not_repeat_secrets(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    store.create()
    file = tmp_path / "keys" / "organisation.keys.json"
    text = file.read_text()
    file.write_text(text.replace('"node":"', '"node":"AAAA'))
    with pytest.raises(ComityError) as caught:
        store.load()
    assert caught.value.__cause__ is None
    assert text[100:130] not in str(caught.value)


def test_tls_sets_switch_whole_and_the_former_stays(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    _unreadable_before = store.tls_paths
    sets = [_tls_set("north") for _ in range(3)]
    with pytest.raises(ComityError, match="KEY_UNREADABLE"):
        _unreadable_before()
    seen = []
    for key, cert, ca in sets:
        store.store_tls(key, cert, ca)
        paths = store.tls_paths()
        assert (paths.key.read_bytes(), paths.cert.read_bytes(), paths.ca.read_bytes()) == (key, cert, ca)
        assert store.tls_key_pem() == key
        assert paths.key.stat().st_mode & 0o777 == 0o600
        assert paths.key.parent.stat().st_mode & 0o777 == 0o700
        seen.append(paths)
    assert [paths.key.exists() for paths in seen] == [False, True, True]
    store.store_tls(*sets[2])
    assert seen[2].key.exists()


def test_a_mixed_set_is_refused_and_changes_nothing(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    first, second = _tls_set("north"), _tls_set("south")
    store.store_tls(*first)
    for mixed in ((second[0], first[1], first[2]), (first[0], first[1], second[2])):
        with pytest.raises(ComityError, match="CERTIFICATE_INVALID"):
            store.store_tls(*mixed)
    assert store.tls_key_pem() == first[0]


def test_a_poisoned_pointer_is_refused(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    store.store_tls(*_tls_set("north"))
    (tmp_path / "keys" / "tls-current").write_text("../../etc")
    _unreadable(store.tls_paths)
    (tmp_path / "keys" / "tls-current").write_text("tls-" + "0" * 32)
    _unreadable(store.tls_paths)


def test_a_loose_tls_key_is_refused(tmp_path):
    store = FileKeyStore(tmp_path / "keys")
    store.store_tls(*_tls_set("north"))
    store.tls_paths().key.chmod(0o644)
    _unreadable(store.tls_key_pem)


def test_the_umask_does_not_matter(tmp_path):
    former = os.umask(0)
    try:
        FileKeyStore(tmp_path / "keys").create()
    finally:
        os.umask(former)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "organisation.keys.json").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    store = FileKeyStore(tmp_path / "keys")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    _unreadable(store.create)
    assert list((tmp_path / "keys").iterdir()) == []
