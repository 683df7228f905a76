"""Propose, answer, agree, run, export, verify: through the coordinator's services, over a real database."""

import base64
import json

import pytest
from sqlalchemy import event

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.training import store as training_store
from comity_coordinator.transport.model import Message
from comity_crypto.merkle import leaf_hash, root, verify_inclusion
from comity_crypto.notes import verify_note
from comity_crypto.quorum import QuorumCertificate, independent_verify, message_for, verify_certificate
from comity_crypto.statements import Statement
from comity_policies.documents import Agreement, Answer, Receipt, run_id
from comity_policies.history import verify_export
from comity_policies.terms import Terms


def receipt(world, org, run, agreement, seq, **changes):
    values = {
        "agreement": agreement,
        "run": run,
        "step": "train",
        "order": canonical.digest({"order": seq}),
        "seq": seq,
        "outcome": "result",
        "code": None,
        "result": "cd" * 32,
        "grants": {"rounds": seq},
        "journal_seq": seq,
    }
    return world.say(org, "receipt", Receipt(**{**values, **changes}).to_json())


def hand_in(world, org, *receipts):
    return world.deliver(org, "receipts", canonical.canonical({"receipts": [each.to_json() for each in receipts]}))


def finish(world, run, agreement, **changes):
    body = {
        "run": run,
        "agreement": agreement,
        "state": "COMPLETED",
        "error": None,
        "rounds": 2,
        "result": {"digest": "ef" * 32, "size": 1000},
        "manifest": [{"round": number, "participants": ["alpha", "beta", "gamma"], "dropped": []} for number in (1, 2)],
        "orders": {"alpha": 2, "beta": 2, "gamma": 2},
    }
    return world.say("alpha", "run-finished", {**body, **changes})


def start(world):
    proposal, agreement, run = world.agree()
    for org in proposal.asked:
        ready = world.say(org, "ready", {"run": run, "agreement": agreement})
        assert world.tell(org, "run.ready", ready) is None
    return proposal, agreement, run


def state_of(world, proposal):
    return world.hub.take(proposal.proposer, "negotiation.update")[-1]


def lines_of(export):
    return [json.loads(line) for line in export.splitlines()]


def test_from_proposal_to_a_closed_run_on_a_ledger_that_verifies(world, orgs, names, tmp_path):
    _, agreement_digest, run = start(world)
    assert run == run_id(agreement_digest, 1)
    assert world.hub.take("alpha", "run.start") == [{"run": run}]
    assert not world.hub.take("beta", "run.start")
    progress = {"run": run, "round": 1, "rounds": 2, "state": "RUNNING", "digest": "aa" * 32}
    assert world.tell("alpha", "run.progress", world.say("alpha", "progress", progress)) is None
    for org in orgs:
        receipts = [receipt(world, org, run, agreement_digest, seq) for seq in (1, 2)]
        assert hand_in(world, org, *receipts) is None
        if org == "beta":
            finished = finish(world, run, agreement_digest)
            assert world.tell("alpha", "run.finished", finished) is None
            assert not world.hub.take("gamma", "run.closed")
    closed = Statement.from_json(world.hub.take("gamma", "run.closed")[0]["statement"])
    assert closed.body["receipts"] == {"alpha": 2, "beta": 2, "gamma": 2}
    assert closed.body["finished"] == finished.digest

    export = world.export()
    header, *rows = lines_of(export)
    checkpoint = verify_note(header["checkpoint"], names.log, world.log_keys.public.statement)
    leaves = [leaf_hash(base64.b64decode(row["statement"])) for row in rows]
    assert checkpoint.size == header["size"] == len(rows)
    assert root(leaves) == checkpoint.root
    said = [Statement.from_bytes(base64.b64decode(row["statement"])) for row in rows]
    kinds = [each.kind for each in said]
    assert kinds == (
        ["charter", "proposal", *["answer"] * 3, "agreement", *["ready"] * 3, *["receipt"] * 4, "run-finished"]
        + ["receipt"] * 2
        + ["run-closed"]
    )
    entry = said[5]
    agreement = Agreement.from_json(entry.body["agreement"])
    certificate = QuorumCertificate.from_json(entry.body["certificate"])
    assert agreement.parties == certificate.signers == orgs
    message = message_for("agreement", agreement.digest)
    verify_certificate(certificate, message, world.charter.certificate_keys)
    independent_verify(certificate, message, world.charter.certificate_keys)
    check_proofs(world, said)
    check_offline(tmp_path, export, world)


