"""A holder in the ceremony that makes a batch of collective keys: pure state machine (research/crypto.md 2.6).

1. Nonces and public shares are committed to by all before any is shown, so nobody chooses `a`, or its own share by the
   others'. Copies of another's commitment are refused.
2. Where a quorum is smaller than all, parts are dealt in boxes whose hashes are fixed before the challenge of the check
   is known; a dealer whose points do not fit is named.
3. Keys are usable only with every holder's signature over the digest of everything that was said, and the same ids.
4. Each step names the digest of the step before; who saw another one ends the ceremony. Nothing is tried again inside:
   a failed ceremony is erased, and another one is called, under another number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

from comity.wire.canonical import canonical
from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import LIMBS
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import Audience, Event, Finished, Limits, Send
from comity_crypto.secagg.frame.machine import Machine, State, Step, Turn, finished
from comity_crypto.secagg.frame.messages import Abort, InSession
from comity_crypto.secagg.frame.record import Record
from comity_crypto.secagg.threshold.events import (
    BoxesOpened,
    BoxesReady,
    KeysCombined,
    PublicSharesReady,
    StartCombine,
    StartDeal,
    StartDraw,
    StartOpenBoxes,
    StartShow,
    StoreKeys,
)
from comity_crypto.secagg.threshold.keys import common_string, on_one_polynomial
from comity_crypto.secagg.threshold.messages import (
    CEREMONY_BODIES,
    NONCE_BYTES,
    AfterStep,
    Deal,
    DealCheck,
    KeyPlan,
    NonceCommitment,
    NonceReveal,
    ShareCommitment,
    ShareReveal,
    TranscriptSignature,
    step_digest,
)

_NONCE = b"comity/secagg/nonce/v1\x00"
_CHALLENGE = b"comity/secagg/deal/v1\x00"


class Phase(StrEnum):
    """What the holder waits for."""

    NONCES = "nonces"
    REVEALS = "reveals"
    DRAWING = "drawing"
    COMMITMENTS = "commitments"
    SHARES = "shares"
    COMBINING = "combining"
    DEALING = "dealing"
    DEALS = "deals"
    OPENING = "opening"
    CHECKS = "checks"
    SIGNATURES = "signatures"


@dataclass(frozen=True)
class CeremonyRecord(Record[KeyPlan]):
    """What the holders said."""

    PARTY_KINDS = (*CEREMONY_BODIES, Abort)

    @property
    def digest(self) -> str:
        """Digest of the plan and of everything that was said, signatures aside."""
        spoken = sorted((kind, org, item.digest) for (kind, org), item in self.received.items())
        kept = [list(entry) for entry in spoken if entry[0] not in (TranscriptSignature.KIND, Abort.KIND)]
        return canonical_digest({"plan": self.offer.digest, "said": kept})

    def digest_of(self, kind: type[Body]) -> str:
        """Digest of a whole step."""
        return step_digest(self.offer.digest, self.all_of(kind))

    def check_before(self, kind: type[AfterStep], earlier: type[Body]) -> None:
        """Refuse a step in which somebody saw another step before it. Raises `ROSTER_MISMATCH`."""
        wanted = self.digest_of(earlier)
        for org, item in self.all_of(kind).items():
            if item.before != wanted:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder saw another ceremony", org=org)

    def _judge(self, message: InSession) -> None:
        if isinstance(message, Deal | DealCheck) and not self.offer.deals:
            raise ComityError(ErrorCode.FORBIDDEN, "nothing is dealt where everybody is needed")


@dataclass(frozen=True, kw_only=True)
class CeremonyState(State[CeremonyRecord]):
    """Everything the machine knows; parts and boxes stay with the shell."""

    nonce: bytes = field(repr=False)
    public: PublicSharesReady | None = None
    combined: KeysCombined | None = None
    boxes: BoxesReady | None = None
    opened: BoxesOpened | None = None

    @property
    def plan(self) -> KeyPlan:
        """The lead's call."""
        return self.seen.offer

    @property
    def keys(self) -> tuple[str, ...]:
        """Ids of the collective keys, once they are known."""
        return self.combined.keys if self.combined else ()

    @property
    def transcript(self) -> str:
        """Digest of the plan and of everything that was said, signatures aside."""
        return self.seen.digest


