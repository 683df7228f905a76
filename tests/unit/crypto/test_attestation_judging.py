"""One judgement over every kind of evidence: sizes, kinds, roots and workloads by digest, real quotes included."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from harness.machines import MEASUREMENT, TCB, Maker

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import evidence as binding
from comity_crypto.attestation.evidence import report_data
from comity_crypto.attestation.judging import Evidence, Trust, judge, workload_digest
from comity_crypto.attestation.quotes import REQUIRED, verify_evidence
from comity_policies.evidence import EvidenceAsk, EvidenceBody, EvidenceGiven, asked_nonce, signing_nonce

SAMPLES = Path(__file__).parent / "quotes"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
KEY, NONCE = b"k" * 32, b"n" * 32


@pytest.fixture(scope="module")
def maker():
    return Maker(NOW)


def evidence(maker, report=None, **changes):
    chain = maker.chain()
    endorsements = {"vcek": chain.vcek, "ask": chain.ask, "ark": chain.ark, **changes}
    return Evidence("sev-snp", report or maker.report(report_data(KEY, NONCE)), endorsements)


def trust(maker, **changes):
    roots, workloads = {"sev-snp": frozenset({maker.root})}, {"sev-snp": frozenset({workload_digest(MEASUREMENT)})}
    return replace(Trust(roots, workloads, floor=TCB), **changes)


def refusal(given, trusted, **changes):
    with pytest.raises(ComityError) as caught:
        judge(given, trusted, **{"statement_key": KEY, "nonce": NONCE, "now": NOW, **changes})
    assert caught.value.code is ErrorCode.ATTESTATION_INVALID
    return caught.value.facts["obligation"]


def test_what_is_trusted_holds_and_nothing_else(maker):
    good, trusted = evidence(maker), trust(maker)
    judge(good, trusted, statement_key=KEY, nonce=NONCE, now=NOW)
    assert refusal(good, trusted, nonce=b"o" * 32) == 8
    assert refusal(good, trusted, statement_key=b"o" * 32) == 8
    assert refusal(good, trusted, now=NOW + timedelta(days=101)) == 2
    assert refusal(good, replace(trusted, roots={})) == 2
    assert refusal(good, replace(trusted, roots={"tdx": frozenset({maker.root})})) == 2
    assert refusal(good, replace(trusted, measurements={})) == 7
    assert refusal(good, replace(trusted, floor=None)) == 6
    assert refusal(good, replace(trusted, floor=replace(TCB, microcode=214))) == 6
    stranger = Maker(NOW, swapped=True)
    assert refusal(evidence(stranger), trusted) == 2
    assert refusal(evidence(maker, ark=stranger.ark), trusted) == 2


def test_sizes_and_kinds_come_first(maker):
    good = evidence(maker)
    for kind, report, endorsements in (
        ("sev", good.report, good.endorsements),
        ("sev-snp", b"", good.endorsements),
        ("sev-snp", good.report + b"\0", good.endorsements),
        ("sev-snp", good.report, {"vcek": b"v"}),
        ("sev-snp", good.report, {**good.endorsements, "ask": b""}),
        ("sev-snp", good.report, {**good.endorsements, "ask": bytes((16 << 10) + 1)}),
        ("tdx", b"q", {"collateral": bytes((64 << 10) + 1)}),
        ("tdx", bytes((16 << 10) + 1), {"collateral": b"c"}),
    ):
        with pytest.raises(ComityError) as caught:
            Evidence(kind, report, endorsements)
        assert caught.value.code is ErrorCode.ATTESTATION_INVALID


def test_hostile_bytes_are_refused(maker):
    good, trusted, chance = evidence(maker), trust(maker), random.Random(9)
    names = sorted(good.endorsements)
    for _ in range(1_500):
        parts = {"report": good.report, **good.endorsements}
        name = chance.choice(["report", *names])
        hostile = bytearray(parts[name])
        for _ in range(chance.randint(1, 4)):
            hostile[chance.randrange(0x2A0 if name == "report" else len(hostile))] ^= chance.randint(1, 255)
        parts[name] = bytes(hostile)
        if parts[name] == (good.report if name == "report" else good.endorsements[name]):
            continue
        given = Evidence("sev-snp", parts.pop("report"), parts)
        assert refusal(given, trusted) in (1, 2, 3, 4)


def test_documents_are_read_strictly(maker):
    body = EvidenceBody.of(evidence(maker))
    given = EvidenceGiven("ab" * 32, body)
    assert EvidenceGiven.from_json(given.to_json()) == given
    for change in (
        {"asker": "beta"},
        {"ask": "ab" * 32},
        {"agreement": "short"},
        {"evidence": {**body.to_json(), "kind": "sgx"}},
        {"evidence": {**body.to_json(), "report": body.report + "===="}},
        {"evidence": {**body.to_json(), "endorsements": {**body.endorsements, "vlek": "AA=="}}},
        {"evidence": {**body.to_json(), "endorsements": []}},
    ):
        with pytest.raises(ComityError):
            EvidenceGiven.from_json({**given.to_json(), **change})
    with pytest.raises(ComityError):
        EvidenceAsk("ab" * 32, "beta", "AA==")


def test_nonces_cover_everything():
    one, two, three = "aa" * 32, "bb" * 32, "cc" * 32
    seen = {
        signing_nonce(one, [two, three]),
        signing_nonce(one, [two]),
        signing_nonce(two, [one, three]),
        asked_nonce(one, two),
        asked_nonce(two, one),
    }
    assert len(seen) == 5
    assert signing_nonce(one, [two, three]) == signing_nonce(one, [three, two])


@pytest.mark.parametrize("kind", ["sgx", "tdx"])
def test_real_quotes_by_digest_of_root_and_workload(kind, monkeypatch):
    pytest.importorskip("dcap_qvl", reason="quotes need comity[attestation]")
    quote = (SAMPLES / f"{kind}_quote").read_bytes()
    collateral = (SAMPLES / f"{kind}_quote_collateral.json").read_bytes()
    document = json.loads(collateral)
    now = datetime.fromisoformat(json.loads(document["tcb_info"])["issueDate"]) + timedelta(days=1)
    found = verify_evidence(quote, collateral, now)
    chain = x509.load_pem_x509_certificates(document["tcb_info_issuer_chain"].encode())
    root = hashlib.sha256(chain[-1].public_bytes(Encoding.DER)).hexdigest()
    workload = workload_digest(bytes.fromhex("".join(found.registers[name] for name in REQUIRED[kind])))
    trusted = Trust({kind: frozenset({root})}, {kind: frozenset({workload})}, statuses=frozenset({found.status}))
    given = Evidence(kind, quote, {"collateral": collateral})
    assert refusal(given, trusted, now=now) == 7, "it is bound to somebody else's data"
    value = bytes.fromhex(found.registers["report_data"])
    monkeypatch.setattr(binding, "report_data", lambda key, nonce: value)
    judge(given, trusted, statement_key=KEY, nonce=NONCE, now=now)
    judge(given, replace(trusted, statuses=None), statement_key=KEY, nonce=NONCE, now=now)
    assert refusal(given, replace(trusted, roots={kind: frozenset({workload})}), now=now) == 2
    assert refusal(given, replace(trusted, roots={}), now=now) == 2
    assert refusal(given, replace(trusted, measurements={kind: frozenset({root})}), now=now) == 6
    assert refusal(given, replace(trusted, statuses=frozenset({"Revoked"})), now=now) == 4
    other = {"sgx": "tdx", "tdx": "sgx"}[kind]
    same = Trust({other: frozenset({root})}, {other: frozenset({workload})}, statuses=None)
    assert refusal(Evidence(other, quote, {"collateral": collateral}), same, now=now) == 3
    # A root that the charter trusts, but that did not sign: the file's last certificate is only a proposal.
    other = Maker(NOW)
    pem = x509.load_der_x509_certificate(other.ark).public_bytes(Encoding.PEM).decode()
    swapped = {**document, "tcb_info_issuer_chain": document["tcb_info_issuer_chain"] + pem}
    forged = Evidence(kind, quote, {"collateral": json.dumps(swapped).encode()})
    assert refusal(forged, replace(trusted, roots={kind: frozenset({other.root})}), now=now) == 2