def check_proofs(world, said):
    """Everyone got the proofs of what it wrote, and of charter, agreement and closing."""
    mine = {each.digest for each in said if each.issuer == "beta" or each.issuer == "coordinator"}
    sent = world.hub.take("beta", "ledger.proof")
    proofs = [{**proof, "note": each["note"]} for each in sent for proof in each["proofs"]]
    assert {proof["statement"] for proof in proofs} == mine
    for proof in proofs:
        head = verify_note(proof["note"], world.charter.log_name, world.charter.log_public_key)
        leaf = leaf_hash(said[proof["index"]].to_bytes())
        verify_inclusion(
            leaf, proof["index"], head.size, [base64.b64decode(each) for each in proof["hashes"]], head.root
        )


def check_offline(tmp_path, export, world):
    """The auditor's own judgement, and that it would notice."""
    file = tmp_path / "export.jsonl"
    file.write_bytes(export)
    report = verify_export(file, world.charter.digest, independent=True)
    assert report.size == len(lines_of(export)) - 1
    file.write_bytes(b"".join(export.splitlines(keepends=True)[:-1]))
    with pytest.raises(ComityError):
        verify_export(file, world.charter.digest)


def test_a_denial_by_a_required_organisation_ends_it_and_names_the_rule(world):
    proposal, _, _ = world.propose()
    assert len(world.hub.take("gamma", "offer")) == 1
    assert world.answer("alpha", proposal)[1] is None
    assert world.answer("beta", proposal, "deny")[1] is None
    update = state_of(world, proposal)
    assert update["state"] == "TERMINATED"
    assert update["ended"]["move"] == "beta"
    assert {leg["org"]: leg["state"] for leg in update["legs"]} == dict.fromkeys(
        ("alpha", "beta", "gamma"), "TERMINATED"
    )
    assert ("ended", proposal.proposal_id) in world.engine.told
    _, refusal = world.answer("gamma", proposal)
    assert refusal.code is ErrorCode.ILLEGAL_EVENT


def test_duplicates_change_nothing(world):
    proposal, said, _ = world.propose()
    before = len(world.hub.sent["beta"])
    assert world.tell("alpha", "proposal.submit", said) is None
    answer, _ = world.answer("beta", proposal)
    assert world.read(lambda conn: world.negotiation.news_for(conn, 9)) == 3
    assert world.read(lambda conn: world.negotiation.tell_news(conn, 9)) == 1
    after = len(world.hub.sent["beta"])
    assert world.tell("beta", "proposal.answer", answer) is None
    assert world.read(lambda conn: world.negotiation.tell_news(conn, 9)) == 0
    assert len(world.hub.sent["beta"]) == after > before
    other = world.proposal(proposal_id=proposal.proposal_id, title="Something else")
    assert world.propose(other)[2].code is ErrorCode.CONFLICT


def test_what_is_said_in_one_transaction_writes_the_negotiation_once(world):
    proposal, _, _ = world.propose()
    writes = []
    event.listen(
        world.db.engine,
        "before_cursor_execute",
        lambda conn, cursor, statement, *_: writes.append(statement) if "UPDATE negotiations" in statement else None,
    )
    body = Answer(proposal.digest, "allow", (), Terms.parse({}), "11" * 32, "22" * 32, "embedded").to_json()

    def hear(conn):
        for org in ("alpha", "beta"):
            data = world.say(org, "answer", body).to_bytes()
            world.negotiation.answer(conn, org, Message(f"together-{org}", "proposal.answer", org, (), "", data, seq=1))

    world.read(hear)
    assert len(writes) == 1
    kept = world.read(lambda conn: negotiation_store.by_proposal_digest(conn, proposal.digest)).negotiation
    assert {org: str(leg.state) for org, leg in kept.legs.items()} == {
        "alpha": "ACCEPTED",
        "beta": "ACCEPTED",
        "gamma": "REQUESTED",
    }


