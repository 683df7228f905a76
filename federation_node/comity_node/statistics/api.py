"""Statistics' part of the node's API: propose one. Its run, its card and its end are those of every run."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.api import principal
from comity_node.access.model import LOCAL_USER, Principal
from comity_node.context import NodeContext
from comity_node.negotiation.service import NegotiationService
from comity_node.statistics.drafting import DEADLINE_S_DEFAULT, REPLY_TIMEOUT_S_DEFAULT, StatisticWish, draft
from comity_node.training.datasets import DatasetCatalogue
from comity_policies import query_text
from comity_policies.query_text import QUERY_CHARS_MAX

Who = Annotated[Principal, Depends(principal)]
DEADLINE_S_MAX = 90 * 24 * 3600


class StatisticRequest(BaseModel):
    """A question about everybody's records; `query` is its text or its JSON form."""

    model_config = ConfigDict(extra="forbid")

    purpose: str
    query: Annotated[str, Field(max_length=QUERY_CHARS_MAX)] | dict[str, Any]
    datasets: list[str] = Field(min_length=1, max_length=64)
    ranges: list[str] = Field(default_factory=list, max_length=8)
    title: str = Field(default="", max_length=200)
    partners: list[str] = Field(default_factory=list, max_length=64)
    optional: list[str] = Field(default_factory=list, max_length=64)
    minimum: int | None = Field(default=None, ge=1)
    rounds: int | None = Field(default=None, ge=1)
    aggregation: str | None = Field(default=None, max_length=32)
    terms: dict[str, Any] = Field(default_factory=dict)
    uses: int = Field(default=1, ge=1)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=1, le=DEADLINE_S_MAX)
    reply_timeout_s: int = Field(default=REPLY_TIMEOUT_S_DEFAULT, ge=1)
    accepts: str = Field(default="any", max_length=16)
    bounds: dict[str, Any] = Field(default_factory=dict)
    persons: list[str] = Field(default_factory=list, max_length=64)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["statistics"])
    service = node.services.get(NegotiationService)
    catalogue = DatasetCatalogue(node.settings.home)

    @routes.post("/v1/statistics", status_code=201)
    async def propose(request: StatisticRequest, who: Who) -> dict[str, Any]:
        """Ask other organisations, with us, for a statistic."""
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force yet: sign the genesis first")
        persons = tuple(request.persons) or (() if who.user == LOCAL_USER else (who.user,))
        names: dict[str, Any] = {name: tuple(getattr(request, name)) for name in ("partners", "optional", "datasets")}
        names |= {"persons": persons, "ranges": dict(query_text.read_range(each) for each in request.ranges)}
        names["aggregation"] = str(request.aggregation or request.terms.get("aggregation") or node.settings.aggregation)
        wish = StatisticWish(**{**request.model_dump(), **names})
        columns = await asyncio.to_thread(_own_columns, catalogue, node.settings.org, names["datasets"])
        proposal = draft(wish, charter=charter, me=node.settings.org, own_columns=columns, now=node.clock())
        await service.propose(proposal, None, user=who.user)
        return {"proposal_id": proposal.proposal_id, "digest": proposal.digest, "proposal": proposal.to_json()}

    return routes


def _own_columns(catalogue: DatasetCatalogue, me: str, datasets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of our own dataset. Raises `DATASET_MISSING`."""
    own = next((each.partition("/")[2] for each in datasets if each.startswith(f"{me}/")), None)
    name = own or next((each for each in datasets if "/" not in each), "")
    return catalogue.get(name).columns
