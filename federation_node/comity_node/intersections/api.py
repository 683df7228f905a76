"""Intersections' part of the node's API: propose one. Its run, its card and its end are those of every run.

The rows that an intersection found are in a file of the node's folder (`service.py`), and on purpose behind no route.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import NORMALISATIONS
from comity_node.access.api import principal
from comity_node.access.model import LOCAL_USER, Principal
from comity_node.context import NodeContext
from comity_node.intersections.drafting import DEADLINE_S_DEFAULT, REPLY_TIMEOUT_S_DEFAULT, IntersectWish, draft
from comity_node.negotiation.service import NegotiationService

Who = Annotated[Principal, Depends(principal)]
DEADLINE_S_MAX = 90 * 24 * 3600


class IntersectRequest(BaseModel):
    """A wish to find common records."""

    model_config = ConfigDict(extra="forbid")

    purpose: str
    dataset: str = Field(max_length=128)
    column: str = Field(max_length=128)
    partner: str = Field(max_length=63)
    partner_dataset: str = Field(max_length=128)
    partner_column: str = Field(max_length=128)
    mode: str = Field(default="cardinality", max_length=16)
    normalise: list[str] = Field(default_factory=lambda: list(NORMALISATIONS), max_length=8)
    title: str = Field(default="", max_length=200)
    terms: dict[str, Any] = Field(default_factory=dict)
    uses: int = Field(default=1, ge=1)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=1, le=DEADLINE_S_MAX)
    reply_timeout_s: int = Field(default=REPLY_TIMEOUT_S_DEFAULT, ge=1)
    accepts: str = Field(default="any", max_length=16)
    bounds: dict[str, Any] = Field(default_factory=dict)
    persons: list[str] = Field(default_factory=list, max_length=64)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["intersections"])
    service = node.services.get(NegotiationService)

    @routes.post("/v1/intersections", status_code=201)
    async def propose(request: IntersectRequest, who: Who) -> dict[str, Any]:
        """Propose to another organisation to find the records that both have."""
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force yet: sign the genesis first")
        persons = tuple(request.persons) or (() if who.user == LOCAL_USER else (who.user,))
        lists = {"normalise": tuple(request.normalise), "persons": persons}
        wish = IntersectWish(**{**request.model_dump(), **lists})
        proposal = draft(wish, charter=charter, me=node.settings.org, now=node.clock())
        await service.propose(proposal, None, user=who.user)
        return {"proposal_id": proposal.proposal_id, "digest": proposal.digest, "proposal": proposal.to_json()}

    return routes
