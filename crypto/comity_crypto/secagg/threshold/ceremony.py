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
from typing import TypeVar

from comity.wire.canonical import canonical
from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import LIMBS
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import (
    Audience,
    EraseKey,
    Event,
    Failed,
    Finished,
    Output,
    Received,
    Send,
    Tick,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import Abort
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
_T = TypeVar("_T", bound=Body)


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
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
_AWAITED: dict[Phase, type[Body]] = {
    Phase.NONCES: NonceCommitment,
    Phase.REVEALS: NonceReveal,
    Phase.COMMITMENTS: ShareCommitment,
    Phase.SHARES: ShareReveal,
    Phase.DEALS: Deal,
    Phase.CHECKS: DealCheck,
    Phase.SIGNATURES: TranscriptSignature,
}


@dataclass(frozen=True)
class CeremonyState:
    """Everything the machine knows; parts and boxes stay with the shell."""

    me: str
    plan: KeyPlan
    phase: Phase
    step_s: float
    deadline: float
    nonce: bytes = field(repr=False)
    said: Mapping[tuple[str, str], Body] = field(default_factory=dict, repr=False)
    public: PublicSharesReady | None = None
    combined: KeysCombined | None = None
    boxes: BoxesReady | None = None
    opened: BoxesOpened | None = None

    def all_of(self, kind: type[_T]) -> dict[str, _T]:
        """Return what the holders said of this kind so far, by organisation."""
        found = ((org, self.said.get((kind.KIND, org))) for org in self.plan.holders)
        return {org: item for org, item in found if isinstance(item, kind)}

    def missing(self, kind: type[Body]) -> tuple[str, ...]:
        """Return who has not said this."""
        return tuple(org for org in self.plan.holders if (kind.KIND, org) not in self.said)

    @property
    def keys(self) -> tuple[str, ...]:
        """Ids of the collective keys, once they are known."""
        return self.combined.keys if self.combined else ()

    @property
    def transcript(self) -> str:
        """Digest of the plan and of everything that was said, signatures aside."""
        spoken = sorted((kind, org, item.digest) for (kind, org), item in self.said.items())
        kept = [list(entry) for entry in spoken if entry[0] not in (TranscriptSignature.KIND, Abort.KIND)]
        return canonical_digest({"plan": self.plan.digest, "said": kept})


Step = tuple[CeremonyState, list[Output]]


def start(
    me: str, plan: KeyPlan, *, box_key: bytes, entropy: Callable[[int], bytes], now: float, step_s: float = 60.0
) -> Step:
    """Take up a plan that the agreement's lead signed.

    Args:
        box_key: public half of a fresh `seedbox.BoxKey`, of this ceremony only.
        entropy: fresh randomness (`entropy(n)` returns n bytes).
        step_s: how long each step may take.

    Raises:
        ComityError: `FORBIDDEN` if the plan does not name this organisation.
    """
    if me not in plan.holders:
        raise ComityError(ErrorCode.FORBIDDEN, "the plan does not name this organisation")
    state = CeremonyState(me, plan, Phase.NONCES, step_s, now + step_s, entropy(NONCE_BYTES))
    return _say(state, NonceCommitment(plan.digest, nonce_commitment(plan.digest, me, state.nonce), box_key))


def step(state: CeremonyState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        awaited = _AWAITED.get(state.phase)
        missing = state.missing(awaited) if awaited else ()
        return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), missing)
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    return _advance(_absorb(state, event), now)


def nonce_commitment(session: str, org: str, nonce: bytes) -> str:
    """Return what a holder commits to before it shows its nonce."""
    return hashlib.sha256(_NONCE + canonical([session, org, nonce.hex()])).hexdigest()


def _absorb(state: CeremonyState, event: Event) -> CeremonyState:
    if isinstance(event, Received):
        return _heard(state, event.issuer, event.message)
    if isinstance(event, PublicSharesReady) and state.phase is Phase.DRAWING:
        return replace(state, public=event)
    if isinstance(event, KeysCombined) and state.phase is Phase.COMBINING:
        if len(event.keys) != state.plan.keys or len(set(event.keys)) != len(event.keys):
            raise ComityError(ErrorCode.INTERNAL, "the ceremony made another number of keys")
        return replace(state, combined=event)
    if isinstance(event, BoxesReady) and state.phase is Phase.DEALING:
        return replace(state, boxes=event)
    if isinstance(event, BoxesOpened) and state.phase is Phase.OPENING:
        return replace(state, opened=event)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the holder is doing", phase=state.phase)


