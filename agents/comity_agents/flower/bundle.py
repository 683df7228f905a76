"""A Flower app as one file: the zip whose SHA-256 the agreement names.

Rules:
1. One folder has one bundle: names sorted, times fixed, entries stored (not compressed), no comment or extra field. So
   a bundle from a stranger is checked by making it again: any other byte (hidden data, a bomb, a name twice) shows.
2. Names are relative, of plain characters, without `..`; symbolic links are refused, never followed.
3. Files that no app needs (hidden files, caches, virtual environments) are left out; limits hold while reading.
4. Every refusal is `APP_INVALID` and names the file and the reason.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from comity.wire.errors import ComityError, ErrorCode

FILES_MAX = 2_000
FILE_BYTES_MAX = 16 << 20
BUNDLE_BYTES_MAX = 64 << 20
DEPTH_MAX = 16
CONFIG_KEYS_MAX = 1_000
PROJECT_FILE = "pyproject.toml"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@ -]{0,127}")
_COMPONENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,255}:[A-Za-z_][A-Za-z0-9_]{0,127}")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "venv", "node_modules", "build", "dist"})
_SKIPPED_ENDINGS = (".pyc", ".pyo", ".egg-info", ".log")
_EPOCH = (1980, 1, 1, 0, 0, 0)

ConfigValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an app's `pyproject.toml` says; `config` is `[tool.flwr.app.config]`, nested keys joined by dots."""

    name: str
    publisher: str
    version: str
    serverapp: str
    clientapp: str
    dependencies: tuple[str, ...]
    config: dict[str, ConfigValue]


@dataclass(frozen=True, slots=True)
class AppBundle:
    """A checked bundle: its bytes, their SHA-256 (lower-case hexadecimal) and what the project file says."""

    digest: str
    size: int
    name: str
    publisher: str
    version: str
    serverapp: str
    clientapp: str
    dependencies: tuple[str, ...]
    config: dict[str, ConfigValue]
    data: bytes
    files: tuple[str, ...]


def build_app(folder: Path) -> AppBundle:
    """Bundle the Flower app in `folder`; the same files give the same bytes on every machine.

    Raises:
        ComityError: `APP_INVALID` naming the file and why (link, size, name, project file).
    """
    if not folder.is_dir():
        raise _invalid("the app is not a folder")
    files: dict[str, bytes] = {}
    total_bytes = 0
    for name, path in _walk(folder):
        data = _read(path, name)
        total_bytes += len(data)
        if len(files) >= FILES_MAX or total_bytes > BUNDLE_BYTES_MAX // 2:
            raise _invalid("the app has too many files or bytes", file=name)
        files[name] = data
    return _bundle(files, _zip(files))


