"""Both policy engines over one bundle; the OPA server is a real one, started here."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comity_policies import settings
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.embedded import EmbeddedEngine
from comity_policies.engine import PolicyEngine

TIMEOUT_MS = 3000


@pytest.fixture(scope="session")
def opa_binary() -> Path:
    found = shutil.which("opa", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / "go" / "bin")]))
    if found is None:
        pytest.skip("no `opa` on PATH: the contract is proven for the embedded engine only")
    return Path(found)


@pytest.fixture(scope="session")
def hospital_settings() -> dict[str, Any]:
    return settings.defaults("hospital-b") | {"app_digests": ["5f" * 32], "hours": {"from": 6, "to": 22}}


@pytest.fixture(scope="session")
def bundle(hospital_settings: dict[str, Any]) -> Bundle:
    shipped = shipped_folder()
    texts = {path.relative_to(shipped).as_posix(): path.read_text() for path in shipped.glob("*/*.rego")}
    return Bundle.of(texts, hospital_settings)


@pytest.fixture(scope="module")
def start_opa(opa_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Bundle], str]]:
    """Return a function that serves a bundle on an OPA server and returns its URL."""
    running: list[subprocess.Popen[bytes]] = []

    def start(bundle: Bundle) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        archive = tmp_path_factory.mktemp("opa") / "bundle.tar.gz"
        archive.write_bytes(bundle.archive(b"an organisation's signature, which OPA passes over"))
        address = f"127.0.0.1:{port}"
        command = [str(opa_binary), "run", "--server", "--addr", address, "--log-level=error", "--skip-version-check"]
        running.append(subprocess.Popen([*command, "--bundle", str(archive)]))
        deadline = time.monotonic() + 10
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}/health?bundles", timeout=1) as answer:
                    assert answer.status == 200
                    return f"http://{address}"
            except OSError:
                assert time.monotonic() < deadline, "the OPA server did not come up"
                assert running[-1].poll() is None, "the OPA server ended"
                time.sleep(0.05)

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=5)


@pytest.fixture(scope="module")
def open_named(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[str, Bundle], PolicyEngine]]:
    """Return a function that opens the engine called `embedded` or `opa` over a bundle."""
    opened: list[PolicyEngine] = []

    def open_it(name: str, bundle: Bundle) -> PolicyEngine:
        if name == "embedded":
            opened.append(EmbeddedEngine(bundle, timeout_ms=TIMEOUT_MS))
        else:
            from comity_policies.opa import OpaServerEngine

            url = request.getfixturevalue("start_opa")(bundle)
            opened.append(OpaServerEngine(url, bundle, timeout_ms=TIMEOUT_MS))
        return opened[-1]

    yield open_it
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module", params=["embedded", "opa"])
def engine(request: pytest.FixtureRequest, open_named: Callable[[str, Bundle], PolicyEngine], bundle: Bundle) -> Any:
    return open_named(request.param, bundle)
