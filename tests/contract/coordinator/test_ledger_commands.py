"""`comity coordinator ledger export|fsck` over a coordinator's folder."""

import json

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner

from comity_coordinator import setup
from comity_coordinator.ledger.cli import group
from comity_crypto.merkle import leaf_hash, root
from comity_crypto.notes import verify_note


@pytest.fixture
def app():
    app = typer.Typer()
    app.add_typer(group, name="ledger")

    @app.command("other")
    def other():
        """Typer folds a single command into the app itself."""

    return app


def test_export_and_fsck(app, world, tmp_path, names, monkeypatch):
    home = tmp_path / "coordinator"
    settings = setup.new_settings(
        home, names.consortium, "127.0.0.1:7443", listen="", rest_listen="", workflows="timers"
    )
    setup.create(settings)
    world.agree()
    # The world's ledger is signed by the world's key under the world's log name: export does not look, fsck does.
    world.export()
    world.db.close()
    url = world.db.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("COMITY_COORDINATOR_DATABASE_URL", url)
    file = tmp_path / "export.jsonl"
    runner = CliRunner()
    done = runner.invoke(app, ["ledger", "export", str(home), str(file), "--json"])
    assert done.exit_code == 0, done.output
    header, *rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert json.loads(done.output)["entries"] == header["size"] == len(rows)
    import base64

    leaves = [leaf_hash(base64.b64decode(row["statement"])) for row in rows]
    assert verify_note(header["checkpoint"], names.log, world.log_keys.public.statement).root == root(leaves)
    failed = runner.invoke(app, ["ledger", "fsck", str(home), "--json"])
    assert failed.exit_code == 1
    assert any("note" in each for each in json.loads(failed.output)["findings"])


def test_fsck_of_an_empty_ledger_holds(app, tmp_path):
    home = tmp_path / "coordinator"
    settings = setup.new_settings(home, "demo", "127.0.0.1:7443", listen="", rest_listen="", workflows="timers")
    setup.create(settings)
    with setup.database(settings) as database:
        database.create_all()
        assert (
            database.transact(lambda conn: conn.execute(text("select count(*) from ledger_entries")).scalar_one()) == 0
        )
    done = CliRunner().invoke(app, ["ledger", "fsck", str(home)])
    assert (done.exit_code, done.output) == (0, "Every invariant holds.\n")
    assert CliRunner().invoke(app, ["ledger", "export", str(home), str(tmp_path / "x")]).exit_code != 0
    assert list(tmp_path.glob("*x*")) == []