def start(
    me: str, plan: KeyPlan, *, box_key: bytes, entropy: Callable[[int], bytes], now: float, step_s: float = 60.0
) -> Step[CeremonyState]:
    """Take up a plan that the agreement's lead signed.

    Args:
        box_key: public half of a fresh `frame.boxes.BoxKey`, of this ceremony only.
        entropy: fresh randomness (`entropy(n)` returns n bytes).
        step_s: how long each step may take.

    Raises:
        ComityError: `FORBIDDEN` if the plan does not name this organisation.
    """
    if me not in plan.holders:
        raise ComityError(ErrorCode.FORBIDDEN, "the plan does not name this organisation")
    state = CeremonyState(
        phase=Phase.NONCES,
        seen=CeremonyRecord(plan),
        limits=Limits(step_s=step_s),
        deadline=now + step_s,
        me=me,
        nonce=entropy(NONCE_BYTES),
    )
    return _say(state, NonceCommitment(plan.digest, nonce_commitment(plan.digest, me, state.nonce), box_key))


def nonce_commitment(session: str, org: str, nonce: bytes) -> str:
    """Return what a holder commits to before it shows its nonce."""
    return hashlib.sha256(_NONCE + canonical([session, org, nonce.hex()])).hexdigest()


class _Ceremony(Machine[CeremonyState]):
    ROLE = "the holder"
    HOLDS_KEY = True
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {
        Phase.NONCES: NonceCommitment,
        Phase.REVEALS: NonceReveal,
        Phase.COMMITMENTS: ShareCommitment,
        Phase.SHARES: ShareReveal,
        Phase.DEALS: Deal,
        Phase.CHECKS: DealCheck,
        Phase.SIGNATURES: TranscriptSignature,
    }

    def take(self, state: CeremonyState, event: Event, now: float) -> Step[CeremonyState] | None:
        match state.phase, event:
            case Phase.DRAWING, PublicSharesReady():
                return replace(state, public=event), []
            case Phase.COMBINING, KeysCombined(keys=keys):
                if len(keys) != state.plan.keys or len(set(keys)) != len(keys):
                    raise ComityError(ErrorCode.INTERNAL, "the ceremony made another number of keys")
                return replace(state, combined=event), []
            case Phase.DEALING, BoxesReady():
                return replace(state, boxes=event), []
            case Phase.OPENING, BoxesOpened():
                return replace(state, opened=event), []
        return super().take(state, event, now)


def _say(state: CeremonyState, message: Body, phase: Phase | None = None) -> Step[CeremonyState]:
    """Record an own message, send it, enter a phase."""
    seen = state.seen.absorb(state.me, message)
    return replace(state, seen=seen, phase=phase or state.phase), [Send(Audience.ALL, message)]


def _check_apart(named: Mapping[str, object], what: str) -> None:
    """Refuse a holder that says what another one said. Raises `CONFLICT`."""
    seen: dict[object, str] = {}
    for org, value in named.items():
        if value in seen:
            raise ComityError(ErrorCode.CONFLICT, f"two holders have the same {what}", org=org)
        seen[value] = org


def _on_nonces(state: CeremonyState) -> Step[CeremonyState] | None:
    found = state.seen.all_of(NonceCommitment)
    _check_apart({org: item.commitment for org, item in found.items()}, "commitment")
    _check_apart({org: item.box_key for org, item in found.items()}, "key")
    return _say(
        state, NonceReveal(state.plan.digest, state.seen.digest_of(NonceCommitment), state.nonce), Phase.REVEALS
    )


def _on_reveals(state: CeremonyState) -> Step[CeremonyState] | None:
    state.seen.check_before(NonceReveal, NonceCommitment)
    promised, nonces = state.seen.all_of(NonceCommitment), state.seen.all_of(NonceReveal)
    for org, item in nonces.items():
        if nonce_commitment(state.plan.digest, org, item.nonce) != promised[org].commitment:
            raise ComityError(ErrorCode.PAYLOAD_DIGEST, "a holder shows another nonce than it promised", org=org)
    crs = common_string(state.plan.digest, {org: item.nonce for org, item in nonces.items()})
    return replace(state, phase=Phase.DRAWING), [StartDraw(crs)]


def _on_drawing(state: CeremonyState) -> Step[CeremonyState] | None:
    if state.public is None:
        return None
    promise = ShareCommitment(state.plan.digest, state.seen.digest_of(NonceReveal), state.public.digest)
    return _say(state, promise, Phase.COMMITMENTS)


def _on_commitments(state: CeremonyState) -> Step[CeremonyState] | None:
    state.seen.check_before(ShareCommitment, NonceReveal)
    _check_apart({org: item.shares for org, item in state.seen.all_of(ShareCommitment).items()}, "public shares")
    own = state.seen.all_of(ShareCommitment)[state.me].shares
    shown = ShareReveal(state.plan.digest, state.seen.digest_of(ShareCommitment))
    state, outputs = _say(state, shown, Phase.SHARES)
    return state, [StartShow(own), *outputs]


