"""A real identity provider, and a policy engine with the shipped rules over settings of the test's choice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import issuer as provider

from comity_node.journal import Journal
from comity_node.settings import OidcSettings
from comity_policies import settings as policy_settings
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.embedded import EmbeddedEngine


@pytest.fixture
def issuer() -> Iterator[provider.Issuer]:
    with provider.serving() as found:
        yield found


@pytest.fixture
def oidc(issuer: provider.Issuer) -> OidcSettings:
    return OidcSettings(issuer=issuer.url, audience=provider.AUDIENCE)


@pytest.fixture(scope="session")
def engine() -> Iterator[Callable[..., EmbeddedEngine]]:
    """Opens the shipped rules over roles of the test's choice, with further Rego if given; the same ones once."""
    opened: dict[str, EmbeddedEngine] = {}

    def make(roles: dict[str, Any] | None = None, own: str = "") -> EmbeddedEngine:
        key = json.dumps([roles, own], sort_keys=True)
        if key not in opened:
            folder = shipped_folder()
            texts = {str(path.relative_to(folder)): path.read_text() for path in folder.glob("*/*.rego")}
            data = policy_settings.defaults("hospital-a")
            data["access"]["roles"].update(roles or {})
            bundle = Bundle.of({**texts, **({"own/access.rego": own} if own else {})}, data)
            opened[key] = EmbeddedEngine(bundle, timeout_ms=2_000)
        return opened[key]

    yield make
    for each in opened.values():
        each.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    from comity_node.access import store as _tables  # noqa: F401 - defines its table

    opened = Journal.open(tmp_path / "journal.db")
    opened.create_all()
    yield opened
    opened.close()
