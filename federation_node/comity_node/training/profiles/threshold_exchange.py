"""What the sessions of `threshold` at this node share, beside `sum_exchange`: ceremonies, keys, addresses of shares.

1. The address of a sealed share comes with the signed message that names its hash, from its holder alone.
2. This node's own share, where it opens the sum, does not come back to it.
3. The contents of orders are kept for as long as this node may open their sums beside the lead.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_node.context import NodeContext
from comity_node.training.blobs import Blob
from comity_node.training.profiles.sum_exchange import Exchange
from comity_node.training.profiles.sum_wire import Addressed
from comity_node.training.profiles.threshold_ceremony import Ceremonies
from comity_node.training.profiles.threshold_fusing import OwnShare
from comity_node.training.profiles.threshold_keeping import KeyKeeping
from comity_node.training.profiles.threshold_openings import Openings

ADDRESSES_MAX = 1_024
OWN_SHARES_MAX = 8
# Orders under way at one time; a lead asks the next question when it has the sum of the last.
CONTENTS_MAX = 16


class ThresholdExchange(Exchange):
    """See the head of this module."""

    def __init__(self, node: NodeContext, workers: BfvWorkers | None = None) -> None:
        super().__init__(node, workers)
        self.keeping = KeyKeeping(node.journal, node.settings.payloads_folder)
        self.ceremonies = Ceremonies(self, self.keeping)
        self._addresses: OrderedDict[tuple[str, str], SealedRef] = OrderedDict()
        self._own: OrderedDict[str, OwnShare] = OrderedDict()
        self.openings = Openings(self)
        self._contents: OrderedDict[str, tuple[str, Blob]] = OrderedDict()
        self._reserved: set[str] = set()
        # By digest, open files of aggregates that this node has checked as a holder; whose session it is closes them.
        self.checked: dict[str, int] = {}

    async def close(self) -> None:
        """End ceremonies and workers."""
        await self.openings.close()
        await self.ceremonies.close()
        while self._own:
            self._own.popitem()[1].blob.close()
        while self._contents:
            self._contents.popitem()[1][1].close()
        await super().close()

    async def download(self, ref: Addressed, fd: int) -> None:
        """Fetch a blob that is ciphertext already into an open file. Raises `PAYLOAD_*`, `UNAVAILABLE`."""
        os.ftruncate(fd, 0)
        offset = 0
        async for chunk in self.node.payloads.get(ref):
            os.pwrite(fd, chunk, offset)
            offset += len(chunk)

    def reserve(self, key_id: str) -> bool:
        """Keep a key from other attempts of this process, until its session takes it; False if another one has it."""
        if key_id in self._reserved:
            return False
        self._reserved.add(key_id)
        return True

    def release(self, key_id: str) -> None:
        """Let a reserved key go."""
        self._reserved.discard(key_id)

    def address(self, org: str, call: str) -> SealedRef | None:
        """Return where a holder's share for a call lies."""
        return self._addresses.get((org, call))

    def note_address(self, org: str, call: str, ref: SealedRef) -> None:
        """Note where a holder's share lies; the first one stays, as its hash does."""
        self._addresses.setdefault((org, call), ref)
        while len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)

    def keep_share(self, call: str, share: OwnShare) -> None:
        """Keep this node's own share for the opener here."""
        self._own[call] = share
        while len(self._own) > OWN_SHARES_MAX:
            self._own.popitem(last=False)[1].blob.close()

    def own_share(self, call: str) -> OwnShare | None:
        """Return this node's own share; the taker closes it."""
        return self._own.pop(call, None)

    def keep_content(self, run: str, order_digest: str, content: Blob) -> None:
        """Keep a copy of an order's content, to make sense of the sum that this node opens."""
        if order_digest not in self._contents:
            self._contents[order_digest] = (run, content.duplicate())
        while len(self._contents) > CONTENTS_MAX:
            self._contents.popitem(last=False)[1][1].close()

    def content(self, order_digest: str) -> Blob:
        """Return a copy of an order's content, which the taker closes. Raises `PAYLOAD_MISSING`."""
        found = self._contents.get(order_digest)
        if found is None:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "the order's content went with an earlier process")
        return found[1].duplicate()

    def drop_contents(self, *, run: str = "", order_digest: str = "") -> None:
        """Let go of the content of one order, or of all of a run."""
        for digest in [each for each, (of, _) in self._contents.items() if each == order_digest or of == run]:
            self._contents.pop(digest)[1].close()
