"""SGX and TDX quotes: real samples hold on their day and for what they are, and nothing else does."""

from __future__ import annotations

import importlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import evidence, quotes

SAMPLES = Path(__file__).parent / "quotes"
KEY, NONCE = b"k" * 32, b"n" * 32
HARDENING = "ConfigurationAndSWHardeningNeeded"
SIGNED = ("root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature")


@pytest.fixture(autouse=True)
def _library():
    pytest.importorskip("dcap_qvl", reason="quotes need comity[attestation]")


def sample(kind):
    quote = (SAMPLES / f"{kind}_quote").read_bytes()
    collateral = (SAMPLES / f"{kind}_quote_collateral.json").read_bytes()
    issued = datetime.fromisoformat(json.loads(json.loads(collateral)["tcb_info"])["issueDate"])
    return quote, collateral, issued + timedelta(days=1)


def policy_of(found, **changes):
    registers = {name: frozenset({found.registers[name]}) for name in quotes.REQUIRED[found.kind]}
    return quotes.Policy(found.kind, registers, frozenset({found.status}), **changes)


def refused(obligation, call, *args, **kwargs):
    with pytest.raises(ComityError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is ErrorCode.ATTESTATION_INVALID, caught.value
    assert caught.value.facts["obligation"] == obligation, caught.value


def bound(monkeypatch, found):
    """The samples carry other people's report data: let the expected digest be just that."""
    value = bytes.fromhex(found.registers["report_data"])
    monkeypatch.setattr(evidence, "report_data", lambda key, nonce: value if (key, nonce) == (KEY, NONCE) else b"")


@pytest.mark.parametrize(("kind", "status"), [("sgx", HARDENING), ("tdx", "UpToDate")])
def test_real_quotes_hold_on_their_day(kind, status, monkeypatch):
    quote, collateral, now = sample(kind)
    found = quotes.verify_evidence(quote, collateral, now)
    assert (found.kind, found.status) == (kind, status)
    assert found.advisories == (("INTEL-SA-00289", "INTEL-SA-00615") if kind == "sgx" else ())
    refused(7, quotes.verify, quote, collateral, policy_of(found), statement_key=KEY, nonce=NONCE, now=now)
    bound(monkeypatch, found)
    quotes.verify(quote, collateral, policy_of(found), statement_key=KEY, nonce=NONCE, now=now)
    refused(7, quotes.verify, quote, collateral, policy_of(found), statement_key=KEY, nonce=b"o" * 32, now=now)


def test_collateral_has_its_time():
    quote, collateral, now = sample("tdx")
    for away in (timedelta(days=-3000), timedelta(days=90), timedelta(days=3000)):
        refused(2, quotes.verify_evidence, quote, collateral, now + away)


def test_statuses_advisories_kinds_and_measurements_are_asked_for():
    quote, collateral, now = sample("sgx")
    found = quotes.verify_evidence(quote, collateral, now)
    good = policy_of(found)
    more = {"statement_key": KEY, "nonce": NONCE, "now": now}
    refused(4, quotes.verify, quote, collateral, replace(good, statuses=quotes.ACCEPTED), **more)
    strict = replace(good, refused_advisories=frozenset({"INTEL-SA-00615"}))
    refused(4, quotes.verify, quote, collateral, strict, **more)
    other = replace(good, registers={"mr_enclave": frozenset({"00" * 32})})
    refused(6, quotes.verify, quote, collateral, other, **more)
    unknown = replace(good, registers={**good.registers, "mr_td": frozenset({"00"})})
    refused(6, quotes.verify, quote, collateral, unknown, **more)
    tdx = quotes.Policy("tdx", {name: frozenset({"00"}) for name in quotes.REQUIRED["tdx"]})
    refused(3, quotes.verify, quote, collateral, tdx, **more)


def test_a_policy_that_would_accept_every_workload_cannot_exist():
    for kind, registers in (("sgx", {}), ("sgx", {"mr_enclave": frozenset()}), ("tdx", {"mr_td": frozenset({"00"})})):
        with pytest.raises(ComityError, match="MALFORMED"):
            quotes.Policy(kind, registers)
    with pytest.raises(ComityError, match="MALFORMED"):
        quotes.Policy("sev", {})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("sgx", "attributes", "0700000000000000e700000000000000"),
        ("sgx", "attributes", ""),
        ("tdx", "td_attributes", "0100001000000000"),
        ("tdx", "td_attributes", "zz"),
        ("tdx", "mr_signer_seam", "01" * 48),
        ("tdx", "seam_attributes", "0100000000000000"),
    ],
)
def test_debugging_and_strange_modules_are_refused(kind, name, value, monkeypatch):
    quote, collateral, now = sample(kind)
    found = quotes.verify_evidence(quote, collateral, now)
    odd = replace(found, registers={**found.registers, name: value})
    monkeypatch.setattr(quotes, "verify_evidence", lambda *_: odd)
    with pytest.raises(ComityError) as caught:
        quotes.verify(quote, collateral, policy_of(found), statement_key=KEY, nonce=NONCE, now=now)
    assert caught.value.facts["obligation"] == (2 if value == "zz" else 5)


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_hostile_quotes_are_refused(kind):
    quote, collateral, now = sample(kind)
    chance = random.Random(7)
    # What is signed: header and body of a quote, 48 bytes and 384 (SGX) or 584 (TDX).
    signed = 48 + (384 if kind == "sgx" else 584)
    for _ in range(400):
        hostile = bytearray(quote)
        hostile[chance.randrange(signed)] ^= chance.randint(1, 255)
        refused(2, quotes.verify_evidence, bytes(hostile), collateral, now)
    for _ in range(400):
        refused(2, quotes.verify_evidence, chance.randbytes(chance.randint(1, 6000)), collateral, now)
    for cut in range(1, signed, 7):
        refused(2, quotes.verify_evidence, quote[:cut], collateral, now)


