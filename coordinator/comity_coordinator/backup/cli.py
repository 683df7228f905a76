"""`comity coordinator backup` and `comity coordinator restore`; nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from comity_coordinator.backup.restoring import Restored

Home = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
REJOIN_S = 7 * 86_400
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(group: typer.Typer) -> None:
    """Add both commands to `group`."""
    group.command("backup")(backup)
    group.command("restore")(restore)


def backup(
    home: Home,
    target: Annotated[Path, typer.Argument(help="The new folder to write.")],
    keys: Annotated[
        bool, typer.Option("--keys", help="Also the private keys, in the clear: whoever has them is the coordinator.")
    ] = False,
    payloads: Annotated[bool, typer.Option(help="Also the sealed payloads that wait in the spool.")] = True,
    as_json: AsJson = False,
) -> None:
    """Back the coordinator up, running or not: database, settings, policies, payloads; keys only if asked for.

    The folder fits every database: a backup of SQLite restores into PostgreSQL. Keep a copy of keys/ elsewhere, sealed.

    \b
    Examples:
      comity coordinator backup /srv/comity /backups/comity-2026-11-23
      comity coordinator backup /srv/comity /mnt/safe/comity --keys --no-payloads
    """
    from comity_coordinator.backup.taking import take

    taken = take(home, target, keys=keys, payloads=payloads, tell=_progress)
    said = taken.manifest
    if as_json:
        document = {"size": said.size, "root": said.root, "rows": sum(said.tables.values()), "keys": said.keys}
        typer.echo(json.dumps({**document, "payloads": said.payloads, "size_bytes": taken.size_bytes}))
        return
    typer.echo(f"{target}: {sum(said.tables.values())} rows, the ledger up to {said.size}, {taken.size_bytes} bytes.")
    if not keys:
        typer.echo("It holds no keys; without keys/ it cannot be restored.", err=True)


def restore(
    source: Annotated[Path, typer.Argument(help="The backup's folder.")],
    home: Home,
    database: Annotated[
        str,
        typer.Option(help="URL of the empty database to fill, without its password; by default as in the settings."),
    ] = "",
    database_password_file: Annotated[
        Path | None, typer.Option(help="File that holds the database's password.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="A member's newer ledger export: the entries that the backup lacks.", exists=True),
    ] = None,
    genesis: Annotated[str | None, typer.Option(help="The consortium's name, to verify the export from.")] = None,
    seen: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that a member holds; may be given several times.")
    ] = None,
    uncompared: Annotated[
        bool,
        typer.Option("--uncompared", help="No member has a checkpoint or an export: restore without a comparison."),
    ] = False,
    rejoin: Annotated[
        bool,
        typer.Option("--rejoin", help="Messages went on since the backup: make a token for each member, for a week."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty database, check every invariant, and say what is missing; see docs/disaster.md.

    Give what a member holds (--seen, --export), or say that there is nothing to compare with (--uncompared).
    Exit status 1 if a member has seen more than is here now: do not start the coordinator then.

    \b
    Examples:
      comity coordinator restore /backups/comity-2026-11-23 /srv/comity --export ledger.jsonl \\
        --genesis xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx
      comity coordinator restore /backups/comity-2026-11-23 /srv/comity --database postgresql://comity@db/comity \\
        --seen checkpoint-of-hospital-b
    """
    from comity_coordinator.backup.restoring import restore as restore_backup

    _check_comparison(export, genesis, seen, uncompared)
    done = restore_backup(
        source,
        home,
        database_url=database,
        database_password_file=database_password_file and database_password_file.resolve(),
        export=export,
        genesis=genesis,
        seen=tuple(seen or ()),
        rejoin_valid_s=REJOIN_S if rejoin else 0,
        tell=_progress,
    )
    _show(done, as_json)
    if done.lost:
        raise typer.Exit(1)


def _check_comparison(export: Path | None, genesis: str | None, seen: list[Path] | None, uncompared: bool) -> None:
    """Refuse to restore in silence: only members know whether the backup is the newest word. Raises `MALFORMED`."""
    from comity.wire.errors import ComityError, ErrorCode

    if export is not None and genesis is None:
        raise ComityError(ErrorCode.MALFORMED, "an export is verified from the consortium's name: give --genesis")
    if (export is not None or bool(seen)) == uncompared:
        raise ComityError(
            ErrorCode.MALFORMED,
            "ask the members first: an old backup forks the ledger. Give --seen or --export, or else --uncompared",
        )


def _show(done: Restored, as_json: bool) -> None:
    if as_json:
        document = {"consortium": done.consortium, "size": done.size, "root": done.root, "rows": done.rows}
        added = {"entries_added": done.added.entries, "statements_waiting": done.added.waiting}
        tokens = {org: token.to_text() for org, token in done.tokens.items()}
        typer.echo(json.dumps({**document, **added, "lost": list(done.lost), "tokens": tokens}))
    else:
        typer.echo(
            f"restored: {done.rows} rows; the ledger ends at {done.size}, {done.added.entries} entries imported."
        )
        for org, token in done.tokens.items():
            typer.echo(f"{org}: {token.to_text()}")
        typer.echo("\n".join(done.lost) or f"Compare the end with the members ({done.size} {done.root}) before `up`.")


def _progress(line: str) -> None:
    typer.echo(line, err=True)
