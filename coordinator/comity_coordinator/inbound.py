"""What organisations hand in: every signed statement is checked here before a capability sees it.

Rules, in this order:
1. a size limit before anything is parsed;
2. one canonical form, the expected kind, this consortium;
3. the issuer is the organisation whose certificate opened the stream;
4. the issuer is a member under the charter in force, and its statement key there made the signature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.transport.model import Message
from comity_crypto.statements import STATEMENT_BYTES_MAX, Statement, verify_statement
from comity_policies.charter import Charter

CharterOf = Callable[[Connection], Charter | None]
Handler = Callable[[Connection, str, Message], None]


class Outbox(Protocol):
    """The part of `transport.hub.Hub` that a capability uses."""

    def register(self, kind: str, handler: Handler) -> None:
        """Have `handler` called for durable messages of `kind`."""

    def enqueue(self, conn: Connection, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        """Send `body` to `org` once the transaction has committed."""

    def enqueue_all(self, conn: Connection, orgs: Iterable[str], kind: str, body: dict[str, Any]) -> None:
        """Send one `body` to each of `orgs`; it is encoded once."""


class Signer(Protocol):
    """Makes statements of the coordinator, signed by the log key."""

    def __call__(self, kind: str, body: dict[str, Any]) -> Statement:
        """Return the statement; raises `TOO_LARGE` or `MALFORMED`."""


def charter(conn: Connection, charter_of: CharterOf) -> Charter:
    """Return the charter in force. Raises `NOT_A_MEMBER` before genesis."""
    found = charter_of(conn)
    if found is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, "no charter is in force yet")
    return found


def statement(
    in_force: Charter, org: str, message: Message, kind: str, max_bytes: int = STATEMENT_BYTES_MAX
) -> Statement:
    """Return the statement of `kind` that `message` carries, after rules 1 to 4.

    Raises:
        ComityError: `TOO_LARGE`, `MALFORMED`, `FORBIDDEN`, `NOT_A_MEMBER` or `SIGNATURE_INVALID`.
    """
    said = Statement.from_bytes(message.body, max_bytes=max_bytes)
    check(in_force, org, said, kind)
    return said


def check(in_force: Charter, org: str, said: Statement, kind: str) -> None:
    """Apply rules 2 to 4 to a parsed statement."""
    if said.issuer != org:
        raise ComityError(ErrorCode.FORBIDDEN, "the statement is not of the organisation that sent it")
    member = in_force.member(org)
    verify_statement(said, member.keys.statement, kind=kind, consortium=in_force.consortium)


def body_of(said: Statement, *wanted: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the body if it has exactly the fields `wanted`, perhaps some `optional` ones. Raises `MALFORMED`."""
    given = set(said.body)
    if not set(wanted) <= given or given - set(wanted) - set(optional):
        raise ComityError(ErrorCode.MALFORMED, f"the body of a {said.kind} has the fields {', '.join(wanted)}"[:400])
    return said.body


def text(value: Any, chars_max: int, what: str) -> str:
    """Return `value` if it is text of at most `chars_max` characters. Raises `MALFORMED`."""
    if not isinstance(value, str) or len(value) > chars_max:
        raise ComityError(ErrorCode.MALFORMED, f"{what} is text of at most {chars_max} characters")
    return value


def count(value: Any, most: int, what: str) -> int:
    """Return `value` if it is a whole number from 0 to `most`. Raises `MALFORMED`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ComityError(ErrorCode.MALFORMED, f"{what} is a whole number from 0 to {most}")
    return value