def _on_shares(state: CeremonyState) -> Step[CeremonyState] | None:
    state.seen.check_before(ShareReveal, ShareCommitment)
    found = tuple((org, item.shares) for org, item in state.seen.all_of(ShareCommitment).items())
    return replace(state, phase=Phase.COMBINING), [StartCombine(found)]


def _on_combining(state: CeremonyState) -> Step[CeremonyState] | None:
    if state.combined is None:
        return None
    if not state.plan.deals:
        return _sign(state)
    keys = tuple((org, item.box_key) for org, item in state.seen.all_of(NonceCommitment).items() if org != state.me)
    return replace(state, phase=Phase.DEALING), [StartDeal(keys)]


def _on_dealing(state: CeremonyState) -> Step[CeremonyState] | None:
    if state.boxes is None:
        return None
    said = Deal(state.plan.digest, state.seen.digest_of(ShareReveal), state.keys, state.boxes.boxes)
    return _say(state, said, Phase.DEALS)


def _on_deals(state: CeremonyState) -> Step[CeremonyState] | None:
    state.seen.check_before(Deal, ShareReveal)
    for org, item in state.seen.all_of(Deal).items():
        if item.keys != state.keys:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder made other keys of the same shares", org=org)
        if tuple(receiver for receiver, _ in item.boxes) != tuple(each for each in state.plan.holders if each != org):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder deals to others than the holders", org=org)
    mine = (
        (org, dict(item.boxes).get(state.me, "")) for org, item in state.seen.all_of(Deal).items() if org != state.me
    )
    challenge = hashlib.sha256(_CHALLENGE + state.seen.digest_of(Deal).encode()).digest()
    return replace(state, phase=Phase.OPENING), [StartOpenBoxes(tuple(mine), challenge)]


def _on_opening(state: CeremonyState) -> Step[CeremonyState] | None:
    if state.opened is None:
        return None
    return _say(state, DealCheck(state.plan.digest, state.seen.digest_of(Deal), state.opened.values), Phase.CHECKS)


def _on_checks(state: CeremonyState) -> Step[CeremonyState] | None:
    state.seen.check_before(DealCheck, Deal)
    plan, checks = state.plan, state.seen.all_of(DealCheck)
    read = {org: dict(item.values) for org, item in checks.items()}
    for org, values in read.items():
        if tuple(values) != plan.holders or any(len(item) != plan.keys * LIMBS for item in values.values()):
            raise ComityError(ErrorCode.MALFORMED, "a holder's values of the check are not complete", org=org)
    for dealer in plan.holders:
        for key in range(plan.keys):
            points = [read[org][dealer][key * LIMBS : (key + 1) * LIMBS] for org in plan.holders]
            if not on_one_polynomial(plan.parameter_set, plan.threshold, points):
                raise ComityError(ErrorCode.BAD_SHARE, "the points that a holder dealt do not fit", org=dealer)
    return _sign(state)


def _sign(state: CeremonyState) -> Step[CeremonyState]:
    return _say(state, TranscriptSignature(state.plan.digest, state.transcript, state.keys), Phase.SIGNATURES)


def _on_signatures(state: CeremonyState) -> Step[CeremonyState] | None:
    for org, item in state.seen.all_of(TranscriptSignature).items():
        if (item.transcript, item.keys) != (state.transcript, state.keys):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder signed another ceremony", org=org)
    return finished(state, StoreKeys(state.keys, state.transcript), Finished(state.plan.holders))


def _heard(kind: type[Body], turn: Turn[CeremonyState]) -> Turn[CeremonyState]:
    """Return the turn that waits until all holders have said this."""
    return lambda state: None if state.seen.missing(kind) else turn(state)


step = _Ceremony(
    {
        Phase.NONCES: _heard(NonceCommitment, _on_nonces),
        Phase.REVEALS: _heard(NonceReveal, _on_reveals),
        Phase.DRAWING: _on_drawing,
        Phase.COMMITMENTS: _heard(ShareCommitment, _on_commitments),
        Phase.SHARES: _heard(ShareReveal, _on_shares),
        Phase.COMBINING: _on_combining,
        Phase.DEALING: _on_dealing,
        Phase.DEALS: _heard(Deal, _on_deals),
        Phase.OPENING: _on_opening,
        Phase.CHECKS: _heard(DealCheck, _on_checks),
        Phase.SIGNATURES: _heard(TranscriptSignature, _on_signatures),
    }
).step
