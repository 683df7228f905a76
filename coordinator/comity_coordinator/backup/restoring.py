"""Restoring a backup into an empty database, and saying what it does not know any more.

Rules
1. Everything is checked before anything is written: every file's digest, the log's signature, the schema, and that
   nothing is there which would be overwritten.
2. The tables are filled in one transaction, which ends with the check of every invariant (`fsck`): a database is
   restored wholly and soundly, or is as empty as before.
3. `restore.json` lies in the folder from the first file to the end; a coordinator does not start beside it. The same
   restore run again goes on.
4. Streams that have gone on since the backup cannot: numbers and messages in between are gone. With `rejoin` every
   member enrols anew by a token (`comity node adopt`), which starts its stream at 1 and keeps what it holds.
5. A log that ends before what members have seen is named: they refuse such a coordinator until the missing entries are
   imported (`missing.py`), and nobody may append to it before.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import fsck, setup
from comity_coordinator.backup import form, missing, store
from comity_coordinator.backup.form import Backup
from comity_coordinator.backup.taking import Tell
from comity_coordinator.governance.adoption import Silence
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.migrations import schema
from comity_coordinator.settings import FILE, CoordinatorSettings
from comity_crypto.keys import OrgKeys
from comity_crypto.keystore import FileKeyStore
from comity_crypto.notes import log_part, sign_note, verify_note
from comity_crypto.tokens import JoinToken
from comity_policies.history import Report, verify_export

NOTE_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it. `size` is where the log ends now, `lost` what somebody saw and this log has not, in words;
    `tokens` are for members that rejoin.
    """

    consortium: str
    size: int
    root: str
    rows: int
    added: missing.Added
    lost: tuple[str, ...]
    tokens: Mapping[str, JoinToken]


def restore(
    source: Path,
    home: Path,
    *,
    database_url: str = "",
    database_password_file: Path | None = None,
    export: Path | None = None,
    genesis: str | None = None,
    seen: tuple[Path, ...] = (),
    rejoin_valid_s: int = 0,
    tell: Tell,
) -> Restored:
    """Restore the backup in `source` to the folder `home`.

    Args:
        database_url: of the empty database to fill; by default the one of the settings.
        database_password_file: that holds its password.
        export: a ledger export that goes further than the backup; `genesis` is the name to verify it from.
        seen: files with checkpoints that members hold.
        rejoin_valid_s: seconds until tokens for all members expire; 0 makes none.
        tell: called with a line on each part.

    Raises:
        ComityError: `NOT_FOUND` and `BACKUP_INVALID` if the backup is not there, not whole or none; `CONFLICT` for a
            database that is not empty, and a folder with another coordinator; `UNSUPPORTED` for a newer schema;
            `SIGNATURE_INVALID` if another log made the backup; `KEY_UNREADABLE` if neither the folder nor the backup
            has keys; `LEDGER_INVALID` if an invariant or the export does not hold.
    """
    backup = form.open_backup(source)
    store.check_revisions(backup.manifest.revisions)
    keys = _keys(backup, home)
    backup.verify(keys.public.statement)
    tell(f"the backup is whole: {len(backup.files)} files, the ledger ends at {backup.manifest.size}")
    report = None if export is None else verify_export(export, genesis)
    if report is not None and report.consortium != backup.said.consortium:
        raise ComityError(ErrorCode.CONFLICT, "the export is of another consortium", consortium=report.consortium)
    checkpoints = [_checkpoint(file, backup.manifest.log_name, keys) for file in seen]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with setup.sole_process(home, restoring=True):
        settings = _settings(backup, home, database_url, database_password_file)
        resumed = _begin(backup, home, settings)
        _files(backup, home)
        _write_settings(backup, home, database_url, database_password_file)
        filling = _Filling(backup, keys, settings, export, report, resumed, tell)
        with setup.database(settings) as database:
            schema.prepare(database, change=settings.migrate == "auto")
            size, root, added = database.transact(filling.run)
            tokens = database.transact(partial(_rejoin, settings=settings, valid_s=rejoin_valid_s))
        (home / setup.RESTORING).unlink()
    lost = tuple(_lost(each, size, root) for each in checkpoints if _ahead(each, size, root))
    return Restored(settings.consortium, size, root, sum(backup.manifest.tables.values()), added, lost, tokens)


def _rejoin(conn: Connection, settings: CoordinatorSettings, valid_s: int) -> dict[str, JoinToken]:
    if not valid_s:
        return {}
    membership = setup.membership(settings)
    return {org: membership.own_token(conn, org, valid_s) for org in store.forget_enrolments(conn)}


