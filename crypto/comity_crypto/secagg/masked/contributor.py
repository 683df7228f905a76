"""A contributor to a masked sum: pure state machine of steps (a) to (e) (secure-aggregation.md section 4).

Rules of `frame.contributor`. Besides:
1. Deals and seeds are opened and compared with what their senders signed before anything leaves; a bad one names its
   sender.
2. Either/or: it stands on one list of the dropped per session, and on one set of survivors per order, journalled before
   it signs. Only when more than two thirds of the roster signed the same list does it reveal: of a dropped member the
   share of the root, of any other the share of its own mask's seed, never both. It never signs a list that it is on.
3. After a release the same order is answered again only with the same integers, and only for the same survivors:
   otherwise the difference of two sums would be somebody's update.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Self

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.contributor import (
    ContributorMachine,
    PartyState,
    check_offer,
    check_values,
    commit,
    hand_out,
    left_out,
    say,
    sign_roster,
    sign_set,
)
from comity_crypto.secagg.frame.events import Audience, Event, Finished, Limits, Received, Release
from comity_crypto.secagg.frame.machine import Stage, Step, finished, opening
from comity_crypto.secagg.masked.dealing import (
    OpenedKeys,
    Secrets,
    dealt_keys,
    open_keys,
    own_masks,
    reveal,
    tag_key,
)
from comity_crypto.secagg.masked.events import RecordStand, Settled, Stand, StartMask, StartSettle
from comity_crypto.secagg.masked.keys import pair_key, seed_digest
from comity_crypto.secagg.masked.messages import MaskedKeys, MaskedOffer, MaskedReady, NoticeSignature, Reveal
from comity_crypto.secagg.masked.transcript import MaskedTranscript


class Phase(StrEnum):
    """What the contributor waits for between the stages of all rounds."""

    KEYS = "keys"
    VALUES = "values"
    MASKING = "masking"
    NOTICE = "notice"
    LIST = "list"
    SETTLING = "settling"


@dataclass(frozen=True, kw_only=True)
class MaskedContributorState(PartyState[MaskedTranscript]):
    """Everything the machine knows. Secrets, deals and the digest of the values are not shown by repr."""

    secrets: Secrets = field(repr=False)
    stand: Stand | None = None
    opened: OpenedKeys = field(default_factory=OpenedKeys, repr=False)
    settled: bool = False

    def may_join(self, members: tuple[str, ...]) -> bool:
        """Whether an update that has left before may go into a sum of these members: its list must be possible."""
        if self.stand is not None:
            return set(self.stand.survivors) <= set(members)
        return super().may_join(members)

    def cleared(self) -> Self:
        """Return the state without secrets and deals."""
        return replace(self, secrets=replace(self.secrets, root=b"", seed=b"", coins=b""), opened=OpenedKeys())


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
) -> Step[MaskedContributorState]:
    """Take up an offer that the agreement's lead signed.

    Args:
        order_digest: digest of the plaintext order as *this* node computed it.
        words: size that this node expects from order and terms (`masked.encoder.words_for`).
        entropy: `entropy(n)` returns n random bytes.
        release, stand: what the journal holds about this agreement and order from earlier sessions.
        used_keys: key ids of this run's earlier sessions; a round's secret is used once.

    Raises:
        ComityError: as `frame.contributor.check_offer`.
    """
    kept = [each.order_digest for each in (release, stand) if each is not None]
    check_offer(me, offer, order_digest, fits=offer.words == words, used_keys=used_keys, kept=kept)
    secrets = Secrets.draw(entropy)
    ready = MaskedReady(
        session=offer.digest,
        place=offer.place,
        key_id=offer.key_id,
        order_digest=order_digest,
        pair_key=pair_key(secrets.root).public,
        share_key=secrets.share_key.public,
        seed_digest=seed_digest(secrets.seed),
    )
    first = opening(MaskedTranscript(offer), now, limits, me)
    return say(MaskedContributorState(**first, release=release, secrets=secrets, stand=stand), ready)


class _MaskedContributor(ContributorMachine[MaskedContributorState]):
    BLOB = Phase.MASKING
    NAMES = True
    SLOW = (Phase.VALUES, Stage.COMMITMENTS, Phase.NOTICE)
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {Phase.KEYS: MaskedKeys}

    def take(self, state: MaskedContributorState, event: Event, now: float) -> Step[MaskedContributorState] | None:
        if isinstance(event, Received) and isinstance(event.message, Reveal):
            return state, []  # for the recipient, which may be of the same node
        if isinstance(event, Settled) and state.phase is Phase.SETTLING:
            return replace(state, settled=True), []
        return super().take(state, event, now)

    def awaited(self, state: MaskedContributorState) -> tuple[str, ...]:
        return state.seen.unsigned() if state.phase is Phase.LIST else super().awaited(state)


def _on_signatures(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    """(c) Deal."""
    if not state.seen.roster_signed():
        return None
    return say(replace(state, phase=Phase.KEYS), dealt_keys(state.me, state.seen, state.secrets))


def _on_keys(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    """(c) Open and compare what the others dealt."""
    if state.seen.round_boxes() is None or not state.seen.keyed():
        return None
    return replace(state, phase=Phase.VALUES, opened=open_keys(state.me, state.seen, state.secrets)), []


def _on_values(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    """(c) Mask; what only masks are made of is forgotten."""
    if not state.values_digest:
        return None
    check_values(state)
    seen, opened = state.seen, state.opened
    masks = own_masks(state.me, seen, state.secrets, opened)
    job = StartMask(masks, tag_key(seen.place, opened.round_secret))
    secrets, opened = replace(state.secrets, root=b"", coins=b""), replace(opened, round_secret=b"", pairs={})
    return replace(state, phase=Phase.MASKING, secrets=secrets, opened=opened), [job]


def _on_notice(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    """(e) Stand on the coordinator's list, if the rule permits it."""
    seen = state.seen
    if not seen.published() or seen.notice is None:
        return None
    if state.me not in seen.survivors:
        return left_out(state, "the sum")
    if state.stand is not None and state.stand.survivors != seen.survivors:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "this order was summed for other survivors before")
    stand = Stand(seen.offer.order_digest, seen.offer.digest, seen.members, seen.survivors)
    signature = NoticeSignature(seen.offer.digest, seen.roster_digest, seen.notice.digest)
    state, outputs = say(replace(state, phase=Phase.LIST, stand=stand), signature)
    return state, [RecordStand(stand), *outputs]


def _on_list(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    if state.upload is None or not state.seen.list_signed():
        return None
    return replace(state, phase=Phase.SETTLING), [StartSettle(state.upload.digest)]


def _on_settling(state: MaskedContributorState) -> Step[MaskedContributorState] | None:
    """(e) Reveal for this list, each party's share of one kind, and forget both kinds."""
    if not state.settled:
        return None
    state, said = say(state, reveal(state.me, state.seen, state.secrets, state.opened), Audience.LEAD)
    return finished(state, *said, Finished(state.seen.survivors))


step = _MaskedContributor(
    {
        Stage.ROSTER: sign_roster(Stage.SIGNATURES),
        Stage.SIGNATURES: _on_signatures,
        Phase.KEYS: _on_keys,
        Phase.VALUES: _on_values,
        Phase.MASKING: commit(Stage.COMMITMENTS),
        Stage.COMMITMENTS: sign_set(Stage.SET),
        Stage.SET: hand_out(Phase.NOTICE),
        Phase.NOTICE: _on_notice,
        Phase.LIST: _on_list,
        Phase.SETTLING: _on_settling,
    }
).step
