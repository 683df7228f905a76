"""What can be wrong with a node, and what mends it. Every check is a function of a folder; none changes anything.

Checks read files and ask the node, the coordinator's port and the policy engine, each with a bound; a check that fails
itself is a finding too. Secrets are never read: of key files only owner and mode are looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from comity.wire.errors import ComityError, ErrorCode
from comity_client.documents import NodeStatus
from comity_client.sdk import Node

GOOD, WARNING, BAD = "good", "warning", "bad"
FILE_BYTES_MAX = 8 << 20
PROBE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
CERTIFICATE_WARN = timedelta(days=14)
CLOCK_SKEW_MAX = timedelta(minutes=1)
FREE_BYTES_WARN = 2 << 30
FREE_BYTES_MIN = 200 << 20
SOCKET_PATH_BYTES_MAX = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: `verdict` is good, warning or bad; `fix` says what to do, empty if nothing."""

    check: str
    verdict: str
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the form of `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Patient:
    """What the checks look at: the folder, its settings (None if unreadable), the running node's word on itself."""

    home: Path
    comity: list[str]
    settings: dict[str, Any] | None = None
    status: NodeStatus | None = None

    def setting(self, name: str, default: Any = "") -> Any:
        """Return one setting."""
        return default if self.settings is None else self.settings.get(name, default)


def examine(home: Path, comity: list[str]) -> list[Finding]:
    """Return all findings about the node of `home`; `comity` is how to start the command itself."""
    settings, first = _settings(home)
    if settings is None:
        return [first]
    status, second = _node(home)
    patient = Patient(home, comity, settings, status)
    findings = [first, second]
    for check in CHECKS:
        try:
            findings += list(check(patient))
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, BAD, f"the check itself failed: {type(error).__name__}", "report this"))
    return findings


def _settings(home: Path) -> tuple[dict[str, Any] | None, Finding]:
    path = home / "node.json"
    if not path.exists():
        return None, Finding("settings", BAD, f"no node in {home}", f"comity node join TOKEN --home {home}")
    try:
        document = json.loads(_bounded(path))
        if not isinstance(document, dict) or not {"org", "consortium", "coordinator"} <= document.keys():
            raise ValueError(path.name)
    except (OSError, ValueError, RecursionError):
        fix = "restore it from a backup, or remove the line that you edited last"
        return None, Finding("settings", BAD, "node.json cannot be read as settings", fix)
    return document, Finding("settings", GOOD, f"{document['org']} in {document['consortium']}")


def _node(home: Path) -> tuple[NodeStatus | None, Finding]:
    if len(os.fsencode(home / "api.sock")) > SOCKET_PATH_BYTES_MAX:
        fix = "move the folder to a shorter path, or point --home at a short symbolic link to it"
        return None, Finding("socket", BAD, "the folder's path is too long for a Unix socket", fix)
    try:
        with Node(home) as node:
            status = node.status()
    except ComityError as error:
        fix = f"comity node up --home {home}"
        if error.code is ErrorCode.UNAUTHENTICATED:
            fix = "restart the node: it was started with another api.token"
        return None, Finding("socket", BAD, f"the node does not answer ({error.code})", fix)
    return status, Finding("socket", GOOD, f"the node answers, process {status['pid']}")


def _key_modes(patient: Patient) -> Iterator[Finding]:
    keys = patient.home / "keys"
    if not keys.is_dir():
        yield Finding("key modes", BAD, "there is no folder keys", "restore it from a backup, or join anew")
        return
    loose = [path for path in (keys, *sorted(keys.rglob("*"))) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    token = patient.home / "api.token"
    if token.exists() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        loose.append(token)
    for path in loose:
        mode = "700" if path.is_dir() else "600"
        yield Finding("key modes", BAD, f"{path.name} can be read by others", f"chmod {mode} {path}")
    if not loose:
        yield Finding("key modes", GOOD, "only this user can read keys and token")


def _people(patient: Patient) -> Iterator[Finding]:
    listen, oidc = patient.setting("listen"), patient.setting("oidc")
    if not listen and not oidc:
        yield Finding("people", GOOD, "this node's own user only; no port for people, no identity provider")
    if listen:
        yield _people_port(patient.home / listen["certificate"], patient.home / listen["key"])
    if oidc:
        yield _provider(patient.home, oidc)


def _people_port(certificate: Path, key: Path) -> Finding:
    from cryptography import x509

    make = "comity access certificate NAME --replace, or name another pair in node.json"
    if not certificate.exists() or not key.exists():
        return Finding("people", BAD, "the port's certificate or key is not there", make)
    if stat.S_IMODE(key.stat().st_mode) & 0o077:
        return Finding("people", BAD, f"{key.name} can be read by others", f"chmod 600 {key}")
    left = x509.load_pem_x509_certificate(_bounded(certificate)).not_valid_after_utc - datetime.now(UTC)
    if left <= timedelta(0):
        return Finding("people", BAD, "the port's certificate has expired", make)
    if left < CERTIFICATE_WARN:
        return Finding("people", WARNING, f"the port's certificate expires in {left.days} days", make)
    return Finding("people", GOOD, f"the port's certificate is valid for {left.days} days")


def _provider(home: Path, oidc: dict[str, Any]) -> Finding:
    issuer, ca = str(oidc["issuer"]), oidc.get("ca_file")
    verify = ssl.create_default_context(cafile=str(home / ca)) if ca else ssl.create_default_context()
    url = issuer.rstrip("/") + "/.well-known/openid-configuration"
    fix = "correct oidc.issuer in node.json; nobody logs in before this answers"
    try:
        answer = httpx.get(url, timeout=PROBE_TIMEOUT_S, verify=verify, trust_env=False)
        named = answer.json().get("issuer")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        return Finding("people", BAD, f"{issuer} does not answer: {type(error).__name__}", fix)
    if named != issuer:
        return Finding("people", BAD, f"{issuer} calls itself {str(named)[:200]}", fix)
    return Finding("people", GOOD, f"{issuer} answers")


def _certificate(patient: Patient) -> Iterator[Finding]:
    from cryptography import x509

    path = _tls_file(patient.home, "cert.pem")
    if path is None:
        yield Finding("certificate", BAD, "there is no TLS certificate", "join anew, or restore keys/ from a backup")
        return
    certificate = x509.load_pem_x509_certificate(_bounded(path))
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    rotate = f"comity node rotate --home {patient.home}"
    if certificate.not_valid_before_utc > datetime.now(UTC):
        yield Finding("certificate", BAD, "the certificate is not valid yet", "set this machine's clock (NTP)")
    elif left <= timedelta(0):
        yield Finding("certificate", BAD, "the certificate has expired", "ask a member for a new invitation, then join")
    elif left < CERTIFICATE_WARN:
        yield Finding("certificate", WARNING, f"the certificate expires in {left.days} days", rotate)
    else:
        yield Finding("certificate", GOOD, f"valid for {left.days} days")


def _coordinator(patient: Patient) -> Iterator[Finding]:
    address = str(patient.setting("coordinator"))
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S) as raw:
            _handshake(patient.home, host.strip("[]"), raw)
    except ssl.SSLCertVerificationError as error:
        fix = "check the address in node.json; if it is right, somebody else answers there"
        yield Finding("coordinator", BAD, f"{address} is not our coordinator: {error.verify_message}", fix)
        return
    except (OSError, ValueError) as error:
        fix = f"is the coordinator up, and may this machine dial out to {address}?"
        yield Finding("coordinator", BAD, f"{address} cannot be reached: {_why(error)}", fix)
        return
    yield Finding("coordinator", GOOD, f"{address} answers under our authority")
    if patient.status is not None and not patient.status["link"]["connected"]:
        error_json = patient.status["link"]["error"] or {}
        detail = f"the stream is not open: {error_json.get('code', 'no error yet')} {error_json.get('detail', '')}"
        yield Finding("stream", BAD, detail.strip(), "the node retries by itself; REVOKED needs the operator")
    elif patient.status is not None:
        yield Finding("stream", GOOD, f"open since {patient.status['link']['since']}")


def _handshake(home: Path, host: str, raw: socket.socket) -> None:
    """Check that whoever answers holds a certificate of our authority; sends no application data."""
    authority = _tls_file(home, "ca.pem")
    if authority is None:
        raise ValueError("no authority's certificate in keys/")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(authority)
    context.wrap_socket(raw, server_hostname=host).close()


def _charter(patient: Patient) -> Iterator[Finding]:
    if patient.status is None or not patient.status["link"]["connected"]:
        return
    version = patient.status["charter_version"]
    if version is not None:
        yield Finding("charter", GOOD, f"version {version} is in force, genesis {patient.status['genesis']}")
    elif typed := patient.setting("genesis", None):
        fix = "compare it by telephone; if it was mistyped, correct genesis in node.json and restart the node"
        yield Finding("charter", BAD, f"none here has the digest typed at join, {typed}", fix)
    else:
        fix = f"comity genesis show --home {patient.home}, then comity genesis sign DIGEST"
        yield Finding("charter", WARNING, "not signed by every founder yet", fix)


def _clock(patient: Patient) -> Iterator[Finding]:
    """The node compares its clock with the coordinator's heartbeats; without them, with the file system's."""
    link: dict[str, Any] = {} if patient.status is None else dict(patient.status["link"])
    skew_s = link.get("clock_skew_s")
    if not isinstance(skew_s, int | float):
        probe = patient.home / "api.token"
        ahead = datetime.fromtimestamp(probe.stat().st_mtime, UTC) - datetime.now(UTC)
        if ahead > CLOCK_SKEW_MAX:
            yield Finding("clock", BAD, "files here are younger than the present", "set this machine's clock (NTP)")
        else:
            yield Finding("clock", GOOD, "behind none of this node's files")
    elif abs(skew_s) > CLOCK_SKEW_MAX.total_seconds():
        yield Finding("clock", BAD, f"{skew_s:.0f} s off the coordinator's", "set this machine's clock (NTP)")
    else:
        yield Finding("clock", GOOD, f"{abs(skew_s):.0f} s off the coordinator's")


def _policy(patient: Patient) -> Iterator[Finding]:
    folder = patient.home / "policy"
    done = subprocess.run(
        [*patient.comity, "policy", "lint", str(folder), "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        yield Finding("policy", GOOD, "the bundle loads")
    else:
        detail = (done.stdout.strip() or done.stderr.strip()).splitlines()
        yield Finding("policy", BAD, (detail or ["the bundle does not load"])[-1][:300], f"comity policy lint {folder}")


def _opa(patient: Patient) -> Iterator[Finding]:
    if patient.setting("engine", "embedded") != "opa":
        yield Finding("policy engine", GOOD, "embedded")
        return
    url = str(patient.setting("opa_url") or "")
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S, trust_env=False)
        healthy = answer.is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        healthy = False
    if healthy:
        yield Finding("policy engine", GOOD, f"OPA answers at {url}")
    else:
        fix = "start OPA there, or set engine to embedded in node.json; until then everything is denied"
        yield Finding("policy engine", BAD, f"no healthy OPA at {url or 'no URL'}", fix)


def _isolation(patient: Patient) -> Iterator[Finding]:
    wanted = str(patient.setting("isolation", "best"))
    have = patient.status["isolation"] if patient.status else ("sandbox" if shutil.which("bwrap") else "process")
    if have == "process":
        fix = "install bubblewrap (apt install bubblewrap) and restart the node"
        verdict = BAD if wanted in {"sandbox", "container"} else WARNING
        yield Finding("isolation", verdict, "apps run in a plain process; stricter terms will refuse this node", fix)
    else:
        yield Finding("isolation", GOOD, f"apps run in a {have}")


def _datasets(patient: Patient) -> Iterator[Finding]:
    path = patient.home / "datasets.json"
    if not path.exists():
        fix = f"comity datasets add NAME FILE --home {patient.home}"
        yield Finding("datasets", WARNING, "no dataset is named yet", fix)
        return
    entries = json.loads(_bounded(path))["datasets"]
    for entry in entries:
        name, source = str(entry["name"]), str(entry["source"])
        if entry["format"] == "sql":
            if not os.environ.get(source):
                detail = f"{name}: {source} is not set here"
                yield Finding("datasets", WARNING, detail, "set it where the node is started")
        elif not os.access(source, os.R_OK):
            fix = f"make the file readable, or comity datasets add {name} FILE --replace"
            yield Finding("datasets", BAD, f"{name}: the file cannot be read", fix)
        else:
            yield Finding("datasets", GOOD, f"{name}: {entry['records']} records")


def _disk(patient: Patient) -> Iterator[Finding]:
    free = shutil.disk_usage(patient.home).free
    detail = f"{free / (1 << 30):.1f} GiB free"
    if free < FREE_BYTES_MIN:
        yield Finding("disk space", BAD, detail, "free some space: the node refuses work when its journal cannot grow")
    elif free < FREE_BYTES_WARN:
        yield Finding("disk space", WARNING, detail, "free some space before large models are trained")
    else:
        yield Finding("disk space", GOOD, detail)


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    _key_modes,
    _certificate,
    _people,
    _coordinator,
    _charter,
    _clock,
    _policy,
    _opa,
    _isolation,
    _datasets,
    _disk,
)


def _tls_file(home: Path, name: str) -> Path | None:
    """Return a file of the current TLS set; `keys/tls-current` names the folder (comity_crypto: keystore.py)."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        folder = (home / "keys" / "tls-current").read_text(encoding="ascii")[:64].strip()
        path = home / "keys" / Path(folder).name / name
        return path if path.is_file() else None
    return None


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(path.name)
    return data


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
