"""`comity coordinator backup|restore`: every table comes back, anything damaged is refused, what is lost is named."""

import hashlib
import json
import stat
from dataclasses import replace

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

import comity_coordinator.app  # noqa: F401 - its capabilities define their tables
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import setup
from comity_coordinator.backup import form, missing, store
from comity_coordinator.backup.restoring import restore
from comity_coordinator.backup.taking import take
from comity_coordinator.cli import group
from comity_coordinator.db import metadata, open_database
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.membership import store as membership_store
from comity_coordinator.membership.store import MemberRow
from comity_coordinator.migrations import schema
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.settings import CoordinatorSettings
from comity_coordinator.training import store as training_store
from comity_coordinator.transport import store as transport_store
from comity_coordinator.transport.model import from_coordinator
from comity_coordinator.workflows.timers import TimerEngine
from comity_crypto.keys import OrgKeys, OrgSecrets
from comity_crypto.statements import sign_statement

quiet = lambda line: None  # noqa: E731 - a name for it


small = pytest.mark.parametrize("world", [("sqlite", "once")], indirect=True, ids=["sqlite"])


def every_row(database):
    def read(conn):
        return {table.name: [tuple(row) for row in store.rows(conn, table)] for table in store.tables()}

    return database.transact(read)


@pytest.fixture
def place(world, tmp_path, names, monkeypatch):
    """The world's ledger in a coordinator's folder of its own: its keys, its database, one payload."""
    home = tmp_path / "home"
    settings = setup.new_settings(home, names.consortium, "127.0.0.1:7443", workflows="timers")
    settings = settings.model_copy(update={"log_name": names.log})
    mine = replace(OrgSecrets.generate(), statement=world.log_keys._statement.private_bytes_raw())
    with monkeypatch.context() as patched:
        patched.setattr(OrgSecrets, "generate", lambda: mine)
        setup.create(settings)
    assert setup.log_keys(settings).public.statement == world.log_keys.public.statement
    schema.prepare(world.db)  # the tables are there; this notes by which revisions
    url = world.db.engine.url.render_as_string(hide_password=False)
    values = json.loads((home / "coordinator.json").read_bytes())
    (home / "coordinator.json").write_text(json.dumps({**values, "database_url": url}))
    (home / "spool").mkdir(exist_ok=True)
    digest = hashlib.sha256(b"sealed").hexdigest()
    (home / "spool" / f"{digest}.alpha").write_bytes(b"sealed")
    (home / "spool" / f"{digest}.alpha.json").write_bytes(b'{"whole":true}')
    (home / "spool" / f"{'0' * 64}.beta").write_bytes(b"damaged")
    (home / "spool" / f"{'0' * 64}.beta.json").write_bytes(b"{}")
    return home


def back(place, source, to, **more):
    """Restore into a new folder with a SQLite database of its own; return the settings."""
    done = restore(source, to, tell=quiet, **more)
    return done, CoordinatorSettings.load(to)


def test_every_table_and_file_comes_back(world, place, tmp_path):
    world.agree()
    world.propose()
    world.export()
    world.propose()  # waits for its index
    before = every_row(world.db)
    assert set(metadata.tables) == set(before) | store.TRANSIENT
    taken = take(place, tmp_path / "backup", keys=True, payloads=True, tell=quiet)
    assert (taken.manifest.payloads, taken.manifest.size) == (1, world.export().count(b"\n") - 2)
    assert sum(taken.manifest.tables.values()) > 20
    for path in (tmp_path / "backup").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    done, settings = back(place, tmp_path / "backup", tmp_path / "again")
    assert (done.size, done.root, done.lost) == (taken.manifest.size, taken.manifest.root, ())
    assert setup.authority(settings).certificate_pem
    assert not (tmp_path / "again" / setup.RESTORING).exists()
    assert len(list((tmp_path / "again" / "spool").iterdir())) == 2
    with setup.database(settings) as database:
        assert every_row(database) == before
    with pytest.raises(ComityError, match="not empty"):
        restore(
            tmp_path / "backup", tmp_path / "third", database_url=f"sqlite:///{tmp_path}/again/comity.db", tell=quiet
        )


@small
def test_from_sqlite_to_another_database_and_back(databases, world, place, tmp_path):
    world.agree()
    world.export()
    before = every_row(world.db)
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    url = databases.postgres_url("restored")
    _, settings = back(place, tmp_path / "backup", tmp_path / "moved", database_url=url)
    with setup.database(settings) as database:
        assert every_row(database) == before
    take(tmp_path / "moved", tmp_path / "second", keys=False, payloads=False, tell=quiet)
    for path in (tmp_path / "backup" / "tables").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / "tables" / path.name).read_bytes()
    with pytest.raises(ComityError, match="holds no keys"):
        restore(tmp_path / "second", tmp_path / "fourth", tell=quiet)


