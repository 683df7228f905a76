"""Making a coordinator's folder, and what every command reads from it: keys, authority, certificate, database."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import org_id
from comity_coordinator.db import Database, open_database
from comity_coordinator.governance.service import genesis_in_force
from comity_coordinator.membership.service import Authority, Membership
from comity_coordinator.migrations import schema
from comity_coordinator.settings import FILE, CoordinatorSettings, split_address
from comity_coordinator.transport.server import ServerTls
from comity_crypto import x509
from comity_crypto.keys import OrgKeys
from comity_crypto.keystore import FileKeyStore

# Lies in the folder while a backup is being restored into it.
RESTORING = "restore.json"
_RENEW_BEFORE = timedelta(days=30)


def create(settings: CoordinatorSettings) -> None:
    """Make folder, keys, authority, certificate, API token and database; the settings file comes last.

    Raises:
        ComityError: `CONFLICT` if there is a coordinator in that folder already.
    """
    home = settings.home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (home / FILE).exists():
        raise ComityError(ErrorCode.CONFLICT, "there is a coordinator in this folder already")
    if (home / "node.json").exists():
        raise ComityError(ErrorCode.CONFLICT, "this folder is a node's; give the coordinator a folder of its own")
    home.chmod(0o700)
    FileKeyStore(home / "keys").create()
    key_pem, certificate_pem = x509.create_authority(settings.consortium)
    _authority_store(home).store_tls(key_pem, certificate_pem, certificate_pem)
    _issue_server(settings)
    write_private(home / "api.token", secrets.token_urlsafe(32))
    with database(settings) as opened:
        schema.prepare(opened, change=settings.migrate == "auto")
    write_private(home / FILE, json.dumps(settings.to_json(), indent=2, sort_keys=True) + "\n")


def replicate(settings: CoordinatorSettings, first: Path) -> None:
    """Make the folder of a further replica from the folder of the first one: the same keys, a certificate of its own.

    Raises:
        ComityError: `CONFLICT` if there is a coordinator in that folder already; `MALFORMED` if the first one is no
            replica; `KEY_UNREADABLE`.
    """
    former = CoordinatorSettings.load(first)
    if not former.replica or former.replica == settings.replica:
        raise ComityError(ErrorCode.MALFORMED, "the first coordinator is no replica, or has the same name")
    home = settings.home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (home / FILE).exists() or (home / "node.json").exists():
        raise ComityError(ErrorCode.CONFLICT, "there is a coordinator or a node in this folder already")
    home.chmod(0o700)
    workflow_key(former.home)
    shutil.copytree(first / "keys", home / "keys", dirs_exist_ok=True)  # files keep their modes
    _issue_server(settings)
    write_private(home / "api.token", secrets.token_urlsafe(32))
    write_private(home / FILE, json.dumps(settings.to_json(), indent=2, sort_keys=True) + "\n")


def workflow_key(home: Path) -> None:
    """Make the key for payloads at the workflow engine, if there is none. Raises `KEY_UNREADABLE`."""
    # Imported here: the engine's SDK is paid for only where it is used.
    from comity_coordinator.workflows.codec import load_key

    load_key(home / "keys" / "workflow.key")


def log_keys(settings: CoordinatorSettings) -> OrgKeys:
    """Return the coordinator's own keys: the statement key is the log's. Raises `KEY_UNREADABLE`."""
    return FileKeyStore(settings.home / "keys").load()


def authority(settings: CoordinatorSettings) -> Authority:
    """Return the transport authority. Raises `KEY_UNREADABLE`."""
    store = _authority_store(settings.home)
    return Authority(settings.consortium, store.tls_key_pem(), store.tls_paths().cert.read_bytes(), settings.address)


def server_tls(settings: CoordinatorSettings) -> ServerTls:
    """Return the server's key and certificate, issued anew in the last 30 days of their validity."""
    store = FileKeyStore(settings.home / "keys")
    if x509.expires_at(store.tls_paths().cert.read_bytes()) < instants.now() + _RENEW_BEFORE:
        _issue_server(settings)
    paths = store.tls_paths()
    return ServerTls(store.tls_key_pem(), paths.cert.read_bytes(), paths.ca.read_bytes())


def membership(settings: CoordinatorSettings) -> Membership:
    """Return the membership service, for commands that run beside the coordinator."""
    return Membership(authority(settings), log_keys(settings), genesis_in_force)


@contextmanager
def database(settings: CoordinatorSettings) -> Iterator[Database]:
    """Open the database for one command."""
    opened = open_database(settings.database)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def sole_process(home: Path, *, restoring: bool = False) -> Iterator[None]:
    """Hold the folder's lock: one running coordinator for each, and none beside half a restore. Raises `CONFLICT`."""
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ComityError(ErrorCode.CONFLICT, "a coordinator runs in this folder already") from error
        if not restoring and (home / RESTORING).exists():
            raise ComityError(ErrorCode.CONFLICT, "a restore into this folder was cut off; run it again")
        yield
    finally:
        os.close(fd)


def new_settings(
    home: Path,
    consortium: str,
    address: str,
    *,
    listen: str = "",
    rest_listen: str = "",
    workflows: str = "temporal",
    **more: Any,
) -> CoordinatorSettings:
    """Return the settings of a coordinator to be made; what is not given follows from `address`. `more` are settings.

    Raises:
        ComityError: `MALFORMED`; `FORBIDDEN` for a password in the database's URL.
    """
    org_id(consortium)
    if more.get("database_url"):
        refuse_password(more["database_url"])
    host, port = split_address(address)
    values: dict[str, Any] = {
        "home": home.resolve(),
        "consortium": consortium,
        "address": address,
        "listen": listen or f"{'127.0.0.1' if _is_loopback(host) else '0.0.0.0'}:{port}",  # noqa: S104 - a public host
        "rest_listen": rest_listen or "127.0.0.1:0",
        "log_name": f"{host}/{consortium}",
        "workflows": workflows,
        **{name: value for name, value in more.items() if value},
    }
    try:
        return CoordinatorSettings(**values)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "addresses read host:port, names are a-z, 0-9 and hyphens") from error


def refuse_password(url: str) -> None:
    """Refuse a password in an address that came over a command line. Raises `FORBIDDEN`, `MALFORMED`."""
    try:
        given = make_url(url).password
    except ArgumentError:
        raise ComityError(ErrorCode.MALFORMED, "the database's address is no URL") from None
    if given is not None:
        raise ComityError(
            ErrorCode.FORBIDDEN,
            "a password has no place on a command line: name a file, or set COMITY_COORDINATOR_DATABASE_URL",
        )


def _authority_store(home: Path) -> FileKeyStore:
    return FileKeyStore(home / "keys" / "authority")


def _issue_server(settings: CoordinatorSettings) -> None:
    owner = authority(settings)
    names = {split_address(settings.address)[0], "localhost", "127.0.0.1", *settings.server_names}
    names |= {split_address(settings.replica_address)[0]} - {""}
    addresses = sorted(name for name in names if _is_address(name))
    key_pem, certificate_pem = x509.issue_server(
        owner.key_pem, owner.certificate_pem, owner.consortium, sorted(names - set(addresses)), addresses
    )
    FileKeyStore(settings.home / "keys").store_tls(key_pem, certificate_pem, owner.certificate_pem)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    beside.replace(path)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
