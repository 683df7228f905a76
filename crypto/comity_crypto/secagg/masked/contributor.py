"""A contributor to a masked sum: pure state machine of steps (a) to (e) (secure-aggregation.md section 4).

1. Steps (a) to (d) are those of `contributor`: one roster per round's secret, masks only when all signed H(R), the
   upload only when all signed the set of commitments. Before that a session may be restarted with fewer parties.
2. Deals and seeds are opened and compared with what their senders signed before anything leaves; a bad one names its
   sender.
3. Either/or: it stands on one list of the dropped per session, and on one set of survivors per order, journalled before
   it signs. Only when more than two thirds of the roster signed the same list does it reveal: of a dropped member the
   share of the root, of any other the share of its own mask's seed, never both. It never signs a list that it is on.
4. After a release the same order is answered again only with the same integers, and only for the same survivors:
   otherwise the difference of two sums would be somebody's update.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import (
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
from comity_crypto.secagg.lead_key.messages import Body
from comity_crypto.secagg.masked.dealing import OpenedKeys, Secrets, dealt_keys, open_keys, own_masks, reveal, tag_key
from comity_crypto.secagg.masked.events import NoticePublished, RecordStand, Settled, Stand, StartMask, StartSettle
from comity_crypto.secagg.masked.keys import HybridKey, seed_digest
from comity_crypto.secagg.masked.messages import MaskedKeys, MaskedOffer, MaskedReady, NoticeSignature, Reveal
from comity_crypto.secagg.masked.transcript import MaskedTranscript


class Phase(StrEnum):
    """What the contributor waits for."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    KEYS = "keys"
    VALUES = "values"
    MASKING = "masking"
    COMMITMENTS = "commitments"
    SET = "set"
    NOTICE = "notice"
    LIST = "list"
    SETTLING = "settling"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
_AWAITED: dict[Phase, type[Body]] = {
    Phase.ROSTER: MaskedReady,
    Phase.SIGNATURES: RosterSignature,
    Phase.KEYS: MaskedKeys,
    Phase.COMMITMENTS: Commitment,
    Phase.SET: CommitmentsSignature,
}
_SLOW = (Phase.VALUES, Phase.COMMITMENTS, Phase.NOTICE)  # parties may still be training, or sending


@dataclass(frozen=True)
class MaskedContributorState:
    """Everything the machine knows. Secrets, deals and the digest of the values are not shown by repr."""

    me: str
    phase: Phase
    seen: MaskedTranscript
    limits: Limits
    deadline: float
    secrets: Secrets = field(repr=False)
    release: Release | None = None
    stand: Stand | None = None
    opened: OpenedKeys = field(default_factory=OpenedKeys, repr=False)
    values_digest: str = field(default="", repr=False)
    upload: BlobReady | None = None
    settled: bool = False

    @property
    def offer(self) -> MaskedOffer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[MaskedContributorState, list[Output]]


def start(
    me: str,
    offer: MaskedOffer,
    *,
    order_digest: str,
    words: int,
    entropy: Callable[[int], bytes],
    now: float,
    limits: Limits | None = None,
    release: Release | None = None,
    stand: Stand | None = None,
    used_keys: Collection[str] = (),
) -> Step:
    """Take up an offer that the agreement's lead signed.

    Args:
        order_digest: digest of the plaintext order as *this* node computed it.
        words: size that this node expects from order and terms (`masked_encoder.words_for`).
        entropy: `entropy(n)` returns n random bytes.
        release, stand: what the journal holds about this agreement and order from earlier sessions.
        used_keys: key ids of this run's earlier sessions; a round's secret is used once.

    Raises:
        ComityError: `FORBIDDEN` (not a party), `ROSTER_MISMATCH` (the offer is for another order or size),
            `ORDER_REPLAYED` (the round's secret was used before).
    """
    if me not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation")
    if offer.order_digest != order_digest or offer.words != words:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is for another order or size")
    if offer.key_id in used_keys:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "a round's secret is used once")
    for kept in (release, stand):
        if kept is not None and kept.order_digest != order_digest:
            raise ComityError(ErrorCode.INTERNAL, "what was journalled is of another order")
    limits = limits or Limits()
    secrets = Secrets.draw(entropy)
    ready = MaskedReady(
        session=offer.digest,
        place=offer.place,
        key_id=offer.key_id,
        order_digest=order_digest,
        pair_key=HybridKey.from_root(secrets.root).public,
        share_key=secrets.share_key.public,
        seed_digest=seed_digest(secrets.seed),
    )
    deadline = now + limits.ready_s + limits.step_s
    seen = MaskedTranscript(offer)
    state = MaskedContributorState(me, Phase.ROSTER, seen, limits, deadline, secrets, release, stand)
    return _say(state, Audience.ALL, ready)


