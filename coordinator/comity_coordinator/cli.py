"""`comity coordinator …` and `comity revoke`: the operator's commands; nothing heavy is imported before one runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from comity_coordinator.backup import cli as backup_cli
from comity_coordinator.ledger.cli import fsck as ledger_fsck
from comity_coordinator.ledger.cli import group as ledger_group

Home = Annotated[Path, typer.Argument(help="The coordinator's folder.", envvar="COMITY_COORDINATOR_HOME")]
HomeOption = Annotated[Path, typer.Option("--home", help="The coordinator's folder.", envvar="COMITY_COORDINATOR_HOME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LogFormat = Annotated[
    Literal["json", "text"] | None,
    typer.Option(help="How log lines are written; by default text on a terminal, JSON lines anywhere else."),
]
Replica = Annotated[str, typer.Option(help="This process's name among several on one database: a-z, 0-9, hyphens.")]
ReplicaAddress = Annotated[str, typer.Option(help="HOST:PORT where the other replicas reach this one.")]
DatabaseUrl = Annotated[str, typer.Option("--database", help="URL of the database, without its password.")]
PasswordFile = Annotated[Path | None, typer.Option(help="File that holds the database's password.")]
ValidHours = Annotated[int, typer.Option(min=1, max=168, help="Hours until the token expires.")]

OPEN_FILES_MAX = 65_536

group = typer.Typer(no_args_is_help=True, help="Run the coordinator of a consortium.")
group.add_typer(ledger_group, name="ledger")
backup_cli.register(group)


def register(app: typer.Typer) -> None:
    """Add the operator's commands to `app`."""
    app.add_typer(group, name="coordinator")
    app.command("revoke")(revoke_at)
    ledger = typer.Typer(no_args_is_help=True, help="The shared history.")
    ledger.command("fsck")(ledger_fsck)
    app.add_typer(ledger, name="ledger")


@group.command("init")
def init(
    home: Home,
    consortium: Annotated[str, typer.Option(help="Name of the consortium: a-z, 0-9 and hyphens.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that nodes dial.")],
    first_member: Annotated[str, typer.Option(help="The organisation that joins first.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind, where it differs from the address.")] = "",
    rest_listen: Annotated[str, typer.Option(help="HOST:PORT of the operator's API, on loopback.")] = "",
    workflows: Annotated[str, typer.Option(help="temporal, or timers for small tests.")] = "temporal",
    replica: Replica = "",
    replica_address: ReplicaAddress = "",
    database: DatabaseUrl = "",
    database_password_file: PasswordFile = None,
    valid_hours: ValidHours = 24,
    as_json: AsJson = False,
) -> None:
    """Make a coordinator's folder and print the first join token.

    \b
    Example:
      comity coordinator init /srv/comity --consortium health-net --address comity.example.org:7700 \\
        --first-member hospital-a > token
    """
    from comity_coordinator import setup

    settings = setup.new_settings(
        home,
        consortium,
        address,
        listen=listen,
        rest_listen=rest_listen,
        workflows=workflows,
        replica=replica,
        replica_address=replica_address,
        database_url=database,
        database_password_file=database_password_file and database_password_file.resolve(),
    )
    setup.create(settings)
    _print_token(home, first_member, valid_hours, as_json)
    if not as_json:
        typer.echo(f"Start it with: comity coordinator up {home}", err=True)


@group.command("replica")
def replica_of(
    home: Home,
    of: Annotated[Path, typer.Option(help="Folder of the first replica, or a copy of it.", exists=True)],
    name: Annotated[str, typer.Option("--replica", help="The new replica's name.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that nodes dial.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind, where it differs from the address.")] = "",
    rest_listen: Annotated[str, typer.Option(help="HOST:PORT of the operator's API, on loopback.")] = "",
    replica_address: ReplicaAddress = "",
    as_json: AsJson = False,
) -> None:
    """Make the folder of a further replica: the same keys and database, a name and a certificate of its own.

    \b
    Example:
      comity coordinator replica /srv/comity-b --of /srv/comity-a --replica b --address b.example.org:7700
    """
    from comity_coordinator import setup
    from comity_coordinator.settings import CoordinatorSettings

    first = CoordinatorSettings.load(of)
    places = setup.new_settings(home, first.consortium, address, listen=listen, rest_listen=rest_listen, replica=name)
    own = {key: getattr(places, key) for key in ("home", "address", "listen", "rest_listen", "replica")}
    setup.replicate(first.model_copy(update={**own, "replica_address": replica_address}), of)
    typer.echo(json.dumps({"replica": name}) if as_json else f"Start it with: comity coordinator up {home}")


