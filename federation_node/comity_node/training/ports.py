"""What training needs of the negotiation capability: the agreements that this organisation holds, and their apps.

`service.py` wires it to the negotiation's store; nothing else here knows that capability.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from comity_crypto.quorum import QuorumCertificate
from comity_policies.documents import Agreement

FINAL = "final"
WITHDRAWN = "withdrawn"


class Stored(Protocol):
    """An agreement in this organisation's own store."""

    @property
    def agreement(self) -> Agreement:
        """What was agreed."""
        ...

    @property
    def certificate(self) -> QuorumCertificate | None:
        """The signature of all parties, once the agreement is final."""
        ...

    @property
    def state(self) -> str:
        """`signed`, `final` or `withdrawn`."""
        ...


class Agreements(Protocol):
    """The agreements that this organisation signed."""

    def find(self, conn: Connection, digest: str) -> Stored:
        """Return an agreement as it stands within this journal transaction. Raises `AGREEMENT_UNKNOWN`."""
        ...

    def app_folder(self, digest: str) -> Path:
        """Return the folder of an unpacked app, checked against its digest when it came. Raises `APP_INVALID`."""
        ...