def step(state: MaskedContributorState, event: Event, now: float) -> Step:
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


def _absorb(state: MaskedContributorState, event: Event) -> MaskedContributorState:
    seen = state.seen
    if isinstance(event, Received):
        if isinstance(event.message, Reveal):
            return state  # for the recipient, which may be of the same node
        return replace(state, seen=seen.absorb(event.issuer, event.message))
    if isinstance(event, RosterProposed):
        return replace(state, seen=seen.with_roster(event.roster))
    if isinstance(event, NoticePublished):
        return replace(state, seen=seen.with_notice(event.notice))
    if isinstance(event, ValuesReady) and not state.values_digest:
        return replace(state, values_digest=event.values_digest)
    if isinstance(event, BlobReady) and state.phase is Phase.MASKING:
        return replace(state, upload=event)
    if isinstance(event, Settled) and state.phase is Phase.SETTLING:
        return replace(state, settled=True)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the contributor is doing", phase=state.phase)


def _advance(state: MaskedContributorState, now: float) -> Step:
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
            wait_s = state.limits.values_s if state.phase in _SLOW else state.limits.step_s
            state = replace(state, deadline=now + wait_s)
    except ComityError as error:
        failed, more = _fail(state, error)
        return failed, outputs + more
    return state, outputs


def _say(state: MaskedContributorState, to: Audience, message: Body) -> Step:
    """Record an own message and send it."""
    return replace(state, seen=state.seen.absorb(state.me, message)), [Send(to, message)]


def _fail(state: MaskedContributorState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    """Give the session up; secrets go with it."""
    named = str(error.facts.get("org", ""))
    if not missing and named in state.seen.members and named != state.me:
        missing = (named,)
    told = abort_of(state.offer.digest, error, missing[0] if len(missing) == 1 else "")
    return _cleared(replace(state, phase=Phase.FAILED)), [told, Failed(error, missing)]


def _cleared(state: MaskedContributorState) -> MaskedContributorState:
    gone = replace(state.secrets, root=b"", seed=b"", coins=b"")
    return replace(state, secrets=gone, opened=OpenedKeys())


def _on_roster(state: MaskedContributorState) -> Step:
    if not state.seen.ready():
        return state, []
    members = state.seen.members
    if state.me not in members:
        error = ComityError(ErrorCode.TIMEOUT, "the roster was closed without this organisation")
        return _cleared(replace(state, phase=Phase.FAILED)), [Failed(error)]
    if state.stand is not None:
        legal = set(state.stand.survivors) <= set(members)
    else:
        legal = state.release is None or state.release.parties == members
    if not legal:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "this update has left for another roster")
    signature = RosterSignature(state.offer.digest, state.seen.place.roster)
    return _say(replace(state, phase=Phase.SIGNATURES), Audience.ALL, signature)


def _on_signatures(state: MaskedContributorState) -> Step:
    if not state.seen.roster_signed():
        return state, []
    keys = dealt_keys(state.me, state.seen, state.secrets)
    return _say(replace(state, phase=Phase.KEYS), Audience.ALL, keys)