def _heard(state: CeremonyState, issuer: str, message: Body) -> CeremonyState:
    """Record a holder's message, a later step's too. Raises `FORBIDDEN`, `ROSTER_MISMATCH`, `CONFLICT`."""
    if issuer not in state.plan.holders and not (issuer == state.plan.lead and isinstance(message, Abort)):
        raise ComityError(ErrorCode.FORBIDDEN, "not a holder of this ceremony")
    if not isinstance(message, (*CEREMONY_BODIES, Abort)):
        raise ComityError(ErrorCode.FORBIDDEN, "not a message of a ceremony")
    if getattr(message, "session", "") != state.plan.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another ceremony")
    if isinstance(message, Deal | DealCheck) and not state.plan.deals:
        raise ComityError(ErrorCode.FORBIDDEN, "nothing is dealt where everybody is needed")
    before = state.said.get((message.KIND, issuer))
    if before is not None and before != message:
        raise ComityError(ErrorCode.CONFLICT, "the holder has said something else before", kind=message.KIND)
    return replace(state, said={**state.said, (message.KIND, issuer): message})


def _advance(state: CeremonyState, now: float) -> Step:
    outputs: list[Output] = []
    try:
        for _ in Phase:  # each turn enters a later phase
            gone = next((org for (kind, org) in state.said if kind == Abort.KIND and org != state.me), None)
            if gone is not None and state.phase not in _OVER:
                said = state.said[Abort.KIND, gone]
                code = ErrorCode(said.code) if isinstance(said, Abort) else ErrorCode.INTERNAL
                failure = Failed(ComityError(code, "another holder gave up", org=gone), (gone,))
                return replace(state, phase=Phase.FAILED), [*outputs, EraseKey(), failure]
            phase = state.phase
            awaited = _AWAITED.get(phase)
            if phase in _OVER or (awaited is not None and state.missing(awaited)):
                break
            state, more = _TURNS[phase](state)
            outputs += more
            if state.phase is phase:
                break
            state = replace(state, deadline=now + state.step_s)
    except ComityError as error:
        failed, more = _fail(state, error)
        return failed, outputs + more
    return state, outputs


def _say(state: CeremonyState, message: Body, phase: Phase | None = None) -> Step:
    """Record an own message, send it, enter a phase."""
    state = replace(state, said={**state.said, (message.KIND, state.me): message}, phase=phase or state.phase)
    return state, [Send(Audience.ALL, message)]


