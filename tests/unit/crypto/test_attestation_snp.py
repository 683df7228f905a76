"""SEV-SNP reports: a real Milan report up to its debug bit, and a whole chain under a root of our own."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from harness import machines
from harness.machines import CHIP, MEASUREMENT, TCB, der_integer, raw

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import snp
from comity_crypto.attestation.evidence import report_data

NOW = datetime(2026, 11, 22, tzinfo=UTC)
KEY, NONCE = b"k" * 32, b"n" * 32
# AMD numbers all its certificates for chips with 0, of which the library warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")


def refused(obligation, call, *args, **kwargs):
    with pytest.raises(ComityError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is ErrorCode.ATTESTATION_INVALID, caught.value
    assert caught.value.facts["obligation"] == obligation, caught.value


class Maker(machines.Maker):
    """A manufacturer whose reports are for KEY and NONCE unless a test says otherwise."""

    def report(self, by=None, version=5, **fields):
        return super().report(report_data(KEY, NONCE), by, version, **fields)


@pytest.fixture(scope="module")
def maker():
    return Maker(NOW)


def verify(maker, report=None, chain=None, policy=None, key=KEY, nonce=NONCE, now=NOW):
    return snp.verify(
        report or maker.report(),
        chain or maker.chain(),
        policy or maker.policy(),
        statement_key=key,
        nonce=nonce,
        now=now,
    )


def test_a_report_that_holds(maker):
    assert verify(maker).measurement == MEASUREMENT
    for version in (2, 3, 4):
        assert verify(maker, report=maker.report(version=version)).version == version
    pem = [x509.load_der_x509_certificate(each).public_bytes(Encoding.PEM) for each in (maker.ask, maker.ark)]
    policy = maker.policy(roots=frozenset({hashlib.sha256(pem[1]).hexdigest()}))
    verify(maker, chain=maker.chain(ask=pem[0], ark=pem[1]), policy=policy)
    verify(maker, chain=maker.chain(vcek=maker.vcek(chip=b"\x04\x40" + CHIP)))


def test_1_form(maker):
    good = maker.report()
    for odd in (
        good[:-1],
        good + b"\0",
        b"",
        maker.report(version=1),
        maker.report(version=6),
        maker.report(x34=(2).to_bytes(4, "little")),
        maker.report(x188=b"\x1a"),
        maker.report(x48=(1 << 2).to_bytes(4, "little")),
        maker.report(x48=(0b10).to_bytes(4, "little")),
    ):
        refused(1, snp.read, odd)


def test_2_chain(maker):
    other = hashlib.sha256(maker.ask).hexdigest()
    refused(2, verify, maker, policy=maker.policy(roots=frozenset({other})))
    refused(2, verify, maker, policy=maker.policy(roots=frozenset()))
    shorter = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    trusted = frozenset({hashlib.sha256(each).hexdigest() for each in (maker.ark, maker.ask)})
    for chain in (
        maker.chain(ask=maker.ark),
        maker.chain(ark=maker.ask),
        maker.chain(vcek=maker.ask),
        maker.chain(vcek=b""),
        maker.chain(ask=b"-----BEGIN CERTIFICATE-----\n"),
        maker.chain(ask=bytes(snp.CERTIFICATE_BYTES_MAX + 1)),
        maker.chain(vcek=maker.vcek(by=maker.ark_key)),
        maker.chain(vcek=maker.vcek(issuer="ark", by=maker.ark_key)),
        maker.chain(vcek=maker.vcek(ca=True)),
        maker.chain(vcek=maker.vcek(rsa_padding=padding.PKCS1v15())),
        maker.chain(vcek=maker.vcek(digest=hashes.SHA256(), rsa_padding=shorter)),
    ):
        refused(2, verify, maker, chain=chain, policy=maker.policy(roots=trusted))
    refused(2, verify, maker, chain=maker.chain(vcek=maker.vcek(days=1)), now=NOW + timedelta(days=2))
    for away in (timedelta(days=-2), timedelta(days=101)):
        refused(2, verify, maker, now=NOW + away)


def test_2_a_signing_key_below_4096_bits(maker):
    weak = rsa.generate_private_key(65537, 2048)
    ask = maker.certificate("ask", weak, "ark", maker.ark_key, ca=True)
    refused(2, verify, maker, chain=maker.chain(ask=ask, vcek=maker.vcek(by=weak)))


def test_3_signature(maker):
    refused(3, verify, maker, report=maker.report(by=ec.generate_private_key(ec.SECP384R1())))
    good = maker.report()
    chance = random.Random(3)
    for _ in range(200):
        altered = bytearray(good)
        # Beside the fields that obligation 1 reads, every signed bit counts, and every bit of the signature.
        at = chance.choice((*range(0x50, 0x180), *range(0x1A0, 0x2A0), *range(0x2A0, 0x2D0), *range(0x2E8, 0x318)))
        altered[at] ^= 1 << chance.randrange(8)
        refused(3, verify, maker, report=bytes(altered))
    for zeros in (slice(0x2A0, 0x2E8), slice(0x2E8, 0x330)):
        altered = bytearray(good)
        altered[zeros] = bytes(72)
        refused(3, verify, maker, report=bytes(altered))
        altered[zeros] = b"\xff" * 72
        refused(3, verify, maker, report=bytes(altered))
    refused(3, verify, maker, chain=maker.chain(vcek=maker.vcek(key=maker.ask_key)))
    refused(3, verify, maker, chain=maker.chain(vcek=maker.vcek(key=ec.generate_private_key(ec.SECP256R1()))))


def test_4_chip(maker):
    refused(4, verify, maker, chain=maker.chain(vcek=maker.vcek(chip=CHIP[::-1])))
    refused(4, verify, maker, chain=maker.chain(vcek=maker.vcek(tcb=replace(TCB, snp=23))))
    for missing in ("3.1", "3.2", "3.3", "3.8", "4"):
        refused(4, verify, maker, chain=maker.chain(vcek=maker.vcek(without=(missing,))))
    refused(4, verify, maker, report=maker.report(x1A0=bytes(64)), chain=maker.chain(vcek=maker.vcek(chip=bytes(64))))
    for odd in (b"", b"\2\1", b"\2\2\0\7", b"\2\1\xd5", b"\2\3\0\0\7", b"\2\2\1\7", b"\4\1\7"):
        refused(4, snp._small_integer, odd)
    assert [snp._small_integer(der_integer(value)) for value in (0, 127, 128, 255)] == [0, 127, 128, 255]


def test_5_guest_policy(maker):
    for bits in (0x30000 | 1 << 19, 0x30000 | 1 << 18, 0x10000):
        refused(5, verify, maker, report=maker.report(x8=bits.to_bytes(8, "little")))
    deeper = maker.report(x30=(2).to_bytes(4, "little"))
    refused(5, verify, maker, report=deeper)
    verify(maker, report=deeper, policy=maker.policy(vmpl_max=2))


@pytest.mark.parametrize("field", ["boot_loader", "tee", "snp", "microcode"])
def test_6_firmware(maker, field):
    higher = replace(TCB, **{field: getattr(TCB, field) + 1})
    refused(6, verify, maker, policy=maker.policy(floor=higher))
    if getattr(TCB, field):
        older = raw(replace(TCB, **{field: getattr(TCB, field) - 1}))
        refused(6, verify, maker, report=maker.report(x1E0=older))


def test_7_measurement(maker):
    refused(7, verify, maker, policy=maker.policy(measurements=frozenset({b"x" * 48})))
    refused(7, verify, maker, policy=maker.policy(measurements=frozenset()))


def test_8_binding(maker):
    refused(8, verify, maker, key=b"x" * 32)
    refused(8, verify, maker, nonce=b"x" * 32)
    with pytest.raises(ComityError, match="MALFORMED"):
        verify(maker, nonce=b"")
    assert report_data(KEY, NONCE) != report_data(NONCE, KEY)


def test_hostile_bytes_are_refused(maker):
    chance = random.Random(5)
    chain, policy, good = maker.chain(), maker.policy(), maker.report()
    for _ in range(500):
        hostile = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            at, size = chance.randrange(snp.SIGNED_BYTES), chance.choice((1, 8, 64))
            hostile[at : at + size] = chance.randbytes(size)
        with pytest.raises(ComityError) as caught:
            verify(maker, report=bytes(hostile[: snp.REPORT_BYTES]), chain=chain, policy=policy)
        assert caught.value.facts["obligation"] in (1, 3)
    for _ in range(300):
        vcek = bytearray(chain.vcek)
        vcek[chance.randrange(len(vcek))] ^= 1 << chance.randrange(8)
        with pytest.raises(ComityError) as caught:
            verify(maker, report=good, chain=replace(chain, vcek=bytes(vcek)), policy=policy)
        assert caught.value.facts["obligation"] == 2


class TestRealMilanReport:
    """The report that PyPI's omne-attest ships: AMD's own chain; its guest was started with debugging allowed."""

    @pytest.fixture
    def vectors(self):
        return pytest.importorskip("omne_attest.vectors", reason="the real Milan report is in omne-attest (extra test)")

    @pytest.fixture
    def chain(self, vectors):
        return snp.Chain(vectors.vcek(), vectors.ask(), vectors.ark())

    @pytest.fixture
    def policy(self, vectors):
        found = snp.read(vectors.attestation())
        return snp.Policy(frozenset({vectors.ARK_SHA256.hex()}), frozenset({found.measurement}), found.reported)

    def test_everything_holds_but_debugging(self, vectors, chain, policy):
        found = snp.read(vectors.attestation())
        vcek = snp.verify_chain(chain, policy.roots, NOW)
        snp._check_signature(found, vcek)
        snp._check_chip(found, vcek)
        refused(5, snp.verify, vectors.attestation(), chain, policy, statement_key=KEY, nonce=NONCE, now=NOW)
        assert found.guest_policy >> 19 & 1

    def test_tampering_shows_before(self, vectors, chain, policy):
        good = vectors.attestation()
        for at in (0x08, 0x50, 0x90, 0x180, 0x1A0, 0x2A0):
            altered = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
            refused(3, snp.verify, altered, chain, policy, statement_key=KEY, nonce=NONCE, now=NOW)

    def test_under_another_root(self, vectors, maker, policy):
        mixed = snp.Chain(vectors.vcek(), maker.ask, maker.ark)
        roots = frozenset({hashlib.sha256(maker.ark).hexdigest()})
        refused(2, snp.verify_chain, mixed, roots, NOW)
        refused(2, snp.verify_chain, mixed, policy.roots, NOW)
