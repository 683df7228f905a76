"""The commands of a node: join, up, rotate, status, invite, genesis.

Imports of what a command needs are inside it, so that `comity --help` stays quick.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from comity_node import admin
from comity_node.access import cli as access_cli
from comity_node.governance import cli as charter_cli
from comity_node.ledger import cli as ledger_cli
from comity_node.retention.cli import retention

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LogFormat = Annotated[
    Literal["json", "text"] | None,
    typer.Option(help="How log lines are written; by default text on a terminal, JSON lines anywhere else."),
]
DEFAULT_HOME = Path.home() / ".comity"


def register(app: typer.Typer) -> None:
    """Add the node's commands to `app`."""
    node = typer.Typer(no_args_is_help=True, help="This organisation's node.")
    node.command("join")(join)
    node.command("up")(up)
    node.command("rotate")(rotate)
    node.command("adopt")(adopt)
    node.command("recover")(recover)
    node.command("status")(status)
    node.command("retention")(retention)
    genesis = typer.Typer(no_args_is_help=True, help="The consortium's charter: compare it, sign it.")
    genesis.command("show")(genesis_show)
    genesis.command("sign")(genesis_sign)
    app.add_typer(node, name="node")
    app.add_typer(genesis, name="genesis")
    app.command("invite")(invite)
    admin.register(app)
    access_cli.register(app)
    charter_cli.register(app)
    ledger_cli.register(app)


