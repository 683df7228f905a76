"""A contributor to a secure sum: pure state machine of steps (a) to (e) (secure-aggregation.md section 4).

1. Signs one roster per round key, and only one that names it and every member's announcement as it saw them.
2. Expands masks only when every member has signed H(R); hands out its upload only when every member has signed the set
   of commitments. Before that a session may be restarted with fewer parties, under a fresh key.
3. A release is journalled before the upload. After it, the same order is answered again only with the same integers and
   to the same roster: otherwise the difference of two sums would be somebody's update.
4. Answers one aggregate per session, with one digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.frame.events import (
    AggregatePublished,
    Audience,
    BlobReady,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    RecordRelease,
    Release,
    RosterProposed,
    Send,
    StartUpload,
    Tick,
    ValuesReady,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest, StartEncrypt
from comity_crypto.secagg.lead_key.messages import Body, LinearDigest, MaskSeed, Offer, Ready
from comity_crypto.secagg.lead_key.seedbox import BoxKey, seal_seed, seed_info
from comity_crypto.secagg.lead_key.transcript import Transcript


class Phase(StrEnum):
    """What the contributor waits for."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    MASKS = "masks"
    ENCRYPTION = "encryption"
    COMMITMENTS = "commitments"
    SET = "set"
    AGGREGATE = "aggregate"
    DIGEST = "digest"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
_AWAITED: dict[Phase, type[Body]] = {
    Phase.ROSTER: Ready,
    Phase.SIGNATURES: RosterSignature,
    Phase.MASKS: MaskSeed,
    Phase.COMMITMENTS: Commitment,
    Phase.SET: CommitmentsSignature,
}


@dataclass(frozen=True)
class ContributorState:
    """Everything the machine knows. Secrets (box key, seeds, digest of the values) are not shown by repr."""

    me: str
    phase: Phase
    seen: Transcript
    limits: Limits
    deadline: float
    box_key: BoxKey = field(repr=False)
    seeds: Mapping[str, bytes] = field(repr=False)
    previous: Release | None = None
    values_digest: str = field(default="", repr=False)
    upload: BlobReady | None = None
    values: tuple[int, ...] | None = None

    @property
    def offer(self) -> Offer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[ContributorState, list[Output]]


def check_public_key(offer: Offer, public_key: bytes) -> None:
    """Refuse a packed public key that is not the offer's. Raises `PAYLOAD_DIGEST`, `CIPHERTEXT_INVALID` (size)."""
    if len(public_key) != offer.parameter_set.key_bytes:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the public key has another size", size_bytes=len(public_key))
    if hashlib.sha256(public_key).hexdigest() != offer.key_id:
        raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the public key is not the offer's")


def start(
    me: str,
    offer: Offer,
    *,
    order_digest: str,
    chunks: int,
    box_key: BoxKey,
    entropy: Callable[[int], bytes],
    now: float,
    limits: Limits | None = None,
    previous: Release | None = None,
    used_keys: Collection[str] = (),
) -> Step:
    """Take up an offer that came, signed by the agreement's lead, in a sealed order.

    Args:
        order_digest: digest of the plaintext order as *this* node computed it.
        chunks: size that this node expects from order and terms (`encoder.Layout.chunks`).
        box_key, entropy: fresh randomness (`entropy(n)` returns n bytes).
        previous: what the journal holds about an earlier release for this agreement and order.
        used_keys: key ids of this run's earlier sessions; a round key is used once.

    Raises:
        ComityError: `FORBIDDEN` (not a party), `ROSTER_MISMATCH` (the offer is for another order or size),
            `ORDER_REPLAYED` (the round key was used before).
    """
    if me not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation")
    if offer.order_digest != order_digest or offer.chunks != chunks:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is for another order or size")
    if offer.key_id in used_keys:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "a round key is used once")
    if previous is not None and previous.order_digest != order_digest:
        raise ComityError(ErrorCode.INTERNAL, "the journalled release is of another order")
    limits = limits or Limits()
    ready = Ready(offer.digest, offer.place, offer.key_id, order_digest, box_key.public)
    seeds = {org: entropy(32) for org in offer.parties if org > me}
    state = ContributorState(
        me, Phase.ROSTER, Transcript(offer), limits, now + limits.ready_s + limits.step_s, box_key, seeds, previous
    )
    return _say(state, Audience.ALL, ready)


def step(state: ContributorState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        awaited = _AWAITED.get(state.phase)
        missing = state.seen.missing(awaited) if awaited else ()
        return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), missing)
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    return _advance(_absorb(state, event), now)


def _absorb(state: ContributorState, event: Event) -> ContributorState:
    seen = state.seen
    if isinstance(event, Received):
        return replace(state, seen=seen.absorb(event.issuer, event.message))
    if isinstance(event, RosterProposed):
        return replace(state, seen=seen.with_roster(event.roster))
    if isinstance(event, AggregatePublished):
        return replace(state, seen=seen.with_notice(event.notice))
    if isinstance(event, ValuesReady) and not state.values_digest:
        return replace(state, values_digest=event.values_digest)
    if isinstance(event, BlobReady) and state.phase is Phase.ENCRYPTION:
        return replace(state, upload=event)
    if isinstance(event, DigestReady) and state.phase is Phase.DIGEST:
        return replace(state, values=event.values)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the contributor is doing", phase=state.phase)


def _advance(state: ContributorState, now: float) -> Step:
    outputs: list[Output] = []
    try:
        for _ in Phase:  # each turn enters a later phase
            state.seen.check_split()
            gone = state.seen.aborted()
            if gone and state.phase is not Phase.DONE:
                failure = Failed(ComityError(ErrorCode(gone[1].code), "another party gave up", org=gone[0]), (gone[0],))
                return replace(state, phase=Phase.FAILED), [*outputs, failure]
            phase = state.phase
            if phase not in _TURNS:
                break
            state, more = _TURNS[phase](state)
            outputs += more
            if state.phase is phase:
                break
            state = replace(state, deadline=now + _wait_s(state))
    except ComityError as error:
        failed, more = _fail(state, error)
        return failed, outputs + more
    return state, outputs


