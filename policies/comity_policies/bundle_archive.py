"""Reading a bundle back from the archive that `Bundle.archive` writes, as it comes from another organisation.

Rules:
1. the unpacked size is bounded before anything is parsed, and so is the number of files;
2. only regular files with plain names; nothing is written anywhere;
3. the digest is computed anew from what was read and has to be the revision in the manifest: an archive cannot say of
   itself that it is another bundle;
4. who asks may judge the digest before any Rego is parsed: only what the members agreed to reaches the parser.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

from comity_policies import portable
from comity_policies.bundle import DATA_BYTES_MAX, FILES_MAX, MODULE_BYTES_MAX, SIGNATURE_FILE, Bundle, digest_of
from comity_policies.settings import check

ARCHIVE_BYTES_MAX = 4 << 20
UNPACKED_BYTES_MAX = 16 << 20
_OTHER_FILES = 3  # the manifest, the data, a signature
_GZIP = 31
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,3}\.rego")


def read_archive(data: bytes, judge: Callable[[str], object] = str) -> Bundle:
    """Return the bundle in an archive.

    Args:
        data: as `Bundle.archive` writes it.
        judge: is given the digest before any Rego is parsed, and raises if that is not the bundle.

    Raises:
        ComityError: `BUNDLE_INVALID`, naming what is wrong with it; what `judge` raises.
    """
    if len(data) > ARCHIVE_BYTES_MAX:
        raise portable.refuse(f"the archive is larger than {ARCHIVE_BYTES_MAX} bytes")
    files = _files(_unzipped(data))
    manifest, settings = _json(files, ".manifest"), _json(files, "data.json")
    modules: dict[str, str] = {}
    for name, content in files.items():
        if name in {".manifest", "data.json", SIGNATURE_FILE}:
            continue
        if not _NAME.fullmatch(name) or name.endswith("_test.rego"):
            raise portable.refuse(f"the archive holds {name[:64]!r}, which is no module")
        if len(content) > MODULE_BYTES_MAX:
            raise portable.refuse(f"{name} is larger than {MODULE_BYTES_MAX} bytes")
        modules[name] = _text(content, name)
    if not isinstance(settings, dict) or set(settings) != {"settings"}:
        raise portable.refuse("data.json of an archive holds the settings")
    digest = digest_of(modules, check(settings["settings"]))
    if not isinstance(manifest, dict) or manifest.get("revision") != digest:
        raise portable.refuse("the archive's revision is not the digest of its content")
    judge(digest)
    return Bundle.of(modules, settings["settings"])


def _unzipped(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        raw = unpacker.decompress(data, UNPACKED_BYTES_MAX)
    except zlib.error:
        raise portable.refuse("the archive is not gzip") from None
    if not unpacker.eof or unpacker.unconsumed_tail or unpacker.unused_data:
        raise portable.refuse("the archive is truncated, too large, or has more behind it")
    return raw


def _files(raw: bytes) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for entry in tar:
                if len(files) >= FILES_MAX + _OTHER_FILES:
                    raise portable.refuse(f"a bundle has at most {FILES_MAX} files")
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None or entry.name in files or entry.size > len(raw):
                    raise portable.refuse("an archive holds regular files, each once")
                files[entry.name] = content.read()
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError):
        raise portable.refuse("the archive is not a tar file") from None
    return files


def _json(files: dict[str, bytes], name: str) -> Any:
    content = files.get(name, b"")
    if len(content) > DATA_BYTES_MAX:
        raise portable.refuse(f"{name} is larger than {DATA_BYTES_MAX} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise portable.refuse(f"{name} of the archive is missing or not JSON") from None


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise portable.refuse(f"{name} is not UTF-8") from None