def _on_keys(state: MaskedContributorState) -> Step:
    if state.seen.round_boxes() is None or not state.seen.keyed():
        return state, []
    opened = open_keys(state.me, state.seen, state.secrets)
    return replace(state, phase=Phase.VALUES, opened=opened), []


def _on_values(state: MaskedContributorState) -> Step:
    if not state.values_digest:
        return state, []
    if state.release is not None and state.release.values_digest != state.values_digest:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "another update has left for this order")
    opened = state.opened
    job = StartMask(
        own_masks(state.me, state.seen, state.secrets, opened), tag_key(state.seen.place, opened.round_secret)
    )
    secrets = replace(state.secrets, root=b"", coins=b"")
    return replace(state, phase=Phase.MASKING, secrets=secrets, opened=replace(opened, round_secret=b"", pairs={})), [
        job
    ]


def _on_masking(state: MaskedContributorState) -> Step:
    if state.upload is None:
        return state, []
    place = state.seen.place
    commitment = Commitment(place.session, place.roster, state.upload.digest, state.upload.size_bytes)
    return _say(replace(state, phase=Phase.COMMITMENTS), Audience.ALL, commitment)


def _on_commitments(state: MaskedContributorState) -> Step:
    if not state.seen.committed():
        return state, []
    place = state.seen.place
    signature = CommitmentsSignature(place.session, place.roster, state.seen.commitments_digest)
    return _say(replace(state, phase=Phase.SET), Audience.ALL, signature)


def _on_set(state: MaskedContributorState) -> Step:
    if not state.seen.set_signed() or state.upload is None:
        return state, []
    release = Release(state.offer.order_digest, state.seen.members, state.values_digest)
    upload = StartUpload(state.upload.digest, state.upload.size_bytes)
    return replace(state, phase=Phase.NOTICE, release=release), [RecordRelease(release), upload]


def _on_notice(state: MaskedContributorState) -> Step:
    """Stand on the coordinator's list, if the rule permits it."""
    if not state.seen.noticed() or state.seen.notice is None:
        return state, []
    survivors = state.seen.survivors
    if state.me not in survivors:
        error = ComityError(ErrorCode.TIMEOUT, "the sum was closed without this organisation's upload")
        return _cleared(replace(state, phase=Phase.FAILED)), [Failed(error)]
    if state.stand is not None and state.stand.survivors != survivors:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "this order was summed for other survivors before")
    place = state.seen.place
    stand = Stand(state.offer.order_digest, place.session, state.seen.members, survivors)
    signature = NoticeSignature(place.session, place.roster, state.seen.notice.digest)
    state, outputs = _say(replace(state, phase=Phase.LIST, stand=stand), Audience.ALL, signature)
    return state, [RecordStand(stand), *outputs]


def _on_list(state: MaskedContributorState) -> Step:
    if not state.seen.list_signed() or state.upload is None:
        return state, []
    return replace(state, phase=Phase.SETTLING), [StartSettle(state.upload.digest)]


def _on_settling(state: MaskedContributorState) -> Step:
    """Reveal for this list, each party's share of one kind, and forget both kinds."""
    if not state.settled:
        return state, []
    revealed = reveal(state.me, state.seen, state.secrets, state.opened)
    state, outputs = _say(replace(state, phase=Phase.DONE), Audience.LEAD, revealed)
    return _cleared(state), [*outputs, Finished(state.seen.survivors)]


_TURNS: dict[Phase, Callable[[MaskedContributorState], Step]] = {
    Phase.ROSTER: _on_roster,
    Phase.SIGNATURES: _on_signatures,
    Phase.KEYS: _on_keys,
    Phase.VALUES: _on_values,
    Phase.MASKING: _on_masking,
    Phase.COMMITMENTS: _on_commitments,
    Phase.SET: _on_set,
    Phase.NOTICE: _on_notice,
    Phase.LIST: _on_list,
    Phase.SETTLING: _on_settling,
}
