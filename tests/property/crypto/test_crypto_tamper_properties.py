"""Whatever is changed in a sealed payload, a statement, a note or a certificate is noticed."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError
from comity_crypto import merkle, notes
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.sealing import Opener, SealedRef, open_bytes, open_to_fd, padme, seal_to_bytes, sealed_size
from comity_crypto.statements import Statement, sign_statement, verify_statement

KEYS = OrgKeys.generate()
TO = {"north": KEYS.public.sealing}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=300), max_size=6), st.binary(max_size=40))
def test_parts_come_back_joined(parts, context):
    ref, sealed = seal_to_bytes(parts, TO, context)
    assert open_bytes(KEYS, "north", SealedRef.from_json(ref.to_json()), context, sealed) == b"".join(parts)
    assert len(sealed) == sealed_size(sum(map(len, parts)))


@given(st.data())
def test_any_changed_byte_of_a_payload_or_box_is_noticed(data):
    plain = data.draw(st.binary(max_size=200))
    ref, sealed = seal_to_bytes([plain], TO, b"c")
    box = base64.b64decode(ref.boxes["north"])
    both = bytearray(box + sealed)
    both[data.draw(st.integers(0, len(both) - 1))] ^= data.draw(st.integers(1, 255))
    changed = SealedRef(ref.digest, ref.size, {"north": base64.b64encode(both[: len(box)]).decode()})
    fd = os.memfd_create("plain")
    try:
        with pytest.raises(ComityError):
            open_to_fd(Opener(KEYS, "north", changed, b"c"), [bytes(both[len(box) :])], fd)
        assert os.fstat(fd).st_size == 0
    finally:
        os.close(fd)


@given(st.integers(0, 2**40))
def test_padme_wastes_little_and_is_stable(size):
    padded = padme(size)
    assert size <= padded <= size * 1.12 + 1
    assert padme(padded) == padded
    assert padme(size + 1) >= padded


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_body_survives(body):
    said = sign_statement(KEYS, kind="k", consortium="med", issuer="north", body=body)
    again = Statement.from_bytes(said.to_bytes())
    verify_statement(again, KEYS.public.statement, kind="k", consortium="med")
    assert again.digest == said.digest


@given(st.data())
def test_any_changed_byte_of_a_statement_is_noticed(data):
    said = sign_statement(KEYS, kind="k", consortium="med", issuer="north", body={"text": "αβγ", "n": 7})
    raw = bytearray(said.to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ComityError):
        verify_statement(Statement.from_bytes(bytes(raw)), KEYS.public.statement, kind="k", consortium="med")


@given(st.data())
def test_any_changed_character_of_a_note_is_noticed(data):
    point = notes.Checkpoint("med/log", 7, merkle.leaf_hash(b"x"))
    note = notes.sign_note(point.text(), "med/log", KEYS)
    where = data.draw(st.integers(0, len(note) - 1))
    other = data.draw(st.characters().filter(lambda char: char != note[where]))
    with pytest.raises(ComityError):
        notes.verify_note(note[:where] + other + note[where + 1 :], "med/log", KEYS.public.statement)


@given(json_values)
def test_documents_of_strangers_never_crash_a_parser(value):
    for parse in (Statement.from_json, SealedRef.from_json, QuorumCertificate.from_json, type(KEYS.public).from_json):
        with pytest.raises(ComityError):
            parse(value)


@given(st.data())
def test_fields_of_strangers_never_crash_a_parser(data):
    said = sign_statement(KEYS, kind="k", consortium="med", issuer="north", body={})
    document = said.to_json()
    target = document if data.draw(st.booleans()) else document["content"]
    field = data.draw(st.sampled_from(sorted(target)))
    target[field] = data.draw(json_values)
    try:
        verify_statement(Statement.from_json(document), KEYS.public.statement)
    except ComityError:
        return
    assert Statement.from_json(document) == said
