"""`attestation: required` between real negotiations: evidence before signatures, judged by everybody, on the ledger."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from harness.machines import MEASUREMENT, Maker, certificate_table

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.attestation import service as desk
from comity_crypto.encoding import from_base64, to_base64
from comity_crypto.statements import Statement, sign_statement
from comity_node.attestation import service as attestation
from comity_node.attestation import store
from comity_policies.documents import Agreement, Receipt
from comity_policies.evidence import EvidenceBody, EvidenceGiven
from comity_policies.history import verify_export
from comity_policies.terms import Terms

REQUIRED = Terms.parse({"purposes": ["research"], "rounds": 3, "attestation": "required"})


async def agreed(world: Any, **changes: Any) -> Agreement:
    """Bring an agreement under the term to its end."""
    proposal = await world.propose(terms=REQUIRED, **changes)
    await world.until(lambda: bool(world.final))
    return signed(world, proposal)


def signed(world: Any, proposal: Any, org: str = "alpha") -> Agreement:
    from comity_node.negotiation import store as negotiation

    (found,) = world.nodes[org].read(lambda conn: negotiation.signed_for(conn, proposal.digest))
    return found


def ended(world: Any, proposal: Any) -> dict[str, Any]:
    return dict(world.news(proposal)["ended"] or {})


def verified(world: Any, tmp_path: Path, data: bytes | None = None) -> dict[int, int]:
    file = tmp_path / "export.jsonl"
    file.write_bytes(world.export() if data is None else data)
    return {each.number: each.count for each in verify_export(file, world.charter.digest).checks}


async def before_order(world: Any, org: str, agreement: Agreement) -> attestation.OrderEvidence:
    return await attestation.of_order(world.nodes[org].context, agreement, agreement.digest)


async def test_evidence_comes_before_signatures_and_stands_on_the_ledger(attested: Any, tmp_path: Path) -> None:
    agreement = await agreed(attested)
    assert verified(attested, tmp_path)[10] == 3
    kinds = [
        json.loads(base64.b64decode(json.loads(line)["statement"]))["content"]["kind"]
        for line in (tmp_path / "export.jsonl").read_bytes().splitlines()[1:]
    ]
    at = kinds.index("agreement")
    assert kinds[at + 1 : at + 4] == ["evidence"] * 3
    assert len({machine.asked[0] for machine in attested.machines.values()}) == 3, "each is bound to its own key"
    rests = await before_order(attested, "alpha", agreement)
    assert rests.error is None
    assert len(rests.digests or ()) == 2


async def test_terms_without_it_ask_the_machine_for_nothing(attested: Any) -> None:
    proposal = await attested.propose()
    assert attested.final
    assert not any(machine.asked for machine in attested.machines.values())
    assert await before_order(attested, "alpha", signed(attested, proposal)) == attestation.NOTHING


async def test_one_counter_offer_makes_it_everybodys(attested: Any, tmp_path: Path) -> None:
    attested.nodes["beta"].policy.allow(attestation="required")
    await attested.propose()
    await attested.until(lambda: bool(attested.final))
    assert verified(attested, tmp_path)[10] == 3


async def test_an_organisation_without_a_machine_refuses_in_its_own_name(world: Any) -> None:
    with pytest.raises(ComityError) as caught:
        await world.propose(terms=REQUIRED)
    assert (caught.value.code, caught.value.facts["field"]) == (ErrorCode.UNSUPPORTED, "attestation")


async def test_a_machine_that_is_gone_is_the_reason_of_a_withdrawal(attested: Any) -> None:
    attested.machines["gamma"].provider = b"arm_cca_guest\n"
    proposal = await attested.propose(terms=REQUIRED)
    await attested.until(lambda: bool(ended(attested, proposal)))
    why = attested.news(proposal)
    assert ended(attested, proposal)["move"] == "gamma"
    (leg,) = [each for each in why["legs"] if each["org"] == "gamma"]
    assert leg["reasons"][0]["message"].startswith("ATTESTATION_MISSING")


@pytest.mark.parametrize("required", [True, False])
async def test_who_shows_nothing_is_named_at_the_deadline(attested: Any, required: bool) -> None:
    inner = attested.handlers["evidence.give"]

    def silent(conn: Any, org: str, message: Any) -> None:
        if org != "gamma":
            inner(conn, org, message)

    attested.handlers["evidence.give"] = silent
    people = {} if required else {"required": ("alpha", "beta"), "optional": ("gamma",), "minimum": 2}
    proposal = await attested.propose(terms=REQUIRED, **people)
    alpha = attested.nodes["alpha"].attestation
    await attested.until(lambda: not alpha._tasks and len(attested.machines["gamma"].asked) == 1)
    moves = {leg["org"]: leg["move"] for leg in attested.news(proposal)["legs"]}
    assert moves == {"alpha": "gamma", "beta": "gamma", "gamma": "gamma"}
    attested.clock.pass_s(601)
    attested.deadline(proposal.proposal_id)
    if not required:
        await attested.until(lambda: bool(attested.final))
        assert signed(attested, proposal).parties == ("alpha", "beta")
        return
    await attested.until(lambda: bool(ended(attested, proposal)))
    assert (ended(attested, proposal)["code"], ended(attested, proposal)["move"]) == ("ATTESTATION_MISSING", "gamma")


def debug(maker: Maker) -> Any:
    return lambda data: maker.report(data, x8=(0x30000 | 1 << 19).to_bytes(8, "little"))


def old(maker: Maker) -> Any:
    return lambda data: maker.report(b"\x01" * 64)


def foreign(maker: Maker) -> Any:
    return lambda data: maker.report(data, x90=b"x" * 48)


def outdated(maker: Maker) -> Any:
    return lambda data: maker.report(data, x1E0=bytes(8))


LIES = {"debug": (debug, 5), "replayed": (old, 8), "measurement": (foreign, 7), "firmware": (outdated, 6)}


# One in every run of the tests; each obligation by itself is `tests/unit/crypto/test_attestation_judging.py`.
SLOW = [pytest.param(lie, marks=pytest.mark.slow) for lie in sorted(LIES) if lie != "replayed"]


@pytest.mark.parametrize("lie", ["replayed", *SLOW])
async def test_bad_evidence_is_refused_by_every_other_party(attested: Any, lie: str, monkeypatch: Any) -> None:
    """Also where its own node and the coordinator look away."""
    make, obligation = LIES[lie]
    attested.machines["gamma"].report = make(attested.machines["gamma"].maker)
    for module in (attestation, desk):
        monkeypatch.setattr(module, "check_on_record", lambda *_: None)
    said: dict[str, str] = {}
    inner = attested.handlers["withdrawal"]

    def heard(conn: Any, org: str, message: Any) -> None:
        said[org] = Statement.from_bytes(message.body).body["reason"]
        inner(conn, org, message)

    attested.handlers["withdrawal"] = heard
    await attested.propose(terms=REQUIRED)
    await attested.until(lambda: {"alpha", "beta"} <= said.keys())
    for org in ("alpha", "beta"):
        assert said[org].startswith(f"ATTESTATION_INVALID: the evidence of gamma: obligation {obligation}:"), said
    assert "gamma" not in said
    assert not attested.final


async def test_a_machine_of_another_maker_is_refused(attested: Any) -> None:
    other = Maker(swapped=True)
    attested.machines["gamma"].report = other.report
    attested.machines["gamma"].added = certificate_table({"vcek": other.vcek(), "ask": other.ask, "ark": other.ark})
    proposal = await attested.propose(terms=REQUIRED)
    await attested.until(lambda: bool(ended(attested, proposal)))
    assert ended(attested, proposal)["move"] == "gamma"
    (leg,) = [each for each in attested.news(proposal)["legs"] if each["org"] == "gamma"]
    assert "obligation 2: the root is not a trusted one" in leg["reasons"][0]["message"]


async def test_evidence_of_a_neighbour_does_not_hold_under_an_own_signature(attested: Any) -> None:
    """gamma has no machine that holds: it signs what beta's machine said."""
    seen: dict[str, Any] = {}
    inner = attested.handlers["evidence.give"]

    def swap(conn: Any, org: str, message: Any) -> None:
        seen[org] = message
        if org == "beta":
            body = Statement.from_bytes(message.body).body
            keys = attested.keys["gamma"]
            stolen = sign_statement(keys, kind="evidence", consortium="demo", issuer="gamma", body=body)
            with pytest.raises(ComityError) as caught:
                inner(conn, "gamma", type(message)("x", "evidence.give", "gamma", (), "", stolen.to_bytes(), seq=1))
            assert caught.value.facts["obligation"] == 8
        inner(conn, org, message)

    attested.handlers["evidence.give"] = swap
    await agreed(attested)
    assert set(seen) == {"alpha", "beta", "gamma"}


