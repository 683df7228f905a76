"""Identifiers become elements: written alike, bound to a run, each once, padded to a size that says little."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import (
    ELEMENT_BYTES,
    IDENTIFIER_CHARS_MAX,
    ITEMS_MAX,
    NORMALISATIONS,
    PADDED_MIN,
    domain,
    normalised,
    own_set,
    padded,
    scalar,
)

PLACE = domain("a" * 64, "run-1", "match")
PADDING = b"p" * 32
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TEXTS = st.text(max_size=12)


def _set(column, place=PLACE, padding=PADDING, rules=NORMALISATIONS):
    return own_set(column, rules, place, padding)


def _real(own):
    return {own.elements[at : at + ELEMENT_BYTES] for at in range(0, own.distinct * ELEMENT_BYTES, ELEMENT_BYTES)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" Anna\t", "anna"),
        ("STRASSE", "straße"),
        ("Zo\u0065\u0308", "ZO\u00cb"),
        ("\u03b1\u0345\u0301", "\u1fb4"),
        ("\u212b", "\u00e5"),
    ],
)
def test_one_identifier_in_two_spellings(one, other):
    assert normalised(one, NORMALISATIONS) == normalised(other, NORMALISATIONS)
    assert _real(_set([one])) == _real(_set([other]))


def test_only_the_rules_of_the_step_apply():
    assert normalised(" Ab ", ()) == " Ab "
    assert normalised(" Ab ", ("trim",)) == "Ab"
    assert normalised(" Ab ", ("case",)) == " ab "
    with pytest.raises(ComityError) as caught:
        normalised("a", ("soundex",))
    assert caught.value.code is ErrorCode.UNSUPPORTED


@given(st.text(max_size=40))
def test_writing_twice_changes_nothing(text):
    once = normalised(text, NORMALISATIONS)
    assert normalised(once, NORMALISATIONS) == once
    assert unicodedata.is_normalized("NFC", once)


@given(st.lists(TEXTS, max_size=60))
def test_every_record_finds_its_element(column):
    own = _set(column)
    written = [normalised(text, NORMALISATIONS) for text in column]
    assert own.distinct == len(set(written) - {""})
    assert own.count == padded(own.distinct) == len(own.elements) // ELEMENT_BYTES
    assert (
        len({own.elements[at : at + ELEMENT_BYTES] for at in range(0, len(own.elements), ELEMENT_BYTES)}) == own.count
    )
    by_text = {}
    for text, place in zip(written, own.element_of, strict=True):
        assert (place == -1) == (text == "")
        assert by_text.setdefault(text, place) == place
    assert len(set(by_text.values()) - {-1}) == own.distinct


def test_another_run_step_or_agreement_gives_unrelated_elements():
    places = [domain("a" * 64, "run-1", "match"), domain("a" * 64, "run-2", "match")]
    places += [domain("b" * 64, "run-1", "match"), domain("a" * 64, "run-1", "other")]
    sets = [_real(_set(["anna"], place=place)) for place in places]
    assert len(set.union(*sets)) == len(places)


def test_padding_is_secret_and_the_same_when_it_is_made_again():
    one, again, other = _set(["anna"]), _set(["anna"]), _set(["anna"], padding=b"q" * 32)
    assert one.elements == again.elements
    assert one.elements[:ELEMENT_BYTES] == other.elements[:ELEMENT_BYTES]
    assert one.elements[ELEMENT_BYTES:] != other.elements[ELEMENT_BYTES:]


@given(st.integers(0, ITEMS_MAX))
def test_padded_sizes_are_few_and_close(count):
    size = padded(count)
    assert PADDED_MIN <= size <= ITEMS_MAX
    assert count <= size <= max(PADDED_MIN, count + count // 8 + 1)
    assert padded(size) == size


def test_there_are_eight_sizes_an_octave():
    assert len({padded(count) for count in range(1025, 2049)}) == 8


def test_bounds(monkeypatch):
    monkeypatch.setattr("comity_crypto.psi.identifiers.ITEMS_MAX", 3)
    monkeypatch.setattr("comity_crypto.psi.identifiers.ROWS_MAX", 6)
    assert _set(["a", "b", "c", "a", "b", ""]).distinct == 3
    for column, code in (
        (["a", "b", "c", "d"], ErrorCode.TOO_LARGE),
        (["a"] * 7, ErrorCode.TOO_LARGE),
        (["a" * (IDENTIFIER_CHARS_MAX + 1)], ErrorCode.MALFORMED),
    ):
        with pytest.raises(ComityError) as caught:
            _set(column)
        assert caught.value.code is code
        assert "aaa" not in str(caught.value)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_a_number_of_the_group(secret):
    assert 1 <= int.from_bytes(scalar(secret), "big") < ORDER
    assert scalar(secret) != secret
