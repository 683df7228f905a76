"""The consortium's bundle at the coordinator: early refusal of proposals that no node could accept.

Rules (negotiation.md section 4):
1. only the bundle whose digest the charter in force names is asked; without it here, or in the charter, nothing is
   refused early, and nothing is lost: every node asks the same bundle again, and its answer binds;
2. a denial refuses the proposal with the deciding rule; what cannot be decided is refused like a denial; a review is
   for the people of each organisation, so it passes;
3. the coordinator knows no datasets and no app: it asks in the consortium's own name, for which no data is asked.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Protocol

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.observability import metrics
from comity_policies.bundle import Bundle, read_bounded
from comity_policies.bundle_archive import ARCHIVE_BYTES_MAX, read_archive
from comity_policies.charter import Charter
from comity_policies.charter_facts import facts_for, published_by
from comity_policies.decisions import Decision, Stage
from comity_policies.documents import Proposal
from comity_policies.engine import PolicyEngine, PolicySettings, open_engine

FOLDER = "policies"


class Gate(Protocol):
    """What a proposal passes before it is opened."""

    def __call__(self, charter: Charter, proposal: Proposal, now: str) -> None:
        """Return if it may pass. Raises `POLICY_DENIED`, or the engine's own code."""


def no_gate(charter: Charter, proposal: Proposal, now: str) -> None:
    """Let everything pass."""


class ConsortiumGate:
    """The bundles that lie in `<home>/policies/<digest>.tar.gz`, the charter's asked when a proposal comes."""

    def __init__(self, home: Path, opa_url: str = "") -> None:
        """`opa_url` names an OPA server that holds the bundle; by default the embedded engine is asked."""
        self._folder = home / FOLDER
        self._opa_url = opa_url
        self._lock = threading.Lock()
        self._engine: PolicyEngine | None = None

    def __call__(self, charter: Charter, proposal: Proposal, now: str) -> None:
        """See `Gate`."""
        if charter.policy is None:
            return
        engine = self._engine_for(charter.policy.digest)
        if engine is None:
            return
        decision = engine.decide(Stage.PROPOSAL, question(charter, proposal, now))
        metrics.GATE_SECONDS.observe(decision.duration_us / 1e6, decision.decision)
        if decision.decision == "deny":
            raise refusal(decision)

    def close(self) -> None:
        """Release the engine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def _engine_for(self, digest: str) -> PolicyEngine | None:
        with self._lock:
            if self._engine is not None and self._engine.bundle_digest == digest:
                return self._engine
            path = self._folder / f"{ids.sha256_hex(digest)}.tar.gz"
            if not path.exists():
                return None
            fresh = self._open(read_archive(read_bounded(path, ARCHIVE_BYTES_MAX)), digest)
            if self._engine is not None:
                self._engine.close()
            self._engine = fresh
            return fresh

    def _open(self, bundle: Bundle, digest: str) -> PolicyEngine:
        if bundle.digest != digest:
            raise ComityError(ErrorCode.BUNDLE_INVALID, "the file holds another bundle than its name says")
        engine = "opa" if self._opa_url else "embedded"
        return open_engine(PolicySettings(self._folder, engine=engine, opa_url=self._opa_url), bundle)


def question(charter: Charter, proposal: Proposal, now: str) -> dict[str, Any]:
    """Return the input of stage `proposal` as far as the coordinator knows it (rule 3)."""
    app = proposal.app
    return {
        "proposal": proposal.to_json(),
        "me": proposal.consortium,
        "proposer": proposal.proposer,
        "now": now,
        "datasets": [],
        "charter": facts_for(charter, proposal),
        "app": None
        if app is None
        else {
            "digest": app.digest,
            "name": app.name,
            "publisher": app.publisher,
            "dependencies": [],
            "signed_by": published_by(charter, app.digest),
        },
    }


def refusal(decision: Decision) -> ComityError:
    """Return the error of a denial: whose bundle, which rule."""
    error = decision.to_error()
    return ComityError(error.code, f"the consortium's policy: {error.detail}"[:400], **error.facts)


def install(home: Path, data: bytes) -> Bundle:
    """Keep a bundle for the gate; it counts once the charter names it. Raises `BUNDLE_INVALID`."""
    bundle = read_archive(data)
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{bundle.digest}.tar.gz"
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return bundle
