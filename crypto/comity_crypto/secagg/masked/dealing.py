"""What a contributor to a masked sum makes of its secrets: deals, masks, and what it reveals. Pure.

Rules: `keys` (1 to 4). The caller asks for each of these once per session, and only when the transcript says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.boxes import MATERIAL_BYTES, BoxKey, seal
from comity_crypto.secagg.frame.naming import naming
from comity_crypto.secagg.masked.keys import (
    DEAL_BYTES,
    SECRET_BYTES,
    Deal,
    Place,
    Revelation,
    check_deal,
    deal_out,
    drawn_seed,
    key_id_of,
    pair_key,
    same,
    share_digest,
)
from comity_crypto.secagg.masked.messages import MaskedKeys, MaskedReady, Reveal
from comity_crypto.secagg.masked.transcript import MaskedTranscript
from comity_crypto.secagg.masked.words import Mask


@dataclass(frozen=True)
class Secrets:
    """What this party draws for one session; never shown."""

    root: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    coins: bytes = field(repr=False)  # of the polynomials
    share_key: BoxKey = field(repr=False)

    @classmethod
    def draw(cls, entropy: Callable[[int], bytes]) -> Secrets:
        """Return fresh ones; `entropy(n)` returns n random bytes."""
        return cls(entropy(SECRET_BYTES), entropy(SECRET_BYTES), entropy(SECRET_BYTES), BoxKey(entropy(MATERIAL_BYTES)))


@dataclass(frozen=True)
class OpenedKeys:
    """What the others and the lead sealed to this party: the round's secret, deals, and seeds of earlier parties."""

    round_secret: bytes = field(default=b"", repr=False)
    deals: Mapping[str, Deal] = field(default_factory=dict, repr=False)
    pairs: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def others(me: str, seen: MaskedTranscript) -> tuple[str, ...]:
    """Return all other members, sorted."""
    return tuple(org for org in seen.members if org != me)


def tag_key(place: Place, round_secret: bytes) -> bytes:
    """Return the key of the sum's tag, which all parties know and the coordinator does not."""
    return place.derive(round_secret, "tag")


def own_stream(place: Place, seed: bytes, org: str) -> bytes:
    """Return the key of a party's own mask."""
    return place.derive(seed, "own stream", org)


def round_stream(place: Place, round_secret: bytes, org: str) -> bytes:
    """Return the key of a party's mask from the round's secret; each party's differs (`words` 2)."""
    return place.derive(round_secret, "round stream", org)


def pair_stream(place: Place, seed: bytes, first: str, second: str) -> bytes:
    """Return the key of a pair's mask: the party that sorts first adds it, the other subtracts it."""
    return place.derive(seed, "pair stream", first, second)


def dealt_keys(me: str, seen: MaskedTranscript, secrets: Secrets) -> MaskedKeys:
    """Seal seeds and deals to the announced keys of all others. Raises `MALFORMED` naming an impossible key's party."""
    place = seen.place
    coins = Cipher(algorithms.AES256(secrets.coins), modes.CTR(bytes(16))).encryptor()
    deals = deal_out(
        me, seen.members, secrets.root, secrets.seed, seen.shares_needed, lambda size: coins.update(bytes(size))
    )

    def sealed(purpose: str, org: str, public: bytes, plain: bytes) -> tuple[str, bytes]:
        with naming(org=org):
            return org, seal(public, plain, place.info(purpose, me, org))

    return MaskedKeys(
        session=place.session,
        roster=place.roster,
        seeds=tuple(
            sealed("pair", org, seen.said(MaskedReady, org).pair_key, drawn_seed(place, secrets.root, me, org))
            for org in deals
            if org > me
        ),
        deals=tuple(
            sealed("deal", org, seen.said(MaskedReady, org).share_key, deal.to_bytes()) for org, deal in deals.items()
        ),
        root_digests=tuple((org, share_digest(place, me, org, "root", deal.root)) for org, deal in deals.items()),
        seed_digests=tuple((org, share_digest(place, me, org, "seed", deal.seed)) for org, deal in deals.items()),
    )


def open_keys(me: str, seen: MaskedTranscript, secrets: Secrets) -> OpenedKeys:
    """Open what was sealed to this party, and compare it with what its senders signed.

    Raises:
        ComityError: `SEAL_BROKEN`, `BAD_SHARE` naming the sender; `ROSTER_MISMATCH` if the lead sealed another secret.
    """
    place, lead, boxes = seen.place, seen.offer.lead, seen.round_boxes()
    if boxes is None:
        raise ComityError(ErrorCode.INTERNAL, "the round's secret is not there yet")
    own_key = pair_key(secrets.root)
    secret = opened(own_key, dict(boxes.boxes)[me], place.info("round", lead, me), SECRET_BYTES, lead)
    if not same(key_id_of(secret), seen.offer.key_id):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the lead sealed another secret than it offered")
    deals: dict[str, Deal] = {}
    pairs: dict[str, bytes] = {}
    for org in others(me, seen):
        said = seen.said(MaskedKeys, org)
        deal = Deal.from_bytes(
            opened(secrets.share_key, dict(said.deals)[me], place.info("deal", org, me), DEAL_BYTES, org)
        )
        check_deal(place, org, me, deal, dict(said.root_digests)[me], dict(said.seed_digests)[me])
        deals[org] = deal
        if org < me:
            pairs[org] = opened(own_key, dict(said.seeds)[me], place.info("pair", org, me), SECRET_BYTES, org)
    return OpenedKeys(secret, deals, pairs)


def own_masks(me: str, seen: MaskedTranscript, secrets: Secrets, keys: OpenedKeys) -> tuple[Mask, ...]:
    """Return all masks over this party's values: its own, the round's, and one for each other member."""
    place = seen.place
    masks = [
        Mask(True, own_stream(place, secrets.seed, me)),
        Mask(True, round_stream(place, keys.round_secret, me)),
    ]
    for org in others(me, seen):
        if org > me:
            masks.append(Mask(True, pair_stream(place, drawn_seed(place, secrets.root, me, org), me, org)))
        else:
            masks.append(Mask(False, pair_stream(place, keys.pairs[org], org, me)))
    return tuple(masks)


def reveal(me: str, seen: MaskedTranscript, secrets: Secrets, keys: OpenedKeys) -> Reveal:
    """Return, sealed to the lead, this party's own seed and of each other member the share of one kind (either/or)."""
    place, notice = seen.place, seen.notice
    if notice is None or me in notice.dropped:
        raise ComityError(ErrorCode.INTERNAL, "there is nothing to reveal")
    shares = {org: keys.deals[org].root if org in notice.dropped else keys.deals[org].seed for org in others(me, seen)}
    plain = Revelation(secrets.seed, shares).to_bytes(others(me, seen))
    box = seal(seen.offer.box_key, plain, place.info("reveal", me, seen.offer.lead, notice.digest))
    return Reveal(place.session, notice.digest, box)


def opened(key: BoxKey, box: bytes, info: bytes, size_bytes: int, sender: str) -> bytes:
    """Return what a party sealed to this one. Raises `SEAL_BROKEN` naming it."""
    with naming(org=sender):
        return key.open(box, info, size_bytes)