@small
def test_damage_at_any_file_is_refused_and_nothing_is_written(world, place, tmp_path):
    world.agree()
    world.export()
    source = tmp_path / "backup"
    take(place, source, keys=True, payloads=True, tell=quiet)
    home = tmp_path / "again"
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2] + b"\x00" + whole[len(whole) // 2 + 1 :], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(ComityError) as caught:
                restore(source, home, tell=quiet)
            assert caught.value.code is ErrorCode.BACKUP_INVALID, path
            path.write_bytes(whole)
            path.chmod(0o600)
    (source / "spool" / "stray").write_bytes(b"x")
    with pytest.raises(ComityError, match=r"BACKUP_INVALID.*not of this backup"):
        restore(source, home, tell=quiet)
    (source / "spool" / "stray").unlink()
    for none, refusal in ((source / "manifest.json", "BACKUP_INVALID"), (source / "nothing", "NOT_FOUND")):
        with pytest.raises(ComityError, match=refusal):
            restore(none, home, tell=quiet)
    assert not home.exists()
    # A manifest of somebody else's making, with the digests of what it changed.
    backup = form.open_backup(source)
    forged = backup.manifest.sign(OrgKeys.generate(), backup.said.consortium)
    (source / "manifest.json").write_bytes(forged.to_bytes())
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        restore(source, home, tell=quiet)


@small
def test_a_manifest_in_another_form_is_refused_by_name(world, place, tmp_path):
    world.export()
    source = tmp_path / "backup"
    take(place, source, keys=True, payloads=False, tell=quiet)
    backup = form.open_backup(source)
    for kind, changes, refusal in (
        ("news", {}, "BACKUP_INVALID.*no backup"),
        (form.KIND, {"format": "comity-coordinator-backup/2"}, "UNSUPPORTED"),
        (form.KIND, {"revisions": 5}, "BACKUP_INVALID"),
        (form.KIND, {"later": 1}, "BACKUP_INVALID"),
        (form.KIND, {"files": hashlib.sha256(b"5\n").hexdigest()}, "BACKUP_INVALID"),
    ):
        body = {**backup.said.body, **changes}
        keys = world.log_keys
        said = sign_statement(keys, kind=kind, consortium=backup.said.consortium, issuer="coordinator", body=body)
        (source / "manifest.json").write_bytes(said.to_bytes())
        (source / "files.jsonl").write_bytes(b"5\n")
        with pytest.raises(ComityError, match=refusal):
            restore(source, tmp_path / "again", tell=quiet)


@small
def test_restoring_asks_for_what_members_hold(world, place, tmp_path):
    world.export()
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    command = ["restore", str(tmp_path / "backup"), str(tmp_path / "again"), "--json"]
    seen = tmp_path / "seen"
    seen.write_text(world.read(world.ledger.checkpoint))
    for more in ([], ["--uncompared", "--seen", str(seen)]):
        refused = CliRunner().invoke(group, [*command, *more])
        assert "--uncompared" in str(refused.exception)
        assert not (tmp_path / "again").exists()
    done = CliRunner().invoke(group, [*command, "--uncompared"])
    assert (done.exit_code, json.loads(done.stdout.splitlines()[-1])["lost"]) == (0, [])


@small
def test_a_newer_schema_is_refused(world, place, tmp_path, monkeypatch):
    world.export()
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    monkeypatch.setattr(store.schema, "REVISIONS", {"0001": "expand"})
    with pytest.raises(ComityError, match="newer version"):
        restore(tmp_path / "backup", tmp_path / "again", tell=quiet)


@small
def test_a_restore_that_was_cut_off_is_noticed_and_goes_on(world, place, tmp_path, monkeypatch):
    world.agree()
    world.export()
    take(place, tmp_path / "backup", keys=True, payloads=True, tell=quiet)
    home = tmp_path / "again"

    def dies(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("comity_coordinator.fsck.check", dies)
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "backup", home, tell=quiet)
    monkeypatch.undo()
    with pytest.raises(ComityError, match="cut off"), setup.sole_process(home):
        pass
    done = restore(tmp_path / "backup", home, tell=quiet)
    assert done.size
    assert not (home / setup.RESTORING).exists()
    with setup.sole_process(home):
        pass


@small
def test_an_old_backup_is_named_and_brought_forward(world, place, tmp_path, names):
    world.agree()
    world.export()
    world.propose()  # waits at the moment of the backup, and is entered after it
    source = tmp_path / "backup"
    old = take(place, source, keys=True, payloads=False, tell=quiet).manifest
    _, digest, _ = world.agree()
    export = tmp_path / "export.jsonl"
    export.write_bytes(world.export())
    header = json.loads(export.read_bytes().splitlines()[0])
    seen = tmp_path / "seen"
    seen.write_text(header["checkpoint"])
    first = CliRunner().invoke(group, ["restore", str(source), str(tmp_path / "late"), "--seen", str(seen), "--json"])
    assert first.exit_code == 1
    (lost,) = json.loads(first.stdout.splitlines()[-1])["lost"]
    assert lost.startswith(f"checkpoint {header['size']} was signed, the backup ends at {old.size}: ")
    assert f"missing {header['size'] - old.size} entries" in lost
    done, settings = back(place, source, tmp_path / "again", export=export, genesis=world.charter.digest, seen=(seen,))
    assert (done.size, done.lost) == (header["size"], ())
    assert done.added == missing.Added(header["size"] - old.size, 0)
    with setup.database(settings) as database:
        row = database.transact(lambda conn: negotiation_store.agreement(conn, digest))
        assert row is None  # its negotiation began after the backup: the ledger has it, and the parties
        here = database.transact(ledger_store.newest_checkpoint)
        assert here.root == world.read(ledger_store.newest_checkpoint).root


@small
def test_an_export_of_another_history_is_refused(world, place, tmp_path):
    world.agree()
    take(place, tmp_path / "empty", keys=True, payloads=False, tell=quiet)
    export = tmp_path / "export.jsonl"
    export.write_bytes(world.export())
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)

    lines = export.read_bytes().splitlines(keepends=True)
    export.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ComityError, match="LEDGER_INVALID"):
        restore(tmp_path / "backup", tmp_path / "again", export=export, genesis=world.charter.digest, tell=quiet)


