"""The seam to whatever evaluates Rego: in the process, or an OPA server.

Rules:
1. `decide` never raises: an error, a timeout, an undefined result, an unreachable engine are denials with a code
   (`POLICY_ERROR`, `POLICY_TIMEOUT`, `POLICY_UNDEFINED`, `POLICY_UNAVAILABLE`);
2. what has no canonical bytes is not asked;
3. engines are imported where they are opened, so that a process pays only for the one that it uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.access import RolePolicy
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.decisions import NO_DIGEST, Decision, Stage, input_digest, parse_result

__all__ = ["PolicyEngine", "PolicySettings", "open_engine"]

TIMEOUT_MS = 250


class PolicyEngine(Protocol):
    """Evaluates one bundle. Thread-safe."""

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle that decides."""
        ...

    @property
    def name(self) -> str:
        """Which engine this is, for the decision log."""
        ...

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide; never raises, denies when in doubt."""
        ...

    def close(self) -> None:
        """Release threads and connections; later decisions are denials."""
        ...


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Which engine, with which folder of the organisation's own.

    Args:
        folder: the organisation's `data.json` and its own `*.rego`.
        engine: `embedded` or `opa`.
        opa_url: `http(s)://host:port` of the OPA server, which loads the bundle itself (`comity policy build`).
        timeout_ms: the most that one decision may take.
        opa_ca: file with the CA of an `https` OPA server.
    """

    folder: Path
    engine: str = "embedded"
    opa_url: str = ""
    timeout_ms: int = TIMEOUT_MS
    opa_ca: Path | None = None


class OpenedEngine(PolicyEngine, RolePolicy, Protocol):
    """An engine that decides about work and knows the roles of people."""


def open_engine(settings: PolicySettings, bundle: Bundle | None = None) -> OpenedEngine:
    """Open the engine that the settings name over `bundle`, by default the one in the settings' folder.

    Raises:
        ComityError: `BUNDLE_INVALID` if the bundle cannot be used, or the engine is not there.
    """
    if bundle is None:
        bundle = Bundle.load(shipped_folder(), settings.folder)
    if settings.engine == "embedded":
        from comity_policies.embedded import EmbeddedEngine

        return EmbeddedEngine(bundle, timeout_ms=settings.timeout_ms)
    if settings.engine == "opa":
        return _open_opa(settings, bundle)
    raise ComityError(ErrorCode.BUNDLE_INVALID, "the policy engine is embedded or opa")


def _open_opa(settings: PolicySettings, bundle: Bundle) -> OpenedEngine:
    """Refuse a server that cannot run the bundle faithfully; one that is out of reach only denies until it is tried."""
    from comity_policies import probe
    from comity_policies.opa import OpaServerEngine

    right = probe.by_embedded(bundle)

    def prove(ask: probe.Ask) -> None:
        probe.check(bundle, ask, by=lambda: right)

    engine = OpaServerEngine(settings.opa_url, bundle, timeout_ms=settings.timeout_ms, ca=settings.opa_ca, prove=prove)
    try:
        engine.prove()
    except ComityError as error:
        if error.code not in (ErrorCode.POLICY_UNAVAILABLE, ErrorCode.POLICY_TIMEOUT):
            engine.close()
            raise
    return engine


def decide_with(
    evaluate: Callable[[Stage, dict[str, Any]], Any], stage: Stage, document: dict[str, Any], bundle: str, engine: str
) -> Decision:
    """Turn one evaluation into a decision under rule 1.

    `evaluate` returns the parsed `result`, or raises `ComityError` with a `POLICY_*` code.
    """
    started_ns = time.perf_counter_ns()
    digest = NO_DIGEST
    try:
        digest = input_digest(stage, document)
        found = parse_result(evaluate(stage, document))
        duration_us = (time.perf_counter_ns() - started_ns) // 1000
        return Decision(found.decision, found.reasons, found.terms, bundle, digest, engine, duration_us, found.review)
    except ComityError as error:
        code = error.code if error.code.startswith("POLICY_") else ErrorCode.POLICY_ERROR
        message = error.detail or "the policy could not be evaluated"
    except Exception as error:  # noqa: BLE001 - rule 1: whatever fails in an engine is a denial, never a crash
        code, message = ErrorCode.POLICY_ERROR, f"the engine failed with {type(error).__name__}"
    return Decision.denied(
        code,
        message,
        bundle_digest=bundle,
        input_digest=digest,
        engine=engine,
        duration_us=(time.perf_counter_ns() - started_ns) // 1000,
    )
