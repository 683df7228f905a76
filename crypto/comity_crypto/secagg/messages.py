"""The messages of a secure sum: bodies of statements that the caller signs and verifies.

1. Every message names its session: the digest of the lead's `Offer`, which fixes the run, round, attempt, parties,
   round key, order and size. A message is of use in one session only.
2. `from_json` takes a stranger's body: exact fields, bounded counts, exact lengths. Anything else is `MALFORMED`.
3. `Roster` and `AggregateNotice` come from the coordinator and carry no signature: the parties sign what they saw of
   them (`RosterSignature`, `LinearDigest`), so an equivocation shows as a mismatch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self

from comity.wire import ids
from comity.wire.canonical import canonical
from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.blobs import blob_bytes
from comity_crypto.secagg.digests import DIGEST_VALUES
from comity_crypto.secagg.params import (
    CHUNKS_MAX,
    CONTRIBUTORS_MAX,
    CONTRIBUTORS_MIN,
    RESIDUE_BITS,
    Parameters,
    parameter_set,
)

BOX_KEY_BYTES = 1216  # ML-KEM-768 1184 + X25519 32
BOX_BYTES = 1168  # HPKE: encapsulation 1120, seed 32, tag 16
ROUND_MAX = 1_000_000
ATTEMPT_MAX = 15
_CHALLENGE = b"comity/secagg/challenge/v1\x00"


def _text(value: Any) -> str:
    return ids.name(value if isinstance(value, str) else "")


def _hash(value: Any) -> str:
    return ids.sha256_hex(value if isinstance(value, str) else "")


def _org(value: Any) -> str:
    return ids.org_id(value if isinstance(value, str) else "")


def _org_or_empty(value: Any) -> str:
    return "" if value == "" else _org(value)


def _orgs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "1 to 50 organisations")
    found = tuple(_org(item) for item in value)
    if any(first >= second for first, second in itertools.pairwise(found)):
        raise ComityError(ErrorCode.MALFORMED, "organisations are sorted and named once")
    return found


def _count(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ComityError(ErrorCode.MALFORMED, f"a number from {low} to {high}")
        return value

    return read


def _bytes(value: Any, size_bytes: int) -> bytes:
    if not isinstance(value, str) or len(value) != 4 * -(-size_bytes // 3):
        raise ComityError(ErrorCode.MALFORMED, f"base64 of {size_bytes} bytes")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ComityError(ErrorCode.MALFORMED, "not base64") from error
    if len(data) != size_bytes or base64.b64encode(data).decode() != value:
        raise ComityError(ErrorCode.MALFORMED, f"base64 of {size_bytes} bytes")
    return data


def _box_key(value: Any) -> bytes:
    return _bytes(value, BOX_KEY_BYTES)


def _members(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ComityError(ErrorCode.MALFORMED, "a map of organisations")
    return tuple((org, _hash(value[org])) for org in _orgs(sorted(map(str, value))))


def _boxes(value: Any) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(value, Mapping):
        raise ComityError(ErrorCode.MALFORMED, "a map of organisations")
    return tuple((org, _bytes(value[org], BOX_BYTES)) for org in _orgs(sorted(map(str, value))))


def _values(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != DIGEST_VALUES:
        raise ComityError(ErrorCode.MALFORMED, f"{DIGEST_VALUES} numbers")
    read = _count(0, (1 << RESIDUE_BITS) - 1)
    return tuple(read(item) for item in value)


def _code(value: Any) -> str:
    try:
        return ErrorCode(value).value
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "an unknown code") from error


def _read(reader: Callable[[Any], Any]) -> Any:
    return field(metadata={"read": reader})


def _plain(value: Any) -> Any:
    """Return the JSON form of a field: pairs become maps, bytes base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return {key: _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Body:
    """A message. `KIND` is the statement's kind."""

    KIND: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the statement's body."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a stranger's body. Raises `MALFORMED`."""
        names = {item.name for item in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            raise ComityError(ErrorCode.MALFORMED, f"{cls.KIND} has other fields")
        return cls(**{item.name: item.metadata["read"](value[item.name]) for item in fields(cls)})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind and body: what other messages refer to."""
        return canonical_digest({"kind": self.KIND, "body": self.to_json()})


@dataclass(frozen=True)
class Offer(Body):
    """The lead's offer of a round key; it travels in the sealed order with the packed public key.

    `parties` may contribute, at least `minimum` must; `order_digest` is that of the plaintext order; `key_id` is the
    SHA-256 of the packed public key; `chunks` fixes the size of every upload.
    """

    KIND: ClassVar[str] = "secagg.offer"
    agreement: str = _read(_text)
    run: str = _read(_text)
    step: str = _read(_text)
    round: int = _read(_count(0, ROUND_MAX))
    attempt: int = _read(_count(0, ATTEMPT_MAX))
    lead: str = _read(_org)
    parties: tuple[str, ...] = _read(_orgs)
    minimum: int = _read(_count(CONTRIBUTORS_MIN, CONTRIBUTORS_MAX))
    parameters: str = _read(_text)
    parameters_digest: str = _read(_hash)
    key_id: str = _read(_hash)
    order_digest: str = _read(_hash)
    chunks: int = _read(_count(1, CHUNKS_MAX))

    def __post_init__(self) -> None:
        parameter_set(self.parameters, self.parameters_digest)
        if self.minimum > len(self.parties):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "an encrypted sum needs more parties", n=self.minimum)

    @property
    def parameter_set(self) -> Parameters:
        """The pinned set."""
        return parameter_set(self.parameters, self.parameters_digest)

    @property
    def place(self) -> str:
        """Digest of agreement, run, step, round, attempt: two offers for one place are an equivocation of the lead."""
        return canonical_digest([self.agreement, self.run, self.step, self.round, self.attempt])

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""
        return blob_bytes(self.parameter_set, self.chunks)


