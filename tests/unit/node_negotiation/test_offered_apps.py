"""Apps from people's own machines: what is kept, what is refused; nobody elsewhere names a folder of the node."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from comity.wire.authorisation import Principal
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.bundle import build_app
from comity_client.uploads import APP_BYTES_MAX, files_of
from comity_node.access.model import LOCAL, ROLES
from comity_node.negotiation import offered
from comity_node.negotiation.offered import OfferedApps

APP = Path(__file__).resolve().parents[3] / "examples" / "hospitals" / "app"
ADA = Principal("ada", ROLES, "oidc")


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def apps(tmp_path: Path) -> OfferedApps:
    return OfferedApps(tmp_path)


def code_of(function, *arguments) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        function(*arguments)
    return error.value.code


def test_an_app_that_was_sent_is_the_app_that_was_there(apps, tmp_path) -> None:
    digest = apps.keep(files_of(APP))
    assert digest == build_app(APP).digest
    assert apps.keep(files_of(APP)) == digest
    folder = apps.folder(Path(f"uploaded/{digest}"), ADA)
    assert build_app(folder).digest == digest
    assert [each.name for each in (tmp_path / "offered").iterdir()] == [digest]
    assert (folder.stat().st_mode & 0o077, (tmp_path / "offered").stat().st_mode & 0o077) == (0, 0)


@pytest.mark.parametrize(
    "name",
    ["keys", "/etc", ".", "..", "uploaded", "uploaded/../keys", f"uploaded/{'a' * 63}", f"x/uploaded/{'a' * 64}"],
)
def test_nobody_elsewhere_names_a_folder_of_the_node(apps, name) -> None:
    for via in ("oidc", "token"):
        assert code_of(apps.folder, Path(name), Principal("ada", ROLES, via)) is ErrorCode.FORBIDDEN
    assert apps.folder(Path(name), LOCAL) == Path(name)


def test_an_app_that_is_not_here(apps) -> None:
    for who in (ADA, LOCAL):
        assert code_of(apps.folder, Path(f"uploaded/{'a' * 64}"), who) is ErrorCode.NOT_FOUND


GOOD = {"pyproject.toml": text((APP / "pyproject.toml").read_bytes())}


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"readme.txt": text(b"no app")},
        {**GOOD, "../evil.py": text(b"x")},
        {**GOOD, "/evil.py": text(b"x")},
        {**GOOD, "a//b.py": text(b"x")},
        {**GOOD, "a/./b.py": text(b"x")},
        {**GOOD, "a/": text(b"x")},
        {**GOOD, "": text(b"x")},
        {**GOOD, ".hidden": text(b"x")},
        {**GOOD, "a\x00b": text(b"x")},
        {**GOOD, "/".join(["d"] * 40): text(b"x")},
        {**GOOD, "x.py": "not base64!"},
        {**GOOD, "pyproject.toml/x.py": text(b"x")},
        {**GOOD, "x": text(b"x"), "x/y": text(b"y")},
    ],
)
def test_what_is_no_app_leaves_nothing(apps, tmp_path, files) -> None:
    assert code_of(apps.keep, files) is ErrorCode.APP_INVALID
    assert list((tmp_path / "offered").iterdir()) == []
    assert {each.name for each in tmp_path.iterdir()} == {"offered"}


def test_the_oldest_make_room(apps, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(offered, "OFFERED_MAX", 3)
    files = files_of(APP)
    digests = [apps.keep({**files, "note.txt": text(str(number).encode())}) for number in range(6)]
    kept = {each.name for each in (tmp_path / "offered").iterdir()}
    assert len(kept) == 3
    assert digests[-1] in kept


def test_what_is_sent_is_bounded_and_without_links(tmp_path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (APP_BYTES_MAX + 1))
    assert code_of(files_of, tmp_path) is ErrorCode.TOO_LARGE
    (tmp_path / "big").unlink()
    (tmp_path / ".secret").write_text("hidden")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("cache")
    (tmp_path / "a.py").write_text("1")
    assert list(files_of(tmp_path)) == ["a.py"]
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert code_of(files_of, tmp_path) is ErrorCode.APP_INVALID
