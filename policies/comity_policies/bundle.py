"""A policy bundle: the shipped Rego, an organisation's settings and its own Rego, checked and digested.

Rules:
1. a bundle that cannot be used is refused when it is loaded (`BUNDLE_INVALID`), never when it is asked;
2. sizes and counts are bounded, links are refused;
3. the digest covers every byte that decides: module texts and settings; tests are not part of it;
4. an organisation's Rego joins the shipped packages, so that it can add denials, reviews and terms.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_policies import portable, settings

FILES_MAX = 128
MODULE_BYTES_MAX = 256 << 10
DATA_BYTES_MAX = 1 << 20
SIGNATURE_FILE = ".signature"
SIGNATURE_BYTES_MAX = 4096
ROOTS = ("comity", "settings")
# What comes from the organisation's own folder, in names of modules and tests.
OWN = "own/"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Modules and tests by relative name, the settings (`data.settings` in Rego), the digest of what decides."""

    modules: Mapping[str, str]
    tests: Mapping[str, str]
    settings: Mapping[str, Any]
    digest: str

    @classmethod
    def load(cls, shipped: Path | None, folder: Path) -> Bundle:
        """Read and check a bundle.

        Args:
            shipped: the shipped Rego, or None if `folder` brings every stage itself.
            folder: the organisation's `data.json` and its own `*.rego`.

        Raises:
            ComityError: `BUNDLE_INVALID`, naming file, line or key.
        """
        return cls.of(read_texts(shipped, folder), _read_settings(folder / "data.json"))

    @classmethod
    def of(cls, texts: Mapping[str, str], data: Any) -> Bundle:
        """Check and digest a bundle whose Rego and settings are at hand. Raises `BUNDLE_INVALID`."""
        modules, tests = apart(texts)
        checked = settings.check(data)
        # Beside an OPA server on platforms without the embedded engine the tree is not at hand; the server compiles.
        if importlib.util.find_spec("regorus") is not None:
            portable.check(modules, tests)
        digest = digest_of(modules, checked)
        return cls(MappingProxyType(modules), MappingProxyType(tests), MappingProxyType(checked), digest)

    @property
    def data(self) -> dict[str, Any]:
        """The base document: `data` in Rego."""
        return {"settings": dict(self.settings)}

    def archive(self, signature: bytes | None = None) -> bytes:
        """Return the bundle as OPA reads it: a deterministic tar.gz whose revision is the digest.

        `signature` is the organisation's (`bundle_signature.py`), which OPA passes over.
        """
        files = {
            **({} if signature is None else {SIGNATURE_FILE: signature}),
            ".manifest": json.dumps({"revision": self.digest, "roots": list(ROOTS), "rego_version": 1}).encode(),
            "data.json": canonical.canonical(self.data),
            **{name: text.encode() for name, text in self.modules.items()},
        }
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in sorted(files):
                entry = tarfile.TarInfo(name)
                entry.size = len(files[name])
                tar.addfile(entry, io.BytesIO(files[name]))
        return gzip.compress(raw.getvalue(), mtime=0)


def digest_of(modules: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """Return the digest of what decides. Raises `BUNDLE_INVALID` if the settings have no canonical bytes."""
    texts = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in modules.items()}
    try:
        return canonical.digest({"modules": texts, "settings": data})
    except ComityError as error:
        raise portable.refuse(f"data.json: {error.detail}") from error


def read_texts(shipped: Path | None, folder: Path) -> dict[str, str]:
    """Return name -> Rego of a bundle, unchecked; the organisation's own is below `own/`. Raises `BUNDLE_INVALID`."""
    texts = {} if shipped is None else _read_rego(shipped, "")
    return texts | _read_rego(folder, OWN)


def apart(texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return (modules, tests)."""
    tests = {name: text for name, text in texts.items() if name.endswith("_test.rego")}
    return {name: text for name, text in texts.items() if name not in tests}, tests


def shipped_folder() -> Path:
    """Return the shipped Rego: beside the package in a checkout, inside it in a wheel. Raises `BUNDLE_INVALID`."""
    package = Path(__file__).resolve().parent
    for folder in (package / "rego", package.parent / "rego"):
        if (folder / "lib").is_dir():
            return folder
    raise portable.refuse("the shipped policies are not installed")


def write_defaults(folder: Path, org: str) -> None:
    """Write a new organisation's `data.json` and a README that explains each key; existing files stay as they are."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    texts = {
        "data.json": json.dumps(settings.check(settings.defaults(org)), indent=2) + "\n",
        "README.md": _readme(),
    }
    for name, text in texts.items():
        try:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def _readme() -> str:
    rows = "\n".join(f"| `{key}` | {meaning} |" for key, meaning in settings.MEANINGS.items())
    return f"""# This organisation's policy

`data.json` sets the shipped policies. Every key has to be there; `comity policy lint` checks the file.

| key | meaning |
|---|---|
{rows}

Own Rego goes into `*.rego` beside it, in the packages `comity.proposal`, `comity.dispatch` and `comity.egress`: add
rules to `deny` or `review`, each with `rule`, `code` and `message`. Functions of other packages are called by their
full path. Tests go into `*_test.rego`; run `comity policy test`.
"""


def _read_rego(folder: Path, prefix: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in _rego_files(folder):
        name = prefix + path.relative_to(folder).as_posix()
        try:
            texts[name] = read_bounded(path, MODULE_BYTES_MAX).decode("utf-8")
        except UnicodeDecodeError:
            raise portable.refuse(f"{name} is not UTF-8") from None
    return texts


def _rego_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise portable.refuse("the policy folder is not there")
    found = sorted(path for depth in ("*.rego", "*/*.rego") for path in folder.glob(depth))
    if len(found) > FILES_MAX:
        raise portable.refuse(f"a bundle has at most {FILES_MAX} files")
    return found


def _read_settings(path: Path) -> Any:
    if not path.exists():
        raise portable.refuse("data.json is missing; `comity node join` writes one")
    try:
        return json.loads(read_bounded(path, DATA_BYTES_MAX))
    except (ValueError, RecursionError):
        raise portable.refuse("data.json is not JSON") from None


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Return the content of a file that is no link and not too large. Raises `BUNDLE_INVALID`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ComityError(ErrorCode.BUNDLE_INVALID, f"{path.name} cannot be read") from error
    if len(data) > bytes_max:
        raise portable.refuse(f"{path.name} is larger than {bytes_max} bytes")
    return data
