"""Open proposals under another coordinator: submitted again by the proposer's node, answered again by whoever is asked.

Rules (negotiation.md section 6):
1. only once a charter in force names the other coordinator's log, and once for each log; after a crash it is done
   again, which is harmless: a proposal is one by its digest, and an answer that was given is only repeated;
2. a proposal is open if it is the newest revision, its deadline lies ahead, and nothing ended it or made it final;
3. one that cannot be submitted any more (a member has left) ends here, with the reason, and whose move it is;
4. what nobody submits again ends at its deadline, and this node says so itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from comity.wire import catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node import journal as marks
from comity_node.negotiation import store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Connection

    from comity_node.context import NodeContext
    from comity_policies.documents import Proposal

MARK = "negotiation.log_key"
# What no other attempt changes: who is asked, the app, the terms. Anything else may be the weather.
_FINAL = frozenset(
    {
        ErrorCode.APP_INVALID,
        ErrorCode.FORBIDDEN,
        ErrorCode.ISOLATION_TOO_WEAK,
        ErrorCode.NOT_A_MEMBER,
        ErrorCode.PARTICIPANTS_TOO_FEW,
        ErrorCode.SUSPENDED,
        ErrorCode.TERMS_CONFLICT,
        ErrorCode.UNSUPPORTED,
    }
)
log = structlog.get_logger("comity.node.negotiation")


class MovedProposals:
    """Looks at each new connection whether the coordinator is another one. Part of `NegotiationService`."""

    def __init__(self, node: NodeContext, submit: Callable[[Proposal], Awaitable[None]]) -> None:
        self._node = node
        self._submit = submit

    def register(self) -> None:
        """Look whenever the stream has opened."""
        self._node.link.on_connected(self.look)

    async def look(self) -> None:
        """Submit again what is open, if the log in force is not the one of before. Raises what a retry helps."""
        charter = self._node.charters.current()
        if charter is None:
            return
        before = await self._node.journal.run(lambda conn: marks.mark(conn, MARK))
        if before == charter.log_key:
            return
        if before is not None:
            for proposal in await self._node.journal.run(self._open):
                await self._again(proposal)
        await self._node.journal.run(lambda conn: marks.set_mark(conn, MARK, charter.log_key))

    def _open(self, conn: Connection) -> list[Proposal]:
        now = self._now()
        return [
            each.proposal
            for each in store.list_proposals(conn)
            if each.proposal.proposer == self._node.settings.org and is_open(conn, each, now)
        ]

    async def _again(self, proposal: Proposal) -> None:
        try:
            await self._submit(proposal)
        except ComityError as error:
            if error.code not in _FINAL:
                raise  # looked at again when the stream opens next
            news = ended_news(proposal.proposal_id, proposal.revision, error, self._node.settings.org, self._now())
            write = lambda conn: store.set_news(conn, proposal.proposal_id, proposal.revision, news)  # noqa: E731
            await self._node.journal.run(write)
            log.warning("proposal.not_moved", proposal=proposal.proposal_id, error=str(error))
            return
        log.info("proposal.moved", proposal=proposal.proposal_id)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def is_open(conn: Connection, stored: store.StoredProposal, now: str) -> bool:
    """Tell whether something may still come of a proposal (rule 2)."""
    proposal, news = stored.proposal, stored.news or {}
    return (
        proposal.deadline > now
        and news.get("ended") is None
        and news.get("state") not in ("FINALIZED", "TERMINATED")
        and proposal.revision == store.newest_revision(conn, proposal.proposal_id)
        and store.final_of(conn, proposal.digest) is None
    )


def ended_news(proposal_id: str, revision: int, error: ComityError, move: str, at: str) -> dict[str, Any]:
    """Return the form of `negotiation.update` for a negotiation that this node knows to be over."""
    return {
        "proposal_id": proposal_id,
        "revision": revision,
        "state": "TERMINATED",
        "legs": [],
        "then": "",
        "agreement": None,
        "conflict": None,
        "ended": {
            "code": str(error.code),
            "detail": error.detail or catalog.row(error.code).sentence,
            "move": move,
            "at": at,
        },
    }


def told(stored: store.StoredProposal, last: str, now: str) -> dict[str, Any] | None:
    """Return the news of a proposal; after `last`, when nothing can come any more, this node says so (rule 4)."""
    news = stored.news
    ended = news is not None and (news.get("ended") is not None or news.get("state") == "FINALIZED")
    if ended or now <= last:
        return news
    error = ComityError(ErrorCode.DEADLINE_PASSED, "the coordinator said nothing of its end")
    proposal = stored.proposal
    return ended_news(proposal.proposal_id, proposal.revision, error, proposal.proposer, last)
