"""Apps that came with proposals: fetched sealed, checked against the digest that the proposal names, kept unpacked.

The folder `<home>/apps/<digest>` exists only if its content was checked; it appears by one rename.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.bundle import BUNDLE_BYTES_MAX, AppBundle, inspect_app, unpack
from comity_crypto.sealing import SealedRef, open_bytes, seal_to_bytes
from comity_node.settings import write_private
from comity_policies.documents import Proposal

if TYPE_CHECKING:
    from comity_node.context import NodeContext

# Padme adds at most 12 %, each sealed chunk 16 bytes.
SEALED_BYTES_MAX = BUNDLE_BYTES_MAX + BUNDLE_BYTES_MAX // 4
# Bundles of all apps that this node keeps; their unpacked files take as much again.
APPS_BYTES_MAX = 4 << 30


class AppStore:
    """This node's apps by digest."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    def folder(self, digest: str) -> Path:
        """Return the folder of an unpacked app. Raises `APP_INVALID` if this node does not hold it."""
        path = self._node.settings.apps_folder / ids.sha256_hex(digest)
        if not path.is_dir():
            raise ComityError(ErrorCode.APP_INVALID, "this node does not hold the app", digest=digest)
        return path

    def file(self, digest: str) -> Path:
        """Return the zip of an app whose digest was checked when it came. Raises `APP_INVALID`."""
        return self.folder(digest).with_suffix(".zip")

    def bundle(self, digest: str) -> AppBundle:
        """Return the checked bundle. Raises `APP_INVALID`."""
        path = self.file(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ComityError(ErrorCode.APP_INVALID, "the app's bundle cannot be read", digest=digest) from error
        return self._checked(data, digest)

    def keep(self, data: bytes, digest: str) -> AppBundle:
        """Check `data` against `digest` and keep it unpacked; again is harmless. Raises `APP_INVALID`."""
        bundle = self._checked(data, digest)
        target = self._node.settings.apps_folder / digest
        if target.is_dir():
            return bundle
        scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=self._node.settings.apps_folder))
        try:
            unpack(data, scratch / "app")
            write_private(target.with_suffix(".zip"), data)
            (scratch / "app").rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return bundle

    async def receive(self, proposal: Proposal, reference: dict[str, Any] | None, inline: bytes) -> None:
        """Fetch, open and keep the app that a proposal names, unless it is here already.

        Raises:
            ComityError: `APP_INVALID`, `PAYLOAD_MISSING`, `PAYLOAD_DIGEST`, `SEAL_BROKEN`, `TOO_LARGE`.
        """
        if proposal.app is None:
            return
        digest = proposal.app.digest
        if (self._node.settings.apps_folder / digest).is_dir():
            return
        if reference is None:
            raise ComityError(ErrorCode.APP_INVALID, "the proposal brings no app and this node does not hold it")
        self._check_room()
        ref = SealedRef.from_json(reference)
        if ref.size > SEALED_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "the app", size_bytes=ref.size, limit_bytes=SEALED_BYTES_MAX)
        sealed = inline
        if not sealed:
            sealed = b"".join([chunk async for chunk in self._node.payloads.get(ref)])
        me = self._node.settings.org
        data = open_bytes(self._node.keys, me, ref, context_of(digest), sealed, heard=self._node.ledger.hear)
        self.keep(data, digest)

    def holds(self, digest: str) -> bool:
        """Tell whether this node keeps the app."""
        return (self._node.settings.apps_folder / ids.sha256_hex(digest)).is_dir()

    def discard(self, digest: str) -> None:
        """Let go of an app that came with a proposal which was denied."""
        target = self._node.settings.apps_folder / ids.sha256_hex(digest)
        shutil.rmtree(target, ignore_errors=True)
        target.with_suffix(".zip").unlink(missing_ok=True)

    def _check_room(self) -> None:
        used = sum(path.stat().st_size for path in self._node.settings.apps_folder.glob("*.zip"))
        if used >= APPS_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "this node keeps as many apps as it may", limit_bytes=APPS_BYTES_MAX)

    async def send(self, digest: str, data: bytes, receivers: Mapping[str, bytes]) -> dict[str, Any]:
        """Keep our own app, seal it to `receivers` and upload it; returns the payload reference."""
        self.keep(data, digest)
        ref, sealed = seal_to_bytes([data], receivers, context_of(digest), self._node.ledger.carried)
        await self._node.payloads.put(sealed, ref, tuple(sorted(receivers)))
        return ref.to_json()

    def describe(self, digest: str) -> dict[str, Any]:
        """Return what a policy sees of an app. Raises `APP_INVALID`."""
        bundle = self.bundle(digest)
        return {
            "digest": digest,
            "name": bundle.name,
            "publisher": bundle.publisher,
            "dependencies": list(bundle.dependencies),
            "signed_by": [],
        }

    @staticmethod
    def _checked(data: bytes, digest: str) -> AppBundle:
        if hashlib.sha256(data).hexdigest() != digest:
            raise ComityError(ErrorCode.APP_INVALID, "the app is not the one that the proposal names", digest=digest)
        return inspect_app(data)


def context_of(digest: str) -> bytes:
    """The context that an app's payload is sealed under."""
    return f"comity/app/v1/{digest}".encode()
