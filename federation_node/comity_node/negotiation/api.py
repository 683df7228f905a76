"""The negotiation's part of the node's local API: propose, see who is awaited, withdraw."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comity.wire.errors import ComityError, ErrorCode
from comity_node.negotiation import store
from comity_node.negotiation.drafting import DEADLINE_S_DEFAULT, REPLY_TIMEOUT_S_DEFAULT, TrainWish, draft
from comity_node.negotiation.service import NegotiationService
from comity_node.training.datasets import DatasetCatalogue

if TYPE_CHECKING:
    from comity_node.context import NodeContext


class TrainRequest(BaseModel):
    """A wish to train; `app` is a folder on the node's machine."""

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
    aggregation: str = "lead-key"
    terms: dict[str, Any] = Field(default_factory=dict)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=1, le=90 * 24 * 3600)
    reply_timeout_s: int = Field(default=REPLY_TIMEOUT_S_DEFAULT, ge=1)


class WithdrawRequest(BaseModel):
    """A withdrawal, from a proposal id or an agreement digest."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=128)
    reason: str = Field(min_length=1, max_length=500)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["negotiation"])
    service = node.services.get(NegotiationService)
    catalogue = DatasetCatalogue(node.settings.home)

    @routes.post("/v1/proposals", status_code=201)
    async def propose(request: TrainRequest) -> dict[str, Any]:
        """Propose a training to other organisations."""
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force yet: sign the genesis first")
        columns = tuple(request.columns)
        if not columns:
            columns = (await asyncio.to_thread(catalogue.get, request.dataset)).columns
        wish = TrainWish(
            **{**request.model_dump(), **{name: tuple(getattr(request, name)) for name in ("partners", "optional")}}
            | {"columns": columns}
        )
        proposal, bundle = await asyncio.to_thread(
            draft, wish, charter=charter, me=node.settings.org, own_columns=columns, now=node.clock()
        )
        await service.propose(proposal, bundle.data)
        return {"proposal_id": proposal.proposal_id, "digest": proposal.digest, "proposal": proposal.to_json()}

    @routes.get("/v1/proposals")
    async def list_proposals() -> list[dict[str, Any]]:
        """List proposals, newest first, with whose move it is."""
        return [_plain(each) for each in await node.journal.run(store.list_proposals)]

    @routes.get("/v1/proposals/{name}")
    async def show_proposal(name: str) -> dict[str, Any]:
        """Show one proposal by id or digest."""
        return _plain(await node.journal.run(lambda conn: store.find_proposal(conn, name)))

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

    @routes.post("/v1/withdrawals", status_code=202)
    async def withdraw(request: WithdrawRequest) -> dict[str, str]:
        """Withdraw; running work stops at the next dispatch."""
        await service.withdraw(request.name, request.reason)
        return {"withdrawn": request.name}

    return routes


def _plain(stored: store.StoredProposal) -> dict[str, Any]:
    return {
        "proposal_id": stored.proposal.proposal_id,
        "digest": stored.proposal.digest,
        "role": stored.role,
        "purpose": stored.proposal.purpose,
        "title": stored.proposal.title,
        "proposer": stored.proposal.proposer,
        "deadline": stored.proposal.deadline,
        "received_at": stored.received_at,
        "news": stored.news,
        "proposal": stored.proposal.to_json(),
    }
