"""The networks that the tests of each profile's machines have in their conftest, for tests of all profiles together."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

PROPERTY = Path(__file__).resolve().parents[1] / "property"


def networks_of(folder: str) -> Any:
    """Return the module of `tests/property/<folder>/conftest.py`."""
    name = f"networks_of_{folder}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PROPERTY / folder / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
