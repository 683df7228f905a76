"""Messages of secure sums on the wire: `secagg` between parties (signed), `secagg.notice` from the coordinator (not).

A statement of kind `secagg` has the body `{"run", "round_key", "message": {"kind", "body"}}`; an offer's has
`public_key` besides, the address of the sealed public key. Rules:
1. A party's message counts with its signature under the charter in force, and from its own stream.
2. The coordinator's words are taken from its stream alone; what they say is judged by the machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.spoken import AnyOffer, parse_spoken
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.transport.model import Message

KIND = "secagg"
NOTICE = "secagg.notice"
FAILED = "secagg.failed"


@dataclass(frozen=True, slots=True)
class Addressed:
    """A blob in the spool that is not sealed, because it is ciphertext already."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """A verified message of a party."""

    run: str
    issuer: str
    message: Body
    public_key: SealedRef | None


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the coordinator: `message`, or the `error` that ended `session` there."""

    session: str
    message: Body | None
    error: ComityError | None


def write(node: NodeContext, offer: AnyOffer, message: Body, public_key: SealedRef | None = None) -> Statement:
    """Sign a message of this organisation in a session."""
    settings = node.settings
    body: dict[str, Any] = {
        "run": offer.run,
        "round_key": offer.key_id,
        "message": {"kind": message.KIND, "body": message.to_json()},
    }
    if public_key is not None:
        body["public_key"] = public_key.to_json()
    return sign_statement(node.keys, kind=KIND, consortium=settings.consortium, issuer=settings.org, body=body)


def read(node: NodeContext, message: Message) -> Parcel:
    """Read and verify a party's message. Raises `MALFORMED`, `NOT_A_MEMBER`, `SIGNATURE_INVALID`, `FORBIDDEN`."""
    statement = message.statement(KIND)
    charter = node.charters.current()
    if charter is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
    if statement.issuer != message.sender:
        raise ComityError(ErrorCode.FORBIDDEN, "the statement is not of the organisation that sent it")
    body = statement.body
    if set(body) - {"public_key"} != {"run", "round_key", "message"} or not isinstance(body["message"], dict):
        raise ComityError(ErrorCode.MALFORMED, "not a message of a secure sum")
    content = parse_spoken(str(body["message"].get("kind")), body["message"].get("body"))
    key = charter.member(statement.issuer).keys.statement
    verify_statement(statement, key, kind=KIND, consortium=node.settings.consortium)
    given = body.get("public_key")
    return Parcel(str(body["run"]), statement.issuer, content, None if given is None else SealedRef.from_json(given))


def read_word(message: Message) -> Word:
    """Read a word of the coordinator. Raises `FORBIDDEN`, `MALFORMED`."""
    if message.sender != ids.COORDINATOR:
        raise ComityError(ErrorCode.FORBIDDEN, "only the coordinator says this")
    document = message.document()
    kind, body = document.get("kind"), document.get("body")
    if kind == FAILED and isinstance(body, dict):
        return Word(ids.sha256_hex(str(body.get("session"))), None, ComityError.from_json(body.get("error")))
    content = parse_spoken(str(kind), body)
    return Word(str(getattr(content, "session", "")), content, None)