def inspect_app(data: bytes) -> AppBundle:
    """Check a bundle from a stranger. Raises `APP_INVALID` for everything that `build_app` would not have made."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise _invalid("the bundle is too large", size_bytes=len(data), limit_bytes=BUNDLE_BYTES_MAX)
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data))
            for entry in entries:
                files[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise _invalid("the bundle is not a zip file") from error
    if _zip(files) != data:
        raise _invalid("the bundle holds bytes that its files do not explain")
    return _bundle(files, data)


def unpack(data: bytes, folder: Path) -> AppBundle:
    """Check a bundle and write its files (0600, folders 0700) below `folder`, which must be empty or new."""
    bundle = inspect_app(data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ComityError(ErrorCode.CONFLICT, "the folder for the app is not empty")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in bundle.files:
            path = folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(archive.read(name))
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """Read the project file of an unpacked app. Raises `APP_INVALID`."""
    path = folder / PROJECT_FILE
    if not path.is_file():
        raise _invalid("the app has no pyproject.toml")
    return _manifest(_read(path, PROJECT_FILE))


def fuse_config(defaults: Mapping[str, ConfigValue], overrides: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
    """Return the run's config: the app's defaults with `overrides`, each of its default's type.

    A default of type float takes a decimal string too, because signed documents hold no floats. Raises `APP_INVALID`.
    """
    fused = dict(defaults)
    for key, value in overrides.items():
        if key not in defaults:
            raise _invalid("the app has no such setting", setting=key[:100])
        default = defaults[key]
        if isinstance(default, float) and not isinstance(value, bool):
            try:
                value = float(value)
            except ValueError as error:
                raise _invalid("the setting is a number", setting=key[:100]) from error
        if type(value) is not type(default):
            raise _invalid("the setting has another type", setting=key[:100], needs=type(default).__name__)
        fused[key] = value
    return fused


def _invalid(why: str, **facts: str | int) -> ComityError:
    return ComityError(ErrorCode.APP_INVALID, why, **facts)


def _walk(folder: Path, below: str = "", depth: int = 0) -> Iterable[tuple[str, Path]]:
    """Yield (name, path) of the files of an app, in the order of their names, without those that no app needs."""
    if depth > DEPTH_MAX:
        raise _invalid("folders are nested too deeply", file=below)
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        name = below + entry.name
        if entry.name.startswith(".") or entry.name.endswith(_SKIPPED_ENDINGS) or entry.name in _SKIPPED_FOLDERS:
            continue
        if entry.is_symlink():
            raise _invalid("symbolic links are not carried", file=name)
        if not _PART.fullmatch(entry.name):
            raise _invalid("the file's name has characters that are not carried", file=name)
        if entry.is_dir():
            yield from _walk(Path(entry.path), name + "/", depth + 1)
        elif entry.is_file():
            yield name, Path(entry.path)
        else:
            raise _invalid("not a regular file", file=name)


def _read(path: Path, name: str) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise _invalid("the file is too large", file=name, limit_bytes=FILE_BYTES_MAX)
    return data


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _check_entries(entries: list[zipfile.ZipInfo], bundle_bytes: int) -> None:
    if sum(entry.file_size for entry in entries) > bundle_bytes:
        raise _invalid("the bundle's files overlap")
    if len(entries) > FILES_MAX:
        raise _invalid("the bundle has too many files", files=len(entries), limit=FILES_MAX)
    for entry in entries:
        name = entry.filename[:200]
        parts = PurePosixPath(entry.filename).parts
        if not parts or len(parts) > DEPTH_MAX + 1 or not all(_PART.fullmatch(part) for part in parts):
            raise _invalid("the file's name leaves the app or has characters that are not carried", file=name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise _invalid("the file is compressed or encrypted", file=name)
        if entry.file_size > FILE_BYTES_MAX:
            raise _invalid("the file is too large", file=name, limit_bytes=FILE_BYTES_MAX)


def _bundle(files: Mapping[str, bytes], data: bytes) -> AppBundle:
    if PROJECT_FILE not in files:
        raise _invalid("the app has no pyproject.toml")
    manifest = _manifest(files[PROJECT_FILE])
    for component in (manifest.serverapp, manifest.clientapp):
        stem = component.partition(":")[0].replace(".", "/")
        if f"{stem}.py" not in files and f"{stem}/__init__.py" not in files:
            raise _invalid("the project file names a module that is not there", module=component[:200])
    return AppBundle(
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        name=manifest.name,
        publisher=manifest.publisher,
        version=manifest.version,
        serverapp=manifest.serverapp,
        clientapp=manifest.clientapp,
        dependencies=manifest.dependencies,
        config=manifest.config,
        data=data,
        files=tuple(sorted(files)),
    )


def _manifest(data: bytes) -> Manifest:
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _invalid("pyproject.toml is not TOML") from error
    project, app = _table(document, "project"), _table(document, "tool", "flwr", "app")
    components = _table(document, "tool", "flwr", "app", "components")
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list) or len(dependencies) > CONFIG_KEYS_MAX:
        raise _invalid("pyproject.toml: project.dependencies is not a list")
    return Manifest(
        name=_text(project, "name", "project.name"),
        publisher=_text(app, "publisher", "tool.flwr.app.publisher"),
        version=_text(project, "version", "project.version"),
        serverapp=_component(components, "serverapp"),
        clientapp=_component(components, "clientapp"),
        dependencies=tuple(str(item)[:200] for item in dependencies),
        config=_flat(_table(document, "tool", "flwr", "app", "config", required=False)),
    )


def _table(document: dict[str, Any], *path: str, required: bool = True) -> dict[str, Any]:
    table: Any = document
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    if table is None and not required:
        return {}
    if not isinstance(table, dict):
        raise _invalid(f"pyproject.toml: [{'.'.join(path)}] is missing")
    return table


def _text(table: dict[str, Any], key: str, label: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise _invalid(f"pyproject.toml: {label} is missing or not a short text")
    return value


def _component(table: dict[str, Any], key: str) -> str:
    value = _text(table, key, f"tool.flwr.app.components.{key}")
    if not _COMPONENT.fullmatch(value):
        raise _invalid(f"pyproject.toml: tool.flwr.app.components.{key} is not MODULE:NAME")
    return value


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, ConfigValue]:
    flat: dict[str, ConfigValue] = {}
    for key, value in table.items():
        if isinstance(value, dict) and prefix.count(".") < DEPTH_MAX:
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            raise _invalid("pyproject.toml: a setting is neither truth value, number nor text", setting=prefix + key)
    if len(flat) > CONFIG_KEYS_MAX:
        raise _invalid("pyproject.toml: too many settings")
    return flat
