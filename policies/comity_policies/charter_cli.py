"""`comity charter verify`: every version of the charter in a ledger export, from the genesis name alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add `verify` to the group `charter` of the `comity` command."""
    charter = typer.Typer(no_args_is_help=True, help="The consortium's constitution: read it, change it by vote.")
    charter.command("verify")(verify)
    app.add_typer(charter, name="charter")


def verify(
    file: Annotated[Path, typer.Argument(help="A ledger export.")],
    genesis: Annotated[str, typer.Option(help="The consortium's name, obtained outside the coordinator.")],
    independent: Annotated[
        bool,
        typer.Option("--independent", help="Check keys, certificates and proofs a second way too (slow)."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify every charter offline, from the genesis name on: certificates, votes, ends. Needs no node.

    \b
    Example:
      comity charter verify ledger.jsonl --genesis xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx
    """
    from comity_policies.history import verify_export

    report = verify_export(file, genesis, independent=independent)
    chain = [
        {"version": each.version, "digest": each.digest, "kinds": list(each.kinds), "signers": list(each.signers)}
        for each in report.charters
    ]
    kinds = ("charter-proposal", "charter-vote", "charter-ended")
    if as_json:
        found = {"ok": True, "genesis": report.genesis, "consortium": report.consortium, "charters": chain}
        counts = {kind: report.counts.get(kind, 0) for kind in kinds}
        typer.echo(json.dumps({**found, "counts": counts, "size": report.size, "root": report.root}, sort_keys=True))
        return
    for each in report.charters:
        typer.echo(f"  {each.version}. {', '.join(each.kinds)}: signed by {', '.join(each.signers)}")
    said = ", ".join(f"{report.counts.get(kind, 0)} {kind}" for kind in kinds)
    typer.echo(f"The charter of {report.consortium} holds, version {report.charters[-1].version}: {said}.")
    typer.echo(f"genesis {report.genesis}")