def join(
    token: Annotated[str, typer.Argument(help="The join token, or - to read it from standard input.")],
    genesis: Annotated[
        str | None, typer.Option(help="Genesis digest obtained outside the coordinator (24 characters or more).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What people call the organisation.")] = None,
    owner: Annotated[str | None, typer.Option(help="Its legal owner.")] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Join a consortium: make keys here, enrol, write the folder. A token is a secret until it is used.

    \b
    Examples:
      comity node join - --home /srv/node --title "Hospital A" --owner "A gGmbH" < token
      comity node join - --home /srv/node --genesis DIGEST < token     (once the genesis is signed)
    """
    from comity_node.membership import service

    text = sys.stdin.readline(65_536) if token == "-" else token  # noqa: S105 - a dash
    joined = asyncio.run(service.join(text, home, genesis, title=title, owner=owner))
    _show(
        {"org": joined.org, "consortium": joined.consortium, "fingerprint": joined.fingerprint, "home": str(home)},
        as_json,
    )


def up(home: Home = DEFAULT_HOME, log_format: LogFormat = None, as_json: Json = False) -> None:
    """Run the node until it is stopped (SIGTERM or Ctrl-C); it logs one line an event to standard error.

    \b
    Example:
      comity node up --home /srv/node
    """
    from comity.wire import logs
    from comity_node.app import run_node

    logs.configure(log_format)
    run_node(home, lambda: _show({"ready": True, "socket": str(home / "api.sock")}, as_json))


def adopt(
    token: Annotated[str, typer.Argument(help="The other coordinator's token, or - to read it from standard input.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Point a stopped node to another coordinator, on which the members then vote; see docs/charter.md.

    \b
    Example:
      comity node adopt - --home /srv/node < token
    """
    from comity_node.app import locked
    from comity_node.membership import service
    from comity_node.settings import NodeSettings

    NodeSettings.load(home)  # says so if there is no node
    text = sys.stdin.readline(65_536) if token == "-" else token  # noqa: S105 - a dash
    with locked(home):
        address, moved = asyncio.run(service.adopt(text, home))
    found = {"coordinator": address, "home": str(home), "runs_ended": list(moved.runs)}
    _show({**found, "proposals_open": list(moved.proposals)}, as_json)


def rotate(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Replace the TLS key and certificate; a running node dials again.

    \b
    Example:
      comity node rotate --home /srv/node
    """
    from comity_node.membership import service

    serial = asyncio.run(service.rotate(home))
    _show({"serial": serial, "running_node": _redial(home)}, as_json)


def recover(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Go on after a backup was restored: every open grant is booked as spent, every open run as ended.

    The node must be stopped, and the coordinator reachable. Agreements have to be made anew.

    \b
    Example:
      comity node recover --home /srv/node
    """
    from dataclasses import asdict

    from comity_node.app import locked
    from comity_node.recovery import recover as recover_node
    from comity_node.settings import NodeSettings

    settings = NodeSettings.load(home)
    with locked(home):
        done = asyncio.run(recover_node(settings))
    _show(asdict(done), as_json)


def status(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show who this node is, its link and its charter.

    \b
    Example:
      comity node status --home /srv/node --json
    """
    _show(_api(home).get("/v1/status"), as_json)


def invite(
    org: Annotated[str, typer.Argument(help="Id of the organisation to invite.")],
    valid_hours: Annotated[int, typer.Option(min=1, max=168, help="How long the token works.")] = 168,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Sponsor an organisation: print a single-use join token, to be handed over on a channel that you trust.

    \b
    Example:
      comity invite hospital-b > token
    """
    invitation = _api(home).post("/v1/invitations", {"org": org, "valid_s": valid_hours * 3_600})
    if as_json:
        _show(invitation, as_json)
    else:
        typer.echo(invitation["token"])


def genesis_show(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show the next charter: its digest, and each member's fingerprint to compare by telephone.

    Once every founder has signed, show the charter in force.

    \b
    Example:
      comity genesis show
    """
    from comity.wire.errors import ComityError, ErrorCode

    try:
        found = _api(home).get("/v1/genesis")
    except ComityError as error:
        if error.code is not ErrorCode.NOT_FOUND or not (home / "node.json").exists():
            raise
        _show_charter(_api(home).get("/v1/charter"), as_json)
        return
    if as_json:
        _show(found, as_json)
        return
    draft = found["draft"]
    typer.echo(f"charter {draft['version']} of {draft['consortium']}: {draft['name']}")
    for member in draft["members"]:
        mark = "signed" if member["org"] in draft["signed_by"] else "awaited"
        typer.echo(f"  {member['org']:<24} {member['fingerprint']}  {mark}")
    typer.echo("Compare every line with the other members, not over the coordinator. Then each of them signs:")
    typer.echo(f"  comity genesis sign {draft['name']}")


def genesis_sign(
    digest: Annotated[str, typer.Argument(help="The digest that the founders compared, typed by hand.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Sign the next charter by its digest.

    \b
    Example:
      comity genesis sign xxxx-xxxx-xxxxx-xxxx-xxxx-xxxxx
    """
    done = _api(home).post("/v1/genesis/sign", {"digest": digest})
    if as_json:
        _show(done, as_json)
    elif done["final"]:
        name = _api(home).get("/v1/charter")["genesis"]
        typer.echo(f"signed; the charter is in force. Newcomers and auditors need the genesis digest {name}")
    else:
        draft = _api(home).get("/v1/genesis")["draft"]
        typer.echo(f"signed; awaited: {', '.join(draft['awaited'])}")


def _show_charter(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _show({"draft": None, "in_force": found["genesis"], "charter": found["charter"]}, as_json)
        return
    charter = found["charter"]
    typer.echo(f"charter {charter['version']} of {charter['consortium']} is in force; genesis {found['genesis']}")
    for member in charter["members"]:
        typer.echo(f"  {member['org']:<24} {member['title']}, {member['owner']}")


def _api(home: Path) -> Any:
    from comity_node.local import LocalApi

    return LocalApi(home)


def _redial(home: Path) -> bool:
    """Tell a running node to dial again; False if none runs."""
    from comity.wire.errors import ComityError, ErrorCode

    try:
        _api(home).post("/v1/link/redial", {})
    except ComityError as error:
        if error.code is ErrorCode.UNAVAILABLE:
            return False
        raise
    return True


def _show(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, sort_keys=True))
        return
    for key, value in document.items():
        typer.echo(f"{key}: {json.dumps(value) if isinstance(value, dict | list) else value}")