async def test_old_evidence_is_asked_for_anew_before_an_order(attested: Any, tmp_path: Path) -> None:
    agreement = await agreed(attested)
    first = await before_order(attested, "alpha", agreement)
    attested.clock.pass_s(86_401)
    stale = await before_order(attested, "alpha", agreement)
    assert stale.error is not None
    assert (stale.error.code, stale.error.facts["org"]) == (ErrorCode.ATTESTATION_STALE, "beta,gamma")
    held = attested.nodes["alpha"]
    before = held.read(lambda conn: store.shown(conn, agreement.digest))["beta"].digest
    await attested.until(lambda: held.read(lambda conn: store.shown(conn, agreement.digest))["beta"].digest != before)
    await attested.until(lambda: len(attested.machines["gamma"].asked) == 2)
    await attested.until(lambda: held.read(lambda conn: store.shown(conn, agreement.digest))["gamma"].since is not None)
    await attested.settle()
    fresh = await before_order(attested, "alpha", agreement)
    assert fresh.error is None
    assert not set(fresh.digests or ()) & set(first.digests or ())
    assert verified(attested, tmp_path)[10] == 5


async def test_new_evidence_that_does_not_hold_ends_the_matter(attested: Any) -> None:
    agreement = await agreed(attested)
    alpha = attested.nodes["alpha"]
    attested.clock.pass_s(86_401)
    lying = attested.machines["gamma"]
    lying.report = lambda data: lying.maker.report(data, x1E0=bytes(8))  # firmware is each node's own matter
    await before_order(attested, "alpha", agreement)
    await attested.until(lambda: (agreement.digest, "gamma") in alpha.attestation._rejected)
    refused = await before_order(attested, "alpha", agreement)
    assert refused.error is not None
    assert (refused.error.code, refused.error.facts["org"]) == (ErrorCode.ATTESTATION_INVALID, "gamma")
    lying.report = lying.maker.report
    attested.clock.pass_s(attestation.REJECTED_S + 1)
    waits = await before_order(attested, "alpha", agreement)
    assert waits.error is not None
    assert waits.error.code is ErrorCode.ATTESTATION_STALE, "a machine may be mended"
    await attested.until(lambda: (agreement.digest, "gamma") not in alpha.attestation._rejected)
    await attested.settle()
    assert (await before_order(attested, "alpha", agreement)).error is None


