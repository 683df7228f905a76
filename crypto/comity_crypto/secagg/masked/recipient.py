"""The recipient of a masked sum: the lead (secure-aggregation.md sections 1 and 4).

1. A fresh secret and box key for every round and every attempt; both are dropped when the session ends.
2. It opens one aggregate: that of the list which more than two thirds of the roster signed, with what as many members
   reveal. A wrong share or seed names who revealed it; shares that do not fit together name who dealt them.
3. What comes out is judged by check words and tag: a sum that the coordinator changed is refused.
4. A missing party before the commitments' signatures ends the session with its name; `next_offer` makes the restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import (
    Audience,
    EraseKey,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    RosterProposed,
    Send,
    SumDecoded,
    Tick,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX, Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.lead_key.messages import Body
from comity_crypto.secagg.masked.dealing import tag_key
from comity_crypto.secagg.masked.events import NoticePublished, StartOpen
from comity_crypto.secagg.masked.keys import Revelation, RoundSecret, key_id_of, seal
from comity_crypto.secagg.masked.messages import (
    MaskedKeys,
    MaskedOffer,
    MaskedReady,
    NoticeSignature,
    Reveal,
    RoundBoxes,
)
from comity_crypto.secagg.masked.opening import judge_reveal, left_masks
from comity_crypto.secagg.masked.transcript import MaskedTranscript


class Phase(StrEnum):
    """What the recipient waits for."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    KEYS = "keys"
    COMMITMENTS = "commitments"
    SET = "set"
    NOTICE = "notice"
    LIST = "list"
    REVEALS = "reveals"
    OPENING = "opening"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
_AWAITED: dict[Phase, type[Body]] = {
    Phase.ROSTER: MaskedReady,
    Phase.SIGNATURES: RosterSignature,
    Phase.KEYS: MaskedKeys,
    Phase.COMMITMENTS: Commitment,
    Phase.SET: CommitmentsSignature,
    Phase.LIST: NoticeSignature,
    Phase.REVEALS: Reveal,
}
_SLOW = (Phase.COMMITMENTS, Phase.NOTICE)  # parties may still be training, or sending


@dataclass(frozen=True)
class RecipientState:
    """Everything the machine knows; nothing secret is shown by repr."""

    phase: Phase
    seen: MaskedTranscript
    limits: Limits
    deadline: float
    secret: RoundSecret | None = field(repr=False)
    revealed: Mapping[str, Revelation] = field(default_factory=dict, repr=False)
    wrong: tuple[str, ...] = ()
    decoded: bool = False

    @property
    def offer(self) -> MaskedOffer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[RecipientState, list[Output]]


def start(offer: MaskedOffer, secret: RoundSecret, *, now: float, limits: Limits | None = None) -> Step:
    """Begin a session with an offer of the own fresh secret. Raises `INTERNAL` if the offer names another."""
    if (offer.key_id, offer.box_key) != (key_id_of(secret.secret), secret.box_key.public):
        raise ComityError(ErrorCode.INTERNAL, "the offer is not of this secret")
    limits = limits or Limits()
    # Contributors wait `ready_s` for the roster; the recipient waits a step longer, to hear why they gave up.
    deadline = now + limits.ready_s + limits.step_s
    return RecipientState(Phase.ROSTER, MaskedTranscript(offer), limits, deadline, secret), []


def next_offer(offer: MaskedOffer, secret: RoundSecret, without: Iterable[str] = ()) -> MaskedOffer:
    """Return the offer of the next attempt, under a fresh secret, without the parties that went missing.

    Raises:
        ComityError: `PARTICIPANTS_TOO_FEW` (fewer than the minimum are left), `RUN_FAILED` (attempts used up),
            `INTERNAL` (the secret is the old one).
    """
    if secret.key_id == offer.key_id:
        raise ComityError(ErrorCode.INTERNAL, "a round's secret is used once")
    if offer.attempt >= ATTEMPT_MAX:
        raise ComityError(ErrorCode.RUN_FAILED, "the masked sum did not succeed", attempts=offer.attempt + 1)
    parties = tuple(org for org in offer.parties if org not in set(without))
    if len(parties) < offer.minimum:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "too few parties are left", n=len(parties))
    return replace(
        offer, attempt=offer.attempt + 1, key_id=secret.key_id, box_key=secret.box_key.public, parties=parties
    )


def step(state: RecipientState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        awaited = _AWAITED.get(state.phase)
        missing = state.seen.missing(awaited) if awaited else ()
        dropped = state.seen.notice.dropped if state.seen.notice else ()
        missing = tuple(org for org in missing if org not in dropped)
        if state.wrong and state.phase is Phase.REVEALS:
            return _fail(state, _wrong(state), state.wrong)
        return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), missing)
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    return _advance(_absorb(state, event), now)


