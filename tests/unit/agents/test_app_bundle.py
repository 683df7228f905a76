"""App bundles: the same folder gives the same digest; a stranger's zip is refused for anything else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower import bundle
from comity_agents.flower.bundle import build_app, fuse_config, inspect_app, unpack

PROJECT = """
[project]
name = "app"
version = "1.2"
dependencies = ["numpy"]
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "pkg.server:app"
clientapp = "pkg.client:app"
[tool.flwr.app.config]
rounds = 3
lr = 0.5
name = "x"
nested.flag = true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    (root / "pkg").mkdir(parents=True)
    (root / "pyproject.toml").write_text(PROJECT)
    for name in ("__init__", "server", "client"):
        (root / "pkg" / f"{name}.py").write_text(f"# {name}\n")
    return root


def refused(call, *parts: str) -> ComityError:
    with pytest.raises(ComityError) as caught:
        call()
    assert caught.value.code is ErrorCode.APP_INVALID
    for part in parts:
        assert part in str(caught.value)
    return caught.value


def test_the_digest_depends_on_the_files_only(folder, tmp_path):
    first = build_app(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / ".secret").write_text("not for others")
    (folder / "pkg" / "server.py").touch()
    assert build_app(folder).digest == first.digest
    assert first.files == ("pkg/__init__.py", "pkg/client.py", "pkg/server.py", "pyproject.toml")
    assert (first.name, first.publisher, first.version) == ("app", "somebody", "1.2")
    assert first.config == {"rounds": 3, "lr": 0.5, "name": "x", "nested.flag": True}
    (folder / "pkg" / "server.py").write_text("# changed\n")
    assert build_app(folder).digest != first.digest


def test_a_bundle_unpacks_to_the_same_bundle(folder, tmp_path):
    made = build_app(folder)
    assert inspect_app(made.data) == made
    unpacked = tmp_path / "out"
    assert unpack(made.data, unpacked).digest == made.digest
    assert build_app(unpacked).digest == made.digest
    assert (unpacked / "pkg").stat().st_mode & 0o777 == 0o700
    assert (unpacked / "pyproject.toml").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ComityError) as caught:
        unpack(made.data, unpacked)
    assert caught.value.code is ErrorCode.CONFLICT


def test_links_sizes_names_and_missing_parts_are_named(folder, monkeypatch):
    (folder / "link.py").symlink_to("/etc/hostname")
    refused(lambda: build_app(folder), "symbolic link", "link.py")
    (folder / "link.py").unlink()
    (folder / "a:b.py").write_text("")
    refused(lambda: build_app(folder), "a:b.py")
    (folder / "a:b.py").unlink()
    monkeypatch.setattr(bundle, "FILE_BYTES_MAX", 1000)
    (folder / "big.txt").write_bytes(b"x" * 1001)
    refused(lambda: build_app(folder), "too large", "big.txt")
    (folder / "big.txt").unlink()
    (folder / "pkg" / "client.py").unlink()
    refused(lambda: build_app(folder), "not there", "pkg.client")
    (folder / "pyproject.toml").unlink()
    refused(lambda: build_app(folder), "no pyproject.toml")
    refused(lambda: build_app(folder / "absent"), "not a folder")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('name = "app"', "name = 5", "project.name"),
        ('publisher = "somebody"', "", "publisher"),
        ("[tool.flwr.app.components]", "[other]", "components"),
        ('"pkg.server:app"', '"pkg/../server"', "serverapp"),
        ("rounds = 3", "rounds = [1]", "rounds"),
        ("[project]", "[project", "TOML"),
    ],
)
def test_a_bad_project_file_says_what_is_wrong(folder, old, new, word):
    (folder / "pyproject.toml").write_text(PROJECT.replace(old, new, 1))
    refused(lambda: build_app(folder), word)


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.comment = comment
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compression)
    return buffer.getvalue()


def test_hostile_zips_are_refused(folder):
    data = build_app(folder).data
    files = {name: (folder / name).read_bytes() for name in build_app(folder).files}
    refused(lambda: inspect_app(b"not a zip"), "zip")
    refused(lambda: inspect_app(data[:-5]), "")
    refused(lambda: inspect_app(data + b"x"), "")
    refused(lambda: inspect_app(b"#!/bin/sh\n" + data), "")
    refused(lambda: inspect_app(archive(files, comment=b"hi")), "do not explain")
    for name in ("../evil.py", "/etc/evil", "pkg/../../evil", "a\\b", "pkg//x", ".hidden", "dir/"):
        refused(lambda name=name: inspect_app(archive({**files, name: b""})))
    refused(lambda: inspect_app(archive({**files, "bomb.txt": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)), "")
    refused(lambda: inspect_app(archive({f"f{n}": b"" for n in range(2001)})), "too many files")
    refused(lambda: inspect_app(bytes(bundle.BUNDLE_BYTES_MAX + 1)), "too large")


def test_every_flipped_byte_of_a_bundle_is_noticed(folder):
    made = build_app(folder)
    for position in range(0, made.size, 7):
        data = bytearray(made.data)
        data[position] ^= 0x01
        try:
            again = inspect_app(bytes(data))
        except ComityError as error:
            assert error.code is ErrorCode.APP_INVALID  # noqa: PT017
        else:
            assert again.digest != made.digest


def test_settings_keep_the_type_of_their_default():
    defaults = {"rounds": 3, "lr": 0.5, "name": "x", "flag": True}
    assert fuse_config(defaults, {"rounds": 9, "lr": "0.25", "flag": False}) == {
        **defaults,
        "rounds": 9,
        "lr": 0.25,
        "flag": False,
    }
    assert fuse_config(defaults, {"lr": 2})["lr"] == 2.0
    for wrong in ({"rounds": "9"}, {"rounds": True}, {"lr": "fast"}, {"lr": True}, {"name": 1}, {"other": 1}):
        refused(lambda wrong=wrong: fuse_config(defaults, wrong))
