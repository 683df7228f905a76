"""Quorum certificates: who signed what, under which keys."""

import dataclasses

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import bls, quorum
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import QuorumCertificate, make_certificate, message_for, verify_certificate

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def members():
    return {name: OrgKeys.generate() for name in ("east", "north", "south", "west")}


@pytest.fixture(scope="module")
def publics(members):
    return {name: keys.public.certificate for name, keys in members.items()}


@pytest.fixture(scope="module")
def cert(members):
    message = message_for("agreement", DIGEST)
    return make_certificate(DIGEST, {name: members[name].bls_sign(message) for name in ("west", "north", "east")})


def _refused(cert, message, keys) -> None:
    with pytest.raises(ComityError) as caught:
        verify_certificate(cert, message, keys)
    assert caught.value.code is ErrorCode.QUORUM_MISSING


def test_signers_are_sorted_and_the_certificate_holds(cert, publics):
    assert cert.signers == ("east", "north", "west")
    verify_certificate(cert, message_for("agreement", DIGEST), publics)
    assert QuorumCertificate.from_json(cert.to_json()) == cert


def test_each_signature_can_be_checked_alone(members, publics):
    message = message_for("agreement", DIGEST)
    signature = members["east"].bls_sign(message)
    assert quorum.bls_verify(publics["east"], message, signature)
    assert not quorum.bls_verify(publics["west"], message, signature)
    assert not quorum.bls_verify(publics["east"], message + b"x", signature)
    assert not quorum.bls_verify(publics["east"], message, signature[:-1])
    assert not quorum.bls_verify(b"", message, b"")


def test_another_domain_digest_or_set_is_refused(cert, publics, members):
    message = message_for("agreement", DIGEST)
    _refused(cert, message_for("charter", DIGEST), publics)
    _refused(cert, message_for("agreement", "cd" * 32), publics)
    _refused(cert, bytes.fromhex(DIGEST), publics)
    _refused(dataclasses.replace(cert, digest="cd" * 32), message, publics)
    _refused(dataclasses.replace(cert, signers=("east", "north")), message, publics)
    _refused(dataclasses.replace(cert, signers=("east", "north", "south", "west")), message, publics)
    _refused(cert, message, {name: publics[name] for name in ("east", "north")})
    _refused(cert, message, publics | {"north": publics["south"]})
    _refused(cert, message, publics | {"north": publics["west"]})
    _refused(dataclasses.replace(cert, signature=b"\xc0" + bytes(95)), message, publics)


def test_a_rogue_key_needs_a_possession_it_cannot_prove(members, publics):
    """Mallory's key is chosen to cancel east's: the sum verifies, so only the proof of possession stands in between."""
    from py_arkworks_bls12381 import G1Point

    mallory = OrgKeys.generate()
    own = G1Point.from_compressed_bytes(mallory.public.certificate)
    rogue = (own - G1Point.from_compressed_bytes(publics["east"])).to_compressed_bytes()
    message = message_for("agreement", DIGEST)
    forged = QuorumCertificate(DIGEST, ("east", "mallory"), mallory.bls_sign(message))
    verify_certificate(forged, message, {"east": publics["east"], "mallory": rogue})
    with pytest.raises(ComityError, match="POSSESSION_UNPROVEN"):
        dataclasses.replace(mallory.public, certificate=rogue).verify_possession()


@pytest.mark.parametrize(
    "change",
    [
        {"signers": []},
        {"signers": ["b", "a"]},
        {"signers": ["a", "a"]},
        {"signers": ["A b"]},
        {"signers": [1]},
        {"signers": "ab"},
        {"signers": [f"o{n:05}" for n in range(1025)]},
        {"digest": "AB" * 32},
        {"digest": None},
        {"signature": "AAAA"},
        {"more": 1},
    ],
)
def test_odd_certificates_are_refused(cert, change):
    with pytest.raises(ComityError, match="MALFORMED"):
        QuorumCertificate.from_json(cert.to_json() | change)


def test_message_wants_a_name_and_a_digest():
    assert message_for("agreement", DIGEST) == b"comity/quorum/v1\x00agreement\x00" + bytes.fromhex(DIGEST)
    for domain, digest in (("a b", DIGEST), ("", DIGEST), ("agreement", "AB" * 32), ("agreement", "ab")):
        with pytest.raises(ComityError, match="MALFORMED"):
            message_for(domain, digest)


def test_nothing_aggregates_from_nothing(members):
    with pytest.raises(ComityError, match="MALFORMED"):
        quorum.aggregate({})
    with pytest.raises(ComityError, match="MALFORMED"):
        quorum.aggregate({"east": bytes(bls.SIGNATURE_BYTES)})
