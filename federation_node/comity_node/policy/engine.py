"""The organisation's own bundle at work, exchangeable while it runs (negotiation.md section 4, "without a restart").

Rules: a bundle that does not load, or is not signed where it has to be, changes nothing; a decision uses one bundle
from beginning to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from comity_node.settings import NodeSettings
from comity_policies.access import Granted
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.bundle_signature import check_signature
from comity_policies.decisions import Decision, Stage
from comity_policies.engine import OpenedEngine, PolicySettings, open_engine


class Exchangeable:
    """A `PolicyEngine` that stands before the one in force. Thread-safe."""

    def __init__(self, engine: OpenedEngine, drain_s: float) -> None:
        """`drain_s` is how long an exchange waits at most for decisions under way."""
        self._drain_s = drain_s
        self._lock = threading.Condition()
        self._deciding = 0
        self._engine = engine

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle that decides."""
        return self._engine.bundle_digest

    @property
    def name(self) -> str:
        """Which engine this is, for the decision log."""
        return self._engine.name

    @property
    def circuit_open(self) -> bool:
        """Whether the engine has failed so often that it is not asked for a moment."""
        return bool(getattr(self._engine, "circuit_open", False))  # an embedded engine has none

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide under the bundle in force; never raises, denies when in doubt."""
        with self._asked() as engine:
            return engine.decide(stage, document)

    def roles(self, document: dict[str, Any]) -> Granted:
        """Return a person's roles under the bundle in force; see `RolePolicy`."""
        with self._asked() as engine:
            return engine.roles(document)

    def exchange(self, fresh: OpenedEngine) -> None:
        """Put `fresh` into force and close the former engine."""
        with self._lock:
            former, self._engine = self._engine, fresh
            # Decisions under way may still use the former engine; each is bounded by its own timeout.
            self._lock.wait_for(lambda: self._deciding == 0, timeout=self._drain_s)
        former.close()

    def close(self) -> None:
        """Release threads and connections; later decisions are denials."""
        self._engine.close()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[OpenedEngine]:
        with self._lock:
            engine = self._engine
            self._deciding += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._deciding -= 1
                self._lock.notify_all()


class ReloadablePolicy(Exchangeable):
    """The organisation's own policy folder."""

    def __init__(self, settings: NodeSettings, statement_key: Callable[[], bytes]) -> None:
        """Open the engine; `statement_key` is our own public key, for signed bundles. Raises `BUNDLE_INVALID`."""
        self._node = settings
        self._statement_key = statement_key
        self._settings = PolicySettings(
            folder=settings.policy_folder, engine=settings.engine, opa_url=settings.opa_url or ""
        )
        self.bundle = self._load()
        super().__init__(open_engine(self._settings, self.bundle), drain_s=self._settings.timeout_ms / 1_000 * 4)

    async def reload(self) -> str:
        """Load the folder anew and put it into force; returns the new digest. Raises `BUNDLE_INVALID`."""
        return await asyncio.to_thread(self._reload)

    def _reload(self) -> str:
        bundle = self._load()
        self.exchange(open_engine(self._settings, bundle))
        self.bundle = bundle
        return bundle.digest

    def _load(self) -> Bundle:
        bundle = Bundle.load(shipped_folder(), self._settings.folder)
        if self._node.require_signed_bundle:
            check_signature(
                bundle,
                self._settings.folder,
                self._statement_key(),
                consortium=self._node.consortium,
                org=self._node.org,
            )
        return bundle
