"""Nothing fails open: bundles that err, servers that lie, stall, vanish or answer nonsense."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.decisions import Stage, example
from comity_policies.embedded import EmbeddedEngine
from comity_policies.engine import PolicyEngine
from comity_policies.opa import ANSWER_BYTES_MAX, OpaServerEngine


def _with(bundle: Bundle, name: str, text: str) -> Bundle:
    return Bundle.of({**bundle.modules, name: text}, dict(bundle.settings))


# Each errs, or becomes silent, only for the purpose `statistics`, so that the bundle passes its examples at load.
BROKEN = {
    "conflict": 'result := 1 if input.proposal.purpose == "statistics"',
    "builtin-error": 'deny contains 1 + input.proposal.title if input.proposal.purpose == "statistics"',
    "wrong-form": 'own_terms.rounds := ["many"] if input.proposal.purpose == "statistics"',
}


@pytest.mark.parametrize("name", ["embedded", "opa"])
@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_broken_rules_deny(
    open_named: Callable[[str, Bundle], PolicyEngine], bundle: Bundle, name: str, kind: str
) -> None:
    try:
        broken = _with(bundle, "own/broken.rego", f"package comity.proposal\n\n{BROKEN[kind]}\n")
    except ComityError as error:
        refused_at_load = error.code == ErrorCode.BUNDLE_INVALID
        assert refused_at_load
        return
    engine = open_named(name, broken)
    document = example(Stage.PROPOSAL)
    assert engine.decide(Stage.PROPOSAL, document).allowed
    document["proposal"]["purpose"] = "statistics"
    decision = engine.decide(Stage.PROPOSAL, document)
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")
    document["proposal"]["purpose"] = "research"
    assert engine.decide(Stage.PROPOSAL, document).allowed, "the engine must recover"


def test_own_rego_adds_a_denial(open_named: Callable[[str, Bundle], PolicyEngine], bundle: Bundle) -> None:
    text = """package comity.proposal

deny contains {"rule": "own.title", "code": "TITLE", "message": "say more"} if {
	count(input.proposal.title) < 100
}
"""
    own = _with(bundle, "own/title.rego", text)
    assert own.digest != bundle.digest
    for name in ("embedded", "opa"):
        decision = open_named(name, own).decide(Stage.PROPOSAL, example(Stage.PROPOSAL))
        assert [reason.rule for reason in decision.reasons] == ["own.title"], name


def test_opa_with_another_bundle_is_not_believed(start_opa: Callable[[Bundle], str], bundle: Bundle) -> None:
    other = Bundle.of(bundle.modules, dict(bundle.settings) | {"min_cohort": 1})
    engine = OpaServerEngine(start_opa(other), bundle, timeout_ms=3000)
    decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")
    assert "another bundle" in decision.reasons[0].message


def test_closed_engines_deny(bundle: Bundle) -> None:
    for engine in (EmbeddedEngine(bundle), OpaServerEngine("http://127.0.0.1:1", bundle)):
        engine.close()
        decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
        assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_UNAVAILABLE")


def test_unreachable_opa_denies_and_the_circuit_opens(bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        engine = OpaServerEngine(f"http://127.0.0.1:{taken.getsockname()[1]}", bundle)
        reasons = [engine.decide(Stage.EGRESS, example(Stage.EGRESS)).reasons[0] for _ in range(4)]
        engine.close()
    assert {reason.code for reason in reasons} == {"POLICY_UNAVAILABLE"}
    assert "repeatedly" in reasons[3].message
    assert "repeatedly" not in reasons[2].message


class _Liar(BaseHTTPRequestHandler):
    """Answers what the test put into the server."""

    def do_POST(self) -> None:
        script: dict[str, Any] = self.server.script  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(script.get("status", 200))
        for key, value in script.get("headers", {}).items():
            self.send_header(key, value)
        self.end_headers()
        try:
            for part in script["parts"]:
                time.sleep(script.get("pause_s", 0))
                self.wfile.write(part)
                self.wfile.flush()
        except OSError:
            pass  # the client gave up, which is what some tests want

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def liar() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Liar)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


GOOD = {"decision": "allow", "reasons": [], "terms": {}}


def _body(bundle: Bundle, **parts: Any) -> bytes:
    return json.dumps({"provenance": {"bundles": {"b": {"revision": bundle.digest}}}, **parts}).encode()


def test_the_liar_can_tell_the_truth(liar: Any, bundle: Bundle) -> None:
    """The control of the next test: with the right answer everything else in it would be allowed."""
    liar.script = {"parts": [_body(bundle, result=GOOD)]}
    engine = OpaServerEngine(f"http://127.0.0.1:{liar.server_port}", bundle)
    assert engine.decide(Stage.EGRESS, example(Stage.EGRESS)).allowed
    engine.close()


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("POLICY_UNDEFINED", lambda b: {"parts": [_body(b)]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result=True)]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result={**GOOD, "extra": 1})]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result={**GOOD, "decision": "ALLOW"})]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result={**GOOD, "terms": {"rounds": -1}})]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result={**GOOD, "decision": "deny"})]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result=GOOD, warning={"code": "api_usage_warning"})]}),
        ("POLICY_ERROR", lambda b: {"parts": [json.dumps({"result": GOOD}).encode()]}),
        ("POLICY_ERROR", lambda b: {"parts": [b"[]"]}),
        ("POLICY_ERROR", lambda b: {"parts": [b"{"]}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result=GOOD)], "status": 500}),
        ("POLICY_ERROR", lambda b: {"parts": [_body(b, result=GOOD)], "status": 404}),
        ("POLICY_ERROR", lambda b: {"parts": [b" " * (ANSWER_BYTES_MAX + 1)]}),
        ("POLICY_TIMEOUT", lambda b: {"parts": [_body(b, result=GOOD)], "pause_s": 0.4}),
        ("POLICY_TIMEOUT", lambda b: {"parts": [b" "] * 8 + [_body(b, result=GOOD)], "pause_s": 0.05}),
    ],
)
def test_lies_are_denied(liar: Any, bundle: Bundle, code: str, make: Callable[[Bundle], dict[str, Any]]) -> None:
    liar.script = make(bundle)
    engine = OpaServerEngine(f"http://127.0.0.1:{liar.server_port}", bundle)
    decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", code)


def test_redirects_are_not_followed(liar: Any, bundle: Bundle) -> None:
    liar.script = {"parts": [b""], "status": 307, "headers": {"Location": "/elsewhere"}}
    engine = OpaServerEngine(f"http://127.0.0.1:{liar.server_port}", bundle)
    assert engine.decide(Stage.EGRESS, example(Stage.EGRESS)).decision == "deny"
    engine.close()


def test_a_slow_embedded_engine_is_a_denial(bundle: Bundle) -> None:
    slow = """package comity.egress

deny contains 1 if {
	input.result.clipped == 7
	count([1 | some a in numbers.range(1, 400); some b in numbers.range(1, 400); a * b < 0]) > 0
}
"""
    engine = EmbeddedEngine(_with(bundle, "own/slow.rego", slow), timeout_ms=5)
    document = example(Stage.EGRESS)
    document["result"]["clipped"] = 7
    started = time.monotonic()
    decision = engine.decide(Stage.EGRESS, document)
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_TIMEOUT")
    assert time.monotonic() - started < 10


def test_shipped_folder_is_the_checkout() -> None:
    assert (shipped_folder() / "lib" / "lib.rego").is_file()
