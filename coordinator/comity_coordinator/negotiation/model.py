"""The negotiation between one proposal and n organisations, as a pure function (negotiation.md section 2).

Rules, in this order:
1. `step(negotiation, event, now)` returns the next negotiation, or raises and changes nothing: no clock, no I/O;
2. an event that was taken before returns the same negotiation: duplicates are harmless;
3. a leg follows the Dataspace Protocol 2025-1: REQUESTED -> (OFFERED -> REQUESTED)* -> ACCEPTED -> AGREED -> VERIFIED
   -> FINALIZED, or TERMINATED from anywhere before that. AGREED is the organisation's signature over the agreement's
   digest, VERIFIED the certificate of all parties, FINALIZED its place on the ledger;
4. the legs join once every required leg is ACCEPTED, the minimum is reached and no optional leg can still answer; the
   join carries one meet of all terms;
5. an optional party that clashes, withdraws or does not sign in time costs a new digest without it; a required one, or
   the minimum out of reach, ends everything; each leg keeps whose move it was;
6. stricter terms than the proposer takes unasked wait for the proposer's word, on that very answer; a new revision ends
   this one;
7. every wait has an end: answers until the deadline, signatures at most `SIGNING_S_MAX` seconds longer.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.negotiation.evidence import evidenced
from comity_coordinator.negotiation.moves import lacking, with_moves
from comity_coordinator.negotiation.states import (
    COORDINATOR_MOVE,
    JOINED,
    OPEN,
    Answered,
    CharterChanged,
    CounterAccepted,
    DeadlinePassed,
    Drafted,
    Ended,
    Event,
    Evidenced,
    Finalized,
    Leg,
    LegState,
    Negotiation,
    Phase,
    Signed,
    Superseded,
    Withdrew,
)
from comity_policies.documents import SIGNING_S, SIGNING_S_MAX, Reason, takes
from comity_policies.terms import Terms, meet, meet_all

__all__ = [
    "ANSWERS_MAX",
    "JOINED",
    "OPEN",
    "Answered",
    "CharterChanged",
    "CounterAccepted",
    "DeadlinePassed",
    "Drafted",
    "Ended",
    "Event",
    "Finalized",
    "Leg",
    "LegState",
    "Negotiation",
    "Phase",
    "Signed",
    "Superseded",
    "Withdrew",
    "open_negotiation",
    "step",
]

# Each answer is an entry of the ledger and news to everyone: one organisation must not fill both.
ANSWERS_MAX = 16
# Ends that say more to a latecomer than that its event does not fit.
_SPEAKING = frozenset({ErrorCode.DEADLINE_PASSED, ErrorCode.WITHDRAWN, ErrorCode.SUPERSEDED})


def open_negotiation(
    *,
    proposal_id: str,
    revision: int,
    proposer: str,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    minimum: int,
    deadline: str,
    terms: Terms,
    now: str,
    accepts: str = "any",
    bounds: Terms | None = None,
) -> Negotiation:
    """Return a negotiation in which everyone has been asked.

    Raises:
        ComityError: `DEADLINE_PASSED` if there is no time left; `MALFORMED` if the organisations or the minimum do not
            add up.
    """
    named = (*required, *optional)
    if len(set(named)) != len(named) or not required or not len(required) <= max(minimum, len(required)) <= len(named):
        raise ComityError(ErrorCode.MALFORMED, "required, optional and minimum do not add up")
    if deadline <= now:
        raise ComityError(ErrorCode.DEADLINE_PASSED)
    legs = {org: Leg(org, org in required, LegState.REQUESTED, now) for org in sorted(named)}
    return with_moves(
        Negotiation(
            proposal_id,
            revision,
            proposer,
            max(minimum, len(required)),
            deadline,
            terms,
            legs,
            Phase.ANSWERING,
            deadline,
            accepts=accepts,
            bounds=bounds or Terms(),
        )
    )


def step(negotiation: Negotiation, event: Event, now: str) -> Negotiation:
    """Return the negotiation after `event` at instant `now`; the same object if nothing changes.

    Raises:
        ComityError: `ILLEGAL_EVENT` if the event does not fit the state; `DEADLINE_PASSED` if it comes too late;
            `NOT_A_MEMBER` if its organisation has no leg; `AGREEMENT_INVALID` if it names another agreement;
            `SUPERSEDED` if a newer revision took this one's place; `CONFLICT` if it accepts another answer than the
            newest; `BUSY` beyond `ANSWERS_MAX` answers of one organisation.
    """
    if isinstance(event, DeadlinePassed):
        return _deadline(negotiation, now)
    if isinstance(event, Answered):
        return _answered(negotiation, event, now)
    if isinstance(event, CounterAccepted):
        return _counter_accepted(negotiation, event, now)
    if isinstance(event, Drafted):
        return _drafted(negotiation, event)
    if isinstance(event, Evidenced):
        return evidenced(negotiation, event, now)
    if isinstance(event, Signed):
        return _signed(negotiation, event, now)
    if isinstance(event, Finalized):
        return _finalized(negotiation, now)
    if isinstance(event, CharterChanged):
        return _charter_changed(negotiation, now)
    if isinstance(event, Superseded):
        return _superseded(negotiation, event, now)
    return _withdrew(negotiation, event, now)


def _leg(negotiation: Negotiation, org: str) -> Leg:
    leg = negotiation.legs.get(org)
    if leg is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is not asked by this proposal")
    return leg


def _illegal(negotiation: Negotiation, detail: str) -> ComityError:
    """The refusal of an event that came too late says so, if it was the deadline that closed the door."""
    ended = negotiation.ended
    if ended is not None:
        code = ended.code if ended.code in _SPEAKING else ErrorCode.ILLEGAL_EVENT
        return ComityError(code, f"the negotiation has ended: {ended.detail}")
    return ComityError(ErrorCode.ILLEGAL_EVENT, detail)


def _moved(leg: Leg, state: LegState, now: str, **changes: Any) -> Leg:
    return replace(leg, state=state, since=now, **changes)


def _put(negotiation: Negotiation, *legs: Leg, **changes: Any) -> Negotiation:
    return replace(negotiation, legs={**negotiation.legs, **{leg.org: leg for leg in legs}}, **changes)


def _answered(negotiation: Negotiation, event: Answered, now: str) -> Negotiation:
    leg = _leg(negotiation, event.org)
    if leg.answer == event.digest:
        return negotiation
    if negotiation.phase is not Phase.ANSWERING or leg.state is not LegState.REQUESTED:
        raise _illegal(negotiation, f"the leg of {event.org} is {leg.state}")
    if now > negotiation.deadline:
        raise ComityError(ErrorCode.DEADLINE_PASSED)
    if leg.answers >= ANSWERS_MAX:
        raise ComityError(ErrorCode.BUSY, f"{event.org} has answered too often", limit=ANSWERS_MAX)
    leg = replace(leg, answers=leg.answers + 1)
    if event.decision == "review":
        return with_moves(_put(negotiation, _moved(leg, leg.state, now, reasons=event.reasons, answer=event.digest)))
    if event.decision == "deny":
        ended = _moved(leg, LegState.TERMINATED, now, reasons=event.reasons, answer=event.digest, move=leg.org)
        return _after_loss(_put(negotiation, ended), ended, ErrorCode.POLICY_DENIED, f"{leg.org} denied it", now)
    if event.decision != "allow":
        raise ComityError(ErrorCode.MALFORMED, "a decision is allow, deny or review")
    # Terms that the proposal already meets are an acceptance; stricter ones are a counter-offer (section 4). What the
    # proposer's own policy adds to its own proposal needs no second word.
    own = event.org == negotiation.proposer
    taken = own or takes(negotiation.terms, negotiation.accepts, negotiation.bounds, event.terms)
    state = LegState.ACCEPTED if taken else LegState.OFFERED
    accepted = _moved(leg, state, now, reasons=event.reasons, terms=event.terms, answer=event.digest)
    return _join_if_ready(_put(negotiation, accepted), now, at_deadline=False)


def _counter_accepted(negotiation: Negotiation, event: CounterAccepted, now: str) -> Negotiation:
    leg = _leg(negotiation, event.org)
    if leg.answer != event.answer and leg.state is not LegState.TERMINATED:
        raise ComityError(ErrorCode.CONFLICT, f"this is not the newest answer of {event.org}", answer=leg.answer)
    if leg.state in JOINED:
        return negotiation
    if negotiation.phase is not Phase.ANSWERING or leg.state is not LegState.OFFERED:
        raise _illegal(negotiation, f"the leg of {event.org} is {leg.state}")
    if now > negotiation.deadline:
        raise ComityError(ErrorCode.DEADLINE_PASSED)
    return _join_if_ready(_put(negotiation, _moved(leg, LegState.ACCEPTED, now)), now, at_deadline=False)


def _drafted(negotiation: Negotiation, event: Drafted) -> Negotiation:
    if negotiation.agreement == event.digest and negotiation.attempt == event.attempt:
        return negotiation
    if negotiation.phase is not Phase.SIGNING or negotiation.agreement or negotiation.attempt != event.attempt:
        raise _illegal(negotiation, "no agreement is to be drafted")
    return replace(negotiation, agreement=event.digest)


def _signed(negotiation: Negotiation, event: Signed, now: str) -> Negotiation:
    leg = _leg(negotiation, event.org)
    same = bool(negotiation.agreement) and negotiation.agreement == event.digest
    if same and leg.state in (LegState.AGREED, LegState.VERIFIED, LegState.FINALIZED):
        return negotiation
    if negotiation.phase is not Phase.SIGNING or leg.state is not LegState.ACCEPTED:
        raise _illegal(negotiation, f"the leg of {event.org} is {leg.state}")
    if not same:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, "another agreement is being signed", attempt=negotiation.attempt)
    if now > negotiation.until:
        raise ComityError(ErrorCode.DEADLINE_PASSED)
    if absent := lacking(negotiation):
        raise ComityError(ErrorCode.ATTESTATION_MISSING, "nobody signs before all evidence is here", org=min(absent))
    after = _put(negotiation, _moved(leg, LegState.AGREED, now))
    parties = [after.legs[org] for org in after.parties]
    if all(each.state is LegState.AGREED for each in parties):
        after = _put(after, *(_moved(each, LegState.VERIFIED, now) for each in parties), phase=Phase.VERIFIED)
    return with_moves(after)


def _finalized(negotiation: Negotiation, now: str) -> Negotiation:
    if negotiation.phase is Phase.FINALIZED:
        return negotiation
    if negotiation.phase is not Phase.VERIFIED:
        raise _illegal(negotiation, "not every party has signed")
    legs = (_moved(negotiation.legs[org], LegState.FINALIZED, now) for org in negotiation.parties)
    return with_moves(_put(negotiation, *legs, phase=Phase.FINALIZED))


def _charter_changed(negotiation: Negotiation, now: str) -> Negotiation:
    if negotiation.phase is not Phase.SIGNING:
        return negotiation
    return _rejoin(negotiation, ErrorCode.CHARTER_INVALID, "another charter is in force", COORDINATOR_MOVE, now)


def _superseded(negotiation: Negotiation, event: Superseded, now: str) -> Negotiation:
    if negotiation.phase is Phase.TERMINATED:
        return negotiation
    if negotiation.phase is not Phase.ANSWERING and negotiation.phase is not Phase.SIGNING:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "an agreement is not revised: withdraw, and propose anew")
    detail = f"revision {event.revision} took its place"
    return _terminate(negotiation, ErrorCode.SUPERSEDED, detail, negotiation.proposer, now)


def _withdrew(negotiation: Negotiation, event: Withdrew, now: str) -> Negotiation:
    if negotiation.phase is Phase.TERMINATED or negotiation.phase is Phase.FINALIZED:
        raise _illegal(negotiation, "the agreement is final: withdraw from it by its digest")
    if event.org == negotiation.proposer:
        return _terminate(negotiation, ErrorCode.WITHDRAWN, f"{event.org} withdrew the proposal", event.org, now)
    leg = _leg(negotiation, event.org)
    if leg.state is LegState.TERMINATED:
        return negotiation
    reason = Reason("withdrawal", str(ErrorCode.WITHDRAWN), event.reason)
    ended = _moved(leg, LegState.TERMINATED, now, reasons=(reason,), move=leg.org)
    return _after_loss(_put(negotiation, ended), ended, ErrorCode.WITHDRAWN, f"{leg.org} withdrew", now)


def _deadline(negotiation: Negotiation, now: str) -> Negotiation:
    if negotiation.phase not in (Phase.ANSWERING, Phase.SIGNING) or now < negotiation.until:
        return negotiation
    if negotiation.phase is Phase.ANSWERING:
        return _join_if_ready(negotiation, now, at_deadline=True)
    code, failed, absent = ErrorCode.DEADLINE_PASSED, "did not sign in time", lacking(negotiation)
    late = [leg for leg in negotiation.legs.values() if leg.state is LegState.ACCEPTED]
    if absent:  # the others could not sign
        code, failed = ErrorCode.ATTESTATION_MISSING, "showed no evidence in time"
        late = [leg for leg in late if leg.org in absent]
    waited = ",".join(sorted(leg.org for leg in late))
    if any(leg.required for leg in late):
        return _terminate(negotiation, code, f"{waited} {failed}", waited, now)
    reason = Reason("negotiation.deadline", str(code), failed)
    dropped = (_moved(leg, LegState.TERMINATED, now, move=leg.org, reasons=(reason,)) for leg in late)
    return _rejoin(_put(negotiation, *dropped), code, f"{waited} {failed}", waited, now)


def _after_loss(negotiation: Negotiation, leg: Leg, code: ErrorCode, detail: str, now: str) -> Negotiation:
    """Go on without a leg that has just ended, if that is possible."""
    if leg.required:
        return _terminate(negotiation, code, detail, leg.org, now)
    if negotiation.phase is Phase.ANSWERING:
        alive = sum(1 for each in negotiation.legs.values() if each.state is not LegState.TERMINATED)
        if alive < negotiation.minimum:
            return _terminate(negotiation, code, f"{detail}: the minimum is out of reach", leg.org, now)
        return _join_if_ready(negotiation, now, at_deadline=False)
    return _rejoin(negotiation, code, detail, leg.org, now)


def _rejoin(negotiation: Negotiation, code: ErrorCode, detail: str, move: str, now: str) -> Negotiation:
    """A new digest without those who are gone: earlier signatures are void."""
    parties = [negotiation.legs[org] for org in negotiation.parties]
    if len(parties) < negotiation.minimum:
        return _terminate(negotiation, code, f"{detail}: the minimum is out of reach", move, now)
    back = (_moved(leg, LegState.ACCEPTED, now, evidence="") for leg in parties)
    return _join(_put(negotiation, *back), now)


def _join_if_ready(negotiation: Negotiation, now: str, *, at_deadline: bool) -> Negotiation:
    legs = negotiation.legs.values()
    waiting = [leg for leg in legs if leg.state in (LegState.REQUESTED, LegState.OFFERED)]
    enough = sum(1 for leg in legs if leg.state is LegState.ACCEPTED) >= negotiation.minimum
    if not waiting and enough:
        return _join(negotiation, now)
    if not at_deadline:
        return with_moves(negotiation)
    moves = with_moves(negotiation)
    whose = ",".join(sorted({moves.legs[leg.org].move for leg in waiting}))
    if not enough or any(leg.required for leg in waiting):
        return _terminate(negotiation, ErrorCode.DEADLINE_PASSED, f"{whose} did not answer in time", whose, now)
    reason = Reason("negotiation.deadline", str(ErrorCode.DEADLINE_PASSED), "did not answer in time")
    late = (_moved(moves.legs[leg.org], LegState.TERMINATED, now, reasons=(reason,)) for leg in waiting)
    return _join(_put(negotiation, *late), now)


def _join(negotiation: Negotiation, now: str) -> Negotiation:
    """Meet everyone's terms; optional parties that clash are left out one after the other while the minimum holds."""
    for _ in range(len(negotiation.legs) + 1):
        asked = {org: negotiation.legs[org].terms for org in negotiation.parties}
        asked[negotiation.proposer] = meet(negotiation.terms, asked.get(negotiation.proposer, Terms()))
        try:
            total = meet_all(asked, parties=negotiation.parties, now=now)
        except ComityError as error:
            clash, organisations = str(error.facts.get("field", "")), str(error.facts.get("organisations", ""))
            negotiation = replace(negotiation, conflict=(clash, organisations))
            optional = [org for org in organisations.split(",") if _is_optional(negotiation, org)]
            if not optional or len(negotiation.parties) <= negotiation.minimum:
                return _terminate(negotiation, ErrorCode.TERMS_CONFLICT, error.detail, organisations, now)
            leg = negotiation.legs[optional[-1]]
            reason = Reason("negotiation.meet", str(ErrorCode.TERMS_CONFLICT), error.detail)
            gone = _moved(leg, LegState.TERMINATED, now, move=leg.org, reasons=(reason,))
            negotiation = _put(negotiation, gone)
            continue
        until = _signing_until(negotiation.deadline, now)
        if until <= now:
            late = "signatures took too long"
            return _terminate(negotiation, ErrorCode.DEADLINE_PASSED, late, ",".join(negotiation.parties), now)
        return with_moves(
            replace(
                negotiation, phase=Phase.SIGNING, until=until, attempt=negotiation.attempt + 1, agreement="", meet=total
            )
        )
    raise AssertionError("each turn drops one leg")


def _signing_until(deadline: str, now: str) -> str:
    """Until when signatures are awaited: parties refuse to sign later than `SIGNING_S_MAX` after the deadline."""
    latest = instants.to_text(instants.parse(deadline) + timedelta(seconds=SIGNING_S_MAX))
    window = instants.to_text(instants.parse(now) + timedelta(seconds=SIGNING_S))
    return min(latest, max(deadline, window))


def _is_optional(negotiation: Negotiation, org: str) -> bool:
    leg = negotiation.legs.get(org)
    return leg is not None and not leg.required and leg.state in JOINED


def _terminate(negotiation: Negotiation, code: ErrorCode, detail: str, move: str, now: str) -> Negotiation:
    ended = Ended(code, detail, move, now)
    before = with_moves(negotiation)
    gone = (
        _moved(leg, LegState.TERMINATED, now) for leg in before.legs.values() if leg.state is not LegState.TERMINATED
    )
    return _put(before, *gone, phase=Phase.TERMINATED, ended=ended, agreement="")