@group.command("adopt")
def adopt(
    home: Home,
    export: Annotated[Path, typer.Option(help="The newest ledger export that the members have.", exists=True)],
    genesis: Annotated[str, typer.Option(help="The consortium's name, obtained outside any coordinator.")],
    consortium: Annotated[str, typer.Option(help="Id of the consortium, as in the export.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that nodes will dial.")],
    org: Annotated[list[str], typer.Option(help="A member to make a token for; may be given several times.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind, where it differs from the address.")] = "",
    rest_listen: Annotated[str, typer.Option(help="HOST:PORT of the operator's API, on loopback.")] = "",
    workflows: Annotated[str, typer.Option(help="temporal, or timers for small tests.")] = "temporal",
    valid_hours: ValidHours = 168,
    as_json: AsJson = False,
) -> None:
    """Start a successor from an export, for when the coordinator is dead or no longer trusted; see docs/charter.md.

    It takes the log over under a new key. Members then point their nodes to it (`comity node adopt`) and vote on it
    (`comity charter propose --coordinator FILE`); before that it does nothing else for them.

    \b
    Example:
      comity coordinator adopt /srv/next --export ledger.jsonl --genesis xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx \\
        --consortium health-net --address next.example.org:7700 --org hospital-a --org hospital-b
    """
    from comity_coordinator import setup
    from comity_coordinator.governance import adoption

    settings = setup.new_settings(
        home, consortium, address, listen=listen, rest_listen=rest_listen, workflows=workflows
    )
    made = adoption.adopt(settings, export, genesis, tuple(org), valid_hours * 3600)
    offer, file = made.offer(), home / adoption.OFFER
    file.write_text(json.dumps(offer, indent=2, sort_keys=True) + "\n")
    tokens = {name: each.to_text() for name, each in made.tokens.items()}
    if as_json:
        typer.echo(json.dumps({"offer": offer, "offer_file": str(file), "tokens": tokens}))
        return
    for name, text in tokens.items():
        typer.echo(f"{name}: {text}")
    typer.echo(f"{made.report.size} entries taken over. Hand each member its token, and {file} to all:", err=True)
    typer.echo(json.dumps(offer, sort_keys=True), err=True)


@group.command("token")
def token(
    home: Home,
    org: Annotated[str, typer.Argument(help="The organisation to invite.")],
    valid_hours: ValidHours = 24,
    as_json: AsJson = False,
) -> None:
    """Print a join token that the coordinator itself sponsors, for the first member or when a token has expired.

    \b
    Example:
      comity coordinator token /srv/comity hospital-a > token
    """
    _print_token(home, org, valid_hours, as_json)


@group.command("up")
def up(home: Home, log_format: LogFormat = None) -> None:
    """Run the coordinator until it is told to stop (SIGTERM or Ctrl-C).

    \b
    Example:
      comity coordinator up /srv/comity
    """
    from comity.wire import logs
    from comity_coordinator.settings import CoordinatorSettings

    os.umask(0o077)  # whatever this process and its children write is the operator's alone
    _open_files()
    logs.configure(log_format)
    asyncio.run(_serve(CoordinatorSettings.load(home)))


@group.command("members")
def members(home: Home, as_json: AsJson = False) -> None:
    """List the enrolled organisations.

    \b
    Example:
      comity coordinator members /srv/comity
    """
    from comity_coordinator import setup
    from comity_coordinator.settings import CoordinatorSettings

    settings = CoordinatorSettings.load(home)
    with setup.database(settings) as database:
        rows = database.transact(setup.membership(settings).members)
    found = [
        {"org": row.org, "title": row.title, "enrolled_at": row.enrolled_at, "revoked_at": row.revoked_at}
        for row in rows
    ]
    if as_json:
        typer.echo(json.dumps({"members": found}))
        return
    for each in found:
        typer.echo(f"{each['org']}  {each['title']}  {'revoked' if each['revoked_at'] else 'enrolled'}")


