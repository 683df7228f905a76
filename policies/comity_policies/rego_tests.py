"""Runs a bundle's own `test_*` rules: on the embedded engine, and with OPA's test command.

Rules: a test passes if its rule is true; undefined, false and an error are failures; a folder without tests says so
(no tests is not the same as passing). Modules and tests run in an engine of their own, which decides nothing.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError
from comity_policies import embedded, portable
from comity_policies.bundle import Bundle

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
    texts = {**bundle.modules, **bundle.tests}
    trees = portable.syntax_trees(texts)
    data = json.dumps(bundle.data)
    engine = embedded.build(dict(texts), data)
    outcomes = []
    for file in sorted(bundle.tests):
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
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**bundle.modules, **bundle.tests}.items():
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
        return _parse_opa(done.stdout[:OPA_OUTPUT_BYTES_MAX], Path(folder) / "rego")


def _parse_opa(output: bytes, folder: Path) -> list[Outcome]:
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
        raise portable.refuse("opa test could not compile the bundle") from None
    return sorted(outcomes, key=lambda each: (each.file, each.rule))
