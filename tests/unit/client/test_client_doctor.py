"""The doctor names what is wrong, and what mends it."""

from __future__ import annotations

import datetime
import json
import socket
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import issuer as provider

from comity_client import doctor
from comity_client.doctor import BAD, GOOD, WARNING, Finding

# A stand-in for `comity policy lint`: prints nothing and succeeds, or fails with a reason.
LINT_GOOD = [sys.executable, "-c", ""]
LINT_BAD = [sys.executable, "-c", "import sys; print('BUNDLE_INVALID: hours'); sys.exit(2)"]


def certificate(days: float) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-a")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(days=100))
    builder = builder.not_valid_after(now + datetime.timedelta(days=days))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node's folder as `join` leaves it, the node not running, the coordinator's port closed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"org": "hospital-a", "consortium": "oncology", "coordinator": f"127.0.0.1:{port}"}
    (tmp_path / "node.json").write_text(json.dumps(settings))
    keys = tmp_path / "keys" / ("tls-" + "0" * 32)
    keys.mkdir(parents=True)
    for folder in (keys, keys.parent):
        folder.chmod(0o700)
    files = {keys / "cert.pem": certificate(80.5), keys / "ca.pem": certificate(80), keys / "key.pem": b"k"}
    files |= {keys.parent / "tls-current": keys.name.encode(), keys.parent / "org.json": b"{}"}
    files |= {tmp_path / "api.token": b"t"}
    for path, data in files.items():
        path.write_bytes(data)
        path.chmod(0o600)
    data = tmp_path / "patients.csv"
    data.write_text("age\n1\n")
    entries = [{"name": "patients", "format": "csv", "source": str(data), "records": 1}]
    (tmp_path / "datasets.json").write_text(json.dumps({"datasets": entries}))
    return tmp_path


def found(home: Path, check: str, lint: list[str] = LINT_GOOD) -> list[Finding]:
    return [each for each in doctor.examine(home, lint) if each.check == check]


def only(home: Path, check: str, lint: list[str] = LINT_GOOD) -> Finding:
    (finding,) = found(home, check, lint)
    assert finding.verdict == GOOD or finding.fix, "whatever is wrong has a fix"
    return finding


def test_every_check_speaks(home: Path) -> None:
    checks = {each.check for each in doctor.examine(home, LINT_GOOD)}
    assert checks == {
        *("settings", "socket", "key modes", "certificate", "coordinator", "clock", "policy", "policy engine"),
        *("isolation", "datasets", "disk space", "people"),
    }


def test_a_good_folder_is_found_good(home: Path) -> None:
    bad = {each.check for each in doctor.examine(home, LINT_GOOD) if each.verdict == BAD}
    assert bad == {"socket", "coordinator"}


def test_a_folder_without_a_node(tmp_path: Path) -> None:
    (finding,) = doctor.examine(tmp_path, LINT_GOOD)
    assert (finding.check, finding.verdict) == ("settings", BAD)
    assert "comity node join" in finding.fix


@pytest.mark.parametrize("text", ["{", "[]", '{"org": "a"}', "[" * 100_000])
def test_damaged_settings(home: Path, text: str) -> None:
    (home / "node.json").write_text(text)
    assert only(home, "settings").verdict == BAD


def test_loose_modes_are_named(home: Path) -> None:
    (home / "keys" / "org.json").chmod(0o644)
    (home / "api.token").chmod(0o640)
    findings = found(home, "key modes")
    assert [each.verdict for each in findings] == [BAD, BAD]
    assert findings[0].fix == f"chmod 600 {home / 'keys' / 'org.json'}"


@pytest.mark.parametrize(("days", "verdict"), [(30.5, GOOD), (3.5, WARNING), (-1, BAD)])
def test_the_certificate_ages(home: Path, days: float, verdict: str) -> None:
    (home / "keys" / ("tls-" + "0" * 32) / "cert.pem").write_bytes(certificate(days))
    assert only(home, "certificate").verdict == verdict


def test_the_pointer_to_the_certificate_cannot_leave_the_folder(home: Path) -> None:
    (home / "keys" / "tls-current").write_text("../../elsewhere")
    assert only(home, "certificate").verdict == BAD


def test_a_closed_port_is_told(home: Path) -> None:
    finding = only(home, "coordinator")
    assert finding.verdict == BAD
    assert "may this machine dial out" in finding.fix


def test_an_impostor_at_the_coordinators_address(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = json.loads((home / "node.json").read_text())
        settings["coordinator"] = f"127.0.0.1:{server.getsockname()[1]}"
        (home / "node.json").write_text(json.dumps(settings))
        server.settimeout(0.01)
        doctor_timeout, doctor.PROBE_TIMEOUT_S = doctor.PROBE_TIMEOUT_S, 0.2
        try:
            assert only(home, "coordinator").verdict == BAD
        finally:
            doctor.PROBE_TIMEOUT_S = doctor_timeout


def test_a_policy_that_does_not_load(home: Path) -> None:
    finding = only(home, "policy", LINT_BAD)
    assert finding.verdict == BAD
    assert "BUNDLE_INVALID" in finding.detail


def test_an_engine_out_of_reach(home: Path) -> None:
    settings = json.loads((home / "node.json").read_text())
    (home / "node.json").write_text(json.dumps({**settings, "engine": "opa", "opa_url": "http://127.0.0.1:1"}))
    assert only(home, "policy engine").verdict == BAD


def test_a_dataset_that_is_gone(home: Path) -> None:
    (home / "patients.csv").unlink()
    finding = only(home, "datasets")
    assert finding.verdict == BAD
    assert "patients" in finding.detail


def test_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 60)
    assert only(home, "disk space").verdict == BAD


def test_a_check_that_fails_is_a_finding(home: Path) -> None:
    (home / "datasets.json").write_text("{")
    assert only(home, "datasets").verdict == BAD


def settle(home: Path, **more: object) -> None:
    path = home / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


@pytest.mark.parametrize(("days", "verdict"), [(80.5, GOOD), (3, WARNING), (-1, BAD)])
def test_the_certificate_of_the_port_for_people_ages(home: Path, days: float, verdict: str) -> None:
    assert only(home, "people").verdict == GOOD
    settle(home, listen={"address": "127.0.0.1:0", "certificate": "p.cert.pem", "key": "p.key.pem"})
    assert "not there" in only(home, "people").detail
    (home / "p.cert.pem").write_bytes(certificate(days))
    (home / "p.key.pem").write_bytes(b"k")
    (home / "p.key.pem").chmod(0o640)
    assert "chmod" in only(home, "people").fix
    (home / "p.key.pem").chmod(0o600)
    assert only(home, "people").verdict == verdict


def test_an_identity_provider_is_asked_for_its_name(home: Path) -> None:
    settle(home, oidc={"issuer": "http://127.0.0.1:9", "audience": "a"})
    assert (only(home, "people").verdict, "does not answer" in only(home, "people").detail) == (BAD, True)
    with provider.serving() as issuer:
        settle(home, oidc={"issuer": issuer.url, "audience": "a"})
        assert only(home, "people").verdict == GOOD
        issuer.answers["/.well-known/openid-configuration"] = (200, b'{"issuer": "https://other.example"}')
        assert "calls itself" in only(home, "people").detail
        issuer.answers["/.well-known/openid-configuration"] = (200, b"[]")
        assert only(home, "people").verdict == BAD
