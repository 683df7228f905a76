"""The negotiation's part of the node's API: propose, see who is awaited, accept counter-offers, revise, withdraw."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.api import principal
from comity_node.access.model import LOCAL_USER, Principal
from comity_node.negotiation import model, store
from comity_node.negotiation.drafting import (
    DEADLINE_S_DEFAULT,
    REPLY_TIMEOUT_S_DEFAULT,
    Revision,
    TrainWish,
    draft,
    revised,
)
from comity_node.negotiation.moved import told
from comity_node.negotiation.offered import add_routes
from comity_node.negotiation.service import NegotiationService
from comity_node.training.datasets import DatasetCatalogue
from comity_policies.terms import difference

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext

Who = Annotated[Principal, Depends(principal)]
DEADLINE_S_MAX = 90 * 24 * 3600


class TrainRequest(BaseModel):
    """A wish to train; `app` is a folder on the node's machine (its own user only), or an app that was sent."""

    model_config = ConfigDict(extra="forbid")

    app: Path
    purpose: str
    dataset: str
    title: str = Field(default="", max_length=200)
    columns: list[str] = Field(default_factory=list, max_length=1024)
    partners: list[str] = Field(default_factory=list, max_length=64)
    optional: list[str] = Field(default_factory=list, max_length=64)
    minimum: int | None = Field(default=None, ge=1)
    rounds: int | None = Field(default=None, ge=1)
    run_config: dict[str, bool | int | str] = Field(default_factory=dict)
    aggregation: str | None = Field(default=None, max_length=32)
    terms: dict[str, Any] = Field(default_factory=dict)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=1, le=DEADLINE_S_MAX)
    reply_timeout_s: int = Field(default=REPLY_TIMEOUT_S_DEFAULT, ge=1)
    accepts: str = Field(default="any", max_length=16)
    bounds: dict[str, Any] = Field(default_factory=dict)
    persons: list[str] = Field(default_factory=list, max_length=64)
    opened_by: list[str] = Field(default_factory=list, max_length=64)


class RevisionRequest(BaseModel):
    """What changes in the next revision of an own proposal."""

    model_config = ConfigDict(extra="forbid")

    terms: dict[str, Any] = Field(default_factory=dict)
    without: list[str] = Field(default_factory=list, max_length=64)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=1, le=DEADLINE_S_MAX)
    minimum: int | None = Field(default=None, ge=1)
    accepts: str | None = Field(default=None, max_length=16)
    bounds: dict[str, Any] = Field(default_factory=dict)


class AcceptRequest(BaseModel):
    """Whose counter-offer is accepted."""

    model_config = ConfigDict(extra="forbid")

    org: str = Field(max_length=63)


