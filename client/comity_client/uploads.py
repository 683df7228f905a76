"""Sending an app from a person's own machine to the node that will propose it.

Rules: only regular files of the folder, no links, without hidden files and caches; bounded before anything is sent.
The node checks all of it again.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode
from comity_client.sdk import Node

FILES_MAX = 2_000
# The node takes requests of 4 MiB; base64 makes four bytes of three.
APP_BYTES_MAX = 3 << 20
_SKIPPED = frozenset({"__pycache__", "venv", "node_modules", "build", "dist"})


def app_for(node: Node, folder: Path) -> str:
    """Return how a proposal names the app in `folder`: its path for the node's own user, else as sent.

    Raises:
        ComityError: `TOO_LARGE`, `APP_INVALID`, and what the node answers.
    """
    if node.me()["via"] == "local":
        return str(folder.resolve())
    return str(node.send_app(files_of(folder))["app"])


def files_of(folder: Path) -> dict[str, str]:
    """Return the app's files by relative name, in base64. Raises `TOO_LARGE`, `APP_INVALID` for a link."""
    files: dict[str, str] = {}
    size_bytes = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place) / name
            if path.is_symlink():
                raise ComityError(ErrorCode.APP_INVALID, "symbolic links are not carried", file=name[:100])
            size_bytes += path.stat().st_size
            if size_bytes > APP_BYTES_MAX or len(files) >= FILES_MAX:
                raise ComityError(ErrorCode.TOO_LARGE, "the app is too large to send", limit_bytes=APP_BYTES_MAX)
            files[path.relative_to(folder).as_posix()] = base64.b64encode(path.read_bytes()).decode()
    return files
