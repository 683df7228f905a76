"""Proposals that the coordinator did not take: the proposer's people read why, and nothing waits for an answer.

Rules: the transaction that notes the refusal also ends the proposal in the node's own news; the reason, which comes
right after it in the same order, is filled in then (a crash in between leaves the end without its reason).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_node.negotiation import store
from comity_node.negotiation.moved import ended_news

if TYPE_CHECKING:
    from comity_node.context import NodeContext

KIND = "proposal.submit"
NOTED_KEPT = 64


class RefusedProposals:
    """Refusals of `proposal.submit`."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._noted: deque[tuple[str, int]] = deque(maxlen=NOTED_KEPT)

    def register(self) -> None:
        """Hear of refusals."""
        self._node.link.on_refused(KIND, self._note)
        self._node.link.on_refusal(self._explain)

    def _note(self, conn: Connection, body: bytes) -> None:
        """End the proposal whose statement is `body`; the ledger will not have it."""
        self._node.ledger.forget(conn, body)
        said = Statement.from_bytes(body).body
        proposal_id, revision = str(said.get("proposal_id")), int(said.get("revision", 0))
        unknown = ComityError(ErrorCode.ILLEGAL_EVENT, "the coordinator did not take it")
        store.set_news(conn, proposal_id, revision, self._news(proposal_id, revision, unknown))
        self._noted.append((proposal_id, revision))

    async def _explain(self, _message_id: str, kind: str, error: ComityError) -> None:
        if kind != KIND or not self._noted:
            return
        proposal_id, revision = self._noted.popleft()
        news = self._news(proposal_id, revision, error)
        await self._node.journal.run(lambda conn: store.set_news(conn, proposal_id, revision, news))

    def _news(self, proposal_id: str, revision: int, error: ComityError) -> dict[str, Any]:
        """Return the form of `negotiation.update` for a proposal that never opened."""
        at = instants.to_text(self._node.clock())
        return ended_news(proposal_id, revision, error, self._node.settings.org, at)
