"""A whole node, built and not run, with its real routes; nothing is dialled."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter

from comity_crypto.keys import OrgKeys
from comity_crypto.keystore import FileKeyStore
from comity_node import app
from comity_node.settings import NodeSettings
from comity_policies.bundle import write_defaults


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[app.Node]:
    home: Path = tmp_path_factory.mktemp("node")
    settings = NodeSettings(
        home=home,
        org="hospital-a",
        consortium="demo",
        title="A",
        owner="A",
        coordinator="127.0.0.1:1",
        log_key=base64.b64encode(OrgKeys.generate().public.statement).decode(),
    )
    settings.make_folders()
    FileKeyStore(settings.keys_folder).create()
    write_defaults(settings.policy_folder, "hospital-a")
    built = app.Node(settings)
    yield built
    built.context.policy.close()
    built.context.journal.close()


@pytest.fixture(scope="module")
def routers(node: app.Node) -> list[APIRouter]:
    return [app._router(name, node.context) for name in app.CAPABILITIES]
