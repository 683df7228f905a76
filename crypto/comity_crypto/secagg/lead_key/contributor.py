"""A contributor of an encrypted upload, steps (a) to (e) of the round, under `lead-key` and `threshold`.

Rules of `frame.contributor`. Besides:
1. Expands masks only when every member has signed H(R).
2. After a release, the same order is answered again only to the same roster.
3. Answers one aggregate per session, with one digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import Digest
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.frame.boxes import SEED_BYTES, BoxKey, seal
from comity_crypto.secagg.frame.contributor import (
    ContributorMachine,
    PartyState,
    check_offer,
    check_values,
    commit,
    hand_out,
    say,
    sign_roster,
    sign_set,
)
from comity_crypto.secagg.frame.events import Audience, Event, Finished, Limits, Release
from comity_crypto.secagg.frame.machine import Stage, Step, finished, opening
from comity_crypto.secagg.frame.naming import naming
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest, StartEncrypt
from comity_crypto.secagg.lead_key.messages import LinearDigest, MaskSeed, Offer, Ready
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript


class Phase(StrEnum):
    """What the contributor waits for between the stages of all rounds."""

    SEEDS = "seeds"
    VALUES = "values"
    ENCRYPTION = "encryption"
    AGGREGATE = "aggregate"
    DIGEST = "digest"


@dataclass(frozen=True, kw_only=True)
class ContributorState(PartyState[EncryptedTranscript]):
    """Everything the machine knows. Secrets (box key, seeds, digest of the values) are not shown by repr."""

    box_key: BoxKey | None = field(repr=False)
    seeds: Mapping[str, bytes] = field(repr=False)
    values: Digest | None = None

    def cleared(self) -> Self:
        """Return the state without box key and seeds."""
        return replace(self, box_key=None, seeds={})


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
) -> Step[ContributorState]:
    """Take up an offer that came, signed by the agreement's lead, in a sealed order.

    Args:
        order_digest: digest of the plaintext order as *this* node computed it.
        chunks: size that this node expects from order and terms (`encoder.Layout.chunks`).
        box_key, entropy: fresh randomness (`entropy(n)` returns n bytes).
        previous: what the journal holds about an earlier release for this agreement and order.
        used_keys: key ids of this run's earlier sessions; a round key is used once.

    Raises:
        ComityError: as `frame.contributor.check_offer`.
    """
    kept = [previous.order_digest] if previous else []
    check_offer(me, offer, order_digest, fits=offer.chunks == chunks, used_keys=used_keys, kept=kept)
    seeds = {org: entropy(SEED_BYTES) for org in offer.parties if org > me}
    first = opening(EncryptedTranscript(offer), now, limits, me)
    state = ContributorState(**first, release=previous, box_key=box_key, seeds=seeds)
    return say(state, Ready(offer.digest, offer.place, offer.key_id, order_digest, box_key.public))


class _Contributor(ContributorMachine[ContributorState]):
    BLOB = Phase.ENCRYPTION
    NAMES = True
    SLOW = (Phase.VALUES, Stage.COMMITMENTS)
    SUMMED = (Phase.AGGREGATE,)

    def take(self, state: ContributorState, event: Event, now: float) -> Step[ContributorState] | None:
        if isinstance(event, DigestReady) and state.phase is Phase.DIGEST:
            return replace(state, values=event.values), []
        return super().take(state, event, now)

    def awaited(self, state: ContributorState) -> tuple[str, ...]:
        """Seeds come from the members that sort before this one."""
        return _unseeded(state) if state.phase is Phase.SEEDS else super().awaited(state)


def _unseeded(state: ContributorState) -> tuple[str, ...]:
    return tuple(org for org in state.seen.missing(MaskSeed) if org < state.me)


def _on_signatures(state: ContributorState) -> Step[ContributorState] | None:
    """(c) Seal a seed to every later member."""
    seen, offer = state.seen, state.seen.offer
    if not seen.roster_signed():
        return None
    state = replace(state, phase=Phase.SEEDS)
    boxes = []
    for org in seen.members:
        if org > state.me:
            info = offer.seed_info(seen.roster_digest, state.me, org)
            boxes.append((org, seal(seen.said(Ready, org).box_key, state.seeds[org], info)))
    if not boxes:
        return state, []
    return say(state, MaskSeed(offer.digest, seen.roster_digest, tuple(boxes)))


def _on_seeds(state: ContributorState) -> Step[ContributorState] | None:
    """(c) Open the earlier members' seeds; a bad one names its sender, however long the training takes."""
    if _unseeded(state):
        return None
    opened = {org: _open(state, org) for org in state.seen.members if org < state.me}
    return replace(state, phase=Phase.VALUES, seeds={**state.seeds, **opened}, box_key=None), []


def _on_values(state: ContributorState) -> Step[ContributorState] | None:
    """(c) Encrypt."""
    if not state.values_digest:
        return None
    check_values(state)
    others = [org for org in state.seen.members if org != state.me]
    pairs = tuple(PairSeed(adds=org > state.me, seed=state.seeds[org]) for org in others)
    return replace(state.cleared(), phase=Phase.ENCRYPTION), [StartEncrypt(pairs)]


def _open(state: ContributorState, org: str) -> bytes:
    """Return the seed that `org` drew for the pair. Raises `ROSTER_MISMATCH`, `SEAL_BROKEN`."""
    seen, said = state.seen, state.seen.said(MaskSeed, org)
    receivers = tuple(receiver for receiver, _ in said.boxes)
    if said.roster != seen.roster_digest or receivers != tuple(each for each in seen.members if each > org):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party sealed seeds for another roster", org=org)
    assert state.box_key is not None, "it is erased when all seeds are open"
    with naming(org=org):
        return state.box_key.open(dict(said.boxes)[state.me], seen.offer.seed_info(said.roster, org, state.me))


def _on_aggregate(state: ContributorState) -> Step[ContributorState] | None:
    seen, upload = state.seen, state.upload
    if not seen.published() or seen.notice is None or upload is None:
        return None
    return replace(state, phase=Phase.DIGEST), [StartDigest(seen.notice.challenge, upload.digest)]


def _on_digest(state: ContributorState) -> Step[ContributorState] | None:
    """(e) Say the digest of the own upload."""
    seen = state.seen
    if state.values is None or seen.notice is None:
        return None
    to = Audience.ALL if seen.offer.DIGESTS_TO_ALL else Audience.LEAD
    state, said = say(state, LinearDigest(seen.offer.digest, seen.notice.digest, state.values), to)
    return finished(state, *said, Finished(seen.members))


step = _Contributor(
    {
        Stage.ROSTER: sign_roster(Stage.SIGNATURES),
        Stage.SIGNATURES: _on_signatures,
        Phase.SEEDS: _on_seeds,
        Phase.VALUES: _on_values,
        Phase.ENCRYPTION: commit(Stage.COMMITMENTS),
        Stage.COMMITMENTS: sign_set(Stage.SET),
        Stage.SET: hand_out(Phase.AGGREGATE),
        Phase.AGGREGATE: _on_aggregate,
        Phase.DIGEST: _on_digest,
    }
).step
