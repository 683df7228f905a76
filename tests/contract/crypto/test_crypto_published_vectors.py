"""Published vectors and second implementations: RFC 6962 trees, signed notes, Ed25519, BLS12-381."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from py_ecc.bls import G2ProofOfPossession

from comity_crypto import bls, merkle, notes, quorum
from comity_crypto.keys import OrgKeys

# The sample tree of the certificate-transparency project (RFC 6962), eight leaves.
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCY = [
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


def _hashes() -> list[bytes]:
    return [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]


@pytest.mark.parametrize("size", range(9))
def test_roots(size):
    assert merkle.root(_hashes()[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_inclusion_proofs(index, size, proof):
    leaves = _hashes()[:size]
    assert [step.hex() for step in merkle.inclusion_proof(leaves, index)] == proof
    steps = [bytes.fromhex(step) for step in proof]
    merkle.verify_inclusion(leaves[index], index, size, steps, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("first", "second", "proof"), CONSISTENCY)
def test_consistency_proofs(first, second, proof):
    assert [step.hex() for step in merkle.consistency_proof(_hashes()[:second], first)] == proof
    steps = [bytes.fromhex(step) for step in proof]
    merkle.verify_consistency(first, second, bytes.fromhex(ROOTS[first]), bytes.fromhex(ROOTS[second]), steps)


def test_a_signed_note_of_the_go_module_mirror():
    """The example of golang.org/x/mod/sumdb/note, byte for byte."""
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    private = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    assert notes.sign_note(text, "PeterNeumann", private) == f"{text}\n— PeterNeumann {signature}\n"
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    expected = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert notes.verifier_key("PeterNeumann", public) == expected


def test_a_bls_signature_of_the_ethereum_vectors():
    """bls12-381-tests, sign_case_142f678a8d05fcd1; that suite has the same ciphersuite."""
    secret = bls.secret_scalar(bytes.fromhex("47b8192d77bf871b62e87859d653922725724a5c031afeabc60bcef5ff665138"))
    signature = bls.sign(secret, bytes(32))
    assert signature.hex() == (
        "b23c46be3a001c63ca711f87a005c200cc550b9429d5f4eb38d74322144f1b63926da3388979e5321012fb1a0526bcd1"
        "00b5ef5fe72628ce4cd5e904aeaa3279527843fae5ca9ca675f4f51ed8f83bbf7155da9ecc9663100a885d5dc6df96d9"
    )


def test_py_ecc_agrees_in_both_directions():
    theirs = 0x1234567890ABCDEF1234567890ABCDEF
    secret = bls.secret_scalar(theirs.to_bytes(32, "big"))
    assert bls.public_of(secret) == G2ProofOfPossession.SkToPk(theirs)
    assert bls.prove_possession(secret) == G2ProofOfPossession.PopProve(theirs)
    assert bls.sign(secret, b"message") == G2ProofOfPossession.Sign(theirs, b"message")


def test_the_independent_verifier_accepts_and_refuses_the_same():
    members = {name: OrgKeys.generate() for name in ("north", "south")}
    publics = {name: keys.public.certificate for name, keys in members.items()}
    digest = "12" * 32
    message = quorum.message_for("agreement", digest)
    cert = quorum.make_certificate(digest, {name: keys.bls_sign(message) for name, keys in members.items()})
    quorum.verify_certificate(cert, message, publics)
    quorum.independent_verify(cert, message, publics)
    lone = quorum.QuorumCertificate(digest, ("north",), cert.signature)
    for verify in (quorum.verify_certificate, quorum.independent_verify):
        with pytest.raises(quorum.ComityError, match="QUORUM_MISSING"):
            verify(lone, message, publics)
        with pytest.raises(quorum.ComityError, match="QUORUM_MISSING"):
            verify(cert, message, {"north": publics["north"]})
