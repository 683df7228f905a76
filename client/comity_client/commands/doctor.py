"""`comity doctor`: what is wrong with this node, and what mends it."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from comity_client.output import DEFAULT_HOME, Home, Json, print_json

EXIT_ILL = 1
_MARKS = {"good": "ok  ", "warning": "warn", "bad": "BAD "}


def doctor(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Examine this node: name what is wrong, and the fix. Ends with status 1 if something is bad.

    \b
    Examples:
      comity doctor
      comity doctor --home /srv/hospital-a --json
    """
    from comity_client.doctor import examine

    findings = examine(home, comity_command())
    bad = [each for each in findings if each.verdict == "bad"]
    if as_json:
        print_json({"healthy": not bad, "findings": [each.to_json() for each in findings]})
    else:
        for each in findings:
            typer.echo(f"{_MARKS[each.verdict]}  {each.check}: {each.detail}")
            if each.fix:
                typer.echo(f"      fix: {each.fix}")
    if bad:
        raise typer.Exit(EXIT_ILL)


def comity_command() -> list[str]:
    """Return how to start the `comity` command of this installation."""
    beside = Path(sys.executable).with_name("comity")
    return [str(beside)] if beside.exists() else [sys.executable, "-c", "from comity_client.main import main; main()"]
