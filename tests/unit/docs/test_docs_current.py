"""The handbook says what the code says: generated pages are current, remedies whole, named commands and links exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer.main

from comity.wire.catalog import CATALOG
from comity.wire.errors import ErrorCode
from comity.wire.remedies import REMEDIES
from comity_client.main import build_app

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md"]
)
_COMMAND = re.compile(r"\bcomity((?: [a-z][a-z-]+)+)")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def comity() -> click.Group:
    found = typer.main.get_command(build_app())
    assert isinstance(found, click.Group)
    return found


@pytest.mark.parametrize("name", ["errors.md", "cli.md", "access.md", "terms.md"])
def test_generated_page_is_current(generate: ModuleType, name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name](), "run python docs/generate.py"


def test_every_code_has_a_remedy() -> None:
    assert set(REMEDIES) == set(ErrorCode) == set(CATALOG)
    assert all(text.endswith(".") and len(text) <= 160 for text in REMEDIES.values())


def unknown_commands(text: str, comity: click.Group) -> list[str]:
    """Commands in code spans and code blocks that do not exist."""
    wrong = []
    blocks = re.findall(r"```console\n(.*?)```", text, re.S) + re.findall(r"`(comity [^`]+)`", text)
    for match in (found for block in blocks for found in _COMMAND.finditer(block)):
        command: click.Command = comity
        for word in match[1].split():
            if not isinstance(command, click.Group):
                break
            if word not in command.commands:
                wrong.append(match[0])
                break
            command = command.commands[word]
    return wrong


def test_a_wrong_command_is_found(comity: click.Group) -> None:
    assert unknown_commands("`comity node jion -` and `comity genesis show`", comity) == ["comity node jion"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_of_a_page_exist(page: Path, comity: click.Group) -> None:
    text = page.read_text()
    assert unknown_commands(text, comity) == []
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []


def test_commands_of_the_remedies_exist(comity: click.Group) -> None:
    assert [wrong for text in REMEDIES.values() for wrong in unknown_commands(text, comity)] == []


def test_every_command_shows_an_example(comity: click.Group, generate: ModuleType) -> None:
    leaves = [(name, text) for name, text in generate.helps(comity, "comity", None) if "Commands:" not in text]
    assert len(leaves) > 25
    assert [name for name, text in leaves if "Example" not in text and name != "comity version"] == []