def _absorb(state: RecipientState, event: Event) -> RecipientState:
    seen = state.seen
    if isinstance(event, Received):
        return replace(state, seen=seen.absorb(event.issuer, event.message))
    if isinstance(event, RosterProposed):
        return replace(state, seen=seen.with_roster(event.roster))
    if isinstance(event, NoticePublished):
        return replace(state, seen=seen.with_notice(event.notice))
    if isinstance(event, SumDecoded) and state.phase is Phase.OPENING:
        return replace(state, decoded=True)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the recipient is doing", phase=state.phase)


def _advance(state: RecipientState, now: float) -> Step:
    outputs: list[Output] = []
    try:
        for _ in Phase:  # each turn enters a later phase
            state.seen.check_over()
            phase = state.phase
            if phase not in _TURNS:
                break
            state, more = _TURNS[phase](state)
            outputs += more
            if state.phase is phase:
                break
            wait_s = state.limits.step_s + (state.limits.values_s if state.phase in _SLOW else 0)
            state = replace(state, deadline=now + wait_s)
    except ComityError as error:
        named = str(error.facts.get("org", ""))
        failed, more = _fail(state, error, (named,) if named in state.offer.parties else ())
        return failed, outputs + more
    return state, outputs


def _fail(state: RecipientState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    told = abort_of(state.offer.digest, error, missing[0] if len(missing) == 1 else "")
    return _cleared(replace(state, phase=Phase.FAILED)), [EraseKey(), told, Failed(error, missing)]


def _cleared(state: RecipientState) -> RecipientState:
    return replace(state, secret=None, revealed={})


def _wrong(state: RecipientState) -> ComityError:
    return ComityError(ErrorCode.BAD_SHARE, "a party revealed what it was not dealt", org=state.wrong[0])


def _to(phase: Phase, done: Callable[[MaskedTranscript], bool]) -> Callable[[RecipientState], Step]:
    """Return a turn that enters `phase` once the transcript says so."""

    def turn(state: RecipientState) -> Step:
        return (replace(state, phase=phase), []) if done(state.seen) else (state, [])

    return turn


def _on_signatures(state: RecipientState) -> Step:
    """Seal the round's secret to every member, once all stand on one roster."""
    seen, secret = state.seen, state.secret
    if not seen.roster_signed() or secret is None:
        return state, []
    place, lead = seen.place, state.offer.lead
    boxes = tuple(
        (org, seal(seen.said(MaskedReady, org).pair_key, secret.secret, place.info("round", lead, org)))
        for org in seen.members
    )
    said = RoundBoxes(place.session, place.roster, boxes)
    state = replace(state, phase=Phase.KEYS, seen=seen.absorb(lead, said))
    return state, [Send(Audience.ALL, said)]


def _on_reveals(state: RecipientState) -> Step:
    """Open what came; with enough that is right, take the masks away. Raises `BAD_SHARE` naming a dealer."""
    seen, secret = state.seen, state.secret
    if secret is None:
        return state, []
    revealed, wrong = dict(state.revealed), list(state.wrong)
    for org in seen.survivors:
        said = seen.get(Reveal, org)
        if said is None or org in revealed or org in wrong:
            continue
        try:
            revealed[org] = judge_reveal(seen, secret.box_key, org, said)
        except ComityError:
            wrong.append(org)
    state = replace(state, revealed=revealed, wrong=tuple(sorted(wrong)))
    if len(revealed) >= seen.needed:
        masks = left_masks(seen, revealed, secret.secret)
        notice = seen.notice
        assert notice is not None, "the list is signed"
        opening = StartOpen(notice.aggregate, seen.survivors, masks, tag_key(seen.place, secret.secret))
        return replace(state, phase=Phase.OPENING, revealed={}), [opening]
    if len(seen.survivors) - len(wrong) < seen.needed:
        return _fail(state, _wrong(state), state.wrong)
    return state, []


def _on_opening(state: RecipientState) -> Step:
    if not state.decoded:
        return state, []
    return _cleared(replace(state, phase=Phase.DONE)), [EraseKey(), Finished(state.seen.survivors)]


_TURNS: dict[Phase, Callable[[RecipientState], Step]] = {
    Phase.ROSTER: _to(Phase.SIGNATURES, MaskedTranscript.ready),
    Phase.SIGNATURES: _on_signatures,
    Phase.KEYS: _to(Phase.COMMITMENTS, MaskedTranscript.keyed),
    Phase.COMMITMENTS: _to(Phase.SET, MaskedTranscript.committed),
    Phase.SET: _to(Phase.NOTICE, MaskedTranscript.set_signed),
    Phase.NOTICE: _to(Phase.LIST, MaskedTranscript.noticed),
    Phase.LIST: _to(Phase.REVEALS, MaskedTranscript.list_signed),
    Phase.REVEALS: _on_reveals,
    Phase.OPENING: _on_opening,
}
