"""Following work from its proposal to its end, in words: who is awaited, since when, until when, what happens then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_client.documents import Genesis, Leg, News, NodeStatus, ProposalView, ReviewLine, RunView
from comity_client.sdk import Node

# The node's local API answers from its journal in milliseconds; people do not see a quarter of a second.
LOOK_AGAIN_S = 0.25
AGREED = "FINALIZED"
ENDED_WITHOUT = frozenset({"TERMINATED", "WITHDRAWN"})
RUN_ENDINGS = frozenset({"COMPLETED", "FAILED", "DIVERGED", "CANCELLED"})
_THEN = {
    "ANSWERING": "an optional organisation is left out; without a required one the proposal ends",
    "SIGNING": "an optional organisation is left out; without a required one the proposal ends",
    "VERIFIED": "the coordinator puts the certificate on the ledger",
    "PREPARING": "at the coordinator's deadline the run fails, naming who was not ready",
    "READY": "at the coordinator's deadline the run fails, naming the lead",
    "RUNNING": "at the coordinator's deadline the run fails, naming the lead",
}


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that waits: `awaited` have the move, since `since`; at `until` happens `then`."""

    what: str
    name: str
    state: str
    awaited: tuple[str, ...]
    since: str
    until: str
    then: str

    def to_json(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        return {**asdict(self), "awaited": list(self.awaited)}


def waits_of(proposals: Iterable[ProposalView], runs: Iterable[RunView]) -> list[Wait]:
    """Return everything that waits for somebody, proposals first."""
    found = [wait for view in proposals if (wait := _proposal_wait(view)) is not None]
    return found + [wait for view in runs if (wait := _run_wait(view)) is not None]


def review_waits(reviews: Iterable[ReviewLine]) -> list[Wait]:
    """Return what waits for people of this organisation."""
    return [
        Wait(
            "review",
            each["id"],
            each["state"],
            (f"{each['missing']} of the role {each['role']}",),
            each["asked_at"],
            each["until"],
            f"{each['then']}: comity review show {each['id']}",
        )
        for each in reviews
        if each["missing"]
    ]


def genesis_waits(found: Genesis) -> list[Wait]:
    """Return what the genesis charter waits for, while it is a draft."""
    draft = found["draft"]
    awaited = tuple(each["org"] for each in draft["members"] if each["org"] not in draft["signed_by"])
    then = "nothing is proposed before every founder signs: comity genesis show, comity genesis sign"
    return [Wait("charter", draft["name"], "UNSIGNED", awaited, "", "", then)]


def charter_waits(state: NodeStatus) -> list[Wait]:
    """Return the charter proposals that wait for members' votes."""
    return [
        Wait(
            "charter",
            each["name"],
            each["state"],
            tuple(each["awaited"]) or ("coordinator",),
            each["proposed_at"],
            each["deadline"],
            f"{each['then']}: comity charter show {each['name']}",
        )
        for each in state.get("charter_proposals", ())
    ]


def movers(news: News) -> tuple[str, ...]:
    """Return who has the move in a negotiation, sorted; once it ended, who could begin anew.

    A leg that was terminated keeps the move that it had, which is nobody's concern any more.
    """
    if news["state"] in ENDED_WITHOUT:
        move = (news.get("ended") or {}).get("move") or ""
        return tuple(sorted(who for who in move.split(",") if who))
    return tuple(sorted({who for leg in _open_legs(news) for who in leg["move"].split(",") if who}))


def _open_legs(news: News) -> list[Leg]:
    """Return the legs that somebody can bring on."""
    return [leg for leg in news["legs"] if leg["move"] and leg["state"] != "TERMINATED"]


def refusals(news: News) -> list[dict[str, str]]:
    """Return every reason that an organisation gave: org, rule, code, message."""
    return [{"org": leg["org"], **reason} for leg in news["legs"] for reason in leg["reasons"]]


def ending(news: News) -> str:
    """Return one sentence about a negotiation that ended without an agreement."""
    ended = news.get("ended") or {}
    said = [f"{each['org']} says {each.get('rule')}: {each.get('message')}" for each in refusals(news)]
    why = "; ".join(said) or str(ended.get("detail") or ended.get("code") or "no reason was given")
    move = ended.get("move")
    return f"{news['state'].lower()}: {why}" + (f" (next move: {move})" if move else "")


def news_line(news: News) -> str:
    """Return one line about a negotiation that is under way."""
    legs = ", ".join(f"{leg['org']} {leg['state'].lower()}" for leg in news["legs"])
    awaited = () if news["state"] in ENDED_WITHOUT else movers(news)
    return f"{legs}; awaited: {', '.join(awaited)}" if awaited else legs


def negotiated(
    node: Node, proposal_id: str, on_news: Callable[[News], None], timeout_s: float, look_again_s: float = LOOK_AGAIN_S
) -> ProposalView:
    """Wait until a proposal is agreed or ended; `on_news` hears each change.

    Raises:
        ComityError: `TIMEOUT` after `timeout_s` seconds; what the node answers.
    """
    last: News | None = None
    for _ in _ticks(timeout_s, look_again_s):
        view = node.proposal(proposal_id)
        news = view["news"]
        if news is not None and news != last:
            on_news(news)
            last = news
        if news is not None and (news["state"] == AGREED or news["state"] in ENDED_WITHOUT):
            return view
    raise ComityError(ErrorCode.TIMEOUT, "the proposal is still open; see `comity status`")


def run_of(node: Node, agreement: str, timeout_s: float, look_again_s: float = LOOK_AGAIN_S) -> RunView:
    """Wait until an agreement's run is known here. Raises `TIMEOUT`."""
    for _ in _ticks(timeout_s, look_again_s):
        for view in node.runs():
            if view["agreement"] == agreement:
                return view
    raise ComityError(ErrorCode.TIMEOUT, "the agreement has no run yet; see `comity status`", agreement=agreement)


def metrics_line(metrics: dict[str, Any]) -> str:
    """Return metrics as a person reads them."""
    return ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sorted(metrics.items())
    )