def _wait_s(state: ContributorState) -> float:
    slow = (Phase.MASKS, Phase.COMMITMENTS)  # parties may still be training
    return state.limits.values_s if state.phase in slow else state.limits.step_s


def _say(state: ContributorState, to: Audience, message: Body) -> Step:
    """Record an own message and send it."""
    return replace(state, seen=state.seen.absorb(state.me, message)), [Send(to, message)]


def _fail(state: ContributorState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    told = abort_of(state.offer.digest, error, missing[0] if len(missing) == 1 else "")
    return replace(state, phase=Phase.FAILED), [told, Failed(error, missing)]


def _on_roster(state: ContributorState) -> Step:
    if not state.seen.ready():
        return state, []
    if state.me not in state.seen.members:
        error = ComityError(ErrorCode.TIMEOUT, "the roster was closed without this organisation")
        return replace(state, phase=Phase.FAILED), [Failed(error)]
    if state.previous is not None and state.previous.parties != state.seen.members:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "this update has left for another roster")
    signature = RosterSignature(state.offer.digest, _roster_digest(state))
    return _say(replace(state, phase=Phase.SIGNATURES), Audience.ALL, signature)


def _on_signatures(state: ContributorState) -> Step:
    if not state.seen.roster_signed():
        return state, []
    state = replace(state, phase=Phase.MASKS)
    boxes = tuple((org, _seal(state, org)) for org in state.seen.members if org > state.me)
    if not boxes:
        return state, []
    return _say(state, Audience.ALL, MaskSeed(state.offer.digest, _roster_digest(state), boxes))


def _on_masks(state: ContributorState) -> Step:
    earlier = [org for org in state.seen.members if org < state.me]
    if not state.values_digest or any(state.seen.get(MaskSeed, org) is None for org in earlier):
        return state, []
    if state.previous is not None and state.previous.values_digest != state.values_digest:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "another update has left for this order")
    pairs = [PairSeed(adds=False, seed=_open(state, org)) for org in earlier]
    pairs += [PairSeed(adds=True, seed=state.seeds[org]) for org in state.seen.members if org > state.me]
    return replace(state, phase=Phase.ENCRYPTION, seeds={}), [StartEncrypt(tuple(pairs))]


def _on_encryption(state: ContributorState) -> Step:
    if state.upload is None:
        return state, []
    commitment = Commitment(state.offer.digest, _roster_digest(state), state.upload.digest, state.upload.size_bytes)
    return _say(replace(state, phase=Phase.COMMITMENTS), Audience.ALL, commitment)


def _on_commitments(state: ContributorState) -> Step:
    if not state.seen.committed():
        return state, []
    signature = CommitmentsSignature(state.offer.digest, _roster_digest(state), state.seen.commitments_digest)
    return _say(replace(state, phase=Phase.SET), Audience.ALL, signature)


def _on_set(state: ContributorState) -> Step:
    if not state.seen.set_signed() or state.upload is None:
        return state, []
    release = Release(state.offer.order_digest, state.seen.members, state.values_digest)
    upload = StartUpload(state.upload.digest, state.upload.size_bytes)
    return replace(state, phase=Phase.AGGREGATE), [RecordRelease(release), upload]


def _on_aggregate(state: ContributorState) -> Step:
    if not state.seen.published() or state.seen.notice is None or state.upload is None:
        return state, []
    return replace(state, phase=Phase.DIGEST), [StartDigest(state.seen.notice.challenge, state.upload.digest)]


def _on_digest(state: ContributorState) -> Step:
    if state.values is None or state.seen.notice is None:
        return state, []
    answer = LinearDigest(state.offer.digest, state.seen.notice.digest, state.values)
    to = Audience.ALL if state.offer.DIGESTS_TO_ALL else Audience.LEAD
    state, outputs = _say(replace(state, phase=Phase.DONE), to, answer)
    return state, [*outputs, Finished(state.seen.members)]


_TURNS: dict[Phase, Callable[[ContributorState], Step]] = {
    Phase.ROSTER: _on_roster,
    Phase.SIGNATURES: _on_signatures,
    Phase.MASKS: _on_masks,
    Phase.ENCRYPTION: _on_encryption,
    Phase.COMMITMENTS: _on_commitments,
    Phase.SET: _on_set,
    Phase.AGGREGATE: _on_aggregate,
    Phase.DIGEST: _on_digest,
}


def _roster_digest(state: ContributorState) -> str:
    assert state.seen.roster is not None
    return state.seen.roster.digest


def _seal(state: ContributorState, org: str) -> bytes:
    ready = state.seen.get(Ready, org)
    assert ready is not None
    return seal_seed(ready.box_key, state.seeds[org], seed_info(state.offer, _roster_digest(state), state.me, org))


def _open(state: ContributorState, org: str) -> bytes:
    """Return the seed that `org` drew for the pair. Raises `ROSTER_MISMATCH`, `SEAL_BROKEN`."""
    said = state.seen.get(MaskSeed, org)
    assert said is not None
    receivers = tuple(receiver for receiver, _ in said.boxes)
    expected = tuple(member for member in state.seen.members if member > org)
    if said.roster != _roster_digest(state) or receivers != expected:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party sealed seeds for another roster", org=org)
    try:
        return state.box_key.open(dict(said.boxes)[state.me], seed_info(state.offer, said.roster, org, state.me))
    except ComityError as error:
        raise ComityError(error.code, error.detail, org=org) from error
