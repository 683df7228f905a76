"""The policy that capabilities ask: the organisation's own and the consortium's, the stricter answer, recorded.

Rules: nothing is decided that is not recorded (`log.py`); the recorded layers let a replay put another bundle in the
place of the organisation's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from comity.observability import spans
from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.observability import metrics
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.log import DecisionLog
from comity_node.policy.store import Row
from comity_policies.access import Granted
from comity_policies.decisions import Decision, Stage, stricter
from comity_policies.engine import PolicyEngine

OWN = "own"
CONSORTIUM = "consortium"
# The rule that a denial names when no policy gave an answer (`Decision.denied`).
ENGINE = "engine"


class Layer(Protocol):
    """One bundle's word; see `PolicyEngine`."""

    @property
    def bundle_digest(self) -> str: ...

    @property
    def name(self) -> str: ...

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision: ...

    def roles(self, document: dict[str, Any]) -> Granted: ...

    def close(self) -> None: ...


class Second(Protocol):
    """The consortium's word beside our own."""

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision | None:
        """Decide; None where the charter names no bundle."""
        ...

    def close(self) -> None:
        """Release threads."""
        ...


class RecordedPolicy:
    """A `PolicyEngine` over our own bundle and the consortium's. Thread-safe."""

    def __init__(
        self, own: Layer, consortium: Second | None, log: DecisionLog, clock: Callable[[], datetime] = instants.now
    ) -> None:
        self.own = own
        self.log = log
        self.consortium = consortium
        self._clock = clock

    @property
    def bundle_digest(self) -> str:
        """Digest of our own bundle; the consortium's is in the charter."""
        return self.own.bundle_digest

    @property
    def name(self) -> str:
        """Which engine this is."""
        return self.own.name

    @property
    def circuit_open(self) -> bool:
        """Whether our own engine has failed so often that it is not asked for a moment."""
        return bool(getattr(self.own, "circuit_open", False))

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide and record; never raises, denies when in doubt."""
        began = time.perf_counter()
        with spans.span(f"decide {stage}"):
            decision = self._decided(stage, document)
        metrics.DECISION_SECONDS.observe(time.perf_counter() - began, stage)
        metrics.DECISIONS.add(stage, decision.decision)
        if decision.decision == "deny" and decision.reasons[0].rule == ENGINE:
            metrics.POLICY_ERRORS.add(decision.reasons[0].code)
        return decision

    def _decided(self, stage: Stage, document: dict[str, Any]) -> Decision:
        own = self.own.decide(stage, document)
        other = self.consortium.decide(stage, document) if self.consortium is not None else None
        decision = own if other is None else stricter(own, other)
        try:
            self.log.put(partial(_row, self._clock(), stage, document, decision, own, other))
        except ComityError as error:
            return Decision.denied(
                ErrorCode.POLICY_UNAVAILABLE,
                error.detail or "the decision log is out of reach",
                bundle_digest=decision.bundle_digest,
                input_digest=decision.input_digest,
                engine=decision.engine,
                duration_us=decision.duration_us,
            )
        return decision

    def roles(self, document: dict[str, Any]) -> Granted:
        """Return a person's roles: our own policy's word alone, and no decision about work."""
        return self.own.roles(document)

    def close(self) -> None:
        """Release threads and connections; later decisions are denials."""
        self.own.close()
        if self.consortium is not None:
            self.consortium.close()
        self.log.close()


def _row(
    at: datetime, stage: Stage, document: dict[str, Any], decision: Decision, own: Decision, other: Decision | None
) -> Row:
    layers = {OWN: own.to_json()} if other is None else {OWN: own.to_json(), CONSORTIUM: other.to_json()}
    return Row(
        at=instants.to_text(at),
        stage=str(stage),
        subject=subject_of(document),
        decision=decision.decision,
        result={**decision.to_json(), "layers": layers},
        document=document,
    )


def missing_bundle(policy: PolicyEngine) -> ComityError | None:
    """Return `BUNDLE_STALE` while the charter names a consortium's bundle that is not held here: nothing is signed."""
    if not isinstance(policy, RecordedPolicy) or not isinstance(policy.consortium, ConsortiumPolicy):
        return None
    try:
        policy.consortium.check()
    except ComityError as error:
        return error
    return None


def subject_of(document: dict[str, Any]) -> str:
    """Return what a question is about: the proposal's id, the agreement's digest, the candidate."""
    for outer, inner in (("proposal", "proposal_id"), ("agreement", "digest"), ("candidate", "org")):
        found = document.get(outer)
        if isinstance(found, dict) and isinstance(found.get(inner), str):
            return str(found[inner])[:128]
    return ""
