"""A folder is a node's or a coordinator's, never both: a node there would take the coordinator's keys for its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import setup
from comity_node.membership import service
from comity_node.settings import NodeSettings


def test_a_coordinators_folder_takes_no_node(tmp_path: Path) -> None:
    (tmp_path / "coordinator.json").write_text("{}")
    with pytest.raises(ComityError) as caught:
        service._make_home(tmp_path)
    assert caught.value.code is ErrorCode.CONFLICT


def test_a_nodes_folder_takes_no_coordinator(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text("{}")
    with pytest.raises(ComityError) as caught:
        setup.create(setup.new_settings(tmp_path, "net", "127.0.0.1:7700"))
    assert caught.value.code is ErrorCode.CONFLICT
    assert not (tmp_path / "keys").exists()


def test_no_node_here_names_the_way_to_say_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ComityError, match="--home or COMITY_HOME"):
        NodeSettings.load(tmp_path)
