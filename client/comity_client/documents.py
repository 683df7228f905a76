"""The documents that the REST APIs answer with, as types: the JSON itself, so that `--json` shows what the SDK returns.

Fields that this version does not know are kept, never dropped. Instants are RFC 3339 text, digests lower-case SHA-256.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class LinkState(TypedDict):
    """The node's stream to the coordinator."""

    connected: bool
    since: str
    attempts: int
    error: dict[str, Any] | None


class CharterWait(TypedDict):
    """A charter proposal that is open: whose votes are awaited, until when, and what happens then."""

    name: str
    digest: str
    kinds: list[str]
    proposer: str
    proposed_at: str
    deadline: str
    state: str
    awaited: list[str]
    then: str


class NodeStatus(TypedDict):
    """Who the node is and how it does."""

    org: str
    consortium: str
    fingerprint: str
    genesis: str | None
    charter_version: int | None
    members: list[str]
    link: LinkState
    connected_orgs: list[str]
    outbox: dict[str, Any]
    policy: dict[str, str]
    isolation: str
    started_at: str
    pid: int
    charter_proposals: NotRequired[list[CharterWait]]
    ledger: NotRequired[dict[str, Any]]


class MemberLine(TypedDict):
    """One member of a draft charter, to compare by telephone."""

    org: str
    title: str
    owner: str
    fingerprint: str


class CharterDraft(TypedDict):
    """The next charter as it stands."""

    version: int
    consortium: str
    digest: str
    name: str
    members: list[MemberLine]
    signed_by: list[str]
    awaited: list[str]


class Genesis(TypedDict):
    """The draft, the name of the genesis in force, this node's own fingerprint."""

    draft: CharterDraft
    in_force: str | None
    own: str


class Invitation(TypedDict):
    """A single-use join token: a secret until it is used."""

    org: str
    token: str
    genesis: str | None


class Difference(TypedDict):
    """One term in which an offer goes beyond what was asked."""

    field: str
    asked: Any
    offered: Any


class Leg(TypedDict):
    """One organisation's side of a negotiation; `move` names whose move it is.

    `message` is the Dataspace Protocol's name of what led to the state.
    """

    org: str
    required: bool
    state: str
    since: str
    until: str
    move: str
    reasons: list[dict[str, str]]
    message: str
    difference: list[Difference]


class News(TypedDict):
    """The coordinator's last word on a negotiation."""

    proposal_id: str
    revision: int
    state: str
    legs: list[Leg]
    then: str
    agreement: str | None
    conflict: dict[str, Any] | None
    ended: dict[str, Any] | None


class Proposed(TypedDict):
    """A proposal that was handed in."""

    proposal_id: str
    digest: str
    proposal: dict[str, Any]


class CounterOffer(TypedDict):
    """A counter-offer to an own proposal, as its organisation signed it; `answer` is the statement's digest."""

    org: str
    answer: str
    difference: list[Difference]
    accepted_at: str | None


class _Listed(TypedDict):
    """One proposal as this node knows it; `pending` says why this node could not judge it yet."""

    proposal_id: str
    revision: int
    digest: str
    role: str
    purpose: str
    title: str
    proposer: str
    deadline: str
    received_at: str
    news: News | None
    pending: dict[str, Any] | None
    proposal: dict[str, Any]


class ProposalView(_Listed, total=False):
    """One proposal; `counters` only where one is shown by its name."""

    counters: list[CounterOffer]


class AgreementView(TypedDict):
    """One agreement that this organisation signed."""

    digest: str
    state: str
    parties: list[str]
    purpose: str
    title: str
    terms: dict[str, Any]
    signed_at: str
    final_at: str | None


class RunView(TypedDict, total=False):
    """One run as this node knows it."""

    run: str
    agreement: str
    lead: str
    parties: list[str]
    state: str
    prepared_at: str
    ended_at: str | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    closed: bool
    awaited: list[str]
    passing: dict[str, dict[str, Any]]


class RunEvent(TypedDict, total=False):
    """One event of a run; further fields depend on `kind`."""

    run: str
    no: int
    at: str
    at_ms: int
    kind: str


class ReviewLine(TypedDict):
    """What waits for people, without its document; `missing` approvals, not by `not_by`; `yours` if you may decide."""

    id: str
    stage: str
    subject: str
    title: str
    state: str
    role: str
    approvals: int
    missing: int
    not_by: str
    yours: bool
    asked_at: str
    until: str
    then: str
    run: str
    proposal: str
    reasons: list[dict[str, str]]
    document_digest: str
    decided_at: str
    why: str


class ReviewView(ReviewLine):
    """One item whole: what is shown is what a vote decides."""

    document: dict[str, Any]
    votes: list[dict[str, str]]
    events: list[dict[str, Any]]


class TrainWish(TypedDict, total=False):
    """What `propose` takes; `app`, `purpose` and `dataset` are needed, the node fills in the rest."""

    app: str
    purpose: str
    dataset: str
    title: str
    columns: list[str]
    partners: list[str]
    optional: list[str]
    minimum: int
    rounds: int
    run_config: dict[str, bool | int | str]
    aggregation: str
    terms: dict[str, Any]
    deadline_s: int
    reply_timeout_s: int
    accepts: str
    bounds: dict[str, Any]
    persons: list[str]
    opened_by: list[str]


class StatisticWish(TypedDict, total=False):
    """What `aggregate` takes; purpose, query and datasets are needed, the node fills in the rest."""

    purpose: str
    query: str | dict[str, Any]
    datasets: list[str]
    ranges: list[str]
    title: str
    partners: list[str]
    optional: list[str]
    minimum: int
    rounds: int
    aggregation: str
    terms: dict[str, Any]
    uses: int
    deadline_s: int
    reply_timeout_s: int
    accepts: str
    bounds: dict[str, Any]
    persons: list[str]


class IntersectWish(TypedDict, total=False):
    """What `intersect` takes; purpose, both datasets with their columns, and the partner are needed."""

    purpose: str
    dataset: str
    column: str
    partner: str
    partner_dataset: str
    partner_column: str
    mode: str
    normalise: list[str]
    title: str
    terms: dict[str, Any]
    uses: int
    deadline_s: int
    reply_timeout_s: int
    accepts: str
    bounds: dict[str, Any]
    persons: list[str]


class RevisionWish(TypedDict, total=False):
    """What `revise` takes; everything else stays as it is."""

    terms: dict[str, Any]
    without: list[str]
    deadline_s: int
    minimum: int
    accepts: str
    bounds: dict[str, Any]
