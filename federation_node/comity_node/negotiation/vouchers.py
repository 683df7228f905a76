"""Vouchers that this organisation has taken in: who has signed for which app, below `<home>/vouchers/<digest>`.

Rules:
1. Only what verifies is kept, and it is verified again each time a policy asks: a file that was changed counts nothing.
2. A voucher is nobody's permission: whether its signer is a reviewer of this organisation, the policy says.
3. Bounded: `SIGNERS_MAX` signers of one app, the rest is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import structlog

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.vouching import VOUCHER_BYTES_MAX, Voucher
from comity_node.settings import write_private

SIGNERS_MAX = 32
log = structlog.get_logger("comity.node.vouchers")


class Vouchers:
    """This node's vouchers by app."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "vouchers"

    def keep(self, data: bytes) -> Voucher:
        """Verify and keep a voucher; again is harmless. Raises what `Voucher.parse` raises, `TOO_LARGE`."""
        voucher = Voucher.parse(data)
        folder = self._folder / voucher.digest
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(voucher.key.encode()).hexdigest()}.json"
        if not path.exists() and len(list(folder.glob("*.json"))) >= SIGNERS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "signers of one app", limit=SIGNERS_MAX)
        write_private(path, voucher.to_bytes())
        return voucher

    def signers(self, digest: str) -> list[str]:
        """Return the keys that vouch for an app, sorted; a voucher that does not hold is left out."""
        found = set()
        for path in sorted((self._folder / ids.sha256_hex(digest)).glob("*.json"))[:SIGNERS_MAX]:
            try:
                with path.open("rb") as file:
                    voucher = Voucher.parse(file.read(VOUCHER_BYTES_MAX + 1))
            except (OSError, ComityError) as error:
                log.warning("voucher.unusable", app=digest, error=str(error)[:200])
                continue
            if voucher.digest == digest:
                found.add(voucher.key)
        return sorted(found)
