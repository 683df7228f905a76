"""Where an organisation's private keys live: a seam, and its form as files.

Rules (style.md; COMMON hostile-input rules apply to the disk as well):
1. Folders 0700, files 0600, owned by the user who runs the node; anything looser is refused, not repaired.
2. Files appear whole or not at all: written beside, fsynced, then linked or renamed.
3. The organisation's keys are created once and never lost by overwriting: successors that the members have put into
   force take their place (`succeed`), and the former ones stay beside them under another name.
4. TLS key, certificate and authority change together: each set has its own folder, and one small file names the
   current one, so a crash never leaves a key beside another key's certificate.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import x509
from comity_crypto.encoding import fields, from_base64, to_base64
from comity_crypto.keys import OrgKeys, OrgSecrets

FILE_BYTES_MAX = 1 << 16

_FORMAT = "comity-org-keys/1"
_SIZES_BYTES = {"statement": 32, "certificate": 32, "kem": 64, "exchange": 32, "node": 32}
_KEYS = "organisation.keys.json"
_CURRENT = "tls-current"
_TLS_FOLDER = re.compile(r"tls-[0-9a-f]{32}")


@dataclass(frozen=True)
class TlsPaths:
    """The PEM files of the transport: private key, own certificate, authority's certificate."""

    key: Path
    cert: Path
    ca: Path


class KeyStore(Protocol):
    """The seam: files today; PKCS#11 and HashiCorp Vault fit behind the same calls."""

    def create(self) -> OrgKeys:
        """Create and store the organisation's keys. Raises `CONFLICT` if there are keys already."""

    def load(self) -> OrgKeys:
        """Return the organisation's keys. Raises `KEY_UNREADABLE`."""

    def tls_key_pem(self) -> bytes:
        """Return the current TLS private key. Raises `KEY_UNREADABLE`."""

    def store_tls(self, key_pem: bytes, cert_pem: bytes, ca_pem: bytes) -> None:
        """Make this set the current one. Raises `CERTIFICATE_INVALID` if the three do not belong together."""

    def tls_paths(self) -> TlsPaths:
        """Return where the current set lies as files, for libraries that want paths. Raises `KEY_UNREADABLE`."""


class FileKeyStore:
    """Keys as files in one folder, which is created with mode 0700 if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exists(self) -> bool:
        """Tell whether `create` was done."""
        return (self._folder / _KEYS).exists()

    def create(self) -> OrgKeys:
        """Create and store the organisation's keys; atomic, and exclusive between processes."""
        self._open_folder(create=True)
        stored = OrgSecrets.generate()
        document = {"format": _FORMAT} | {name: to_base64(getattr(stored, name)) for name in _SIZES_BYTES}
        _write(self._folder, _KEYS, canonical.canonical(document), exclusive=True)
        return OrgKeys(stored)

    def load(self) -> OrgKeys:
        """Read the organisation's keys back."""
        self._open_folder(create=False)
        data = _read(self._folder / _KEYS)
        try:
            document = fields(canonical.parse(data), frozenset({"format", *_SIZES_BYTES}), what="a key file")
            if document["format"] != _FORMAT:
                raise ComityError(ErrorCode.KEY_UNREADABLE, "a key file of another format")
            values = {
                name: from_base64(document[name], what=name, size_bytes=size_bytes)
                for name, size_bytes in _SIZES_BYTES.items()
            }
        except ComityError:
            # No cause is attached: a parser's text about a secret stays out of logs.
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the key file has not the right form") from None
        return OrgKeys(OrgSecrets(**values))

    def succeed(self, successor: FileKeyStore) -> OrgKeys:
        """Take the keys of `successor` in place of the present ones, which stay as `former-….json`; returns the new.

        A crash leaves the former or the new ones in force, never none.

        Raises:
            ComityError: `KEY_UNREADABLE`.
        """
        keys, former = successor.load(), self.load()
        if keys.public != former.public:
            kept = self._folder / f"former-{former.public.fingerprint()}.json"
            if not kept.exists():
                _write(self._folder, kept.name, _read(self._folder / _KEYS), exclusive=True)
            _write(self._folder, _KEYS, _read(successor._folder / _KEYS))
        (successor._folder / _KEYS).unlink()
        return keys

    def tls_key_pem(self) -> bytes:
        """Return the current TLS private key."""
        return _read(self.tls_paths().key)

    def store_tls(self, key_pem: bytes, cert_pem: bytes, ca_pem: bytes) -> None:
        """Write a new set, then switch to it; the set before stays for readers that hold its paths."""
        x509.check_set(key_pem, cert_pem, ca_pem)
        self._open_folder(create=True)
        former = self._current()
        name = "tls-" + hashlib.sha256(cert_pem + b"\x00" + ca_pem + b"\x00" + key_pem).hexdigest()[:32]
        folder = self._folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_mode(folder)
        for file, data in (("key.pem", key_pem), ("cert.pem", cert_pem), ("ca.pem", ca_pem)):
            _write(folder, file, data)
        _write(self._folder, _CURRENT, name.encode("ascii"))
        for other in self._folder.iterdir():
            if _TLS_FOLDER.fullmatch(other.name) and other.name not in (name, former):
                shutil.rmtree(other)

    def tls_paths(self) -> TlsPaths:
        """Return where the current set lies; its files are checked to be there and private."""
        self._open_folder(create=False)
        name = self._current()
        if name is None:
            raise ComityError(ErrorCode.KEY_UNREADABLE, "there is no TLS certificate yet")
        folder = self._folder / name
        paths = TlsPaths(folder / "key.pem", folder / "cert.pem", folder / "ca.pem")
        for path in (folder, paths.key, paths.cert, paths.ca):
            _check_mode(path)
        return paths

    def _current(self) -> str | None:
        """Return the name of the current set's folder, or None before the first one."""
        if not (self._folder / _CURRENT).exists():
            return None
        name = _read(self._folder / _CURRENT).decode("ascii", errors="replace")
        if not _TLS_FOLDER.fullmatch(name):
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the pointer to the TLS files has not the right form")
        return name

    def _open_folder(self, *, create: bool) -> None:
        if create:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_mode(self._folder)


def _check_mode(path: Path) -> None:
    """Refuse symbolic links, other owners and any right of group or others. Raises `KEY_UNREADABLE`."""
    try:
        found = path.lstat()
    except OSError:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is not there") from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is neither a file nor a folder")
    if found.st_uid != os.geteuid():
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ComityError(
            ErrorCode.KEY_UNREADABLE, f"{path.name} is open to others; use chmod", mode=f"{found.st_mode & 0o777:o}"
        )


def _read(path: Path) -> bytes:
    """Read a private file through one descriptor that is checked after opening. Raises `KEY_UNREADABLE`."""
    _check_mode(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} cannot be opened") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is not a private file")
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is too large to be a key file")
    return data


def _write(folder: Path, name: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write `name` whole or not at all, mode 0600. Raises `CONFLICT` if `exclusive` and the name is taken."""
    beside = folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if exclusive:
            os.link(beside, folder / name)
        else:
            beside.replace(folder / name)
    except FileExistsError:
        raise ComityError(ErrorCode.CONFLICT, "there are keys already; they are never overwritten") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{name} cannot be written: {reason}") from None
    finally:
        beside.unlink(missing_ok=True)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