@dataclass(frozen=True)
class Ready(Body):
    """Step (a): what this party was asked, and its key for boxes."""

    KIND: ClassVar[str] = "secagg.ready"
    session: str = _read(_hash)
    place: str = _read(_hash)
    key_id: str = _read(_hash)
    order_digest: str = _read(_hash)
    box_key: bytes = _read(_box_key)


@dataclass(frozen=True)
class Roster(Body):
    """The coordinator's list of those who take part, with the digest of each one's `Ready`. H(R) is its digest."""

    KIND: ClassVar[str] = "secagg.roster"
    session: str = _read(_hash)
    members: tuple[tuple[str, str], ...] = _read(_members)

    @property
    def orgs(self) -> tuple[str, ...]:
        """The members, sorted."""
        return tuple(org for org, _ in self.members)


@dataclass(frozen=True)
class RosterSignature(Body):
    """Step (b): this party stands on H(R)."""

    KIND: ClassVar[str] = "secagg.roster-signature"
    session: str = _read(_hash)
    roster: str = _read(_hash)


@dataclass(frozen=True)
class MaskSeed(Body):
    """Step (c): boxes with one fresh seed for each member that sorts after the sender."""

    KIND: ClassVar[str] = "secagg.mask-seed"
    session: str = _read(_hash)
    roster: str = _read(_hash)
    boxes: tuple[tuple[str, bytes], ...] = _read(_boxes)


@dataclass(frozen=True)
class Commitment(Body):
    """Step (c): SHA-256 and size of the upload, before anyone uploads."""

    KIND: ClassVar[str] = "secagg.commitment"
    session: str = _read(_hash)
    roster: str = _read(_hash)
    upload: str = _read(_hash)
    size_bytes: int = _read(_count(1, 1 << 40))


@dataclass(frozen=True)
class CommitmentsSignature(Body):
    """Step (d): this party has seen all commitments and stands on the set."""

    KIND: ClassVar[str] = "secagg.commitments-signature"
    session: str = _read(_hash)
    roster: str = _read(_hash)
    commitments: str = _read(_hash)


@dataclass(frozen=True)
class AggregateNotice(Body):
    """Step (e): the coordinator fixes the aggregate; the challenge follows from this."""

    KIND: ClassVar[str] = "secagg.aggregate"
    session: str = _read(_hash)
    roster: str = _read(_hash)
    commitments: str = _read(_hash)
    aggregate: str = _read(_hash)
    size_bytes: int = _read(_count(1, 1 << 40))

    @property
    def challenge(self) -> bytes:
        """32 bytes, from everything that this notice names."""
        return hashlib.sha256(_CHALLENGE + canonical(self.to_json())).digest()


@dataclass(frozen=True)
class LinearDigest(Body):
    """Step (e): the digest of this party's upload under the challenge of the notice that it saw."""

    KIND: ClassVar[str] = "secagg.linear-digest"
    session: str = _read(_hash)
    notice: str = _read(_hash)
    values: tuple[int, ...] = _read(_values)


@dataclass(frozen=True)
class Abort(Body):
    """This party gives the session up; `blame` names another party or is empty."""

    KIND: ClassVar[str] = "secagg.abort"
    session: str = _read(_hash)
    code: str = _read(_code)
    blame: str = _read(_org_or_empty)


BODIES: dict[str, type[Body]] = {
    body.KIND: body
    for body in (
        Offer,
        Ready,
        Roster,
        RosterSignature,
        MaskSeed,
        Commitment,
        CommitmentsSignature,
        AggregateNotice,
        LinearDigest,
        Abort,
    )
}


def parse_message(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    found = BODIES.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a secure sum")
    return found.from_json(body)


def commitments_digest(session: str, roster: str, commitments: Mapping[str, Commitment]) -> str:
    """Return the digest of the whole set of commitments, in the order of the organisations."""
    entries = [[org, item.upload, item.size_bytes] for org, item in sorted(commitments.items())]
    return canonical_digest({"session": session, "roster": roster, "commitments": entries})