def test_forged_and_foreign_messages_are_refused_and_change_nothing(world):
    proposal, _, _ = world.propose()
    world.integrate()
    sent = {org: len(rows) for org, rows in world.hub.sent.items()}
    body = {"proposal_digest": proposal.digest}
    forged = world.say("beta", "answer", body, by="stranger")
    assert world.tell("beta", "proposal.answer", forged).code is ErrorCode.SIGNATURE_INVALID
    theirs = world.say("gamma", "answer", body)
    assert world.tell("beta", "proposal.answer", theirs).code is ErrorCode.FORBIDDEN
    wrong_kind = world.say("beta", "ready", body)
    assert world.tell("beta", "proposal.answer", wrong_kind).code is ErrorCode.SIGNATURE_INVALID
    stranger = world.say("stranger", "answer", body)
    assert world.tell("stranger", "proposal.answer", stranger).code is ErrorCode.NOT_A_MEMBER
    huge = world.say("beta", "answer", {"proposal_digest": "x" * 70_000})
    assert world.tell("beta", "proposal.answer", huge).code is ErrorCode.TOO_LARGE
    assert world.deliver("beta", "proposal.answer", b"{").code is ErrorCode.MALFORMED
    assert world.propose(world.proposal(proposer="beta"))[2].code is ErrorCode.FORBIDDEN
    assert {org: len(rows) for org, rows in world.hub.sent.items()} == sent
    assert world.integrate() == 0


def test_an_app_that_not_everybody_can_open_is_refused(world):
    proposal = world.proposal()
    said = world.say("alpha", "proposal", {**proposal.to_json(), "app_payload": {"digest": "ab" * 32}})
    assert world.tell("alpha", "proposal.submit", said).code is ErrorCode.MALFORMED


def test_the_deadline_ends_every_leg_and_says_whose_move_it_was(world):
    proposal, _, _ = world.propose()
    world.answer("alpha", proposal)
    assert world.read(lambda conn: world.negotiation.on_deadline(conn, proposal.proposal_id)) == proposal.deadline
    world.clock.pass_s(301)
    _, refusal = world.answer("beta", proposal)
    assert refusal.code is ErrorCode.DEADLINE_PASSED
    assert world.read(lambda conn: world.negotiation.on_deadline(conn, proposal.proposal_id)) is None
    update = state_of(world, proposal)
    assert update["ended"]["code"] == "DEADLINE_PASSED"
    assert update["ended"]["move"] == "beta,gamma"
    assert {leg["org"]: leg["move"] for leg in update["legs"]} == {
        "alpha": "beta,gamma",
        "beta": "beta",
        "gamma": "gamma",
    }
    assert world.answer("beta", proposal)[1].code is ErrorCode.DEADLINE_PASSED


def test_clashing_terms_are_a_named_conflict(world):
    proposal, _, _ = world.propose()
    world.answer("alpha", proposal)
    world.answer("beta", proposal, result_recipients=["beta"])
    world.answer("gamma", proposal, result_recipients=["gamma"])
    update = state_of(world, proposal)
    assert update["state"] == "TERMINATED"
    assert update["conflict"] == {"field": "result_recipients", "organisations": ["beta", "gamma"]}