@group.command("revoke")
def revoke(home: Home, org: Annotated[str, typer.Argument()], as_json: AsJson = False) -> None:
    """Refuse the transport to an organisation from its next message on; a running coordinator notices at once.

    \b
    Example:
      comity coordinator revoke /srv/comity hospital-c
    """
    from functools import partial

    from comity_coordinator import setup
    from comity_coordinator.settings import CoordinatorSettings

    settings = CoordinatorSettings.load(home)
    with setup.database(settings) as database:
        database.transact(partial(setup.membership(settings).revoke, org=org))
    typer.echo(json.dumps({"revoked": org}) if as_json else f"{org} is revoked.")


@group.command("policy")
def policy(
    home: Home,
    file: Annotated[Path, typer.Argument(help="The consortium's bundle, as `comity policy build` writes it.")],
    as_json: AsJson = False,
) -> None:
    """Keep the consortium's policy bundle, so that proposals which it denies are refused at once.

    It counts once the charter names its digest; nodes ask it themselves and believe nobody's word for it.

    \b
    Example:
      comity coordinator policy /srv/comity consortium.tar.gz
    """
    from comity_coordinator.governance.policy import install
    from comity_coordinator.settings import CoordinatorSettings
    from comity_policies.bundle import read_bounded
    from comity_policies.bundle_archive import ARCHIVE_BYTES_MAX

    settings = CoordinatorSettings.load(home)
    bundle = install(settings.home, read_bounded(file, ARCHIVE_BYTES_MAX))
    typer.echo(json.dumps({"bundle": bundle.digest}) if as_json else f"kept: bundle {bundle.digest}")


@group.command("migrate")
def migrate(
    home: Home,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; status 1 if something is to do.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database to the schema of this version; `up` does it too, unless the setting `migrate` is `manual`.

    \b
    Example:
      comity coordinator migrate /srv/comity --check
    """
    from comity_coordinator import setup
    from comity_coordinator.migrations import schema
    from comity_coordinator.settings import CoordinatorSettings

    with setup.database(CoordinatorSettings.load(home)) as database:
        done = () if check else schema.prepare(database)
        found = database.transact(schema.standing)
    if as_json:
        document = {"applied": done, "has": found.has, "needs": found.needs, "unknown": list(found.unknown)}
        typer.echo(json.dumps(document))
    else:
        typer.echo(f"applied: {', '.join(done) or 'nothing'}; to do: {', '.join(found.needs) or 'nothing'}")
    if found.needs:
        raise typer.Exit(1)


def revoke_at(org: Annotated[str, typer.Argument()], home: HomeOption, as_json: AsJson = False) -> None:
    """Refuse the transport to an organisation from its next message on: `comity coordinator revoke`, said shorter.

    \b
    Example:
      comity revoke hospital-c --home /srv/comity
    """
    revoke(home, org, as_json)


def _print_token(home: Path, org: str, valid_hours: int, as_json: bool) -> None:
    from functools import partial

    from comity_coordinator import setup
    from comity_coordinator.migrations import schema
    from comity_coordinator.settings import CoordinatorSettings

    settings = CoordinatorSettings.load(home)
    with setup.database(settings) as database:
        schema.prepare(database, change=settings.migrate == "auto")
        made = database.transact(partial(setup.membership(settings).own_token, org=org, valid_s=valid_hours * 3600))
    if as_json:
        document = {"org": org, "token": made.to_text(), "expires_at": made.expires_at}
        typer.echo(json.dumps(document))
        return
    typer.echo(f"Hand this to {org} over a channel you trust; it works once, until {made.expires_at}:", err=True)
    typer.echo(made.to_text())


def _open_files() -> None:
    """Take as many open files as the system permits: each node's stream is one, and the usual limit is 1,024."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, OPEN_FILES_MAX) if most > 0 else OPEN_FILES_MAX, most))


async def _serve(settings: Any) -> None:
    from comity.wire import heap
    from comity_coordinator.app import Coordinator

    coordinator = Coordinator(settings)
    heap.settle()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, coordinator.stop)
    await coordinator.run()
