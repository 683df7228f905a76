"""`comity status`: who waits for whom, since when, until when, and what happens then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table

if TYPE_CHECKING:
    from comity_client.documents import NodeStatus
    from comity_client.follow import Wait
    from comity_client.sdk import Node


def status(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show who waits for whom, since when, until when, and what happens then.

    \b
    Examples:
      comity status
      comity status --home /srv/hospital-a --json
    """
    from comity_client import where
    from comity_client.follow import charter_waits, review_waits, waits_of

    with where.node(home) as node:
        state = node.status()
        waits = charter_waits(state) + review_waits(node.reviews()) + waits_of(node.proposals(), node.runs())
        if state["charter_version"] is None and state["link"]["connected"]:
            waits = _unsigned(node) + waits
    if as_json:
        print_json({"node": state, "waiting": [each.to_json() for each in waits]})
        return
    for line in node_lines(state):
        typer.echo(line)
    rows = [
        (f"{each.what} {each.name}", each.state, ", ".join(each.awaited), each.since, each.until, each.then)
        for each in waits
    ]
    print_table(
        ("what", "state", "waits for", "since", "until", "what happens then"), rows, empty="nobody waits for anybody"
    )


def _unsigned(node: Node) -> list[Wait]:
    """Return what the genesis waits for; nothing if it is final elsewhere, which `comity doctor` explains."""
    from comity_client.follow import genesis_waits

    try:
        return genesis_waits(node.genesis())
    except ComityError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
        return []


def node_lines(state: NodeStatus) -> list[str]:
    """Return what a person wants to know first about a node."""
    link = state["link"]
    lines = [f"{state['org']} in {state['consortium']}, charter {state['charter_version'] or 'not signed yet'}"]
    if link["connected"]:
        others = ", ".join(org for org in state["connected_orgs"] if org != state["org"]) or "nobody else"
        away = sorted({*state["members"]} - {*state["connected_orgs"], state["org"]})
        missing = f"; away: {', '.join(away)}" if away else ""
        lines.append(f"connected since {link['since']}; also there: {others}{missing}")
    else:
        error = link["error"] or {}
        why = f": {error.get('code')} {error.get('detail', '')}".rstrip() if error else ""
        lines.append(f"not connected since {link['since']}, {link['attempts']} attempts{why}")
    waiting = state["outbox"].get("waiting", 0)
    if waiting:
        lines.append(f"{waiting} messages wait to be acknowledged by the coordinator")
    return lines + _ledger_lines(state)


def _ledger_lines(state: NodeStatus) -> list[str]:
    """Return what keeps the ledger from being final, and incidents; nothing while all is well."""
    ledger = state.get("ledger")
    if ledger is None:
        return []
    lines = []
    if ledger["stale"] and state["charter_version"] is not None:
        awaited = ", ".join(ledger["awaited"]) or "the coordinator"
        lines.append(f"the ledger is not final: waits for {awaited}; {ledger['then']}")
    for each in ledger["incidents"]:
        lines.append(f"INCIDENT {each['kind']} at {each['seen_at']}: {each['detail']}; {each['then']}")
    return lines
