"""An OPA server as policy engine, through opa-python-client (infra.md sections 2.6 and 2.7).

Rules:
1. the server loads the bundle itself (`opa run --server -b bundle.tar.gz`, or a bundle service): nothing is uploaded,
   because the client's text upload rewrites policies;
2. an answer counts only if it is 200 with a `result` of the agreed form, and the server says that it decided with our
   bundle's digest as revision; undefined is 200 without `result`, and a denial;
3. built-in errors are errors (`strict-builtin-errors`), not undefined;
4. one deadline covers waiting, connecting, and reading a bounded body; no redirect, no proxy, no retry but one after a
   refused connection; after repeated failures the circuit opens and everything is denied at once for a moment;
5. before it decides anything, and again whenever it was out of reach, the server is tried with `prove`; until it has
   passed, everything is denied.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from opa_client.opa import OpaClient
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.access import Granted, roles_with
from comity_policies.bundle import Bundle
from comity_policies.decisions import Decision, Stage
from comity_policies.engine import TIMEOUT_MS, decide_with
from comity_policies.probe import Ask

NAME = "opa-server"
ANSWER_BYTES_MAX = 1 << 20
READ_BYTES = 64 << 10
CONNECTIONS = 4
FAILURES_TO_OPEN = 3
OPEN_S = 1.0
_OTHER_BUNDLE = "the OPA server decides with another bundle"
QUERY = {"strict-builtin-errors": "true", "provenance": "true"}


class _BoundedAdapter(HTTPAdapter):
    """Reads at most `ANSWER_BYTES_MAX` within the deadline; the stock adapter bounds neither."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(max_retries=Retry(total=0, connect=1, read=0, redirect=0, status=0, backoff_factor=0))
        self._timeout_s = timeout_s

    def send(
        self,
        request: Any,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Any:
        """Send, and read the whole body here."""
        deadline = time.monotonic() + self._timeout_s
        response = super().send(request, stream=True, timeout=timeout, verify=verify, cert=cert, proxies=proxies)
        body = bytearray()
        try:
            for part in response.iter_content(READ_BYTES):
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise ComityError(ErrorCode.POLICY_ERROR, "the OPA server's answer is too large")
                if time.monotonic() > deadline:
                    raise ComityError(ErrorCode.POLICY_TIMEOUT, "the OPA server was too slow")
        except requests.ConnectionError as error:
            if error.args and isinstance(error.args[0], ReadTimeoutError):
                raise requests.ReadTimeout from None
            raise
        finally:
            response.close()
        response._content = bytes(body)
        return response


class _Client(OpaClient):  # type: ignore[misc]  # it has no types
    """The client with our transport: bounded, without proxies and redirects, a private CA allowed."""

    def _init_session(self) -> Any:
        session = super()._init_session()
        session.trust_env = False
        session.max_redirects = 0
        for scheme in ("http://", "https://"):
            session.mount(scheme, _BoundedAdapter(self.timeout))
        return session


class OpaServerEngine:
    """A `PolicyEngine` that asks an OPA server.

    The server need not be up when the engine is made: until it is, every decision is a denial.

    Args:
        url: `http(s)://host:port`.
        bundle: what the server must decide with.
        timeout_ms: deadline of one decision.
        ca: CA file for `https`; by default the system's.
        prove: raises if the engine behind the function that it is given cannot run the bundle faithfully (`probe.py`).

    Raises:
        ComityError: `BUNDLE_INVALID` if the URL is none.
    """

    name = NAME

    def __init__(
        self,
        url: str,
        bundle: Bundle,
        timeout_ms: int = TIMEOUT_MS,
        ca: Path | None = None,
        prove: Callable[[Ask], None] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ComityError(ErrorCode.BUNDLE_INVALID, "the OPA server is named by http(s)://host:port")
        secure = parts.scheme == "https"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.bundle_digest = bundle.digest
        self._timeout_s = timeout_ms / 1000
        self._clients: queue.LifoQueue[Any] = queue.LifoQueue(CONNECTIONS)
        for _ in range(CONNECTIONS):
            self._clients.put_nowait(
                _Client(
                    host=host,
                    port=parts.port or (443 if secure else 8181),
                    ssl=(str(ca) if ca else True) if secure else False,
                    retries=0,
                    timeout=self._timeout_s,
                )
            )
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._closed = threading.Event()
        self._prove = prove
        self._proved = prove is None
        self._has_our_bundle = False

    @property
    def circuit_open(self) -> bool:
        """Whether the server has failed so often that it is not asked for a moment."""
        return time.monotonic() < self._open_until

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        """Decide; see `PolicyEngine`."""
        return decide_with(self.ask, stage, document, self.bundle_digest, self.name)

    def roles(self, document: dict[str, Any]) -> Granted:
        """Return a person's roles; see `access.RolePolicy`."""
        return roles_with(self.ask, document)

    def close(self) -> None:
        """Close the connections; later decisions are denials."""
        self._closed.set()
        for _ in range(CONNECTIONS):
            try:
                self._clients.get_nowait().close_connection()
            except queue.Empty:
                break

    def ask(self, package: str, document: dict[str, Any]) -> Any:
        """Return `data.comity.<package>.result`, once the server has passed (rule 5). Raises `POLICY_*`."""
        if not self._proved:
            try:
                self.prove()
            except ComityError as error:
                code = error.code if error.code.startswith("POLICY_") else ErrorCode.POLICY_ERROR
                raise ComityError(code, error.detail) from error
        return self._evaluate(package, document)

    def prove(self) -> None:
        """Try the server with the probe.

        Raises:
            ComityError: `BUNDLE_INVALID` if it cannot run the bundle faithfully; `POLICY_UNAVAILABLE` or
                `POLICY_TIMEOUT` if it is out of reach, or holds another bundle by now.
        """
        if self._prove is not None:
            try:
                self._prove(self._evaluate)
            except ComityError as error:
                if error.code == ErrorCode.BUNDLE_INVALID and not self._has_our_bundle:
                    raise ComityError(ErrorCode.POLICY_UNAVAILABLE, _OTHER_BUNDLE) from error
                raise
        self._proved = True

    def _evaluate(self, stage: str, document: dict[str, Any]) -> Any:
        if self._closed.is_set():
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the policy engine is closed")
        if self.circuit_open:
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the OPA server failed repeatedly")
        started = time.monotonic()
        try:
            client = self._clients.get(timeout=self._timeout_s)
        except queue.Empty:
            raise ComityError(ErrorCode.POLICY_TIMEOUT, "too many policy decisions wait") from None
        try:
            answer = self._ask(client, stage, document)
        finally:
            if self._closed.is_set():
                client.close_connection()
            else:
                self._clients.put_nowait(client)
        if time.monotonic() - started > self._timeout_s:
            raise ComityError(ErrorCode.POLICY_TIMEOUT, "the OPA server was too slow")
        return self._judge(answer)

    def _ask(self, client: Any, stage: str, document: dict[str, Any]) -> Any:
        try:
            answer = client.query_rule(document, f"comity/{stage}", "result", QUERY)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            raise ComityError(ErrorCode.POLICY_ERROR, "the OPA server reported an error", status=status) from None
        except requests.ConnectTimeout:
            self._count_failure()
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the OPA server is out of reach") from None
        except requests.Timeout:
            self._count_failure()
            raise ComityError(ErrorCode.POLICY_TIMEOUT, "the OPA server was too slow") from None
        except requests.ConnectionError:
            self._count_failure()
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the OPA server is out of reach") from None
        except ValueError:
            raise ComityError(ErrorCode.POLICY_ERROR, "the OPA server's answer is not JSON") from None
        with self._lock:
            self._failures = 0
        return answer

    def _judge(self, answer: Any) -> Any:
        """Apply rule 2 to a parsed body."""
        if not isinstance(answer, dict) or "warning" in answer:
            raise ComityError(ErrorCode.POLICY_ERROR, "the OPA server's answer is not in the agreed form")
        provenance = answer.get("provenance")
        bundles = provenance.get("bundles") if isinstance(provenance, dict) else None
        revisions = [each.get("revision") for each in bundles.values()] if isinstance(bundles, dict) else []
        self._has_our_bundle = revisions == [self.bundle_digest]
        if not self._has_our_bundle:
            raise ComityError(ErrorCode.POLICY_ERROR, _OTHER_BUNDLE)
        if "result" not in answer:
            raise ComityError(ErrorCode.POLICY_UNDEFINED, "the policy has no answer to this")
        return answer["result"]

    def _count_failure(self) -> None:
        with self._lock:
            self._proved = self._prove is None
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._failures = 0
                self._open_until = time.monotonic() + OPEN_S
