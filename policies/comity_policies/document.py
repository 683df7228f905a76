"""What every signed document shares: strict reading, one spelling, a digest.

Rules:
1. a document that breaks a rule cannot exist: every check is in the constructor, so that it holds for documents from
   the wire and for our own alike;
2. a document has one spelling: `from_json` refuses unknown and missing fields, wrong types and any JSON that `to_json`
   would not give back, so that equal documents have equal digests; a field that came in a later release is optional:
   it is left out where it says nothing, so that older documents keep their bytes;
3. sizes and counts are bounded before anything is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from comity.wire import canonical, ids, instants
from comity_policies.term_rows import malformed, text_of
from comity_policies.terms import PARTIES_MAX, Terms, org

TITLE_CHARS_MAX = 200
# Fields that hold terms, in whatever document they stand.
_TERMS = frozenset({"terms", "bounds"})


@dataclass(frozen=True, slots=True)
class _Form:
    """The names of the fields that a dataclass is made of: all, those that must be there, and those that hold terms."""

    every: frozenset[str]
    needed: frozenset[str]
    terms: frozenset[str]


_FORMS: dict[type[Any], _Form] = {}  # asked for at every reading and writing


def _form(cls: type[Any]) -> _Form:
    known = _FORMS.get(cls)
    if known is None:
        every = frozenset(each.name for each in fields(cls) if each.init)
        known = _FORMS[cls] = _Form(every, every - getattr(cls, "OPTIONAL", frozenset()), every & _TERMS)
    return known


def fields_of(value: Any, cls: type[Any]) -> dict[str, Any]:
    """Return `value` if it is an object with the fields of dataclass `cls`, no others. Raises `MALFORMED`."""
    if not isinstance(value, dict):
        raise malformed(f"{cls.__name__} is an object")
    form = _form(cls)
    if not form.needed <= value.keys() <= form.every:
        odd = sorted(str(each)[:64] for each in (form.needed - value.keys()) | (value.keys() - form.every))[0]
        raise malformed(f"{cls.__name__}: field {odd} is missing or unknown")
    return value


def items_of(value: Any, most: int) -> list[Any]:
    """Return `value` if it is a list of at most `most` items. Raises `MALFORMED`."""
    if not isinstance(value, list | tuple) or len(value) > most:
        raise malformed(f"a list of at most {most} items expected")
    return list(value)


class Part:
    """A dataclass that is read strictly and has one spelling."""

    __slots__ = ()
    # Field name -> (class of the nested document, most items if it is a list of them, else None).
    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {}
    # Fields that are absent when they are None.
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the document strictly. Raises `MALFORMED` and what the class itself checks."""
        document = cls._read(value)
        data = canonical.canonical(value)
        if not document._spells(value):
            raise malformed(f"{cls.__name__} is not in its one spelling")
        document._spelt(data)
        return document

    @classmethod
    def from_checked(cls, value: Any) -> Self:
        """As `from_json`, for what stands in a statement that was read: `value` has a canonical form and is not walked
        a second time. The digest, if any, is computed when it is asked for."""
        document = cls._read(value)
        if not document._spells(value):
            raise malformed(f"{cls.__name__} is not in its one spelling")
        return document

    def _spells(self, value: dict[str, Any]) -> bool:
        """Tell whether `to_json` would give `value` back, whose form is canonical; this was read from it, strictly."""
        if type(self).to_json is not Part.to_json:
            return canonical.same(self.to_json(), value)
        # Most fields are the very objects that were read. What was put into another form is compared as bytes, the
        # parts in it too: what they would spell otherwise, the whole would.
        for name, given in value.items():
            held = getattr(self, name)
            if held is not given and not canonical.same(_plain(held), given):
                return False
            if held is None and name in self.OPTIONAL:
                return False
        return all(getattr(self, name) is None for name in _form(type(self)).every - value.keys())

    def _spelt(self, data: bytes) -> None:
        """Hear the canonical bytes that the document was read from."""

    @classmethod
    def _read(cls, value: Any) -> Self:
        given = fields_of(value, cls).copy()
        for name, (inner, most) in cls.NESTED.items():
            if name not in given:
                continue  # optional: `fields_of` has looked
            if most is None:
                given[name] = inner._read(given[name])
            else:
                given[name] = tuple(inner._read(each) for each in items_of(given[name], most))
        for name in _form(cls).terms:
            if name in given:
                given[name] = Terms.parse(given[name])
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling as JSON values."""
        return {
            name: _plain(value)
            for name in _form(type(self)).every
            if (value := getattr(self, name)) is not None or name not in self.OPTIONAL
        }

    def _fix(self, **values: Any) -> None:
        """Write checked values back into a frozen instance while it is being built."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


class Document(Part):
    """A part with a digest of its own. Immutable, so the digest is computed once."""

    __slots__ = ("_digest",)
    _digest: str

    def _spelt(self, data: bytes) -> None:
        self._fix(_digest=hashlib.sha256(data).hexdigest())

    @property
    def digest(self) -> str:
        """Lower-case hexadecimal SHA-256 of the canonical bytes."""
        try:
            return self._digest
        except AttributeError:
            self._fix(_digest=canonical.digest(self.to_json()))
            return self._digest


def _plain(value: Any) -> Any:
    if type(value) is str:
        return value
    if isinstance(value, Part | Terms):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, dict) else value


def org_set(value: Any, most: int = PARTIES_MAX) -> tuple[str, ...]:
    """Return distinct organisation ids, sorted. Raises `MALFORMED`."""
    named = [org(each) for each in items_of(value, most)]
    if len(set(named)) != len(named):
        raise malformed("an organisation is named twice")
    return tuple(sorted(named))


def name_of(value: Any) -> str:
    """Return `value` if it is a name (`ids.name`). Raises `MALFORMED`."""
    return ids.name(text_of(value))


def digest_of(value: Any) -> str:
    """Return `value` if it is a SHA-256 in hexadecimal. Raises `MALFORMED`."""
    return ids.sha256_hex(text_of(value))


def instant_of(value: Any) -> str:
    """Return `value` if it is an instant. Raises `MALFORMED`."""
    return instants.to_text(instants.parse(text_of(value)))


def line_of(value: Any, chars_max: int = TITLE_CHARS_MAX) -> str:
    """Return `value` if it is one printable line of text. Raises `MALFORMED`."""
    if not text_of(value, chars_max).isprintable():
        raise malformed("control characters are not allowed here")
    return str(value)


def choice_of(value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`. Raises `MALFORMED`."""
    if value not in choices:
        raise malformed(f"one of {', '.join(choices)} expected")
    return str(value)
