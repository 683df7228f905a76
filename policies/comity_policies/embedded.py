"""The embedded Rego engine: the interpreter of regorus in one thread of its own (infra.md section 2.3).

Rules:
1. the engine is made, asked and dropped by the same thread: it panics in any other;
2. its panics are no `Exception`: the thread catches `BaseException` and rebuilds the engine, whose state is
   then unknown;
3. undefined is `{}` from `eval_query_as_json`; everything but exactly one value is no answer;
4. questions wait in a bounded queue; who waited too long gets a denial, even if an answer comes later.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import probe
from comity_policies.access import Granted, roles_with
from comity_policies.bundle import Bundle
from comity_policies.decisions import Decision, Stage
from comity_policies.engine import TIMEOUT_MS, decide_with

QUEUE_MAX = 256
LOAD_TIMEOUT_S = 10.0
NAME = "embedded-regorus"
_QUOTED = re.compile(r"`.*`|\".*\"|'.*'")


class _Question:
    """One evaluation under way; the asker waits on `done`."""

    __slots__ = ("done", "error", "input_json", "query", "value")

    def __init__(self, query: str, input_json: str) -> None:
        self.query = query
        self.input_json = input_json
        self.done = threading.Event()
        self.value: Any = None
        self.error: ComityError | None = None


class EmbeddedEngine:
    """A `PolicyEngine` in this process.

    Raises:
        ComityError: `BUNDLE_INVALID` if this engine cannot run the bundle faithfully (`probe.py`).
    """

    name = NAME

    def __init__(self, bundle: Bundle, timeout_ms: int = TIMEOUT_MS) -> None:
        self.bundle_digest = bundle.digest
        self._timeout_s = timeout_ms / 1000
        self._questions: queue.Queue[_Question | None] = queue.Queue(QUEUE_MAX)
        self._closed = False
        modules, data = dict(bundle.modules), json.dumps(bundle.data)
        self._thread = threading.Thread(target=_serve, args=(modules, data, self._questions), name=NAME, daemon=True)
        self._thread.start()
        try:
            probe.check(bundle, lambda package, document: self._ask(package, document, LOAD_TIMEOUT_S))
        except ComityError:
            self.close()
            raise

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide; see `PolicyEngine`."""
        return decide_with(self.ask, stage, document, self.bundle_digest, self.name)

    def roles(self, document: dict[str, Any]) -> Granted:
        """Return a person's roles; see `access.RolePolicy`."""
        return roles_with(self.ask, document)

    def close(self) -> None:
        """End the thread; later decisions are denials."""
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._questions.put_nowait(None)
        self._thread.join(timeout=1.0)

    def ask(self, package: str, document: dict[str, Any]) -> Any:
        """Return `data.comity.<package>.result` as the bundle gives it. Raises `POLICY_*`."""
        return self._ask(package, document, self._timeout_s)

    def _ask(self, stage: str, document: dict[str, Any], timeout_s: float) -> Any:
        if self._closed or not self._thread.is_alive():
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the policy engine is closed")
        question = _Question(f"data.comity.{stage}.result", json.dumps(document))
        try:
            self._questions.put_nowait(question)
        except queue.Full:
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "too many policy decisions wait") from None
        if not question.done.wait(timeout_s):
            raise ComityError(ErrorCode.POLICY_TIMEOUT, "the policy engine was too slow")
        if question.error is not None:
            raise question.error
        return question.value


def build(modules: dict[str, str], data_json: str) -> Any:
    """Return a regorus engine with modules and data, for the calling thread only."""
    import regorus

    engine = regorus.Engine()
    for name, text in modules.items():
        engine.add_policy(name, text)
    engine.add_data_json(data_json)
    return engine


def evaluate(engine: Any, query: str, input_json: str) -> Any:
    """Return the one value of `query`. Raises `POLICY_UNDEFINED` if there is none; the engine's own errors pass."""
    engine.set_input_json(input_json)
    found = json.loads(engine.eval_query_as_json(query)).get("result", [])
    if len(found) != 1 or len(found[0].get("expressions", [])) != 1:
        raise ComityError(ErrorCode.POLICY_UNDEFINED, "the policy has no answer to this")
    return found[0]["expressions"][0]["value"]


def _serve(modules: dict[str, str], data_json: str, questions: queue.Queue[_Question | None]) -> None:
    """Answer until None comes. Runs in the one thread that ever touches the engine."""
    engine: Any = None
    while (question := questions.get()) is not None:
        try:
            if engine is None:
                engine = build(modules, data_json)
            question.value = evaluate(engine, question.query, question.input_json)
        except ComityError as error:
            # Its traceback would keep the engine alive in the asker's thread, where it must not be dropped (rule 1).
            question.error = error.with_traceback(None)
        except BaseException as error:  # noqa: BLE001 - rule 2: panics are no `Exception`
            engine = None
            question.error = ComityError(ErrorCode.POLICY_ERROR, f"the policy failed: {headline(error)}")
        question.done.set()


def headline(error: BaseException) -> str:
    """Return what the engine complains of, without the source lines and the values that it quotes: they may be data."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip().startswith("error:")]
    return _QUOTED.sub("…", lines[0] if lines else type(error).__name__)[:200]
