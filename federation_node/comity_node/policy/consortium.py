"""The consortium's bundle at this node: the one whose digest the charter in force names, beside our own.

Rules (negotiation.md section 4):
1. only the charter's digest makes a bundle the consortium's; who sent it does not matter, and nobody can push it here;
2. while the charter names a bundle that this node does not hold, new proposals and members are denied (`BUNDLE_STALE`);
   what was agreed before goes on, under the bundle that the node held;
3. a bundle that was here and is gone, or no longer loads, denies everything: it bound what was agreed under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_node import journal as marks
from comity_node.journal import Journal
from comity_node.policy.engine import Exchangeable
from comity_node.settings import NodeSettings, write_private
from comity_policies.bundle import Bundle, read_bounded
from comity_policies.bundle_archive import ARCHIVE_BYTES_MAX, read_archive
from comity_policies.charter import Charter
from comity_policies.decisions import Decision, Stage
from comity_policies.engine import OpenedEngine, PolicySettings, open_engine

# What begins here and waits for the bundle; everything else was agreed before.
BEGINNINGS = (Stage.PROPOSAL, Stage.MEMBERSHIP)
DRAIN_S = 1.0
MARK = "policy.consortium"
_STALE = "the charter names a policy bundle that this organisation has not adopted"
log = structlog.get_logger(__name__)


class ConsortiumPolicy:
    """The consortium's word in every decision. Thread-safe."""

    def __init__(self, settings: NodeSettings, charter_of: Callable[[], Charter | None]) -> None:
        self._settings = settings
        self._charter_of = charter_of
        self._lock = threading.Lock()
        self._engine: Exchangeable | None = None
        self._held: str | None = None
        self.bundle: Bundle | None = None

    def load(self, journal: Journal) -> None:
        """Open what was adopted before, once the journal's tables exist; what does not load denies (rule 3)."""
        self._held = journal.transact(lambda conn: marks.mark(conn, MARK))
        path = self._settings.consortium_policy_file
        if self._held is None or not path.exists():
            return
        try:
            bundle = read_archive(read_bounded(path, ARCHIVE_BYTES_MAX))
            if bundle.digest == self._held:
                self._open(bundle)
        except ComityError as error:
            log.error("policy.consortium_unusable", detail=error.detail)

    @property
    def bundle_digest(self) -> str | None:
        """Digest of the bundle held here, None if there is none."""
        return self._engine.bundle_digest if self._engine is not None else None

    def wanted(self) -> str | None:
        """Return the digest that the charter in force names, None if it names none."""
        charter = self._charter_of()
        return charter.policy.digest if charter is not None and charter.policy is not None else None

    def check(self) -> None:
        """Raise `BUNDLE_STALE` while the charter names another bundle than the one held here."""
        wanted = self.wanted()
        if wanted is not None and wanted != self.bundle_digest:
            raise ComityError(ErrorCode.BUNDLE_STALE, _STALE, wanted=wanted)

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision | None:
        """Decide by rules 1 to 3; None where the consortium has no word."""
        wanted, engine = self.wanted(), self._engine
        if wanted is None:
            return None
        if engine is None and self._held is None and stage not in BEGINNINGS:
            return None
        if engine is None or (stage in BEGINNINGS and engine.bundle_digest != wanted):
            return Decision.denied(
                ErrorCode.BUNDLE_STALE, _STALE, rule="consortium.bundle", bundle_digest=wanted, engine="node"
            )
        return engine.decide(stage, document)

    def adopt(self, data: bytes, journal: Journal) -> str:
        """Hold the bundle that the charter in force names; returns its digest. Blocks: call it in a thread.

        Raises:
            ComityError: `BUNDLE_INVALID` if it does not load; `CONFLICT` if the charter names another one, or none.
        """
        bundle = read_archive(data, self._judge)
        with self._lock:
            self._settings.consortium_policy_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._settings.consortium_policy_file, data)
            self._open(bundle)

            def write(conn: Connection) -> None:
                marks.set_mark(conn, MARK, bundle.digest)

            journal.transact(write)
            self._held = bundle.digest
        return bundle.digest

    def _judge(self, digest: str) -> None:
        wanted = self.wanted()
        if wanted is None:
            raise ComityError(ErrorCode.CONFLICT, "the charter in force names no policy bundle", digest=digest)
        if digest != wanted:
            raise ComityError(ErrorCode.CONFLICT, "the charter in force names another bundle", digest=digest)

    def close(self) -> None:
        """Release threads and connections."""
        if self._engine is not None:
            self._engine.close()

    def _open(self, bundle: Bundle) -> None:
        fresh = self._engine_for(bundle)
        if self._engine is None:
            self._engine = Exchangeable(fresh, DRAIN_S)
        else:
            self._engine.exchange(fresh)
        self.bundle = bundle

    def _engine_for(self, bundle: Bundle) -> OpenedEngine:
        settings, url = self._settings, self._settings.consortium_opa_url
        engine = "opa" if settings.engine == "opa" and url else "embedded"
        return open_engine(PolicySettings(settings.policy_folder, engine=engine, opa_url=url or ""), bundle)
