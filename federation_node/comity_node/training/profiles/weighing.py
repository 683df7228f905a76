"""A party's commitment to what its result weighs in a secure sum, and the lead's total (`blindings`, `sums`).

The weight is the one that lies in the slots, read from there: what is added is what is committed to. Blindings follow
from secrets of the session and of the node; none of them is written down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comity_crypto.encoding import to_base64
from comity_crypto.secagg.bfv.params import CHECK_SLOTS
from comity_crypto.secagg.frame import blindings
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MIN
from comity_crypto.secagg.frame.replies import WEIGHT_ONE, Decoded
from comity_crypto.secagg.masked.words import CONTENT_START
from comity_crypto.zk import pedersen
from comity_node.context import NodeContext
from comity_policies import sums
from comity_policies.documents import Agreement, OrderHeader
from comity_policies.orders import WeightCommitment

Pairs: TypeAlias = Mapping[str, bytes]
_LABEL = b"secagg/blinding"


def pairs_of(me: str, members: Sequence[str], seeds: Sequence[bytes]) -> Pairs:
    """Return the session's secrets by organisation; `seeds` come in the order of the other members' names."""
    return dict(zip((org for org in sorted(members) if org != me), seeds, strict=True))


def weighed(
    node: NodeContext,
    agreement: Agreement,
    order: OrderHeader,
    order_digest: str,
    slots: NDArray[Any],
    members: Collection[str],
    pairs: Pairs,
) -> WeightCommitment | None:
    """Return the commitment for a receipt; None where nothing is weighed, or the lead could not open the sum alone."""
    if not sums.is_summed(agreement, order.step) or order.lead not in members or len(members) < CONTRIBUTORS_MIN:
        return None
    me = node.settings.org
    blinding = blindings.pairs_blinding(me, pairs, order.agreement, order_digest, members)
    if order.lead == me:
        blinding += lead_blinding(node, order.agreement, order_digest)
    commitment, _ = pedersen.commit(_weight(slots), blinding)
    return WeightCommitment(to_base64(commitment), blindings.set_digest(order.agreement, order_digest, members))


def lead_blinding(node: NodeContext, agreement: str, order_digest: str) -> int:
    """Return what the blindings of all contributors add up to, if this node leads."""
    return blindings.lead_blinding(node.keys.secret(_LABEL), agreement, order_digest)


def total_of(decoded: Decoded) -> int:
    """Return the sum of the weights, as whole units of 2^-16."""
    return round(decoded.weight * WEIGHT_ONE)


def _weight(slots: NDArray[Any]) -> int:
    return int(slots[CONTENT_START] if slots.dtype == np.uint32 else slots.reshape(-1)[CHECK_SLOTS])
