"""The recipient of a masked sum: the lead (secure-aggregation.md sections 1 and 4).

1. A fresh secret and box key for every round and every attempt; both are dropped when the session ends.
2. It opens one aggregate: that of the list which more than two thirds of the roster signed, with what as many members
   reveal. A wrong share or seed names who revealed it; shares that do not fit together name who dealt them.
3. What comes out is judged by check words and tag: a sum that the coordinator changed is refused.
4. A missing party before the commitments' signatures ends the session with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Self

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.boxes import seal
from comity_crypto.secagg.frame.events import Audience, EraseKey, Event, Failed, Finished, Limits, Send, SumDecoded
from comity_crypto.secagg.frame.machine import RoundMachine, Stage, State, Step, finished, opening, until
from comity_crypto.secagg.masked.dealing import tag_key
from comity_crypto.secagg.masked.events import StartOpen
from comity_crypto.secagg.masked.keys import Revelation, RoundSecret, key_id_of
from comity_crypto.secagg.masked.messages import (
    MaskedKeys,
    MaskedOffer,
    MaskedReady,
    Reveal,
    RoundBoxes,
)
from comity_crypto.secagg.masked.opening import judge_reveal, left_masks
from comity_crypto.secagg.masked.transcript import MaskedTranscript


class Phase(StrEnum):
    """What the recipient waits for between the stages of all rounds."""

    KEYS = "keys"
    NOTICE = "notice"
    LIST = "list"
    REVEALS = "reveals"
    OPENING = "opening"


@dataclass(frozen=True, kw_only=True)
class RecipientState(State[MaskedTranscript]):
    """Everything the machine knows; nothing secret is shown by repr."""

    secret: RoundSecret | None = field(repr=False)
    revealed: Mapping[str, Revelation] = field(default_factory=dict, repr=False)
    wrong: tuple[str, ...] = ()
    decoded: bool = False

    def cleared(self) -> Self:
        """Return the state without the round's secret and what was revealed."""
        return replace(self, secret=None, revealed={})


def start(offer: MaskedOffer, secret: RoundSecret, *, now: float, limits: Limits | None = None) -> Step[RecipientState]:
    """Begin a session with an offer of the own fresh secret. Raises `INTERNAL` if the offer names another."""
    if (offer.key_id, offer.box_key) != (key_id_of(secret.secret), secret.box_key.public):
        raise ComityError(ErrorCode.INTERNAL, "the offer is not of this secret")
    return RecipientState(**opening(MaskedTranscript(offer), now, limits), secret=secret), []


class _Recipient(RoundMachine[RecipientState]):
    ROLE = "the recipient"
    HOLDS_KEY = True
    NAMES = True
    SLOW = (Stage.COMMITMENTS, Phase.NOTICE)
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {
        Phase.KEYS: MaskedKeys,
        Phase.REVEALS: Reveal,
    }

    def take(self, state: RecipientState, event: Event, now: float) -> Step[RecipientState] | None:
        if isinstance(event, SumDecoded) and state.phase is Phase.OPENING:
            return replace(state, decoded=True), []
        return super().take(state, event, now)

    def late(self, state: RecipientState, now: float) -> Step[RecipientState]:
        if state.wrong and state.phase is Phase.REVEALS:
            return self.fail(state, _wrong(state))
        return super().late(state, now)

    def awaited(self, state: RecipientState) -> tuple[str, ...]:
        if state.phase is Phase.LIST:
            return state.seen.unsigned()
        return tuple(org for org in super().awaited(state) if org not in state.seen.dropped)


def _wrong(state: RecipientState) -> Failed:
    error = ComityError(ErrorCode.BAD_SHARE, "a party revealed what it was not dealt", org=state.wrong[0])
    return Failed(error, state.wrong)


def _on_signatures(state: RecipientState) -> Step[RecipientState] | None:
    """Seal the round's secret to every member, once all stand on one roster."""
    seen, secret = state.seen, state.secret
    if not seen.roster_signed() or secret is None:
        return None
    place, lead = seen.place, seen.offer.lead
    boxes = tuple(
        (org, seal(seen.said(MaskedReady, org).pair_key, secret.secret, place.info("round", lead, org)))
        for org in seen.members
    )
    said = RoundBoxes(place.session, place.roster, boxes)
    state = replace(state, phase=Phase.KEYS, seen=seen.absorb(lead, said))
    return state, [Send(Audience.ALL, said)]


def _on_reveals(state: RecipientState) -> Step[RecipientState] | Failed | None:
    """Open what came; with enough that is right, take the masks away. Raises `BAD_SHARE` naming a dealer."""
    seen, secret = state.seen, state.secret
    if secret is None:
        return None
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
        return _wrong(state)
    return state, []


def _on_opening(state: RecipientState) -> Step[RecipientState] | None:
    return finished(state, EraseKey(), Finished(state.seen.survivors)) if state.decoded else None


step = _Recipient(
    {
        Stage.ROSTER: until(MaskedTranscript.ready, Stage.SIGNATURES),
        Stage.SIGNATURES: _on_signatures,
        Phase.KEYS: until(MaskedTranscript.keyed, Stage.COMMITMENTS),
        Stage.COMMITMENTS: until(MaskedTranscript.committed, Stage.SET),
        Stage.SET: until(MaskedTranscript.set_signed, Phase.NOTICE),
        Phase.NOTICE: until(MaskedTranscript.published, Phase.LIST),
        Phase.LIST: until(MaskedTranscript.list_signed, Phase.REVEALS),
        Phase.REVEALS: _on_reveals,
        Phase.OPENING: _on_opening,
    }
).step
