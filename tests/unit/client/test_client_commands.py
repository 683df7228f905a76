"""The commands: what they read, what they print, and that every one explains itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from comity.wire.errors import ComityError, ErrorCode
from comity_client import cli
from comity_client.commands import demo, train


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    cli.register(made)
    return made


def commands(group: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for key, each in group.commands.items():
            yield from commands(each, f"{name} {key}".strip())
    else:
        yield name, group


def test_every_command_has_json_and_says_what_it_does(app: typer.Typer) -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert set(found) == {
        *("train", "aggregate", "intersect", "runs list", "runs watch", "runs result", "withdraw"),
        *("proposals list", "proposals show"),
        *("proposals accept", "proposals revise"),
        *("login", "access me", "access token issue", "access token list", "access token revoke"),
        *("review list", "review show", "review approve", "review deny", "review delegate", "review delegations"),
        *("status", "doctor", "demo", "version"),
    }
    for name, command in found.items():
        assert "--json" in {option for each in command.params for option in each.opts}, name
        assert command.help, name
        if name != "version":
            assert "Example" in command.help, name
            assert f"comity {name}" in command.help, name


@pytest.mark.parametrize(("text", "found"), [("90s", 90), ("30m", 1_800), ("24h", 86_400), (" 7d ", 604_800)])
def test_durations(text: str, found: int) -> None:
    assert train.seconds(text) == found


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "-1h", "1.5h", "24h30m", "99999999d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ComityError) as caught:
        train.seconds(text)
    assert caught.value.code is ErrorCode.MALFORMED


def test_run_config_keeps_what_a_proposal_can_sign() -> None:
    found = train.run_config(["epochs=5", "quick=true", "rate=0.1", "name=a=b", "empty=", "n=-3"])
    assert found == {"epochs": 5, "quick": True, "rate": "0.1", "name": "a=b", "empty": "", "n": -3}
    assert isinstance(found["quick"], bool)
    for bad in ("epochs", "=5"):
        with pytest.raises(ComityError):
            train.run_config([bad])


def test_terms_are_an_object(tmp_path: Path) -> None:
    path = tmp_path / "terms.json"
    path.write_text('{"min_participants": 3}')
    assert train.read_terms(path) == {"min_participants": 3}
    for bad in ("[]", "{", "[" * 100_000):
        path.write_text(bad)
        with pytest.raises(ComityError) as caught:
            train.read_terms(path)
        assert caught.value.code is ErrorCode.MALFORMED


def test_withdraw_prints_one_json_object(app: typer.Typer, served: Any) -> None:
    arguments = ["withdraw", "prop-1", "--reason", "enough", "--home", str(served.home), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"withdrawn": "prop-1"}


def test_a_watch_prints_one_json_object_a_line(app: typer.Typer, served: Any) -> None:
    done = CliRunner().invoke(app, ["runs", "watch", "run-1", "--home", str(served.home), "--json"])
    numbers = [json.loads(line)["no"] for line in done.stdout.splitlines()]
    assert numbers == [1, 2, 3, 4, 5]


def test_the_doctor_ends_with_a_status(app: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["healthy"] is False


def test_a_demo_takes_no_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ComityError) as caught:
        demo._place(tmp_path)
    assert caught.value.code is ErrorCode.CONFLICT
    assert (tmp_path / "thesis.txt").exists()


def test_a_demo_takes_an_earlier_demos_folder(tmp_path: Path) -> None:
    place = demo._place(tmp_path / "d")
    (place / "logs").mkdir()
    assert demo._place(place) == place
    assert [each.name for each in place.iterdir()] == [demo.MARKER]


def test_a_demos_folder_must_fit_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ComityError) as caught:
        demo._place(tmp_path / ("x" * 100))
    assert caught.value.code is ErrorCode.MALFORMED
