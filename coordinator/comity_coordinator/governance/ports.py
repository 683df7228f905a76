"""What governance needs of others: the log, the way to the nodes, and the moment a charter comes into force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

from comity_crypto.statements import Statement
from comity_policies.charter import Charter


class Append(Protocol):
    """`Ledger.append`."""

    def __call__(self, conn: Connection, statement: Statement, recipients: Sequence[str] = ()) -> bool:
        """Queue a statement for the log."""


class Send(Protocol):
    """`Hub.enqueue`."""

    def __call__(self, conn: Connection, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        """Send a durable message."""


class Enforce(Protocol):
    """Puts a charter into force."""

    def __call__(
        self, conn: Connection, in_force: Charter | None, charter: Charter, given: Sequence[tuple[str, Statement]]
    ) -> None:
        """`given` are the yes statements, by organisation; raises if they do not suffice."""
