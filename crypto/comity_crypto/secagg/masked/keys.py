"""Keys and secrets of one party in one masked sum, and what is dealt, sealed and opened with them.

1. Everything of a party's pairwise masks follows from its *root* (the design's "pairwise key"): the hybrid key pair
   that others seal their pair's seed to, and the seeds that it draws itself. Whoever holds the root can take the
   party's pairwise masks away, without a word of another party.
2. Its *own mask's seed* is a second secret, its key for dealt shares (`Ready.share_key`) a third, that nothing derives:
   opening the root of a party must not open the shares that it was dealt.
3. Of root and own seed the other members get Shamir shares; nobody holds a share of its own secrets. The dealer signs a
   hash of every share: a holder compares it before anything leaves, and a wrong share names who revealed it.
4. Boxes (`frame.boxes`) have one exact size for each purpose; the info binds purpose, session (agreement, round key,
   order), roster, sender and receiver. Streams' keys are HKDF-SHA256 over the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX
from comity_crypto.secagg.frame.boxes import BOX_OVERHEAD_BYTES, MATERIAL_BYTES, SEED_BYTES, BoxKey
from comity_crypto.secagg.frame.naming import naming
from comity_crypto.secagg.masked import shamir
from comity_crypto.secagg.masked.shamir import SHARE_BYTES

SECRET_BYTES = SEED_BYTES
DEAL_BYTES = 2 * SHARE_BYTES
DEAL_BOX_BYTES = DEAL_BYTES + BOX_OVERHEAD_BYTES
# One size for every roster: the own seed, and a share of each other member.
REVEAL_BYTES = SECRET_BYTES + (CONTRIBUTORS_MAX - 1) * SHARE_BYTES
REVEAL_BOX_BYTES = REVEAL_BYTES + BOX_OVERHEAD_BYTES
_LABEL = b"comity/secagg/masked/v1\x00"


@dataclass(frozen=True)
class Place:
    """Where a key is of use: one session and its roster."""

    session: str
    roster: str

    def info(self, purpose: str, *orgs: str) -> bytes:
        """Return the bytes that bind a key or a box to its purpose and parties."""
        return _LABEL + canonical([purpose, self.session, self.roster, *orgs])

    def derive(self, secret: bytes, purpose: str, *orgs: str) -> bytes:
        """Return 32 bytes of HKDF-SHA256."""
        return HKDF(hashes.SHA256(), SECRET_BYTES, None, self.info(purpose, *orgs)).derive(secret)


def pair_key(root: bytes) -> BoxKey:
    """Return the key pair that follows from a party's root; it is announced before there is a roster."""
    return BoxKey(HKDF(hashes.SHA256(), MATERIAL_BYTES, None, _LABEL + b"pair key").derive(root))


class RoundSecret:
    """What the lead makes for one attempt: the secret that every member adds a stream of, and its key for boxes."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self.secret = entropy(SECRET_BYTES)
        self.box_key = BoxKey(entropy(MATERIAL_BYTES))

    def __repr__(self) -> str:
        return "RoundSecret(held)"

    @property
    def key_id(self) -> str:
        """The public name of the secret."""
        return key_id_of(self.secret)


def key_id_of(secret: bytes) -> str:
    """Return the hash by which an offer names the round's secret: parties see that all were given the same."""
    return hashlib.sha256(_LABEL + b"round secret" + secret).hexdigest()


def seed_digest(seed: bytes) -> str:
    """Return the hash by which a party announces the seed of its own mask."""
    return hashlib.sha256(_LABEL + b"own seed" + seed).hexdigest()


def share_digest(place: Place, dealer: str, holder: str, kind: str, share: bytes) -> str:
    """Return the hash by which a dealer commits to a share of its `root` or `seed`."""
    return hashlib.sha256(place.info("share " + kind, dealer, holder) + share).hexdigest()


def drawn_seed(place: Place, root: bytes, first: str, second: str) -> bytes:
    """Return the pair's seed, which the party that sorts first draws from its root."""
    return place.derive(root, "pair", first, second)


@dataclass(frozen=True)
class Deal:
    """What one member deals to one other: a share of its root and one of its own mask's seed."""

    root: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """Return the box's content."""
        return self.root + self.seed

    @classmethod
    def from_bytes(cls, data: bytes) -> Deal:
        """Read a box's content; `check_deal` judges it."""
        return cls(data[:SHARE_BYTES], data[SHARE_BYTES:])


def deal_out(
    me: str, members: Sequence[str], root: bytes, seed: bytes, threshold: int, entropy: Callable[[int], bytes]
) -> dict[str, Deal]:
    """Return the deals for all other members; `members` is the sorted roster, a member's point its place in it."""
    points = {org: place for place, org in enumerate(members, 1) if org != me}
    roots = shamir.split(root, threshold, points.values(), entropy)
    seeds = shamir.split(seed, threshold, points.values(), entropy)
    return {org: Deal(roots[place], seeds[place]) for org, place in points.items()}


def check_deal(place: Place, dealer: str, holder: str, deal: Deal, root_digest: str, seed_digest_: str) -> None:
    """Refuse a deal that is not what its dealer signed, or no share. Raises `BAD_SHARE` naming the dealer."""
    found = (
        share_digest(place, dealer, holder, "root", deal.root),
        share_digest(place, dealer, holder, "seed", deal.seed),
    )
    if found != (root_digest, seed_digest_):
        raise ComityError(ErrorCode.BAD_SHARE, "a party dealt another share than it signed", org=dealer)
    for share in (deal.root, deal.seed):
        with naming(org=dealer):
            shamir.check_share(share)


@dataclass(frozen=True)
class Revelation:
    """What one member lets out for one list: its own seed, and one share of every other member, of one kind each."""

    seed: bytes = field(repr=False)
    shares: Mapping[str, bytes] = field(repr=False)

    def to_bytes(self, others: Sequence[str]) -> bytes:
        """Return the box's content, padded to one size for all rosters."""
        return (self.seed + b"".join(self.shares[org] for org in others)).ljust(REVEAL_BYTES, b"\x00")

    @classmethod
    def from_bytes(cls, data: bytes, others: Sequence[str]) -> Revelation:
        """Read a box's content. Raises `BAD_SHARE`."""
        end = SECRET_BYTES + len(others) * SHARE_BYTES
        if len(data) != REVEAL_BYTES or any(data[end:]):
            raise ComityError(ErrorCode.BAD_SHARE, "not what a member reveals", size_bytes=len(data))
        shares = {
            org: data[start : start + SHARE_BYTES]
            for org, start in zip(others, range(SECRET_BYTES, end, SHARE_BYTES), strict=True)
        }
        return cls(data[:SECRET_BYTES], shares)


def same(one: str, other: str) -> bool:
    """Compare two hashes in constant time."""
    return hmac.compare_digest(one, other)
