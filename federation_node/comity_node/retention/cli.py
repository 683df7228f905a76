"""`comity node retention`: what of finished runs is kept here until when, and what has gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_HOME = Path.home() / ".comity"


def retention(
    now: Annotated[bool, typer.Option("--now", help="Delete what is due, instead of within a minute.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --now: only say what would go.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Show which runs' results go when, by the terms' retention_s, and what has gone; delete what is due now.

    Nothing goes before it is due, and nothing of an agreement that names no time.

    \b
    Examples:
      comity node retention
      comity node retention --now --dry-run
    """
    from comity.wire.errors import ComityError, ErrorCode
    from comity_node.local import LocalApi

    if dry_run and not now:
        raise ComityError(ErrorCode.MALFORMED, "--dry-run belongs to --now")
    api = LocalApi(home)
    if now and not dry_run:
        found = api.post("/v1/retention/run", {})
        _show(found, [f"deleted  {_line(each)}" for each in found["deleted"]] or ["nothing is due"], as_json)
        return
    found = api.get("/v1/retention")
    if dry_run:
        due = [each for each in found["waiting"] if each["due"]]
        _show({"would_delete": due}, [f"would go  {each['run']}" for each in due] or ["nothing is due"], as_json)
        return
    lines = [f"{each['due_at']}  {each['run']}" for each in found["waiting"]] or ["nothing has a last day"]
    lines += [
        f"deleted {each['deleted_at']}  {_line(each)}  {'in the ledger' if each['proved'] else 'not in the ledger yet'}"
        for each in found["deleted"]
    ]
    if found["clock_back"]:
        lines.append("the clock was put back: nothing is deleted until it has caught up")
    _show(found, lines, as_json)


def _line(each: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(each["counts"].items()))
    return f"{each['run']}  {counts}"


def _show(document: dict[str, Any], lines: list[str], as_json: bool) -> None:
    typer.echo(json.dumps(document, sort_keys=True) if as_json else "\n".join(lines))