@dataclass(frozen=True, slots=True)
class _Filling:
    """The one transaction. It may run again."""

    backup: Backup
    keys: OrgKeys
    settings: CoordinatorSettings
    export: Path | None
    report: Report | None
    resumed: bool
    tell: Tell

    def run(self, conn: Connection) -> tuple[int, str, missing.Added]:
        """Fill, bring forward, check; return where the log ends."""
        if not store.is_empty(conn):
            if not self.resumed:
                raise ComityError(ErrorCode.CONFLICT, "the database is not empty; nothing was restored")
            self.tell("the tables were restored before")
        else:
            self._fill(conn)
        name = self.settings.log_name
        ledger = Ledger(self.settings.consortium, name, lambda text: sign_note(text, name, self.keys), Silence())
        added = missing.Added(0, 0)
        if self.export is not None and self.report is not None:
            added = missing.add(conn, ledger, self.export, self.report, self.tell)
        if found := fsck.check(conn, ledger, self.keys.public.statement):
            raise ComityError(ErrorCode.LEDGER_INVALID, f"nothing was restored: {found[0]}"[:400], findings=len(found))
        self.tell("every invariant holds")
        head = ledger_store.newest_checkpoint(conn)
        return (head.size, head.root.hex(), added) if head else (0, "", added)

    def _fill(self, conn: Connection) -> None:
        for table in store.tables():
            expected = self.backup.manifest.tables.get(table.name, 0)
            if expected and store.fill(conn, table, self.backup.rows(table)) != expected:
                raise ComityError(
                    ErrorCode.BACKUP_INVALID, f"the backup's table {table.name} has another count of rows"
                )
            self.tell(f"table {table.name}: {expected} rows")


def _keys(backup: Backup, home: Path) -> OrgKeys:
    """Return the log's keys: those in the folder, or the backup's."""
    if (home / "keys").is_dir():
        return FileKeyStore(home / "keys").load()
    if not backup.manifest.keys:
        raise ComityError(
            ErrorCode.KEY_UNREADABLE,
            "the backup holds no keys: put keys/ into the coordinator's folder first",
        )
    return FileKeyStore(backup.folder / "keys").load()


def _settings(backup: Backup, home: Path, database_url: str, password_file: Path | None) -> CoordinatorSettings:
    if database_url:
        setup.refuse_password(database_url)
    if (home / FILE).exists():
        settings = CoordinatorSettings.load(home)
        if settings.consortium != backup.said.consortium or settings.log_name != backup.manifest.log_name:
            raise ComityError(ErrorCode.CONFLICT, "this folder is another coordinator's")
    else:
        settings = CoordinatorSettings.load(backup.folder).model_copy(update={"home": home.resolve()})
    given = {"database_url": database_url, "database_password_file": password_file}
    return settings.model_copy(update=given) if database_url else settings


def _write_settings(backup: Backup, home: Path, database_url: str, password_file: Path | None) -> None:
    """Write what the file says, and not what the environment adds to it: that may hold a password."""
    path = home / FILE
    values = json.loads((path if path.exists() else backup.folder / form.SETTINGS).read_bytes())
    if database_url:
        values["database_url"] = database_url
        values["database_password_file"] = None if password_file is None else str(password_file)
    setup.write_private(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _begin(backup: Backup, home: Path, settings: CoordinatorSettings) -> bool:
    """Say in the folder that a restore is under way; refuse to begin one over another, or over what is there.

    Returns:
        True if this very restore began before: whatever the database holds is its work.
    """
    document = {"backup": backup.said.digest, "database": hashlib.sha256(settings.database.encode()).hexdigest()}
    marker = home / setup.RESTORING
    if marker.exists():
        if json.loads(marker.read_bytes()) != document:
            raise ComityError(ErrorCode.CONFLICT, "another restore into this folder was cut off; run that one again")
        return True
    if any((home / "spool").glob("*")):
        raise ComityError(ErrorCode.CONFLICT, "the folder's spool is not empty; nothing was restored")
    with setup.database(settings) as database:
        if database.transact(store.has_rows):
            raise ComityError(ErrorCode.CONFLICT, "the database is not empty; nothing was restored")
    setup.write_private(marker, json.dumps(document))
    return False


def _files(backup: Backup, home: Path) -> None:
    """Write what lies beside the tables; what was written before is written again. Keys that are there stay."""
    own_keys, staged = (home / "keys").is_dir(), home / "keys.new"
    if not own_keys:
        shutil.rmtree(staged, ignore_errors=True)
    for name in sorted(backup.files):
        kind = name.partition("/")[0]
        if kind in ("spool", "policies"):
            _copy(backup.folder / name, home, name)
        elif kind == "keys" and not own_keys:
            _copy(backup.folder / name, staged, name.partition("/")[2])
    if not own_keys:
        staged.rename(home / "keys")
    if not (home / "api.token").exists():
        setup.write_private(home / "api.token", secrets.token_urlsafe(32))


def _copy(source: Path, root: Path, name: str) -> None:
    form.make_folders(root, name)
    target = root / name
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file, source.open("rb") as content:
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        os.fsync(fd)


def _checkpoint(file: Path, log_name: str, keys: OrgKeys) -> tuple[int, str]:
    """Return size and root of a checkpoint that this log signed and somebody kept."""
    try:
        with file.open("rb") as opened:
            text = opened.read(NOTE_BYTES_MAX + 1)[:NOTE_BYTES_MAX].decode()
    except (OSError, ValueError) as error:
        raise ComityError(ErrorCode.NOT_FOUND, "a checkpoint cannot be read", file=file.name[:200]) from error
    said = verify_note(log_part(text, log_name), log_name, keys.public.statement)
    return said.size, said.root.hex()


def _ahead(seen: tuple[int, str], size: int, root: str) -> bool:
    return seen[0] > size or (seen[0] == size and seen[1] != root)


def _lost(seen: tuple[int, str], size: int, root: str) -> str:
    if seen[0] == size and seen[1] != root:
        return f"checkpoint {size} was signed with another root: two histories exist, do not start this coordinator"
    return (
        f"checkpoint {seen[0]} was signed, the backup ends at {size}: nodes will report a rollback until the missing "
        f"{seen[0] - size} entries are imported"
    )
