"""The API of the policy: which bundles decide, loading ours anew, adopting the consortium's, and the decision log."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from comity.wire.errors import ComityError, ErrorCode
from comity_node.context import NodeContext
from comity_node.negotiation.service import NegotiationService
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.engine import ReloadablePolicy
from comity_node.policy.recorded import RecordedPolicy
from comity_node.policy.store import PAGE_MAX, Row
from comity_node.training import store as training_store
from comity_policies import replay
from comity_policies.bundle_archive import ARCHIVE_BYTES_MAX

_NUMBERED = re.compile(r"dec-([0-9]{1,15})")
log = structlog.get_logger(__name__)


class Archive(BaseModel):
    """A bundle as `comity policy build` writes it, in base64."""

    model_config = ConfigDict(extra="forbid")

    archive: str = Field(max_length=ARCHIVE_BYTES_MAX * 4 // 3 + 4)


def router(node: NodeContext) -> APIRouter:
    """Return the routes below `/v1`."""
    api = APIRouter(prefix="/v1/policy", tags=["policy"])

    @api.get("")
    async def show() -> dict[str, Any]:
        """Return engine and bundles in force."""
        found: dict[str, Any] = {"engine": node.policy.name, "bundle": node.policy.bundle_digest}
        policy = _recorded(node)
        if isinstance(policy.consortium, ConsortiumPolicy):
            held, wanted = policy.consortium.bundle_digest, policy.consortium.wanted()
            found["consortium"] = {"held": held, "wanted": wanted}
        return found

    @api.post("/reload")
    async def reload() -> dict[str, Any]:
        """Load the policy folder anew; a bundle that does not hold changes nothing."""
        own = _recorded(node).own
        assert isinstance(own, ReloadablePolicy)
        digest = await own.reload()
        await node.services.get(NegotiationService).reconsider_all()
        return {"engine": node.policy.name, "bundle": digest}

    @api.post("/consortium")
    async def adopt(asked: Archive) -> dict[str, Any]:
        """Hold the bundle that the charter in force names."""
        try:
            data = base64.b64decode(asked.archive, validate=True)
        except binascii.Error as error:
            raise ComityError(ErrorCode.MALFORMED, "the archive is not base64") from error
        consortium = _recorded(node).consortium
        assert isinstance(consortium, ConsortiumPolicy)
        digest = await asyncio.to_thread(consortium.adopt, data, node.journal)
        log.info("policy.consortium_adopted", bundle=digest)
        await node.services.get(NegotiationService).reconsider_all()
        return {"consortium": digest}

    _add_decisions(api, node)
    return api


def _add_decisions(api: APIRouter, node: NodeContext) -> None:
    @api.get("/decisions")
    async def decisions(
        before: Annotated[int | None, Query(ge=1)] = None,
        stage: Annotated[str, Query(max_length=32)] = "",
        decision: Annotated[str, Query(max_length=16)] = "",
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
        inputs: bool = False,
    ) -> dict[str, Any]:
        """Return a page of the decision log, the newest first; `before` is the number of the last one seen."""
        rows = await _recorded(node).log.read(
            lambda store: store.newest(before=before, stage=stage, decision=decision, limit=limit)
        )
        return {"decisions": [row.to_json(with_input=inputs) for row in rows]}

    @api.get("/decisions/{name}")
    async def explain(name: str) -> dict[str, Any]:
        """Return decisions by number, proposal, agreement, run or candidate, and where their rules stand."""
        policy = _recorded(node)
        run = await node.journal.run(lambda conn: training_store.find_run(conn, name))
        subject = name if run is None else run.agreement
        number = _NUMBERED.fullmatch(name)
        if number is not None:
            rows = [await policy.log.read(lambda store: store.find(int(number[1])))]
        else:
            rows = _newest_of_each_stage(await policy.log.read(lambda store: store.about(subject)))
        if not rows:
            raise ComityError(ErrorCode.NOT_FOUND, "no decision about this is recorded")
        return {"decisions": [row.to_json(with_input=True) for row in rows], "rules": _places(policy, rows)}


def _recorded(node: NodeContext) -> RecordedPolicy:
    assert isinstance(node.policy, RecordedPolicy)
    return node.policy


def _newest_of_each_stage(rows: list[Row]) -> list[Row]:
    newest: dict[str, Row] = {}
    for row in rows:
        newest.setdefault(row.stage, row)
    return list(newest.values())


def _places(policy: RecordedPolicy, rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    """Return rule -> where it stands in the bundles held now, each with the bundle's digest."""
    layers = (policy.own, policy.consortium)
    bundles = [layer.bundle for layer in layers if isinstance(layer, ReloadablePolicy | ConsortiumPolicy)]
    rules = {reason["rule"] for row in rows for reason in row.result["reasons"]}
    return {
        rule: [
            {"bundle": bundle.digest, "file": place.file, "line": place.line, "title": place.title}
            for bundle in bundles
            if bundle is not None
            for place in replay.places(bundle.modules, rule)
        ]
        for rule in sorted(rules)
    }