def test_an_optional_party_that_does_not_sign_costs_a_new_digest(world):
    proposal, _, _ = world.propose(world.proposal(required=("alpha", "beta"), optional=("gamma",), minimum=2))
    for org in proposal.asked:
        assert world.answer(org, proposal)[1] is None
    first = canonical.digest(world.hub.take("alpha", "agreement.sign")[-1]["agreement"])
    assert world.sign_agreement("alpha", first) is None
    assert world.sign_agreement("beta", first) is None
    world.clock.pass_s(601)
    until = world.read(lambda conn: world.negotiation.on_deadline(conn, proposal.proposal_id))
    assert until > world.clock()
    again = world.hub.take("alpha", "agreement.sign")[-1]["agreement"]
    second = canonical.digest(again)
    assert again["parties"] == ["alpha", "beta"]
    assert second != first
    assert world.sign_agreement("gamma", first).code is ErrorCode.ILLEGAL_EVENT
    assert world.sign_agreement("alpha", first).code is ErrorCode.AGREEMENT_INVALID
    assert world.sign_agreement("alpha", second) is None
    assert world.sign_agreement("beta", second, by="alpha").code is ErrorCode.SIGNATURE_INVALID
    assert world.sign_agreement("beta", second) is None
    assert world.hub.take("beta", "agreement.final")
    assert not world.hub.take("gamma", "agreement.final")


def test_a_new_charter_during_signing_costs_a_new_draft(world):
    proposal, _, _ = world.propose()
    for org in proposal.asked:
        world.answer(org, proposal)
    first = canonical.digest(world.hub.take("alpha", "agreement.sign")[-1]["agreement"])
    changed = {**world.charter.to_json(), "version": 2, "previous": world.charter.digest, "max_checkpoint_age_s": 700}
    world.in_force = type(world.charter).from_json(changed)
    assert world.sign_agreement("alpha", first) is None
    again = world.hub.take("alpha", "agreement.sign")[-1]["agreement"]
    assert again["charter_digest"] == world.in_force.digest
    second = canonical.digest(again)
    for org in proposal.asked:
        assert world.sign_agreement(org, second) is None
    assert world.hub.take("gamma", "agreement.final")


def test_withdrawal_after_the_agreement_cancels_the_run(world, tmp_path):
    proposal, agreement, run = start(world)
    body = {"agreement": agreement, "proposal_id": proposal.proposal_id, "reason": "a new law"}
    said = world.say("gamma", "withdrawal", body)
    assert world.tell("gamma", "withdrawal", said) is None
    assert world.tell("gamma", "withdrawal", said) is None
    cancel = world.hub.take("alpha", "run.cancel")
    assert [(each["run"], each["code"]) for each in cancel] == [(run, "WITHDRAWN")]
    assert state_of(world, proposal)["state"] == "WITHDRAWN"
    assert world.tell("alpha", "run.finished", finish(world, run, agreement)) is None
    assert world.read(lambda conn: training_store.get(conn, run)).state == "CANCELLED"
    world.clock.pass_s(11)
    assert world.read(lambda conn: world.training.on_deadline(conn, run)) is None
    closed = world.hub.take("beta", "run.closed")[0]["statement"]["content"]["body"]
    assert closed["error"] == {"code": "WITHDRAWN", "detail": "gamma withdrew: a new law", "move": "gamma"}
    assert world.read(lambda conn: negotiation_store.agreement(conn, agreement)).state == "withdrawn"
    (tmp_path / "export").write_bytes(world.export())
    assert verify_export(tmp_path / "export", world.charter.digest).counts["withdrawal"] == 1


def test_withdrawal_from_a_draft_leaves_no_entry_and_from_another_agreement_is_refused(world, tmp_path):
    proposal, _, _ = world.propose()
    for org in proposal.asked:
        world.answer(org, proposal)
    draft = canonical.digest(world.hub.take("alpha", "agreement.sign")[-1]["agreement"])
    body = {"agreement": "ab" * 32, "proposal_id": proposal.proposal_id, "reason": "no"}
    assert world.tell("beta", "withdrawal", world.say("beta", "withdrawal", body)).code is ErrorCode.AGREEMENT_UNKNOWN
    said = world.say("beta", "withdrawal", {**body, "agreement": draft})
    assert world.tell("beta", "withdrawal", said) is None
    assert state_of(world, proposal)["ended"]["move"] == "beta"
    (tmp_path / "export").write_bytes(world.export())
    assert "withdrawal" not in verify_export(tmp_path / "export", world.charter.digest).counts


