"""For every test: the wire's TLS rule stands before gRPC is imported, recursion keeps its limit, logs are plain, effort
is chosen.

py_ecc raises the recursion limit to 100,000 when it is imported; the product puts it back (`quorum.py`), so do we.

Logs go through the processors of the product: the pretty tracebacks that structlog draws otherwise block for seconds.

Hypothesis repeats the same few examples at every `make test`; with `COMITY_TEST_THOROUGH=1` (`make test-slow`) it looks
for new ones, many more of them. A test that sets `max_examples` itself keeps its number in both.

Compiled modules are kept, even where the environment says otherwise: the tests start hundreds of processes, and each
would compile the product again; so would each of the processes that share the tests, with every test.

Where several processes share the tests, a file at a time, those with the longest ones come first; else units do.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402
import structlog  # noqa: E402
from hypothesis import settings  # noqa: E402

import comity as comity  # noqa: E402

_LIMIT = sys.getrecursionlimit()

import py_ecc.bls  # noqa: E402, F401

sys.setrecursionlimit(_LIMIT)

from comity.wire import logs  # noqa: E402

structlog.configure(
    processors=logs.PROCESSORS,
    logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # looked up each time: pytest changes it
    cache_logger_on_first_use=False,
)

settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)
settings.load_profile("thorough" if os.environ.get("COMITY_TEST_THOROUGH") == "1" else "quick")

E2E_TIMEOUT_S = 600
LONGEST_FIRST = ("e2e", "faults", "contract", "replay", "property", "unit")
_ROOT = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by layer (within one, the order stays) and give end to end tests their time."""
    layers = LONGEST_FIRST if "PYTEST_XDIST_WORKER" in os.environ else reversed(LONGEST_FIRST)
    place = {layer: number for number, layer in enumerate(layers)}
    items.sort(key=lambda item: place.get(_layer(item), len(place)))
    for item in items:
        if _layer(item) == "e2e" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(E2E_TIMEOUT_S))


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Every database that the coordinator runs on (`harness.databases.Databases`); servers start when asked for."""
    sys.path.insert(0, str(_ROOT))
    from harness.databases import of_run

    opened = of_run(tmp_path_factory)
    yield opened
    opened.close()


def _layer(item: pytest.Item) -> str:
    return item.path.relative_to(_ROOT).parts[0]
