"""The local API of governance: the genesis draft, the charter in force, charter proposals and votes."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comity_node.access.api import Caller
from comity_node.context import NodeContext
from comity_node.governance import ballot_store
from comity_node.governance.decisions import DEADLINE_S_DEFAULT
from comity_node.governance.proposing import SETTINGS_MAX, Wish
from comity_node.governance.service import GovernanceService
from comity_node.governance.view import charter_view
from comity_policies.charter import AgentRef, PolicyRef, TrustRoot
from comity_policies.charter_votes import OPEN_DAYS_MAX, REASON_CHARS_MAX
from comity_policies.terms import PARTIES_MAX

DEADLINE_S_MIN = 1
log = structlog.get_logger("comity.node.charter")


class SignRequest(BaseModel):
    """The digest or name of the charter, typed by a person who has compared it."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(min_length=24, max_length=200)


class LogRequest(BaseModel):
    """A new coordinator's log, and where the former one ended (`comity coordinator adopt` prints these)."""

    model_config = ConfigDict(extra="forbid")

    log_name: str = Field(max_length=200)
    log_key: str = Field(max_length=64)
    size: int = Field(ge=1)
    root: str = Field(max_length=64)


class ProposeRequest(BaseModel):
    """What the next charter shall differ in; documents of files come as their digests."""

    model_config = ConfigDict(extra="forbid")

    admit: list[str] = Field(default_factory=list, max_length=PARTIES_MAX)
    suspend: list[str] = Field(default_factory=list, max_length=PARTIES_MAX)
    reinstate: list[str] = Field(default_factory=list, max_length=PARTIES_MAX)
    remove: list[str] = Field(default_factory=list, max_length=PARTIES_MAX)
    rotate: bool = False
    settings: dict[str, str] = Field(default_factory=dict, max_length=SETTINGS_MAX)
    policy: dict[str, str] | None = None
    agents: list[dict[str, str]] = Field(default_factory=list, max_length=16)
    trust_roots: list[dict[str, str]] = Field(default_factory=list, max_length=16)
    coordinator: LogRequest | None = None
    withdraw_agents: list[str] = Field(default_factory=list, max_length=16)
    distrust: list[str] = Field(default_factory=list, max_length=16)
    reason: str = Field(min_length=1, max_length=REASON_CHARS_MAX)
    deadline_s: int = Field(default=DEADLINE_S_DEFAULT, ge=DEADLINE_S_MIN, le=OPEN_DAYS_MAX * 86_400)


class VoteRequest(BaseModel):
    """A yes, or with `deny` a denial and its reason."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(min_length=24, max_length=200)
    deny: str = Field(default="", max_length=REASON_CHARS_MAX)
    reason: str = Field(default="", max_length=REASON_CHARS_MAX)
    instead_of: str = Field(default="", max_length=64)


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1", tags=["governance"])
    service = node.services.get(GovernanceService)

    @api.get("/genesis")
    async def draft() -> dict[str, Any]:
        """Return the draft of the next charter, and which one is in force."""
        shown = (await service.draft()).to_json()
        return {"draft": shown, "in_force": node.charters.genesis_name(), "own": node.keys.public.fingerprint()}

    @api.post("/genesis/sign")
    async def sign(request: SignRequest) -> dict[str, bool]:
        """Sign the draft with the given digest."""
        return {"final": await service.sign(request.digest)}

    @api.get("/charter")
    async def charter() -> dict[str, Any]:
        """Return the charter in force, what is being voted on, and who has enrolled and waits to be admitted."""
        found = node.charters.in_force()
        waiting = await node.journal.run(ballot_store.candidates)
        return {
            **charter_view(found, node.charters.genesis_name()),
            "proposals": await service.decisions.open(),
            "candidates": [
                {"org": each.member.org, "fingerprint": each.member.keys.fingerprint(), "sponsor": each.sponsor}
                for each in waiting
                if each.member.org not in found.organisations
            ],
        }

    @api.get("/charter/proposals")
    async def proposals() -> dict[str, Any]:
        """Return every charter proposal that this node knows, newest first."""
        return {"proposals": await service.decisions.listed()}

    @api.get("/charter/proposals/{digest}")
    async def proposal(digest: str) -> dict[str, Any]:
        """Return one proposal: what changes, who said what, whose vote is awaited."""
        return await service.decisions.show(digest)

    @api.post("/charter/proposals", status_code=201)
    async def propose(request: ProposeRequest, who: Caller) -> dict[str, Any]:
        """Put the next charter to the vote."""
        log.info("charter.propose", user=who.user, via=who.via)
        return await service.decisions.propose(_wish(request, service), request.reason, request.deadline_s)

    @api.post("/charter/votes")
    async def vote(request: VoteRequest, who: Caller) -> dict[str, Any]:
        """Say yes or no to an open proposal."""
        log.info("charter.vote", user=who.user, via=who.via, digest=request.digest, allow=not request.deny)
        return await service.decisions.vote(
            request.digest, deny=request.deny, reason=request.reason, instead_of=request.instead_of
        )

    return api


def _wish(request: ProposeRequest, service: GovernanceService) -> Wish:
    log = request.coordinator
    return Wish(
        admit=tuple(request.admit),
        suspend=tuple(request.suspend),
        reinstate=tuple(request.reinstate),
        remove=tuple(request.remove),
        settings=request.settings,
        keys=service.next_keys() if request.rotate else None,
        policy=None if request.policy is None else PolicyRef.from_json(request.policy),
        agents=tuple(AgentRef.from_json(each) for each in request.agents),
        trust_roots=tuple(TrustRoot.from_json(each) for each in request.trust_roots),
        withdraw_agents=tuple(request.withdraw_agents),
        distrust=tuple(request.distrust),
        coordinator=None if log is None else (log.log_name, log.log_key, service.adopted(log.size, log.root)),
    )
