"""Blindings of commitments whose sum only the lead knows, without a message: r_i = (the lead's own t) + sum of +- s_ij.

1. Each pair of contributors has a secret for the masks of this session. From it both derive s_ij, uniform modulo the
   group's order, by HKDF with a purpose of its own, bound to agreement, order and the set of contributors. The earlier
   name adds it, the later subtracts it: over the whole set they cancel.
2. The lead adds t, which follows from a secret of its node alone. So the sum of all blindings is t: the lead can open
   the sum of the commitments, once it knows the total, and nobody else can.
3. Of the blindings of two or more contributors whom nobody colludes with, only the sum is fixed: each commitment hides
   its number as well as the masks hide the update. Who knows the total and t learns what the total says, no more.
4. Without the lead among the contributors, or with fewer than three, there is no blinding: the sum would lie open.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from comity.wire.canonical import canonical, digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MIN
from comity_crypto.zk.group import ORDER

SECRET_BYTES = 32
_WIDE_BYTES = 64  # reduced modulo 2^255: a bias below 2^-256
_DOMAIN = b"comity/secagg/blinding/v1\x00"


def set_digest(agreement: str, order_digest: str, contributors: Collection[str]) -> str:
    """Return the digest that names a set of contributors to one order's sum."""
    return digest({"agreement": agreement, "contributors": sorted(contributors), "order": order_digest})


def lead_blinding(node_secret: bytes, agreement: str, order_digest: str) -> int:
    """Return t, what the lead adds: the same after a restart, and nobody else's."""
    place = _DOMAIN + b"lead\x00" + canonical([agreement, order_digest])
    return int.from_bytes(hmac.digest(node_secret, place, "sha512"), "big") % ORDER


def pairs_blinding(
    me: str, pairs: Mapping[str, bytes], agreement: str, order_digest: str, among: Collection[str]
) -> int:
    """Return the sum of this party's shares.

    Args:
        pairs: by organisation, the session's 32-byte secret with it. among: the contributors, this party included.

    Raises:
        ComityError: `PARTICIPANTS_TOO_FEW` below three contributors; `ROSTER_MISMATCH` if this party is none of them or
            has no secret with one.
    """
    members = sorted(set(among))
    if len(members) < CONTRIBUTORS_MIN:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "blindings need three contributors", n=len(members))
    others = [org for org in members if org != me]
    if len(others) == len(members) or not set(others) <= set(pairs):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "no secret is shared with every contributor")
    name, total = bytes.fromhex(set_digest(agreement, order_digest, members)), 0
    for org in others:
        if len(pairs[org]) != SECRET_BYTES:
            raise ComityError(ErrorCode.INTERNAL, "a pair's secret is 32 bytes")
        info = _DOMAIN + b"pair\x00" + canonical([min(me, org), max(me, org)]) + name
        wide = HKDF(hashes.SHA512(), _WIDE_BYTES, None, info).derive(pairs[org])
        total += int.from_bytes(wide, "big") * (1 if me < org else -1)
    return total % ORDER
