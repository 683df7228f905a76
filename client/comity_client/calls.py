"""Every route of the two REST APIs, once: a `Call` says what to send and what comes back.

`Route` turns a function that builds a `Call` into a method: of a synchronous client it returns the answer, of an
asynchronous one an awaitable of it. So neither client repeats the other.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from comity_client import documents as doc

if TYPE_CHECKING:
    from comity_client.transport import AsyncTransport, SyncTransport

T = TypeVar("T")
P = ParamSpec("P")

ANSWER_TIMEOUT_S = 30.0
# An app is bundled, sealed and uploaded before the node answers; an export is verified before it is sent.
LONG_ANSWER_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request; `path` is escaped, `timeout_s` bounds each wait for bytes of the answer."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str | int] = field(default_factory=dict)
    timeout_s: float = ANSWER_TIMEOUT_S


class Route(Generic[P, T]):
    """A method of both kinds of clients, made from one builder of calls."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Route[P, T]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[P, Awaitable[T]]: ...
    @overload
    def __get__(self, client: SyncTransport, owner: type) -> Callable[P, T]: ...
    def __get__(self, client: AsyncTransport | SyncTransport | None, owner: type) -> Any:
        """Bind the route to a client."""
        if client is None:
            return self
        return _Bound(client.send, self._build)


class _Bound(Generic[P]):
    """One route of one client; calling it sends the request."""

    def __init__(self, send: Callable[Concatenate[Call[Any], ...], Any], build: Callable[P, Call[Any]]) -> None:
        self._send = send
        self._build = build
        self.__doc__ = build.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._send(self._build(*args, **kwargs))


def segment(text: str) -> str:
    """Return `text` as one segment of a path, whatever it holds."""
    return urllib.parse.quote(text, safe="")


def events_path(run: str) -> str:
    """Return the path of a run's event stream."""
    return f"/v1/runs/{segment(run)}/events"


def result_path(run: str) -> str:
    """Return the path of a run's result file."""
    return f"/v1/runs/{segment(run)}/result"


def sum_path(run: str, round_number: int) -> str:
    """Return the path of a round's mean, where this organisation opens sums beside the lead."""
    return f"/v1/runs/{segment(run)}/sums/{round_number}"


EXPORT_PATH = "/v1/ledger/export"
CHANGES_PATH = "/v1/events"


def _status() -> Call[doc.NodeStatus]:
    """Return who this node is, its link, its charter."""
    return Call("GET", "/v1/status")


def _genesis() -> Call[doc.Genesis]:
    """Return the draft of the next charter, with each member's fingerprint."""
    return Call("GET", "/v1/genesis")


def _sign_genesis(digest: str) -> Call[dict[str, bool]]:
    """Sign the draft whose digest or name is given; `final` once it is in force."""
    return Call("POST", "/v1/genesis/sign", {"digest": digest})


def _charter() -> Call[dict[str, Any]]:
    """Return the charter in force."""
    return Call("GET", "/v1/charter")


def _invite(org: str, valid_s: int = 7 * 86_400) -> Call[doc.Invitation]:
    """Sponsor an organisation: return a single-use join token."""
    return Call("POST", "/v1/invitations", {"org": org, "valid_s": valid_s})


def _propose(wish: doc.TrainWish) -> Call[doc.Proposed]:
    """Propose a training to other organisations."""
    return Call("POST", "/v1/proposals", dict(wish), timeout_s=LONG_ANSWER_TIMEOUT_S)


def _intersect(wish: doc.IntersectWish) -> Call[doc.Proposed]:
    """Propose to another organisation to find the records that both have."""
    return Call("POST", "/v1/intersections", dict(wish), timeout_s=LONG_ANSWER_TIMEOUT_S)


def _aggregate(wish: doc.StatisticWish) -> Call[doc.Proposed]:
    """Ask other organisations, with this one, for a statistic."""
    return Call("POST", "/v1/statistics", dict(wish), timeout_s=LONG_ANSWER_TIMEOUT_S)


def _proposals() -> Call[list[doc.ProposalView]]:
    """Return the proposals that this node knows, newest first."""
    return Call("GET", "/v1/proposals")


def _proposal(name: str) -> Call[doc.ProposalView]:
    """Return one proposal by id or digest."""
    return Call("GET", f"/v1/proposals/{segment(name)}")