def _fail(state: CeremonyState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    told = abort_of(state.plan.digest, error, missing[0] if len(missing) == 1 else "")
    return replace(state, phase=Phase.FAILED), [EraseKey(), told, Failed(error, missing)]


def _digest_of(state: CeremonyState, kind: type[Body]) -> str:
    return step_digest(state.plan.digest, state.all_of(kind))


def _check_before(
    state: CeremonyState,
    kind: type[NonceReveal] | type[ShareCommitment] | type[ShareReveal] | type[Deal] | type[DealCheck],
    earlier: type[Body],
) -> None:
    """Refuse a step in which somebody saw another step before it. Raises `ROSTER_MISMATCH`."""
    wanted = _digest_of(state, earlier)
    for org, item in state.all_of(kind).items():
        if item.before != wanted:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder saw another ceremony", org=org)


def _check_apart(named: Mapping[str, object], what: str) -> None:
    """Refuse a holder that says what another one said. Raises `CONFLICT`."""
    seen: dict[object, str] = {}
    for org, value in named.items():
        if value in seen:
            raise ComityError(ErrorCode.CONFLICT, f"two holders have the same {what}", org=org)
        seen[value] = org


def _on_nonces(state: CeremonyState) -> Step:
    found = state.all_of(NonceCommitment)
    _check_apart({org: item.commitment for org, item in found.items()}, "commitment")
    _check_apart({org: item.box_key for org, item in found.items()}, "key")
    return _say(state, NonceReveal(state.plan.digest, _digest_of(state, NonceCommitment), state.nonce), Phase.REVEALS)


def _on_reveals(state: CeremonyState) -> Step:
    _check_before(state, NonceReveal, NonceCommitment)
    promised, nonces = state.all_of(NonceCommitment), state.all_of(NonceReveal)
    for org, item in nonces.items():
        if nonce_commitment(state.plan.digest, org, item.nonce) != promised[org].commitment:
            raise ComityError(ErrorCode.PAYLOAD_DIGEST, "a holder shows another nonce than it promised", org=org)
    crs = common_string(state.plan.digest, {org: item.nonce for org, item in nonces.items()})
    return replace(state, phase=Phase.DRAWING), [StartDraw(crs)]


def _on_drawing(state: CeremonyState) -> Step:
    if state.public is None:
        return state, []
    promise = ShareCommitment(state.plan.digest, _digest_of(state, NonceReveal), state.public.digest)
    return _say(state, promise, Phase.COMMITMENTS)


def _on_commitments(state: CeremonyState) -> Step:
    _check_before(state, ShareCommitment, NonceReveal)
    _check_apart({org: item.shares for org, item in state.all_of(ShareCommitment).items()}, "public shares")
    own = state.all_of(ShareCommitment)[state.me].shares
    shown = ShareReveal(state.plan.digest, _digest_of(state, ShareCommitment))
    state, outputs = _say(state, shown, Phase.SHARES)
    return state, [StartShow(own), *outputs]


def _on_shares(state: CeremonyState) -> Step:
    _check_before(state, ShareReveal, ShareCommitment)
    found = tuple((org, item.shares) for org, item in state.all_of(ShareCommitment).items())
    return replace(state, phase=Phase.COMBINING), [StartCombine(found)]


def _on_combining(state: CeremonyState) -> Step:
    if state.combined is None:
        return state, []
    if not state.plan.deals:
        return _sign(state)
    keys = tuple((org, item.box_key) for org, item in state.all_of(NonceCommitment).items() if org != state.me)
    return replace(state, phase=Phase.DEALING), [StartDeal(keys)]


def _on_dealing(state: CeremonyState) -> Step:
    if state.boxes is None:
        return state, []
    said = Deal(state.plan.digest, _digest_of(state, ShareReveal), state.keys, state.boxes.boxes)
    return _say(state, said, Phase.DEALS)


def _on_deals(state: CeremonyState) -> Step:
    _check_before(state, Deal, ShareReveal)
    for org, item in state.all_of(Deal).items():
        if item.keys != state.keys:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder made other keys of the same shares", org=org)
        if tuple(receiver for receiver, _ in item.boxes) != tuple(each for each in state.plan.holders if each != org):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder deals to others than the holders", org=org)
    mine = ((org, dict(item.boxes).get(state.me, "")) for org, item in state.all_of(Deal).items() if org != state.me)
    challenge = hashlib.sha256(_CHALLENGE + _digest_of(state, Deal).encode()).digest()
    return replace(state, phase=Phase.OPENING), [StartOpenBoxes(tuple(mine), challenge)]


def _on_opening(state: CeremonyState) -> Step:
    if state.opened is None:
        return state, []
    return _say(state, DealCheck(state.plan.digest, _digest_of(state, Deal), state.opened.values), Phase.CHECKS)


def _on_checks(state: CeremonyState) -> Step:
    _check_before(state, DealCheck, Deal)
    plan, checks = state.plan, state.all_of(DealCheck)
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


def _sign(state: CeremonyState) -> Step:
    return _say(state, TranscriptSignature(state.plan.digest, state.transcript, state.keys), Phase.SIGNATURES)


def _on_signatures(state: CeremonyState) -> Step:
    for org, item in state.all_of(TranscriptSignature).items():
        if (item.transcript, item.keys) != (state.transcript, state.keys):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a holder signed another ceremony", org=org)
    ended: list[Output] = [StoreKeys(state.keys, state.transcript), Finished(state.plan.holders)]
    return replace(state, phase=Phase.DONE), ended


_TURNS: dict[Phase, Callable[[CeremonyState], Step]] = {
    Phase.NONCES: _on_nonces,
    Phase.REVEALS: _on_reveals,
    Phase.DRAWING: _on_drawing,
    Phase.COMMITMENTS: _on_commitments,
    Phase.SHARES: _on_shares,
    Phase.COMBINING: _on_combining,
    Phase.DEALING: _on_dealing,
    Phase.DEALS: _on_deals,
    Phase.OPENING: _on_opening,
    Phase.CHECKS: _on_checks,
    Phase.SIGNATURES: _on_signatures,
}