def event_line(event: dict[str, Any]) -> str:
    """Return one line about an event of a run, whatever its kind."""
    parts = [str(event.get("kind", "?"))]
    if isinstance(event.get("round"), int):
        parts.append(f"round {event['round']}")
    for key, value in event.items():
        if key in {"run", "no", "at", "at_ms", "kind", "round"} or value in (None, "", [], {}):
            continue
        if isinstance(value, dict) and "code" in value:
            parts.append(f"{key} {value['code']}: {value.get('detail', '')}".rstrip(": "))
        elif isinstance(value, dict):
            parts.append(f"{key}: {metrics_line(value)}")
        else:
            parts.append(f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "  ".join(parts)


def _ticks(timeout_s: float, pause_s: float) -> Iterator[None]:
    until = time.monotonic() + timeout_s
    while True:
        yield
        if time.monotonic() >= until:
            return
        time.sleep(pause_s)


def _proposal_wait(view: ProposalView) -> Wait | None:
    news = view["news"]
    if news is None:
        then = "the node hands it in as soon as it is connected"
        return Wait("proposal", view["proposal_id"], "SUBMITTED", ("coordinator",), view["received_at"], "", then)
    if news["state"] == AGREED or news["state"] in ENDED_WITHOUT:
        return None
    open_legs = _open_legs(news)
    since = min((leg["since"] for leg in open_legs), default="")
    until = min((leg["until"] for leg in open_legs if leg["until"]), default=view["deadline"])
    then = news.get("then") or _THEN.get(news["state"], "")
    offered = [leg["org"] for leg in news["legs"] if leg["state"] == "OFFERED"]
    if offered and view.get("role") == "proposer":
        then += f"; till then: comity proposals accept {view['proposal_id']} {offered[0]}, or revise it"
    return Wait("proposal", view["proposal_id"], news["state"], movers(news), since, until, then)


def _run_wait(view: RunView) -> Wait | None:
    state = view.get("state", "")
    if state.upper() in RUN_ENDINGS or view.get("closed"):
        return None
    passing = view.get("passing") or {}
    awaited = tuple(_refusing(org, passing.get(org)) for org in view.get("awaited") or [view.get("lead", "")])
    said = [error.get("facts", {}) for error in passing.values()]
    since = min((str(each["since"]) for each in said if "since" in each), default="")
    until = min((str(each["until"]) for each in said if "until" in each), default=str(view.get("until", "")))
    since = since or str(view.get("since") or view.get("prepared_at", ""))
    then = "the lead goes on without it if the terms allow" if passing else _THEN.get(state.upper(), "")
    return Wait("run", view["run"], state, awaited, since, until, then)


def _refusing(org: str, error: dict[str, Any] | None) -> str:
    return org if error is None else f"{org} ({error.get('code')}: {error.get('detail', '')})".replace(": )", ")")
