"""Apps that people send from their own machines, to be proposed afterwards: kept by digest below `<home>/offered`.

Rules:
1. Whoever is not the node's own Unix user names no folder of the node's machine: only an app that was sent. A path
   would let a proposer read the node's files, keys included, into an app that goes to other organisations.
2. What comes is files by name, small and bounded; it is bundled by `build_app`, which refuses links, odd names and
   everything that is no app. Only a whole app appears, by one rename; the oldest make room for new ones.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.bundle import DEPTH_MAX, FILES_MAX, build_app
from comity_node.access.model import Principal

if TYPE_CHECKING:
    from comity_node.context import NodeContext

OFFERED_MAX = 32
_NAME = re.compile(r"uploaded/([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@ -]{0,127}")


class AppRequest(BaseModel):
    """The files of an app by relative name, each in base64; the whole request is bounded by the gate (4 MiB)."""

    model_config = ConfigDict(extra="forbid")

    files: dict[Annotated[str, StringConstraints(max_length=512)], str] = Field(min_length=1, max_length=FILES_MAX)


class OfferedApps:
    """Apps that people of this organisation sent."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "offered"

    def keep(self, files: dict[str, str]) -> str:
        """Check and keep an app; returns its digest. Raises `APP_INVALID`, naming the file."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            for name, text in files.items():
                _write(scratch, name, text)
            digest = build_app(scratch).digest
            target = self._folder / digest
            if not target.is_dir():
                self._make_room()
                with contextlib.suppress(OSError):  # the same app came twice at once
                    scratch.rename(target)
            if not target.is_dir():
                raise ComityError(ErrorCode.UNAVAILABLE, "the app cannot be kept: is the disk full?")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return digest

    def folder(self, app: Path, who: Principal) -> Path:
        """Return the folder of the app that `who` names. Raises `NOT_FOUND`, `FORBIDDEN` by rule 1."""
        found = _NAME.fullmatch(app.as_posix())
        if found is None:
            if who.via != "local":
                raise ComityError(ErrorCode.FORBIDDEN, "send the app first: only the node's own user names a folder")
            return app
        folder = self._folder / found[1]
        if not folder.is_dir():
            raise ComityError(ErrorCode.NOT_FOUND, "this app is not here: send it again", digest=found[1])
        return folder

    def _make_room(self) -> None:
        kept = sorted((each for each in self._folder.iterdir() if each.name[0] != "."), key=lambda p: p.stat().st_mtime)
        for old in kept[: max(0, len(kept) + 1 - OFFERED_MAX)]:
            shutil.rmtree(old, ignore_errors=True)


def add_routes(routes: APIRouter, node: NodeContext) -> OfferedApps:
    """Add `POST /v1/apps`; returns the apps that come by it."""
    apps = OfferedApps(node.settings.home)

    @routes.post("/v1/apps", status_code=201)
    async def send_app(request: AppRequest) -> dict[str, str]:
        """Take an app from a person's machine; `app` in the answer is how a proposal names it."""
        digest = await asyncio.to_thread(apps.keep, request.files)
        return {"digest": digest, "app": f"uploaded/{digest}"}

    return apps


def _write(folder: Path, name: str, text: str) -> None:
    parts = PurePosixPath(name).parts
    if not 1 <= len(parts) <= DEPTH_MAX or not all(_PART.fullmatch(each) for each in parts) or "/".join(parts) != name:
        raise ComityError(ErrorCode.APP_INVALID, "a file's name is relative, of plain characters", file=name[:100])
    path = folder.joinpath(*parts)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ComityError(ErrorCode.APP_INVALID, "a file is not in base64", file=name[:100]) from None
    except OSError:
        raise ComityError(ErrorCode.APP_INVALID, "a file stands where a folder is needed", file=name[:100]) from None
