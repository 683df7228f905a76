"""Public and private keys: form, refusals, possession, boxes, derived secrets."""

import base64
import copy
import dataclasses
import pickle
import subprocess
import sys

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import bls, keys
from comity_crypto.keys import MemberKeys, OrgKeys, OrgSecrets


def test_public_keys_survive_their_document_form(alice):
    assert MemberKeys.from_json(alice.public.to_json()) == alice.public
    assert [len(value) for value in dataclasses.astuple(alice.public)] == [32, 48, 96, 1216]


def test_fingerprint_is_130_bits_in_groups(alice, bob):
    text = alice.public.fingerprint()
    assert len(text.replace("-", "")) == 26
    assert all(4 <= len(group) <= 5 for group in text.split("-"))
    assert text != bob.public.fingerprint()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("statement", bytes(32)),
        ("statement", (1).to_bytes(32, "little")),
        ("statement", (2**255 - 20).to_bytes(32, "little")),
        ("statement", b"\xff" * 32),
        ("statement", bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
        ("statement", b"x" * 31),
        ("certificate", b"\xc0" + bytes(47)),
        ("certificate", bytes(48)),
        ("certificate", b"\xff" * 48),
        ("possession", b"\xc0" + bytes(95)),
        ("sealing", b"\xff" * 1216),
        ("sealing", bytes(1215)),
    ],
)
def test_bad_public_keys_are_refused(alice, field, value):
    document = alice.public.to_json() | {field: base64.b64encode(value).decode()}
    with pytest.raises(ComityError) as caught:
        MemberKeys.from_json(document)
    assert caught.value.code is ErrorCode.MALFORMED


@pytest.mark.parametrize("change", [{"extra": ""}, {"statement": None}, {"statement": "=" * 44}, {"statement": "é"}])
def test_odd_documents_are_refused(alice, change):
    with pytest.raises(ComityError, match="MALFORMED"):
        MemberKeys.from_json(alice.public.to_json() | change)
    with pytest.raises(ComityError, match="MALFORMED"):
        MemberKeys.from_json([])


def test_somebody_elses_certificate_key_is_refused(alice, bob):
    stolen = bob.public.to_json() | {"certificate": alice.public.to_json()["certificate"]}
    with pytest.raises(ComityError, match="POSSESSION_UNPROVEN"):
        MemberKeys.from_json(stolen)


def test_an_ordinary_signature_is_no_proof_of_possession(alice):
    forged = dataclasses.replace(alice.public, possession=alice.bls_sign(alice.public.certificate))
    with pytest.raises(ComityError, match="POSSESSION_UNPROVEN"):
        forged.verify_possession()


def test_secrets_have_no_text_and_no_copies(alice):
    stored = OrgSecrets.generate()
    assert stored.node.hex() not in repr(stored)
    assert repr(alice) == f"OrgKeys({alice.public.fingerprint()})"
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            act(alice)


@pytest.mark.parametrize("field", ["statement", "certificate", "kem", "exchange", "node"])
def test_stored_keys_of_a_wrong_form_are_unreadable(field):
    broken = dataclasses.replace(OrgSecrets.generate(), **{field: b"\x00"})
    with pytest.raises(ComityError) as caught:
        OrgKeys(broken)
    assert caught.value.code is ErrorCode.KEY_UNREADABLE
    assert caught.value.__cause__ is None


def test_the_same_secrets_give_the_same_keys():
    stored = OrgSecrets.generate()
    assert OrgKeys(stored).public == OrgKeys(stored).public
    assert OrgKeys(stored).secret(b"a") == OrgKeys(stored).secret(b"a")
    assert OrgKeys(stored).secret(b"a") != OrgKeys(stored).secret(b"b")
    assert len(OrgKeys(stored).secret(b"a")) == 32


def test_a_box_opens_only_for_its_receiver_purpose_and_context(alice, bob):
    box = keys.seal_box(b"k" * 32, alice.public.sealing, b"info", b"aad")
    assert len(box) == 32 + keys.BOX_OVERHEAD_BYTES == 1168
    assert alice.open_box(box, b"info", b"aad") == b"k" * 32
    attempts = [
        (bob, box, b"info", b"aad"),
        (alice, box, b"other", b"aad"),
        (alice, box, b"info", b"other"),
        (alice, box, b"infoa", b"ad"),
        (alice, box[:-1], b"info", b"aad"),
        (alice, b"", b"info", b"aad"),
        (alice, box[:-1] + bytes([box[-1] ^ 1]), b"info", b"aad"),
    ]
    for who, data, info, aad in attempts:
        with pytest.raises(ComityError, match="SEAL_BROKEN"):
            who.open_box(data, info, aad)


def test_a_sealing_key_of_small_order_is_refused(alice):
    weak = alice.public.sealing[: keys.KEM_BYTES] + bytes(32)
    with pytest.raises(ComityError, match="MALFORMED"):
        keys.seal_box(b"k", weak, b"", b"")


def test_boxes_are_fresh(alice):
    boxes = {keys.seal_box(b"k", alice.public.sealing, b"", b"") for _ in range(8)}
    assert len(boxes) == 8


def test_spell_wants_a_digest():
    assert keys.spell("00" * 32) == "aaaa-aaaa-aaaaa-aaaa-aaaa-aaaaa"
    for bad in ("", "zz" * 32, "00" * 31):
        with pytest.raises(ComityError, match="MALFORMED"):
            keys.spell(bad)


def test_bls_refuses_identities_and_cancelled_keys(alice):
    from py_arkworks_bls12381 import G1Point, G2Point

    no_key, no_signature = G1Point.identity().to_compressed_bytes(), G2Point.identity().to_compressed_bytes()
    assert not bls.verify(no_key, b"m", no_signature)
    assert not bls.possession_holds(no_key, no_signature)
    key = G1Point.from_compressed_bytes(alice.public.certificate)
    pair = [alice.public.certificate, (-key).to_compressed_bytes()]
    assert not bls.verify_aggregate(pair, b"m", no_signature)
    assert not bls.verify_aggregate([], b"m", alice.bls_sign(b"m"))
    signature = alice.bls_sign(b"m")
    opposite = (-G2Point.from_compressed_bytes(signature)).to_compressed_bytes()
    for bad in ([], [signature, opposite], [no_signature], [signature[:-1]]):
        with pytest.raises(ComityError, match="MALFORMED"):
            bls.aggregate(bad)


def test_imports_stay_light():
    names = ["bls", "encoding", "keys", "keystore", "statements", "x509", "quorum", "sealing", "merkle", "notes"]
    code = "import sys; " + "; ".join(f"import comity_crypto.{name}" for name in names)
    code += "; heavy = {'py_ecc', 'tenseal', 'numpy', 'flwr', 'grpc'} & set(sys.modules)"
    code += "; sys.exit(str(heavy) if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