def _accept(name: str, org: str) -> Call[dict[str, str]]:
    """Accept the stricter terms that `org` asks of an own proposal."""
    return Call("POST", f"/v1/proposals/{segment(name)}/accept", {"org": org})


def _revise(name: str, wish: doc.RevisionWish) -> Call[doc.Proposed]:
    """Put a newer revision in the place of an own proposal."""
    path = f"/v1/proposals/{segment(name)}/revise"
    return Call("POST", path, dict(wish), timeout_s=LONG_ANSWER_TIMEOUT_S)


def _agreements() -> Call[list[doc.AgreementView]]:
    """Return the agreements that this organisation signed, newest first."""
    return Call("GET", "/v1/agreements")


def _withdraw(name: str, reason: str) -> Call[dict[str, str]]:
    """Withdraw from a proposal or an agreement; running work stops at the next dispatch."""
    return Call("POST", "/v1/withdrawals", {"name": name, "reason": reason})


def _datasets() -> Call[list[dict[str, Any]]]:
    """Return the dataset catalogue."""
    return Call("GET", "/v1/datasets")


def _add_dataset(name: str, source: str, classification: str, owner: str = "") -> Call[dict[str, Any]]:
    """Name a dataset; `source` is a file on the node's machine."""
    return Call(
        "POST",
        "/v1/datasets",
        {"name": name, "source": source, "classification": classification, "owner": owner},
        timeout_s=LONG_ANSWER_TIMEOUT_S,
    )


def _runs() -> Call[list[doc.RunView]]:
    """Return the runs that this node takes part in, newest first."""
    return Call("GET", "/v1/runs")


def _run(run: str) -> Call[doc.RunView]:
    """Return one run."""
    return Call("GET", f"/v1/runs/{segment(run)}")


def _card(run: str) -> Call[dict[str, Any]]:
    """Return a result's model card."""
    return Call("GET", f"/v1/runs/{segment(run)}/card")


def _cancel(run: str, reason: str) -> Call[doc.RunView]:
    """Stop a run that this organisation leads."""
    return Call("POST", f"/v1/runs/{segment(run)}/cancel", {"reason": reason})


def _reviews(state: str = "open") -> Call[list[doc.ReviewLine]]:
    """Return what waits for people, newest first; `all` for what was decided too."""
    return Call("GET", "/v1/reviews", query={"state": state})


def _review(name: str) -> Call[doc.ReviewView]:
    """Return one item whole."""
    return Call("GET", f"/v1/reviews/{segment(name)}")


def _vote(name: str, decision: str, document: str, reason: str = "") -> Call[doc.ReviewView]:
    """Approve or deny an item; `document` is the digest of what was shown."""
    body = {"decision": decision, "document": document, "reason": reason}
    return Call("POST", f"/v1/reviews/{segment(name)}/votes", body)


def _delegations() -> Call[list[dict[str, str]]]:
    """Return who decides for whom, now or later."""
    return Call("GET", "/v1/delegations")


def _delegate(receiver: str, until: str, role: str = "reviewer", giver: str = "") -> Call[dict[str, str]]:
    """Let another user decide for a time."""
    return Call("POST", "/v1/delegations", {"receiver": receiver, "until": until, "role": role, "giver": giver})


def _end_delegation(name: str) -> Call[dict[str, str]]:
    """Take a delegation back."""
    return Call("DELETE", f"/v1/delegations/{segment(name)}")


def _reload_policy() -> Call[dict[str, Any]]:
    """Load the organisation's policy folder again; a bundle that cannot be used changes nothing."""
    return Call("POST", "/v1/policy/reload")


def _ledger() -> Call[dict[str, Any]]:
    """Return how many of this node's entries are proved, and the newest checkpoint."""
    return Call("GET", "/v1/ledger")


def _send_app(files: Mapping[str, str]) -> Call[dict[str, str]]:
    """Send an app's files (base64 by relative name); `app` in the answer is how a proposal names it."""
    return Call("POST", "/v1/apps", {"files": dict(files)}, timeout_s=LONG_ANSWER_TIMEOUT_S)


def _me() -> Call[dict[str, Any]]:
    """Return who the caller is at this node: user, roles, how it was proved, until when."""
    return Call("GET", "/v1/access/me")


def _login_facts() -> Call[dict[str, str]]:
    """Return the node's identity provider: issuer, client_id, scope. Needs no credentials."""
    return Call("GET", "/v1/access/login")