class WithdrawRequest(BaseModel):
    """A withdrawal, from a proposal id or an agreement digest."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=128)
    reason: str = Field(min_length=1, max_length=500)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["negotiation"])
    service = node.services.get(NegotiationService)
    _add_making(routes, node, service)
    _add_reading(routes, node)
    _add_deciding(routes, service)
    return routes


def _add_making(routes: APIRouter, node: NodeContext, service: NegotiationService) -> None:
    catalogue = DatasetCatalogue(node.settings.home)
    offered = add_routes(routes, node)

    @routes.post("/v1/proposals", status_code=201)
    async def propose(request: TrainRequest, who: Who) -> dict[str, Any]:
        """Propose a training to other organisations."""
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force yet: sign the genesis first")
        columns = tuple(request.columns)
        if not columns:
            columns = (await asyncio.to_thread(catalogue.get, request.dataset)).columns
        # Whoever asks is one of the people unless others are named; the node's own Unix user is nobody in particular.
        persons = tuple(request.persons) or (() if who.user == LOCAL_USER else (who.user,))
        names = {name: tuple(getattr(request, name)) for name in ("partners", "optional", "opened_by")}
        names |= {"columns": columns, "persons": persons}
        aggregation = str(request.aggregation or request.terms.get("aggregation") or node.settings.aggregation)
        app = offered.folder(request.app, who)
        wish = TrainWish(**{**request.model_dump(), **names, "app": app, "aggregation": aggregation})
        proposal, bundle = await asyncio.to_thread(
            draft, wish, charter=charter, me=node.settings.org, own_columns=columns, now=node.clock()
        )
        await service.propose(proposal, bundle.data, user=who.user)
        return {"proposal_id": proposal.proposal_id, "digest": proposal.digest, "proposal": proposal.to_json()}

    @routes.post("/v1/proposals/{name}/revise", status_code=201)
    async def revise(name: str, request: RevisionRequest, who: Who) -> dict[str, Any]:
        """Put a newer revision in the place of an own proposal; everyone answers anew."""
        before = (await node.journal.run(lambda conn: store.find_proposal(conn, name))).proposal
        change = Revision(**{**request.model_dump(), "without": tuple(request.without)})
        proposal = revised(before, change, now=node.clock())
        await service.revise(proposal, user=who.user)
        return {"proposal_id": proposal.proposal_id, "digest": proposal.digest, "proposal": proposal.to_json()}


def _add_reading(routes: APIRouter, node: NodeContext) -> None:
    @routes.get("/v1/proposals")
    async def list_proposals() -> list[dict[str, Any]]:
        """List proposals, newest first, with whose move it is."""

        def read(conn: Connection) -> list[dict[str, Any]]:
            pending, now = store.list_pending(conn), instants.to_text(node.clock())
            return [_plain(each, pending.get(each.proposal.digest), now) for each in store.list_proposals(conn)]

        return await node.journal.run(read)

    @routes.get("/v1/proposals/{name}")
    async def show_proposal(name: str) -> dict[str, Any]:
        """Show one proposal by id or digest, with the counter-offers that came for it."""

        def read(conn: Connection) -> dict[str, Any]:
            found = store.find_proposal(conn, name)
            counters = store.list_counters(conn, found.proposal.digest)
            now = instants.to_text(node.clock())
            plain = _plain(found, store.list_pending(conn).get(found.proposal.digest), now)
            return {**plain, "counters": [_counter(found, each) for each in counters]}

        return await node.journal.run(read)

    @routes.get("/v1/agreements")
    async def list_agreements() -> list[dict[str, Any]]:
        """List agreements that this organisation signed, newest first."""
        found = await node.journal.run(lambda conn: list(store.list_agreements(conn)))
        return [
            {
                "digest": each.agreement.digest,
                "state": each.state,
                "parties": list(each.agreement.parties),
                "purpose": each.agreement.proposal.purpose,
                "title": each.agreement.proposal.title,
                "terms": each.agreement.terms.to_json(),
                "signed_at": each.signed_at,
                "final_at": each.final_at,
            }
            for each in found
        ]


def _add_deciding(routes: APIRouter, service: NegotiationService) -> None:
    @routes.post("/v1/proposals/{name}/accept")
    async def accept(name: str, request: AcceptRequest) -> dict[str, Any]:
        """Accept the stricter terms that an organisation asks of an own proposal."""
        return (await service.accept(name, request.org)).to_json()

    @routes.post("/v1/withdrawals", status_code=202)
    async def withdraw(request: WithdrawRequest) -> dict[str, str]:
        """Withdraw; running work stops at the next dispatch."""
        await service.withdraw(request.name, request.reason)
        return {"withdrawn": request.name}


def _counter(stored: store.StoredProposal, counter: store.Counter) -> dict[str, Any]:
    """Show a counter-offer by what was signed, whatever the coordinator says of it."""
    return {
        "org": counter.org,
        "answer": counter.statement.digest,
        "difference": difference(stored.proposal.terms, counter.answer.terms),
        "accepted_at": counter.accepted_at,
    }


def _plain(stored: store.StoredProposal, pending: dict[str, Any] | None, now: str) -> dict[str, Any]:
    return {
        "proposal_id": stored.proposal.proposal_id,
        "revision": stored.proposal.revision,
        "digest": stored.proposal.digest,
        "role": stored.role,
        "purpose": stored.proposal.purpose,
        "title": stored.proposal.title,
        "proposer": stored.proposal.proposer,
        "deadline": stored.proposal.deadline,
        "received_at": stored.received_at,
        "news": told(stored, model.signing_ends(stored.proposal.deadline), now),
        "pending": pending,
        "proposal": stored.proposal.to_json(),
    }
