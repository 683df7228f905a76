"""The words of a negotiation: states, legs, events (negotiation.md sections 1 and 2). `model.py` moves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comity.wire.errors import ErrorCode
from comity_policies.documents import Reason
from comity_policies.terms import Terms

COORDINATOR_MOVE = "coordinator"


class LegState(StrEnum):
    """Where one organisation's leg stands."""

    REQUESTED = "REQUESTED"
    OFFERED = "OFFERED"
    ACCEPTED = "ACCEPTED"
    AGREED = "AGREED"
    VERIFIED = "VERIFIED"
    FINALIZED = "FINALIZED"
    TERMINATED = "TERMINATED"


class Phase(StrEnum):
    """Where the whole negotiation stands."""

    ANSWERING = "ANSWERING"
    SIGNING = "SIGNING"
    VERIFIED = "VERIFIED"
    FINALIZED = "FINALIZED"
    TERMINATED = "TERMINATED"


OPEN = frozenset({Phase.ANSWERING, Phase.SIGNING, Phase.VERIFIED})
JOINED = frozenset({LegState.ACCEPTED, LegState.AGREED, LegState.VERIFIED, LegState.FINALIZED})


@dataclass(frozen=True, slots=True)
class Leg:
    """One organisation's side.

    `since` is the instant of the last change. `move` names who can bring the leg on, comma-separated and sorted; on a
    TERMINATED leg it stays as it was when the leg ended. `answer` is the digest of the newest answer's statement,
    `answers` how many were taken (an organisation answers again after a `review`). `evidence` is the digest of what it
    showed for the agreement being signed, under `attestation: required`.
    """

    org: str
    required: bool
    state: LegState
    since: str
    move: str = ""
    reasons: tuple[Reason, ...] = ()
    terms: Terms = field(default_factory=Terms)
    answer: str = ""
    answers: int = 0
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a negotiation ended without an agreement, and whose move it was."""

    code: ErrorCode
    detail: str
    move: str
    at: str


@dataclass(frozen=True, slots=True)
class Negotiation:
    """All legs of one proposal.

    `attempt` counts the agreements drafted so far; `agreement` is the digest being signed, empty until it is drafted.
    `until` is the instant at which `DeadlinePassed` takes effect. `accepts` and `bounds` are the proposal's: how far
    stricter terms need no word of the proposer, whose own node still checks the meet before it signs.
    """

    proposal_id: str
    revision: int
    proposer: str
    minimum: int
    deadline: str
    terms: Terms
    legs: Mapping[str, Leg]
    phase: Phase
    until: str
    attempt: int = 0
    agreement: str = ""
    meet: Terms = field(default_factory=Terms)
    conflict: tuple[str, str] | None = None
    ended: Ended | None = None
    accepts: str = "any"
    bounds: Terms = field(default_factory=Terms)

    @property
    def parties(self) -> tuple[str, ...]:
        """Organisations that are in the agreement as it stands, sorted."""
        return tuple(sorted(org for org, leg in self.legs.items() if leg.state in JOINED))


@dataclass(frozen=True, slots=True)
class Answered:
    """An organisation's signed answer; `digest` is that of its statement."""

    org: str
    decision: str
    terms: Terms
    reasons: tuple[Reason, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class CounterAccepted:
    """The proposer takes the stricter terms that `org` asked for in the answer with this digest."""

    org: str
    answer: str


@dataclass(frozen=True, slots=True)
class Drafted:
    """The agreement of this attempt has this digest."""

    attempt: int
    digest: str


@dataclass(frozen=True, slots=True)
class Evidenced:
    """`org` showed evidence (digest of its statement) for the agreement that is being signed."""

    org: str
    agreement: str
    digest: str


@dataclass(frozen=True, slots=True)
class Signed:
    """`org` signed the agreement `digest`."""

    org: str
    digest: str


@dataclass(frozen=True, slots=True)
class Finalized:
    """The certificate of all parties is on the ledger."""


@dataclass(frozen=True, slots=True)
class CharterChanged:
    """Another charter came into force while signatures were collected: they count under one charter only."""


@dataclass(frozen=True, slots=True)
class Withdrew:
    """`org` wants no part in it; from the proposer it ends everything."""

    org: str
    reason: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """The proposer put `revision` in this one's place."""

    revision: int


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The timer rang; early or late rings are harmless."""


Event = (
    Answered
    | CounterAccepted
    | Drafted
    | Evidenced
    | Signed
    | Finalized
    | CharterChanged
    | Withdrew
    | Superseded
    | DeadlinePassed
)


def to_json(negotiation: Negotiation) -> dict[str, Any]:
    """Return the form in which the store keeps a negotiation."""
    ended = negotiation.ended
    return {
        "proposal_id": negotiation.proposal_id,
        "revision": negotiation.revision,
        "proposer": negotiation.proposer,
        "minimum": negotiation.minimum,
        "deadline": negotiation.deadline,
        "terms": negotiation.terms.to_json(),
        "legs": [_leg_json(leg) for _, leg in sorted(negotiation.legs.items())],
        "phase": str(negotiation.phase),
        "until": negotiation.until,
        "attempt": negotiation.attempt,
        "agreement": negotiation.agreement,
        "meet": negotiation.meet.to_json(),
        "conflict": list(negotiation.conflict) if negotiation.conflict else None,
        "ended": ended_json(ended) if ended else None,
        "accepts": negotiation.accepts,
        "bounds": negotiation.bounds.to_json(),
    }


def from_json(value: dict[str, Any]) -> Negotiation:
    """Read what `to_json` wrote; the database is ours, so a broken form is a bug: `KeyError` or `ValueError`."""
    ended, conflict = value["ended"], value["conflict"]
    return Negotiation(
        proposal_id=value["proposal_id"],
        revision=value["revision"],
        proposer=value["proposer"],
        minimum=value["minimum"],
        deadline=value["deadline"],
        terms=Terms.parse(value["terms"]),
        legs={leg["org"]: _leg_of(leg) for leg in value["legs"]},
        phase=Phase(value["phase"]),
        until=value["until"],
        attempt=value["attempt"],
        agreement=value["agreement"],
        meet=Terms.parse(value["meet"]),
        conflict=(conflict[0], conflict[1]) if conflict else None,
        ended=Ended(ErrorCode(ended["code"]), ended["detail"], ended["move"], ended["at"]) if ended else None,
        accepts=value["accepts"],
        bounds=Terms.parse(value["bounds"]),
    )


def ended_json(ended: Ended) -> dict[str, Any]:
    """Return how a negotiation ended."""
    return {"code": str(ended.code), "detail": ended.detail, "move": ended.move, "at": ended.at}


def _leg_json(leg: Leg) -> dict[str, Any]:
    return {
        "org": leg.org,
        "required": leg.required,
        "state": str(leg.state),
        "since": leg.since,
        "move": leg.move,
        "reasons": [reason.to_json() for reason in leg.reasons],
        "terms": leg.terms.to_json(),
        "answer": leg.answer,
        "answers": leg.answers,
        **({"evidence": leg.evidence} if leg.evidence else {}),
    }


def _leg_of(value: dict[str, Any]) -> Leg:
    return Leg(
        org=value["org"],
        required=value["required"],
        state=LegState(value["state"]),
        since=value["since"],
        move=value["move"],
        reasons=tuple(Reason.from_json(reason) for reason in value["reasons"]),
        terms=Terms.parse(value["terms"]),
        answer=value["answer"],
        answers=value["answers"],
        evidence=value.get("evidence", ""),
    )
