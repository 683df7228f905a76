"""Statements: one byte form, domain separation, strict fields, signatures."""

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, key_id, sign_statement, verify_statement


@pytest.fixture
def said(alice):
    return sign_statement(alice, kind="proposal", consortium="med", issuer="north", body={"b": 1, "a": ["x", None]})


def test_round_trip_and_digest(alice, said):
    data = said.to_bytes()
    again = Statement.from_bytes(data)
    assert again == said
    assert Statement.from_json(json.loads(data)) == said
    assert said.digest == hashlib.sha256(data).hexdigest()
    verify_statement(again, alice.public.statement, kind="proposal", consortium="med")
    assert said.key_id == key_id(alice.public.statement)
    assert len(said.key_id) == 16


def test_signed_bytes_are_the_domain_and_the_canonical_content(alice, said):
    content = {
        "kind": "proposal",
        "consortium": "med",
        "issuer": "north",
        "issued_at": said.issued_at,
        "body": {"a": ["x", None], "b": 1},
        "version": 1,
    }
    signed = b"comity/statement/v1\x00" + canonical.canonical(content)
    Ed25519PublicKey.from_public_bytes(alice.public.statement).verify(said.signature, signed)
    assert json.loads(said.to_bytes())["content"] == content


def test_expectations_are_checked(alice, bob, said):
    for key, expected in (
        (alice, {"kind": "answer"}),
        (alice, {"consortium": "law"}),
        (bob, {}),
    ):
        with pytest.raises(ComityError) as caught:
            verify_statement(said, key.public.statement, **expected)
        assert caught.value.code is ErrorCode.SIGNATURE_INVALID
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        verify_statement(said, b"", kind="proposal")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "answer"},
        {"consortium": "law"},
        {"issuer": "south"},
        {"issued_at": "2030-01-01T00:00:00Z"},
        {"body": {"b": 2}},
    ],
)
def test_any_changed_field_breaks_the_signature(alice, said, change):
    document = said.to_json()
    document["content"] = document["content"] | change
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        verify_statement(Statement.from_json(document), alice.public.statement)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("content", "version"), 2),
        (("content", "version"), True),
        (("content", "version"), "1"),
        (("content", "kind"), "a b"),
        (("content", "kind"), 7),
        (("content", "issuer"), "North"),
        (("content", "issued_at"), "2030-1-01T00:00:00Z"),
        (("content", "issued_at"), "2030-01-01T00:00:00+00:00"),
        (("content", "body"), []),
        (("content", "body"), {"x": 1.5}),
        (("content", "more"), 1),
        (("key_id",), "XYZ"),
        (("key_id",), "A" * 16),
        (("key_id",), 1),
        (("signature",), "AAAA"),
        (("signature",), None),
        (("more",), 1),
    ],
)
def test_odd_documents_are_refused(said, path, value):
    document = json.loads(said.to_bytes())
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ComityError) as caught:
        Statement.from_json(document)
    assert caught.value.code in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED)


def test_other_spellings_and_sizes_are_refused(alice, said):
    data = said.to_bytes()
    for other in (data + b" ", b" " + data, json.dumps(json.loads(data)).encode(), b"[]", b"", b"\xff", data[:-1]):
        with pytest.raises(ComityError, match="MALFORMED"):
            Statement.from_bytes(other)
    with pytest.raises(ComityError, match="TOO_LARGE"):
        Statement.from_bytes(data, max_bytes=len(data) - 1)
    with pytest.raises(ComityError, match="TOO_LARGE"):
        sign_statement(alice, kind="k", consortium="med", issuer="north", body={"x": "y" * (1 << 20)})


def test_floats_are_never_signed(alice):
    with pytest.raises(ComityError, match="MALFORMED"):
        sign_statement(alice, kind="k", consortium="med", issuer="north", body={"x": 0.5})


def test_the_coordinator_may_issue(alice):
    said = sign_statement(alice, kind="k", consortium="med", issuer="coordinator", body={})
    verify_statement(said, alice.public.statement)


def test_the_byte_form_is_the_canonical_document(said):
    assert said.to_bytes() == canonical.canonical(said.to_json())
    assert Statement.from_bytes(said.to_bytes()).to_bytes() == said.to_bytes()


def test_text_that_is_not_unicode_is_refused(alice, said):
    with pytest.raises(ComityError, match="MALFORMED"):
        sign_statement(alice, kind="k", consortium="med", issuer="north", body={"x": "\ud800"})
    with pytest.raises(ComityError, match="MALFORMED"):
        Statement.from_bytes(said.to_bytes().replace(b'"x"', b'"\\ud800"'))
