"""What the recipient makes of what members reveal: the masks that are left in the sum. Pure.

1. A revelation counts as a whole or not at all: its own seed and every share must be what was announced and dealt.
2. Exactly `shares_needed` shares give a secret, which must be the one that its owner announced: the hash of its seed,
   or the public key that follows from its root. If not, its owner dealt shares that do not fit together.
3. Left in the sum are the own and the round's mask of every survivor, and of each pair of a survivor and a dropped
   party the survivor's side.
"""

from __future__ import annotations

from collections.abc import Mapping

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.naming import naming
from comity_crypto.secagg.masked import shamir
from comity_crypto.secagg.masked.dealing import opened, others, own_stream, pair_stream, round_stream
from comity_crypto.secagg.masked.keys import (
    REVEAL_BYTES,
    SECRET_BYTES,
    Revelation,
    drawn_seed,
    pair_key,
    same,
    seed_digest,
    share_digest,
)
from comity_crypto.secagg.masked.messages import MaskedKeys, MaskedReady, Reveal
from comity_crypto.secagg.masked.transcript import MaskedTranscript
from comity_crypto.secagg.masked.words import Mask


def judge_reveal(seen: MaskedTranscript, box_key: BoxKey, org: str, said: Reveal) -> Revelation:
    """Return what a survivor revealed. Raises `SUM_MISMATCH` (another list), `SEAL_BROKEN`, `BAD_SHARE`."""
    notice = seen.notice
    if notice is None or said.notice != notice.digest:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a party revealed for another list", org=org)
    place, lead = seen.place, seen.offer.lead
    info = place.info("reveal", org, lead, notice.digest)
    found = Revelation.from_bytes(opened(box_key, said.box, info, REVEAL_BYTES, org), others(org, seen))
    right = same(seed_digest(found.seed), seen.said(MaskedReady, org).seed_digest)
    for dealer, share in found.shares.items():
        keys = seen.said(MaskedKeys, dealer)
        kind, digests = ("root", keys.root_digests) if dealer in notice.dropped else ("seed", keys.seed_digests)
        right &= same(share_digest(place, dealer, org, kind, share), dict(digests)[org])
    if not right:
        raise ComityError(ErrorCode.BAD_SHARE, "a party revealed what it was not dealt", org=org)
    return found


def left_masks(seen: MaskedTranscript, revealed: Mapping[str, Revelation], round_secret: bytes) -> tuple[Mask, ...]:
    """Return what takes away all masks that are left in the sum. Raises `BAD_SHARE` naming a dealer."""
    place, notice = seen.place, seen.notice
    dropped = notice.dropped if notice else ()
    masks: list[Mask] = []
    for org in seen.survivors:
        seed = revealed[org].seed if org in revealed else _seed(seen, revealed, org)
        masks.append(Mask(False, own_stream(place, seed, org)))
        masks.append(Mask(False, round_stream(place, round_secret, org)))
    for gone in dropped:
        root = _root(seen, revealed, gone)
        key = pair_key(root)
        for org in seen.survivors:
            first, second = min(org, gone), max(org, gone)
            if first == gone:
                seed = drawn_seed(place, root, first, second)
            else:
                box = dict(seen.said(MaskedKeys, org).seeds)[gone]
                seed = opened(key, box, place.info("pair", first, second), SECRET_BYTES, org)
            # The survivor's side is still in the sum: added if it sorts first, subtracted if not.
            masks.append(Mask(first == org, pair_stream(place, seed, first, second)).inverse)
    return tuple(masks)


def _seed(seen: MaskedTranscript, revealed: Mapping[str, Revelation], org: str) -> bytes:
    """Return the seed of a survivor that vanished after its upload."""
    seed = _combined(seen, revealed, org)
    if not same(seed_digest(seed), seen.said(MaskedReady, org).seed_digest):
        raise ComityError(ErrorCode.BAD_SHARE, "a party dealt shares of something else", org=org)
    return seed


def _root(seen: MaskedTranscript, revealed: Mapping[str, Revelation], org: str) -> bytes:
    """Return the root of a dropped party."""
    root = _combined(seen, revealed, org)
    if pair_key(root).public != seen.said(MaskedReady, org).pair_key:
        raise ComityError(ErrorCode.BAD_SHARE, "a party dealt shares of something else", org=org)
    return root


def _combined(seen: MaskedTranscript, revealed: Mapping[str, Revelation], dealer: str) -> bytes:
    points = {org: place for place, org in enumerate(seen.members, 1)}
    shares = {points[org]: said.shares[dealer] for org, said in revealed.items() if org != dealer}
    with naming(org=dealer):
        return shamir.combine(shares, seen.shares_needed)