def _issue_token(user: str, roles: list[str], valid_s: int = 30 * 86_400) -> Call[dict[str, Any]]:
    """Issue a token; the answer's `token` is the secret, shown once."""
    return Call("POST", "/v1/access/tokens", {"user": user, "roles": roles, "valid_s": valid_s})


def _tokens() -> Call[list[dict[str, Any]]]:
    """Return the tokens of this organisation, newest first, without their secrets."""
    return Call("GET", "/v1/access/tokens")


def _revoke_token(token_id: str) -> Call[dict[str, Any]]:
    """End a token, from the next request on."""
    return Call("POST", f"/v1/access/tokens/{segment(token_id)}/revoke", {})


def _coordinator_status() -> Call[dict[str, Any]]:
    """Return the coordinator's state: connected nodes, open work."""
    return Call("GET", "/v1/status")


def _members() -> Call[dict[str, Any]]:
    """Return enrolled organisations and whether they are connected."""
    return Call("GET", "/v1/members")


def _negotiations(after: str = "", limit: int = 100) -> Call[dict[str, Any]]:
    """Return negotiations with the state of every leg, those behind `after`; `next` continues."""
    return Call("GET", "/v1/negotiations", query={"after": after, "limit": limit})


def _negotiation(proposal_id: str) -> Call[dict[str, Any]]:
    """Return one negotiation."""
    return Call("GET", f"/v1/negotiations/{segment(proposal_id)}")


def _coordinator_runs(after: str = "", limit: int = 100) -> Call[dict[str, Any]]:
    """Return runs: states, times and counts, no metrics; those behind `after`; `next` continues."""
    return Call("GET", "/v1/runs", query={"after": after, "limit": limit})


def _coordinator_run(run: str) -> Call[dict[str, Any]]:
    """Return one run: who is awaited, until when, how many receipts came."""
    return Call("GET", f"/v1/runs/{segment(run)}")


def _checkpoint() -> Call[dict[str, Any]]:
    """Return the newest signed checkpoint."""
    return Call("GET", "/v1/ledger/checkpoint")


def _entries(start: int = 0, limit: int = 100) -> Call[dict[str, Any]]:
    """Return ledger entries from index `start` on, as base64 of the signed statements."""
    return Call("GET", "/v1/ledger/entries", query={"start": start, "limit": limit})


def _proof(digest: str) -> Call[dict[str, Any]]:
    """Return the proof that the statement with this digest is in the log."""
    return Call("GET", f"/v1/ledger/proof/{segment(digest)}")


class NodeRoutes:
    """What a node's local API offers (comity_node: rest.py and each capability's api.py)."""

    status = Route(_status)
    genesis = Route(_genesis)
    sign_genesis = Route(_sign_genesis)
    charter = Route(_charter)
    invite = Route(_invite)
    propose = Route(_propose)
    intersect = Route(_intersect)
    aggregate = Route(_aggregate)
    proposals = Route(_proposals)
    proposal = Route(_proposal)
    accept = Route(_accept)
    revise = Route(_revise)
    agreements = Route(_agreements)
    withdraw = Route(_withdraw)
    datasets = Route(_datasets)
    add_dataset = Route(_add_dataset)
    runs = Route(_runs)
    run = Route(_run)
    card = Route(_card)
    cancel = Route(_cancel)
    reviews = Route(_reviews)
    review = Route(_review)
    vote = Route(_vote)
    delegations = Route(_delegations)
    delegate = Route(_delegate)
    end_delegation = Route(_end_delegation)
    reload_policy = Route(_reload_policy)
    ledger = Route(_ledger)
    send_app = Route(_send_app)
    me = Route(_me)
    login_facts = Route(_login_facts)
    issue_token = Route(_issue_token)
    tokens = Route(_tokens)
    revoke_token = Route(_revoke_token)


class CoordinatorRoutes:
    """What the coordinator's REST API offers to its operator, read-only (comity_coordinator: rest.py)."""

    status = Route(_coordinator_status)
    members = Route(_members)
    negotiations = Route(_negotiations)
    negotiation = Route(_negotiation)
    runs = Route(_coordinator_runs)
    run = Route(_coordinator_run)
    checkpoint = Route(_checkpoint)
    entries = Route(_entries)
    proof = Route(_proof)
