"""From a column of identifiers to the elements that two parties compare.

Rules:
1. Both sides write an identifier in the same way before it is hashed; the rules are those of the agreement's step.
2. An element is SHA-256 over the run's own domain and the identifier: the same person gives unrelated elements in two
   runs. Empty identifiers are no identifiers; equal ones are one element with several rows.
3. A set is padded with elements of 32 secret bytes up to one of eight sizes an octave, `PADDED_MIN` at least: the other
   side learns a size that is at most one eighth too large, not the size.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode

NORMALISATIONS = ("case", "nfc", "trim")
IDENTIFIER_CHARS_MAX = 1024
ELEMENT_BYTES = 32
PADDED_MIN = 256
ITEMS_MAX = 1 << 20
ROWS_MAX = 1 << 23
_STEPS_AN_OCTAVE_BITS = 3
# The order of P-256's group (SEC 2, section 2.4.2).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True)
class OwnSet:
    """A party's own elements: `elements` is `count` times 32 bytes, of which the first `distinct` are no padding.

    `element_of[row]` is the place of a record's element, -1 where the record has no identifier; rows count from 0.
    """

    elements: bytes = field(repr=False)
    distinct: int
    element_of: array[int] = field(repr=False)

    @property
    def count(self) -> int:
        """Number of elements, padding included: what the other side learns."""
        return len(self.elements) // ELEMENT_BYTES


def domain(agreement: str, run: str, step: str) -> bytes:
    """Return the 32 bytes that bind elements to one step of one run of one agreement (its digest)."""
    place = f"{agreement}/{run}/{step}".encode()
    return hashlib.sha256(b"comity/psi/domain/v1\x00" + place).digest()


def normalised(text: str, rules: Iterable[str]) -> str:
    """Return an identifier as it is compared. Raises `MALFORMED` for an unknown rule, or text beyond the limit."""
    if len(text) > IDENTIFIER_CHARS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "an identifier is too long", limit=IDENTIFIER_CHARS_MAX)
    wanted = frozenset(rules)
    if not wanted <= set(NORMALISATIONS):
        raise ComityError(ErrorCode.UNSUPPORTED, "this way of writing identifiers is not known here")
    if "nfc" in wanted:
        text = unicodedata.normalize("NFC", text)
    if "trim" in wanted:
        text = text.strip()
    if "case" in wanted:
        text = text.casefold()
        if "nfc" in wanted:  # folding can undo the composed form
            text = unicodedata.normalize("NFC", text)
    return text


def own_set(identifiers: Iterable[str], rules: Iterable[str], place: bytes, padding: bytes) -> OwnSet:
    """Return the elements of a column.

    Args:
        identifiers: the column, row by row.
        rules: some of `NORMALISATIONS`.
        place: `domain` of the run, 32 bytes.
        padding: 32 secret bytes; the same ones give the same padding.

    Raises:
        ComityError: `TOO_LARGE` beyond `ITEMS_MAX` different identifiers or `ROWS_MAX` rows, as `normalised`.
    """
    rules = tuple(rules)
    places: dict[bytes, int] = {}
    element_of = array("l")
    for number, raw in enumerate(identifiers):
        if number >= ROWS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many records to intersect", limit=ROWS_MAX)
        text = normalised(raw, rules)
        if not text:
            element_of.append(-1)
            continue
        element = hashlib.sha256(place + b"\x00" + text.encode("utf-8", "surrogatepass")).digest()
        element_of.append(places.setdefault(element, len(places)))
        if len(places) > ITEMS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many identifiers to intersect", limit=ITEMS_MAX)
    fillers = (
        hashlib.sha256(place + b"\x01" + padding + index.to_bytes(8, "big")).digest()
        for index in range(padded(len(places)) - len(places))
    )
    return OwnSet(b"".join([*places, *fillers]), len(places), element_of)


def padded(count: int) -> int:
    """Return the size that a set of `count` elements is padded to; `padded(padded(n)) == padded(n)`."""
    if count <= PADDED_MIN:
        return PADDED_MIN
    unit = 1 << max(0, (count - 1).bit_length() - 1 - _STEPS_AN_OCTAVE_BITS)
    return -(-count // unit) * unit


def scalar(secret: bytes) -> bytes:
    """Return the 32-byte key on the curve, from 1 to order - 1, that 32 secret bytes stand for; bias below 2^-250."""
    wide = hashlib.sha512(b"comity/psi/scalar/v1\x00" + secret).digest()
    return (int.from_bytes(wide, "big") % (_ORDER - 1) + 1).to_bytes(32, "big")