def test_hostile_collateral_is_refused():
    quote, collateral, now = sample("tdx")
    for odd in (b"{}", b"[]", b"\xff\xfe", b"null", b'{"tcb_info": 1}', b"[" * 5000):
        refused(1, quotes.verify_evidence, quote, odd, now)
    for size in (0, quotes.COLLATERAL_BYTES_MAX + 1):
        refused(1, quotes.verify_evidence, quote, b" " * size, now)
    for size in (0, quotes.QUOTE_BYTES_MAX + 1):
        refused(1, quotes.verify_evidence, b"\0" * size, collateral, now)
    document = json.loads(collateral)
    # The PCK CRL's issuer chain is not used: the certificates inside the quote are. Of the others the root is not.
    for name in SIGNED:
        for odd in ("", document[name][: len(document[name]) // 2], "not this"):
            with pytest.raises(ComityError) as caught:
                quotes.verify_evidence(quote, json.dumps({**document, name: odd}).encode(), now)
            assert caught.value.facts["obligation"] in (1, 2), name
    for name in ("tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        for odd in ("", document["pck_crl_issuer_chain"]):
            refused(2, quotes.verify_evidence, quote, json.dumps({**document, name: odd}).encode(), now)


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_revocation_lists_are_signed(name):
    quote, collateral, now = sample("sgx")
    document, chance = json.loads(collateral), random.Random(11)
    good = bytes.fromhex(document[name])
    for _ in range(60):
        altered = bytearray(good)
        altered[chance.randrange(len(good))] ^= chance.randint(1, 255)
        refused(2, quotes.verify_evidence, quote, json.dumps({**document, name: altered.hex()}).encode(), now)


def test_tampered_tcb_information_is_refused():
    quote, collateral, now = sample("sgx")
    document = json.loads(collateral)
    told = document["tcb_info"].replace('"ConfigurationAndSWHardeningNeeded"', '"UpToDate"')
    assert told != document["tcb_info"]
    refused(2, quotes.verify_evidence, quote, json.dumps({**document, "tcb_info": told}).encode(), now)


def test_without_the_library_quotes_are_refused_by_name(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ComityError) as caught:
        quotes.verify_evidence(b"q", b"c", datetime.now(UTC))
    assert (caught.value.code, caught.value.facts["field"]) == (ErrorCode.UNSUPPORTED, "attestation")


def test_a_panic_of_the_library_is_a_refusal_and_an_interrupt_is_not(monkeypatch):
    class PanicException(BaseException):
        pass

    class Library:
        def __init__(self, error):
            self.error = error
            self.QuoteCollateralV3 = self

        def from_json(self, text):
            return text

        def verify(self, *_):
            raise self.error

    monkeypatch.setattr(quotes, "_library", lambda: Library(PanicException()))
    refused(2, quotes.verify_evidence, b"q", b"c", datetime.now(UTC))
    monkeypatch.setattr(quotes, "_library", lambda: Library(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        quotes.verify_evidence(b"q", b"c", datetime.now(UTC))
