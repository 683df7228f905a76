"""What the bodies of all messages of secure sums have in common: one JSON form, one strict reader for each field.

`from_json` takes a stranger's body: exact fields, bounded counts, exact lengths. Anything else is `MALFORMED`.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

from comity.wire import ids
from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode

CONTRIBUTORS_MIN = 3
CONTRIBUTORS_MAX = 50

T = TypeVar("T")


def read_text(value: Any) -> str:
    """Read a name."""
    return ids.name(value if isinstance(value, str) else "")


def read_hash(value: Any) -> str:
    """Read a SHA-256 in hexadecimal."""
    return ids.sha256_hex(value if isinstance(value, str) else "")


def read_org(value: Any) -> str:
    """Read an organisation's id."""
    return ids.org_id(value if isinstance(value, str) else "")


def read_org_or_empty(value: Any) -> str:
    """Read an organisation's id, or an empty text for nobody."""
    return "" if value == "" else read_org(value)


def read_orgs(value: Any) -> tuple[str, ...]:
    """Read 1 to 50 organisations, sorted, each once."""
    found = read_list(value, read_org, 1, CONTRIBUTORS_MAX)
    if any(first >= second for first, second in itertools.pairwise(found)):
        raise ComityError(ErrorCode.MALFORMED, "organisations are sorted and named once")
    return found


def read_count(low: int, high: int) -> Callable[[Any], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ComityError(ErrorCode.MALFORMED, f"a number from {low} to {high}")
        return value

    return read


def read_bytes(value: Any, size_bytes: int) -> bytes:
    """Read base64 of exactly `size_bytes` bytes, in its one spelling."""
    if not isinstance(value, str) or len(value) != 4 * -(-size_bytes // 3):
        raise ComityError(ErrorCode.MALFORMED, f"base64 of {size_bytes} bytes")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ComityError(ErrorCode.MALFORMED, "not base64") from error
    if len(data) != size_bytes or base64.b64encode(data).decode() != value:
        raise ComityError(ErrorCode.MALFORMED, f"base64 of {size_bytes} bytes")
    return data


def read_by_org(value: Any, read: Callable[[Any], T]) -> tuple[tuple[str, T], ...]:
    """Read a map of 1 to 50 organisations, as sorted pairs."""
    if not isinstance(value, Mapping) or not 1 <= len(value) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a map of 1 to 50 organisations")
    return tuple((org, read(value[org])) for org in read_orgs(sorted(map(str, value))))


def read_hashes(value: Any) -> tuple[tuple[str, str], ...]:
    """Read a map of 1 to 50 organisations to hashes, as sorted pairs."""
    return read_by_org(value, read_hash)


def read_boxes(size_bytes: int) -> Callable[[Any], tuple[tuple[str, bytes], ...]]:
    """Return a reader of a map of 1 to 50 organisations to boxes of `size_bytes`, as sorted pairs."""
    return lambda value: read_by_org(value, lambda box: read_bytes(box, size_bytes))


def read_or_none(read: Callable[[Any], tuple[T, ...]]) -> Callable[[Any], tuple[T, ...]]:
    """Return a reader that takes an empty list, too: nobody."""
    return lambda value: () if isinstance(value, list | tuple) and not value else read(value)


def read_list(value: Any, read: Callable[[Any], T], low: int, high: int) -> tuple[T, ...]:
    """Read a list of `low` to `high` items."""
    if not isinstance(value, list | tuple) or not low <= len(value) <= high:
        raise ComityError(ErrorCode.MALFORMED, f"a list of {low} to {high}")
    return tuple(read(item) for item in value)


def read_by(reader: Callable[[Any], Any]) -> Any:
    """Return a field of a `Body` with its reader."""
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


def by_kind(*bodies: type[Body]) -> dict[str, type[Body]]:
    """Return these messages by their kinds."""
    return {body.KIND: body for body in bodies}


def parse(known: Mapping[str, type[Body]], kind: str, value: Any) -> Body:
    """Read a stranger's body by its statement's kind. Raises `UNSUPPORTED` (unknown kind), `MALFORMED`."""
    found = known.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a secure sum")
    return found.from_json(value)