def test_withdrawal_of_the_proposer_before_the_agreement(world):
    proposal, _, _ = world.propose()
    body = {"agreement": None, "proposal_id": proposal.proposal_id, "reason": "not needed"}
    assert world.tell("alpha", "withdrawal", world.say("alpha", "withdrawal", body)) is None
    assert state_of(world, proposal)["ended"]["code"] == "WITHDRAWN"


def test_only_the_lead_speaks_for_a_run_and_only_parties_hand_in_receipts(world):
    _, agreement, run = start(world)
    progress = {"run": run, "round": 1, "rounds": 2, "state": "RUNNING", "digest": "aa" * 32}
    assert world.tell("beta", "run.progress", world.say("beta", "progress", progress)).code is ErrorCode.ORDER_NOT_LEAD
    theirs = world.say("beta", "run-finished", finish(world, run, agreement).body)
    assert world.tell("beta", "run.finished", theirs).code is ErrorCode.ORDER_NOT_LEAD
    good = receipt(world, "beta", run, agreement, 1)
    bad = receipt(world, "beta", "run-unknown", agreement, 2)
    assert hand_in(world, "beta", good, bad).code is ErrorCode.NOT_FOUND
    assert hand_in(world, "beta", good, receipt(world, "beta", run, "ab" * 32, 2)).code is ErrorCode.AGREEMENT_UNKNOWN
    assert hand_in(world, "beta", receipt(world, "gamma", run, agreement, 1)).code is ErrorCode.FORBIDDEN
    assert hand_in(world, "beta", *[good] * 65).code is ErrorCode.TOO_LARGE
    assert world.read(lambda conn: training_store.get(conn, run)).received == {}
    assert hand_in(world, "beta", good, good) is None
    assert hand_in(world, "beta", good) is None
    assert world.read(lambda conn: training_store.get(conn, run)).received == {"beta": 1}


def test_a_receipt_that_would_spoil_the_export_is_refused(world, tmp_path):
    _, agreement, run = start(world)
    good = receipt(world, "beta", run, agreement, 1)
    assert hand_in(world, "beta", good) is None
    for code, changes in (
        (ErrorCode.CONFLICT, {"journal_seq": 1}),
        (ErrorCode.ORDER_REPLAYED, {"order": good.body["order"]}),
        (ErrorCode.GRANT_EXHAUSTED, {"grants": {"rounds": 9}}),
        (ErrorCode.ORDER_MISMATCH, {"step": "other"}),
    ):
        assert hand_in(world, "beta", receipt(world, "beta", run, agreement, 2, **changes)).code is code
    refused = {"outcome": "refused", "code": "POLICY_DENIED", "result": None, "order": good.body["order"]}
    assert hand_in(world, "beta", receipt(world, "beta", run, agreement, 2, **refused)) is None
    (tmp_path / "export").write_bytes(world.export())
    assert verify_export(tmp_path / "export", world.charter.digest).counts["receipt"] == 2


def test_a_manifest_that_names_strangers_is_refused(world):
    _, agreement, run = start(world)
    manifest = [{"round": 1, "participants": ["delta"], "dropped": []}]
    assert world.tell("alpha", "run.finished", finish(world, run, agreement, manifest=manifest)).code is (
        ErrorCode.MALFORMED
    )
    assert world.read(lambda conn: training_store.get(conn, run)).state == "READY"


def test_a_run_whose_party_is_never_ready_fails_and_names_it(world):
    _, agreement, run = world.agree()
    for org in ("alpha", "beta"):
        world.tell(org, "run.ready", world.say(org, "ready", {"run": run, "agreement": agreement}))
    world.clock.pass_s(901)
    world.read(lambda conn: world.training.on_deadline(conn, run))
    found = world.read(lambda conn: training_store.get(conn, run))
    assert (found.state, found.move) == ("FAILED", "gamma")
    assert world.hub.take("beta", "run.cancel")[0]["code"] == "TIMEOUT"


def test_a_manual_start_creates_no_run(world):
    _, _, run = world.agree(start="manual")
    assert run == ""
