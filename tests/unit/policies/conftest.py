"""A small consortium: keys, a genesis charter, a proposal, an agreement, its history as an export."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comity_crypto import merkle
from comity_crypto.encoding import to_base64
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import Checkpoint, sign_note
from comity_crypto.quorum import QuorumCertificate, make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_policies.charter import Charter, Member, QuorumRule, genesis_name
from comity_policies.documents import Agreement, Answer, AppRef, DatasetAsk, Proposal, Receipt, TrainStep, run_id
from comity_policies.terms import Terms, meet_all

ORGS = ("hospital-a", "hospital-b", "hospital-c")


class World:
    """Three hospitals and the coordinator's log."""

    def __init__(self) -> None:
        self.keys = {org: OrgKeys.generate() for org in (*ORGS, "hospital-d")}
        self.log = OrgKeys.generate()
        self.charter = Charter(
            version=1,
            consortium="hospitals",
            previous=None,
            members=tuple(self.member(org) for org in ORGS),
            log_name="coordinator.example/hospitals",
            log_key=to_base64(self.log.public.statement),
            quorum={"admit-member": QuorumRule("fraction", 2, 3)},
            max_checkpoint_age_s=600,
            defaults=Terms(),
        )
        self.genesis = genesis_name(self.charter)

    def member(self, org: str) -> Member:
        return Member(org, org.title(), f"{org} foundation", self.keys[org].public)

    def certificate(self, domain: str, digest: str, orgs: tuple[str, ...] = ORGS) -> QuorumCertificate:
        message = message_for(domain, digest)
        return make_certificate(digest, {org: self.keys[org].bls_sign(message) for org in orgs})

    def proposal(self, **changes: Any) -> Proposal:
        app = AppRef("5f" * 32, 20480, "tumours", "hospital-a", "1.0.0")
        step = TrainStep(id="fit", lead="hospital-a", app=app, rounds=2, run_config={"lr": "0.1"}, reply_timeout_s=60)
        values: dict[str, Any] = {
            "proposal_id": "prop-1",
            "revision": 1,
            "consortium": "hospitals",
            "proposer": "hospital-a",
            "purpose": "research",
            "title": "Tumours",
            "steps": (step,),
            "required": ("hospital-a", "hospital-b"),
            "optional": ("hospital-c",),
            "minimum": 2,
            "datasets": tuple(DatasetAsk(org, "patients", ("radius", "diagnosis")) for org in ORGS),
            "terms": Terms.parse({"rounds": 2, "aggregation": "lead-key"}),
            "deadline": "2030-01-01T00:00:00Z",
        }
        return Proposal(**(values | changes))

    def say(self, org: str, kind: str, body: dict[str, Any]) -> Statement:
        keys = self.log if org == "coordinator" else self.keys[org]
        return sign_statement(keys, kind=kind, consortium="hospitals", issuer=org, body=body)

    def answer(self, org: str, proposal: Proposal, **changes: Any) -> Statement:
        values: dict[str, Any] = {
            "proposal_digest": proposal.digest,
            "decision": "allow",
            "reasons": (),
            "terms": Terms.parse({"rounds": 5}),
            "bundle_digest": "0a" * 32,
            "input_digest": "0b" * 32,
            "engine": "embedded-regorus",
        }
        return self.say(org, "answer", Answer(**(values | changes)).to_json())

    def agreement(self, proposal: Proposal) -> Agreement:
        answers = {org: Terms.parse({"rounds": 5}) for org in ORGS}
        terms = meet_all({**answers, "hospital-a": proposal.terms})
        return Agreement("agr-1", "hospitals", self.charter.digest, proposal, ORGS, terms)

    def receipt(self, org: str, agreement: Agreement, /, **changes: Any) -> Statement:
        receipt = Receipt(
            agreement=agreement.digest,
            run=run_id(agreement.digest, 1),
            step="fit",
            order="0c" * 32,
            seq=1,
            outcome="result",
            code=None,
            result="0d" * 32,
            predicates={"cohort >= min_cohort": True},
            grants={"rounds": 1, "uses": 1},
            egress_bytes=100,
            journal_seq=1,
            duration_s=1,
        )
        return self.say(org, "receipt", replace(receipt, **changes).to_json())

    def charter_entry(self, charter: Charter, orgs: tuple[str, ...] = ORGS) -> Statement:
        certificate = self.certificate("charter", charter.digest, orgs)
        return self.say("coordinator", "charter", {"charter": charter.to_json(), "certificate": certificate.to_json()})

    def history(self) -> list[Statement]:
        proposal = self.proposal()
        agreement = self.agreement(proposal)
        answers = [self.answer(org, proposal) for org in ORGS]
        run = {"run": run_id(agreement.digest, 1), "agreement": agreement.digest}
        body = {
            "agreement": agreement.to_json(),
            "certificate": self.certificate("agreement", agreement.digest).to_json(),
            "answers": [each.to_json() for each in answers],
        }
        ending = {"state": "COMPLETED", "error": None, "rounds": 2}
        finished = self.say("hospital-a", "run-finished", {**run, **ending, "result": None, "manifest": []})
        closed = {**run, **ending, "finished": finished.digest, "receipts": dict.fromkeys(ORGS, 1)}
        return [
            self.charter_entry(self.charter),
            self.say("hospital-a", "proposal", {**proposal.to_json(), "app_payload": None}),
            *answers,
            self.say("coordinator", "agreement", body),
            *(self.say(org, "ready", run) for org in ORGS),
            *(self.receipt(org, agreement) for org in ORGS),
            finished,
            self.say("coordinator", "run-closed", closed),
        ]

    def export(self, statements: list[Statement], path: Path) -> Path:
        leaves = [each.to_bytes() for each in statements]
        root = merkle.root([merkle.leaf_hash(leaf) for leaf in leaves])
        checkpoint = Checkpoint(self.charter.log_name, len(leaves), root)
        header = {
            "format": "comity-ledger-export/1",
            "consortium": "hospitals",
            "size": len(leaves),
            "checkpoint": sign_note(checkpoint.text(), self.charter.log_name, self.log),
        }
        lines = [header, *({"index": i, "statement": base64.b64encode(leaf).decode()} for i, leaf in enumerate(leaves))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture
def export(world: World, tmp_path: Path) -> Callable[[list[Statement]], Path]:
    return lambda statements: world.export(statements, tmp_path / "export.jsonl")
