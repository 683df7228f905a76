"""Sums of rounds that this organisation opened beside their lead: kept, signed for, shown to its own people.

Rules:
1. In `<home>/results/<run>/sums/<number of the order>` lie `model.npz`, `content.bin` and `card.json`, as of a result,
   mode 0600: the round's mean, as the lead's app gets it. The newest `KEPT_MAX` of a run stay.
2. The sum is on disk before the receipt says that it was opened, and that before the other openers hear of it.
3. A run of which this organisation sees no result keeps its sums all the same: they are what was agreed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.context import NodeContext
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.events import RunEvents
from comity_node.training.ports import SeenSum
from comity_node.training.receipts import Outcome, ReceiptBook
from comity_node.training.results import Result, store_files
from comity_policies.documents import OrderHeader
from comity_policies.orders import OPENED

KEPT_MAX = 32
SUMS_FOLDER = "sums"


class SeenSums:
    """See the head of this module."""

    def __init__(self, node: NodeContext, receipts: ReceiptBook, events: RunEvents) -> None:
        self._node = node
        self._receipts = receipts
        self._events = events

    async def keep(self, seen: SeenSum, content: Blob) -> None:
        """Keep a sum; `content` stays the caller's. Raises `PAYLOAD_DIGEST`, `JOURNAL_UNWRITABLE`."""
        order = seen.order
        card = {
            "run": order.run,
            "seq": order.seq,
            "round": order.round,
            "message_type": order.message_type,
            "lead": order.lead,
            "openers": list(seen.openers),
            "members": list(seen.members),
            "opened": seen.digest,
            "opened_at": instants.to_text(self._node.clock()),
            "content": {"sha256": await blobs.sha256_of(content), "size_bytes": content.size},
        }
        folder = self._folder(order.run)
        try:
            await asyncio.to_thread(store_files, folder / f"{order.seq:06d}", content, card)
            await asyncio.to_thread(_prune, folder)
        except OSError as error:
            raise ComityError(ErrorCode.SPOOL_FULL, "a round's sum could not be kept") from error
        self._events.tell(order.run, "sum", round=order.round, type=order.message_type, members=list(seen.members))

    async def sign(self, order: OrderHeader, order_digest: str, digest: str) -> None:
        """Sign a receipt that this organisation opened the sum of an order. Raises `JOURNAL_UNWRITABLE`."""
        outcome = Outcome(OPENED, None, None, 0, 0.0, opened=digest)
        await self._node.journal.run(lambda conn: self._receipts.write(conn, order, order_digest, outcome, {}))

    def incident(self, order: OrderHeader, error: ComityError) -> None:
        """Tell people what came up about the sum of an order."""
        self._events.tell(order.run, "incident", round=order.round, error=error.to_json())

    async def list(self, run: str) -> list[dict[str, Any]]:
        """Return the cards of the sums of a run that are kept here, the oldest first."""
        return await asyncio.to_thread(_cards, self._folder(run))

    async def find(self, run: str, round_number: int, word: str) -> Result:
        """Return the newest sum of a round's orders of this word. Raises `NOT_FOUND`."""
        for card in reversed(await self.list(run)):
            if card["round"] == round_number and card["message_type"].partition(".")[0] == word:
                return Result(run, self._folder(run) / f"{card['seq']:06d}", card)
        detail = "this node keeps no sum of that round: it opens none, or the round is long gone"
        raise ComityError(ErrorCode.NOT_FOUND, detail, run=run[:64], round=round_number)

    def _folder(self, run: str) -> Path:
        return self._node.settings.results_folder / ids.name(run) / SUMS_FOLDER


def _kept(folder: Path) -> list[Path]:
    """Return the folders of whole sums, the oldest first: a card is written last."""
    return sorted(path.parent for path in folder.glob("*/card.json"))


def _cards(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((path / "card.json").read_bytes()) for path in _kept(folder)]


def _prune(folder: Path) -> None:
    for path in _kept(folder)[:-KEPT_MAX]:
        shutil.rmtree(path)
