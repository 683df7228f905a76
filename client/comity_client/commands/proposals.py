"""`comity proposals list|show` and `comity withdraw`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table, words

if TYPE_CHECKING:
    from comity_client.documents import ProposalView


def register(app: typer.Typer) -> None:
    """Add the group `proposals`, and `withdraw`."""
    proposals = typer.Typer(no_args_is_help=True, help="Proposals: list them, see who answered what.")
    proposals.command("list")(list_proposals)
    proposals.command("show")(show)
    app.add_typer(proposals, name="proposals")
    app.command("withdraw")(withdraw)


def list_proposals(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the proposals that this organisation made or was asked, newest first.

    \b
    Example:
      comity proposals list
    """
    from comity_client.follow import movers
    from comity_client.sdk import Node

    with Node(home) as node:
        found = node.proposals()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["proposal_id"],
            each["proposer"],
            each["purpose"],
            each["news"]["state"] if each["news"] else "SUBMITTED",
            ", ".join(movers(each["news"])) if each["news"] else "coordinator",
            each["deadline"],
        )
        for each in found
    ]
    print_table(("proposal", "proposer", "purpose", "state", "move", "deadline"), rows, empty="no proposals yet")


def show(
    name: Annotated[str, typer.Argument(help="Proposal id or digest.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Show a proposal: what it asks for, and each organisation's answer with its reasons.

    \b
    Example:
      comity proposals show PROPOSAL
    """
    from comity_client.sdk import Node

    with Node(home) as node:
        view = node.proposal(name)
    if as_json:
        print_json(view)
    else:
        _tell(view)


def withdraw(
    name: Annotated[str, typer.Argument(help="Proposal id or agreement digest.")],
    reason: Annotated[str, typer.Option(help="Why; every party reads it.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Withdraw from a proposal or an agreement: running work stops at the next dispatch.

    \b
    Example:
      comity withdraw PROPOSAL --reason "the ethics board asked us to stop"
    """
    from comity_client.sdk import Node

    with Node(home) as node:
        done = node.withdraw(name, reason)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"withdrawn from {done['withdrawn']}; the ledger will say so")


def _tell(view: ProposalView) -> None:
    proposal, news = view["proposal"], view["news"]
    typer.echo(f"{view['proposal_id']}: {view['title']}")
    typer.echo(f"  {view['proposer']} asks for {view['purpose']}, until {view['deadline']}")
    for step in proposal["steps"]:
        app = step["app"]
        typer.echo(f"  step {step['id']}: {app['publisher']}/{app['name']} {app['version']}, {step['rounds']} rounds")
        typer.echo(f"    lead {step['lead']}, app digest {app['digest']}")
    for name, value in sorted(proposal["terms"].items()):
        typer.echo(f"  term {name}: {words(value)}")
    typer.echo(f"  state: {news['state'].lower() if news else 'on its way to the coordinator'}")
    if news and news["ended"]:
        ended = news["ended"]
        typer.echo(f"  ended by {ended.get('move') or 'nobody'}: {ended.get('code')}, {ended.get('detail')}")
    ongoing = news is not None and not news["ended"]
    for leg in news["legs"] if news else []:
        move = f", awaited: {leg['move']} until {leg['until']}" if leg["move"] and ongoing else ""
        typer.echo(f"  {leg['org']}: {leg['state'].lower()} since {leg['since']}{move}")
        for reason in leg["reasons"]:
            typer.echo(f"    {reason['rule']}: {reason['message']}")
