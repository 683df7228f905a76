"""Runs a bundle's own `test_*` rules: on the embedded engine, and with OPA's test command.

Rules: a test passes if its rule is true; undefined, false and an error are failures; a folder without tests says so
(no tests is not the same as passing). Modules and tests run in an engine of their own, which decides nothing. The
shipped tests are about the shipped modules, and run without an organisation's own, whose rules may well deny what they
expect to be allowed; an organisation's tests run over both.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError
from comity_policies import embedded, portable
from comity_policies.bundle import OWN, Bundle

OPA_TEST_TIMEOUT_S = 60.0
OPA_OUTPUT_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test rule; `problem` is empty when it passed."""

    file: str
    rule: str
    problem: str = ""


def run_embedded(bundle: Bundle) -> list[Outcome]:
    """Run every test rule on the embedded engine, in file and rule order."""
    with ThreadPoolExecutor(max_workers=1) as thread:  # the engine lives and dies in one thread
        return thread.submit(_run_here, bundle).result()


def _run_here(bundle: Bundle) -> list[Outcome]:
    return [outcome for modules, tests in _parts(bundle) for outcome in _run_part(modules, tests, bundle.data)]


def _parts(bundle: Bundle) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Return (modules, tests) that belong together."""

    def apart(texts: Mapping[str, str], *, own: bool) -> dict[str, str]:
        return {name: text for name, text in texts.items() if name.startswith(OWN) == own}

    shipped = (apart(bundle.modules, own=False), apart(bundle.tests, own=False))
    mine = (dict(bundle.modules), apart(bundle.tests, own=True))
    return [part for part in (mine, shipped) if part[1]]


def _run_part(modules: dict[str, str], tests: dict[str, str], base: dict[str, Any]) -> list[Outcome]:
    texts = {**modules, **tests}
    trees = portable.syntax_trees(texts)
    data = json.dumps(base)
    engine = embedded.build(dict(texts), data)
    outcomes = []
    for file in sorted(tests):
        for rule in portable.test_rules(trees[file]):
            problem = _problem(engine, f"{portable.package_of(trees[file])}.{rule}")
            outcomes.append(Outcome(file, rule, problem))
            if problem:
                engine = embedded.build(dict(texts), data)  # after a panic its state is unknown
    return outcomes


def _problem(engine: Any, path: str) -> str:
    try:
        return "" if embedded.evaluate(engine, path, "{}") is True else "is not true"
    except ComityError:
        return "is undefined"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the engine's panics are no `Exception`
        return f"failed: {embedded.headline(error)}"


def run_opa(bundle: Bundle, opa: Path) -> list[Outcome]:
    """Run every test rule with the OPA binary `opa`.

    Raises:
        ComityError: `BUNDLE_INVALID` if OPA cannot compile the bundle or does not answer in time.
    """
    return [outcome for modules, tests in _parts(bundle) for outcome in _run_opa({**modules, **tests}, bundle, opa)]


def _run_opa(texts: dict[str, str], bundle: Bundle, opa: Path) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            path = Path(folder) / "rego" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        data = Path(folder) / "data.json"
        data.write_text(json.dumps(bundle.data), encoding="utf-8")
        command = [str(opa), "test", "--format=json", str(Path(folder) / "rego"), str(data)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=OPA_TEST_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise portable.refuse(f"opa test did not finish: {type(error).__name__}") from None
        return _parse_opa(done.stdout[:OPA_OUTPUT_BYTES_MAX], done.stderr, Path(folder) / "rego")


def _parse_opa(output: bytes, said: bytes, folder: Path) -> list[Outcome]:
    try:
        rows = json.loads(output)
        outcomes = [
            Outcome(
                Path(row["location"]["file"]).relative_to(folder).as_posix(),
                str(row["name"]),
                "is not true" if row.get("fail") else "failed" if row.get("error") else "",
            )
            for row in rows
        ]
    except (ValueError, KeyError, TypeError):
        why = said.decode("utf-8", "replace").replace(f"{folder}/", "")
        line = next((each.strip() for each in why.splitlines() if ".rego:" in each), "")[:300]
        raise portable.refuse(f"opa test could not compile the bundle: {line}") from None
    return sorted(outcomes, key=lambda each: (each.file, each.rule))