@small
async def test_timers_are_armed_again_from_the_tables(world, place, tmp_path):
    proposal, _, _ = world.propose()
    _, _, run = world.agree()
    world.export()
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    _, settings = back(place, tmp_path / "backup", tmp_path / "again")
    database = open_database(settings.database)
    engine = TimerEngine(database)
    await engine.start(world.negotiation, world.training)
    try:
        assert set(engine._timers) == {("negotiation", proposal.proposal_id), ("run", run)}
    finally:
        await engine.close()
        database.close()


@small
def test_members_rejoin_with_streams_that_begin_anew(world, place, tmp_path):
    world.agree()
    world.export()

    def enrol(conn):
        for org in ("alpha", "beta", "gamma"):
            keys = world.keys[org].public
            membership_store.add_member(conn, MemberRow(org, org, org, keys, "01", None, "2026-11-22T00:00:00Z", None))
            transport_store.append(conn, org, from_coordinator("m1", "news", {}))

        conn.execute(
            update(membership_store.members).where(membership_store.members.c.org == "gamma").values(revoked_at="x")
        )

    world.db.transact(enrol)
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    done, settings = back(place, tmp_path / "backup", tmp_path / "again", rejoin_valid_s=3_600)
    assert sorted(done.tokens) == ["alpha", "beta"]
    assert all(token.org == org for org, token in done.tokens.items())
    with setup.database(settings) as database:
        cursors = database.transact(
            lambda conn: [transport_store.ensure_cursor(conn, org)[1] for org in ("alpha", "gamma")]
        )
        assert cursors == [0, 1]
        assert [row.org for row in database.transact(setup.membership(settings).members)] == ["gamma"]


@small
def test_what_was_under_way_ends_as_the_ledger_says(world, place, tmp_path):
    """Signed, withdrawn and closed after the backup: no second agreement, no run that begins again."""
    _, withdrawn, run = world.agree()
    proposal, _, _ = world.propose()
    for org in proposal.asked:
        assert world.answer(org, proposal)[1] is None
    digest = canonical.digest(world.hub.take(proposal.asked[0], "agreement.sign")[-1]["agreement"])
    world.export()
    take(place, tmp_path / "backup", keys=True, payloads=False, tell=quiet)
    for org in proposal.asked:
        assert world.sign_agreement(org, digest) is None
    former = world.read(lambda conn: negotiation_store.agreement(conn, withdrawn))
    body = {"agreement": withdrawn, "proposal_id": former.proposal_id, "reason": "enough"}
    assert world.tell("beta", "withdrawal", world.say("beta", "withdrawal", body)) is None
    world.clock.pass_s(2_000)
    world.read(lambda conn: world.training.on_deadline(conn, run))
    export = tmp_path / "export.jsonl"
    export.write_bytes(world.export())
    _, settings = back(place, tmp_path / "backup", tmp_path / "again", export=export, genesis=world.charter.digest)
    with setup.database(settings) as database:

        def read(conn):
            states = [negotiation_store.agreement(conn, each).state for each in (digest, withdrawn)]
            record = negotiation_store.by_id(conn, proposal.proposal_id)
            return states, str(record.negotiation.phase), training_store.get(conn, run).closed

        assert database.transact(read) == (["final", "withdrawn"], "FINALIZED", True)
