"""Whether an engine can run a bundle faithfully: asked when the bundle is loaded, before it decides anything.

Rules:
1. every built-in of the portable profile, and the language's own constructs, answer as `probe.json` says (the module
   `rego/probe/probe.rego` evaluates them; it is part of every bundle with the shipped policies);
2. every stage answers its published example in the agreed form, and on an OPA server as the embedded engine does, where
   that is at hand; `comity.access` answers its own example in its form;
3. an engine that fails is refused with the name of what differs; one that is out of reach only denies.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import access, portable
from comity_policies.bundle import Bundle
from comity_policies.decisions import Result, Stage, example, parse_result, whole

PACKAGE = "probe"
MODULE = "probe/probe.rego"

Ask = Callable[[str, dict[str, Any]], Any]
"""Evaluates `data.comity.<package>.result`; raises `POLICY_*`."""


@cache
def _document() -> dict[str, Any]:
    path = Path(__file__).with_name("probe.json")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def question() -> dict[str, Any]:
    """Return the probe's input."""
    found: dict[str, Any] = json.loads(json.dumps(_document()["input"]))
    return found


def wanted() -> dict[str, Any]:
    """Return built-in -> its answers over `question`."""
    found: dict[str, Any] = _document()["want"]
    return found


def differing(found: Any) -> list[str]:
    """Return the built-ins that answered otherwise than they should; a missing answer differs."""
    if not isinstance(found, dict):
        return sorted(wanted())
    return sorted(name for name, want in wanted().items() if name not in found or not same(found[name], want))


def same(a: Any, b: Any) -> bool:
    """Whether two answers are one value: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(whole(a), sort_keys=True) == json.dumps(whole(b), sort_keys=True)


def check(bundle: Bundle, ask: Ask, *, by: Callable[[], dict[Stage, Result]] = dict) -> None:
    """Check that the engine behind `ask` runs `bundle` faithfully.

    Args:
        by: the examples' results by an engine that is known to be right; none by default.

    Raises:
        ComityError: `BUNDLE_INVALID` naming what differs; `POLICY_UNAVAILABLE` and `POLICY_TIMEOUT` from `ask`.
    """
    if MODULE in bundle.modules:
        odd = differing(_asked(ask, PACKAGE, question()))
        if odd:
            raise portable.refuse(f"this engine cannot run it faithfully: {', '.join(odd)[:200]} answers otherwise")
    if access.MODULE in bundle.modules:
        _try_roles(ask)
    right = by()
    for stage in map(Stage, portable.ENTRY_POINTS):
        try:
            answer = parse_result(_asked(ask, stage, example(stage)))
        except ComityError as error:
            if error.code in (ErrorCode.POLICY_UNAVAILABLE, ErrorCode.POLICY_TIMEOUT):
                raise
            raise portable.refuse(f"stage {stage} cannot answer its example: {error.detail}") from error
        if stage in right and answer != right[stage]:
            raise portable.refuse(f"this engine cannot run it faithfully: stage {stage} answers its example otherwise")


def _try_roles(ask: Ask) -> None:
    try:
        access.parse_roles(_asked(ask, access.PACKAGE, access.example()))
    except ComityError as error:
        if error.code in (ErrorCode.POLICY_UNAVAILABLE, ErrorCode.POLICY_TIMEOUT, ErrorCode.BUNDLE_INVALID):
            raise
        raise portable.refuse(f"package comity.access cannot answer its example: {error.detail}") from error


def _asked(ask: Ask, package: str, document: dict[str, Any]) -> Any:
    try:
        return ask(package, document)
    except ComityError as error:
        if error.code in (ErrorCode.POLICY_UNAVAILABLE, ErrorCode.POLICY_TIMEOUT):
            raise
        raise portable.refuse(f"package comity.{package} cannot be evaluated: {error.detail}") from error


def by_embedded(bundle: Bundle) -> dict[Stage, Result]:
    """Return the examples' results by the embedded engine; none where there is none for this platform."""
    if importlib.util.find_spec("regorus") is None:
        return {}
    from comity_policies.embedded import EmbeddedEngine

    engine = EmbeddedEngine(bundle)
    try:
        stages = map(Stage, portable.ENTRY_POINTS)
        return {stage: parse_result(engine.ask(stage, example(stage))) for stage in stages}
    finally:
        engine.close()
