"""`comity ledger show|prove|watch|acknowledge|export`: the shared ledger as this organisation's node sees it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_HOME = Path.home() / ".comity"
WATCH_EVERY_S = 1.0
WATCH_S_MAX = 7 * 24 * 3600


def register(app: typer.Typer) -> None:
    """Add this node's part of the group `ledger` to the `comity` command."""
    ledger = typer.Typer(no_args_is_help=True, help="The shared ledger.")
    ledger.command("show")(show)
    ledger.command("prove")(prove)
    ledger.command("watch")(watch)
    ledger.command("acknowledge")(acknowledge)
    ledger.command("export")(export)
    app.add_typer(ledger, name="ledger")


def show(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show what this node has read, what is final, whose cosignature is awaited, and incidents.

    \b
    Examples:
      comity ledger show
      comity ledger show --json
    """
    found = _api(home).get("/v1/ledger")
    _print(found, as_json, lines(found))


def prove(
    digest: Annotated[str, typer.Argument(help="SHA-256 of the statement's bytes, in hexadecimal.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Fetch an entry and prove that it is in the ledger, and whether it is final. Exit status 2 if it is not there.

    \b
    Example:
      comity ledger prove 5f3c… --json > proof.json
    """
    found = _api(home).get(f"/v1/ledger/proof/{_plain(digest)}")
    final = "final" if found["final"] else "not final yet"
    text = [
        f"{found['kind']} of {found['issuer']}, said {found['issued_at']}: entry {found['index']}, {final}",
        f"proved under the signed checkpoint of {found['size']} entries, root {found['root']}",
    ]
    _print(found, as_json, text)


def watch(
    seconds: Annotated[int, typer.Option("--for", min=0, max=WATCH_S_MAX, help="End after so many seconds.")] = 0,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Tell each new final checkpoint and each incident as it is seen, until Ctrl-C or --for.

    \b
    Examples:
      comity ledger watch
      comity ledger watch --for 60 --json
    """
    api = _api(home)
    until = time.monotonic() + (seconds or WATCH_S_MAX)
    final, known, standing = -1, set[str](), ""
    while True:  # bounded by --for, a week at most
        found = api.get("/v1/ledger")
        now = found["final"] or {"size": 0, "at": None, "root": ""}
        if now["size"] != final:
            final = now["size"]
            _event(as_json, "final", f"{final} entries are final since {now['at']}, root {now['root']}", **now)
        then = (found["witnesses"] or {}).get("then", "")
        if then != standing:
            standing = then
            _event(as_json, "standing", then, witnesses=found["witnesses"])
        for each in reversed(found["incidents"]):
            if each["id"] not in known:
                known.add(each["id"])
                _event(as_json, "incident", _incident(each), incident=each)
        if time.monotonic() >= until:
            return
        time.sleep(min(WATCH_EVERY_S, max(0.0, until - time.monotonic())))


def acknowledge(
    incident: Annotated[str, typer.Argument(help="The incident's id, from `comity ledger show`.")],
    reason: Annotated[str, typer.Option(help="Why work may go on with this coordinator; it is kept.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Take work up again after an incident, from what the coordinator shows now. Talk to the other members first.

    \b
    Example:
      comity ledger acknowledge incident-… --reason "the operator restored a backup; nothing of ours is lost"
    """
    found = _api(home).post(f"/v1/ledger/incidents/{_plain(incident)}/acknowledge", {"reason": reason})
    _print(found, as_json, [_incident(found)])


def export(
    file: Annotated[Path, typer.Argument(help="Where to write the export.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Write the whole ledger to a file that `comity ledger verify` checks offline.

    \b
    Example:
      comity ledger export ledger.jsonl
    """
    size_bytes = _api(home).download("/v1/ledger/export", file)
    _print({"file": str(file), "size_bytes": size_bytes}, as_json, [f"file: {file}", f"size_bytes: {size_bytes}"])


def lines(found: dict[str, Any]) -> list[str]:
    """Return for people what the local API says of the ledger."""
    read, final, witnesses = found["read"], found["final"], found["witnesses"]
    text = [f"read and found in order: {read['size']} entries" if read else "nothing was read yet"]
    if witnesses is None:
        text.append("the charter names no witnesses: nothing waits for finality")
    else:
        said = (
            f"final: {final['size']} entries, cosigned {witnesses['age_s']} s ago" if final else "nothing is final yet"
        )
        text.append(f"{said}; {witnesses['k']} of {', '.join(witnesses['orgs'])} make a checkpoint final")
        if witnesses["awaited"]:
            text.append(f"awaited: {', '.join(witnesses['awaited'])}; {witnesses['then']}")
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found["entries"].items()))
    text.append(f"own entries: {counts or 'none'}")
    if gone := found.get("deletions"):
        text.append(f"results deleted here: of {len(gone)} runs, the last {gone[0]['run']} at {gone[0]['deleted_at']}")
    return text + [_incident(each) for each in found["incidents"]]


def _incident(each: dict[str, Any]) -> str:
    who = f" (seen by {each['org']})" if each["org"] else ""
    return f"incident {each['id']}: {each['kind']}{who} at {each['seen_at']}: {each['detail']}\n  {each['then']}"


def _event(as_json: bool, event: str, text: str, **facts: Any) -> None:
    typer.echo(json.dumps({"event": event, **facts}, sort_keys=True) if as_json else text)


def _print(document: dict[str, Any], as_json: bool, text: list[str]) -> None:
    typer.echo(json.dumps(document, sort_keys=True) if as_json else "\n".join(text))


def _plain(name: str) -> str:
    """A name as it stands in a URL: digits, letters and hyphens."""
    return "".join(each for each in name[:200] if each.isalnum() or each == "-")


def _api(home: Path) -> Any:
    from comity_node.local import LocalApi

    return LocalApi(home)