async def test_a_full_store_lets_go_of_the_oldest_and_asks_anew(attested: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = await agreed(attested)
    alpha = attested.nodes["alpha"]
    monkeypatch.setattr(store, "ROWS_MAX", 100)
    (given,) = [body for org, kind, body in attested.log if kind == "evidence.given" and org == "alpha"][:1]
    statement = Statement.from_json(given["statement"])

    def fill(conn: Any) -> None:
        for number in range(200):
            store.put_first(conn, f"{number:064x}", statement)

    alpha.read(fill)
    assert len(alpha.read(lambda conn: store.every(conn, 1_000))) == 100
    waits = await before_order(attested, "alpha", agreement)
    assert waits.error is not None
    assert waits.error.code is ErrorCode.ATTESTATION_STALE


async def test_nobody_may_answer_or_ask_out_of_turn(attested: Any) -> None:
    agreement = await agreed(attested)
    (given,) = [body for org, kind, body in attested.log if kind == "evidence.given" and org == "alpha"][:1]
    statement = Statement.from_json(given["statement"])
    body = {**statement.body, "asker": "alpha", "ask": "ab" * 32}
    forged = sign_statement(
        attested.keys[statement.issuer], kind="evidence", consortium="demo", issuer=statement.issuer, body=body
    )
    refusal = attested.deliver(statement.issuer, "evidence.give", forged.to_bytes())
    assert refusal.code is ErrorCode.FORBIDDEN
    again = attested.deliver(statement.issuer, "evidence.give", statement.to_bytes())
    assert again is None, "the same evidence twice is harmless"
    for changed in ({"agreement": "cd" * 32}, {"org": "delta"}, {"org": "alpha"}):
        ask = {"agreement": agreement.digest, "org": "beta", "challenge": to_base64(bytes(32)), **changed}
        said = sign_statement(attested.keys["alpha"], kind="evidence-ask", consortium="demo", issuer="alpha", body=ask)
        assert attested.deliver("alpha", "evidence.ask", said.to_bytes()).code is ErrorCode.AGREEMENT_UNKNOWN
    await attested.hand("alpha", "evidence.given", {"statement": forged.to_json()})
    assert attested.failed[-1][2].code is ErrorCode.FORBIDDEN


def result_of(world: Any, agreement: Agreement, evidence: list[str]) -> Statement:
    """A receipt of alpha's for a result that rests on `evidence`."""
    receipt = Receipt(
        agreement=agreement.digest,
        run="run-1",
        step="train",
        order="cd" * 32,
        seq=1,
        outcome="result",
        code=None,
        result="ef" * 32,
        evidence=tuple(evidence),
    )
    keys = world.keys["alpha"]
    return sign_statement(keys, kind="receipt", consortium="demo", issuer="alpha", body=receipt.to_json())


async def test_the_ledgers_reader_sees_evidence_that_lacks_or_lies(attested: Any, tmp_path: Path) -> None:
    agreement = await agreed(attested)
    entries = [
        Statement.from_bytes(base64.b64decode(json.loads(line)["statement"]))
        for line in attested.export().splitlines()[1:]
    ]
    from comity_policies.history_evidence import EvidenceBook

    said = next(each for each in entries if each.kind == "agreement")
    answers = [Statement.from_json(each) for each in said.body["answers"]]
    shown = [each for each in entries if each.kind == "evidence"]

    def book() -> EvidenceBook:
        made = EvidenceBook()
        made.add(agreement, answers, attested.charter)
        return made

    def refused(made: EvidenceBook, statement: Statement) -> ComityError:
        with pytest.raises(ComityError) as caught:
            made.enter(statement, attested.charter)
        return caught.value

    short = book()
    for each in shown[:2]:
        short.enter(each, attested.charter)
    ready = sign_statement(
        attested.keys["alpha"],
        kind="ready",
        consortium="demo",
        issuer="alpha",
        body={"agreement": agreement.digest, "run": "run-1"},
    )
    with pytest.raises(ComityError, match="gamma never showed"):
        short.check_work(ready)
    assert "two evidences" in refused(short, shown[0]).detail
    given = EvidenceGiven.from_json(shown[2].body)
    tampered = bytearray(from_base64(given.evidence.report, what="report"))
    tampered[0x90] ^= 1
    body = copy.deepcopy(shown[2].body)
    body["evidence"]["report"] = to_base64(bytes(tampered))
    bad = sign_statement(attested.keys["gamma"], kind="evidence", consortium="demo", issuer="gamma", body=body)
    assert refused(short, bad).facts["obligation"] == 3
    other = EvidenceBook()
    other.add(agreement, answers[:2], attested.charter)
    assert refused(other, shown[2]).facts["obligation"] == 8, "the nonce covers every answer"
    asked = sign_statement(
        attested.keys["gamma"],
        kind="evidence",
        consortium="demo",
        issuer="gamma",
        body={**shown[2].body, "asker": "alpha", "ask": "ab" * 32},
    )
    assert "nobody asked" in refused(short, asked).detail
    short.enter(shown[2], attested.charter)
    short.check_work(ready)
    digests = sorted(each.digest for each in shown if each.issuer != "alpha")
    for named, code in (
        (digests, None),
        (digests[:1], "without evidence of every other party"),
        ([shown[0].digest, digests[0]], "without evidence of every other party"),
        ([digests[0], "ab" * 32], "without evidence of every other party"),
    ):
        receipt = result_of(attested, agreement, named)
        result = tuple(named)
        if code is None:
            short.check_work(receipt)
            attested.db.transact(
                lambda conn, result=result: desk.check_receipt(conn, agreement.digest, "alpha", result, result=True)
            )
            continue
        with pytest.raises(ComityError, match=code):
            short.check_work(receipt)
        with pytest.raises(ComityError, match="ATTESTATION_MISSING"):
            attested.db.transact(
                lambda conn, result=result: desk.check_receipt(conn, agreement.digest, "alpha", result, result=True)
            )
    with pytest.raises(ComityError, match="where the terms ask for none"):
        EvidenceBook().check_work(result_of(attested, agreement, digests))
    assert EvidenceBody.of(given.evidence.evidence()) == given.evidence
    assert given.evidence.evidence().report[0x90 : 0x90 + 48] == MEASUREMENT
