"""The reviews' part of the node's API: what waits for people, their votes, and who decides for whom.

The table of routes lets every signed-in person come this far, because anybody may have been delegated to. Whoever has
no role here sees only what waits for one's own vote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_node.access.api import principal
from comity_node.access.model import Principal
from comity_node.reviews import store
from comity_node.reviews.model import REASON_CHARS_MAX, ROLE_CHARS_MAX, USER_CHARS_MAX, Delegation, Review, excluded
from comity_node.reviews.service import ReviewService

if TYPE_CHECKING:
    from comity_node.context import NodeContext

Caller = Annotated[Principal, Depends(principal)]


class VoteRequest(BaseModel):
    """A vote; `document` is the digest of the document that was shown."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "deny"]
    document: str = Field(min_length=64, max_length=64)
    reason: str = Field(default="", max_length=REASON_CHARS_MAX)


class DelegationRequest(BaseModel):
    """Who decides for whom; `giver` is the caller unless an admin names another."""

    model_config = ConfigDict(extra="forbid")

    receiver: str = Field(min_length=1, max_length=USER_CHARS_MAX)
    until: str = Field(max_length=20)
    role: str = Field(default="reviewer", min_length=1, max_length=ROLE_CHARS_MAX)
    giver: str = Field(default="", max_length=USER_CHARS_MAX)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["reviews"])
    service = node.services.get(ReviewService)
    _add_reviews(routes, node, service)
    _add_delegations(routes, node, service)
    return routes


def _add_reviews(routes: APIRouter, node: NodeContext, service: ReviewService) -> None:
    @routes.get("/v1/reviews")
    async def list_reviews(who: Caller, state: Literal["open", "all"] = "open") -> list[dict[str, Any]]:
        """List what waits for people, newest first; `yours` marks what the caller may decide."""

        def look(conn: Connection) -> list[dict[str, Any]]:
            found = store.every(conn, open_only=state == "open")
            shown = [line_of(each, yours=service.may_vote(conn, each, who)) for each in found]
            return [each for each in shown if each["yours"] or who.roles]

        return await node.journal.run(look)

    @routes.get("/v1/reviews/{id}")
    async def show_review(id: str, who: Caller) -> dict[str, Any]:  # noqa: A002 - the path's word
        """Show one item whole: its document, the votes on it, its story."""
        return await node.journal.run(lambda conn: _view(conn, service, id, who))

    @routes.post("/v1/reviews/{id}/votes", status_code=201)
    async def vote(id: str, request: VoteRequest, who: Caller) -> dict[str, Any]:  # noqa: A002 - the path's word
        """Approve or deny an item; the vote names the document that was shown."""
        await service.vote(id, who, decision=request.decision, reason=request.reason, document=request.document)
        return await node.journal.run(lambda conn: _view(conn, service, id, who))


def _add_delegations(routes: APIRouter, node: NodeContext, service: ReviewService) -> None:
    @routes.get("/v1/delegations")
    async def list_delegations() -> list[dict[str, str]]:
        """List who decides for whom, now or later."""
        now = service.now()
        return [delegation_of(each) for each in await node.journal.run(lambda conn: store.open_delegations(conn, now))]

    @routes.post("/v1/delegations", status_code=201)
    async def delegate(request: DelegationRequest, who: Caller) -> dict[str, str]:
        """Let another user decide for a time."""
        made = await service.delegate(
            who, receiver=request.receiver, role=request.role, until=request.until, giver=request.giver
        )
        return delegation_of(made)

    @routes.delete("/v1/delegations/{id}")
    async def end_delegation(id: str, who: Caller) -> dict[str, str]:  # noqa: A002 - the path's word
        """Take a delegation back."""
        return delegation_of(await service.end_delegation(who, id))


def line_of(review: Review, *, yours: bool) -> dict[str, Any]:
    """Return an item without its document."""
    ask = review.ask
    return {
        "id": ask.id,
        "stage": ask.stage,
        "subject": ask.subject,
        "title": ask.title,
        "state": str(review.state),
        "role": ask.role,
        "approvals": ask.approvals,
        "missing": review.missing,
        "not_by": excluded(review),
        "yours": yours,
        "asked_at": review.asked_at,
        "until": ask.until,
        "then": "nothing is permitted: it counts as a denial",
        "run": ask.run,
        "proposal": ask.proposal,
        "reasons": [reason.to_json() for reason in ask.reasons],
        "document_digest": ask.document_digest,
        "decided_at": review.decided_at,
        "why": review.why,
    }


def delegation_of(delegation: Delegation) -> dict[str, str]:
    """Return a delegation as JSON."""
    return {name: str(getattr(delegation, name)) for name in delegation.__dataclass_fields__}


def _view(conn: Connection, service: ReviewService, name: str, who: Principal) -> dict[str, Any]:
    review = store.find(conn, name)
    yours = service.may_vote(conn, review, who)
    voted = any(vote.user == who.user for vote in review.votes)
    if not (yours or voted or who.roles):
        raise ComityError(ErrorCode.FORBIDDEN, "this takes a role at this organisation, or a delegation")
    votes = [
        {
            "user": vote.user,
            "voice": vote.voice,
            "decision": vote.decision,
            "reason": vote.reason,
            "at": vote.at,
            "document": vote.document,
            "statement": to_base64(statement),  # canonical bytes, signed by this organisation, for its auditor
        }
        for vote, statement in zip(review.votes, store.statements_of(conn, name), strict=True)
    ]
    shown = {"document": review.ask.document, "votes": votes, "events": store.events_of(conn, name)}
    return line_of(review, yours=yours) | shown
