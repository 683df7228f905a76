"""The policy engine of this node, exchangeable while it runs (negotiation.md section 4, "swapped without a restart").

Rules: a bundle that does not load changes nothing; a decision uses one bundle from beginning to end.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from comity_node.settings import NodeSettings
from comity_policies.decisions import Decision, Stage
from comity_policies.engine import PolicyEngine, PolicySettings, open_engine


class ReloadablePolicy:
    """A `PolicyEngine` that stands before the one in force. Thread-safe."""

    def __init__(self, settings: NodeSettings) -> None:
        """Open the engine. Raises `BUNDLE_INVALID`."""
        self._settings = PolicySettings(
            folder=settings.policy_folder, engine=settings.engine, opa_url=settings.opa_url or ""
        )
        self._lock = threading.Condition()
        self._deciding = 0
        self._engine: PolicyEngine = open_engine(self._settings)

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle that decides."""
        return self._engine.bundle_digest

    @property
    def name(self) -> str:
        """Which engine this is, for the decision log."""
        return self._engine.name

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide under the bundle in force; never raises, denies when in doubt."""
        with self._lock:
            engine = self._engine
            self._deciding += 1
        try:
            return engine.decide(stage, document)
        finally:
            with self._lock:
                self._deciding -= 1
                self._lock.notify_all()

    async def reload(self) -> str:
        """Load the folder anew and put it into force; returns the new digest. Raises `BUNDLE_INVALID`."""
        return await asyncio.to_thread(self._reload)

    def close(self) -> None:
        """Release threads and connections; later decisions are denials."""
        self._engine.close()

    def _reload(self) -> str:
        fresh = open_engine(self._settings)
        with self._lock:
            former, self._engine = self._engine, fresh
            # Decisions under way may still use the former engine; each is bounded by its own timeout.
            self._lock.wait_for(lambda: self._deciding == 0, timeout=self._settings.timeout_ms / 1_000 * 4)
        former.close()
        return fresh.bundle_digest
