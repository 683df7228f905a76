"""A coordinator without a network: real keys, a real database, a hub that records."""

import base64
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from comity.wire import canonical, instants
from comity.wire.errors import ComityError
from comity_coordinator.db import after_commit, attempt
from comity_coordinator.feed import Feed
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation.service import NegotiationService
from comity_coordinator.training.service import TrainingService
from comity_coordinator.transport.model import BODY_BYTES_MAX, Message
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import sign_note
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.sealing import seal_to_bytes
from comity_crypto.statements import sign_statement
from comity_policies.charter import Charter, Member, QuorumRule
from comity_policies.documents import Answer, AppRef, DatasetAsk, Proposal, TrainStep
from comity_policies.terms import Terms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.databases import modes

ORGS = ("alpha", "beta", "gamma")
CONSORTIUM = "demo"
LOG_NAME = "coordinator.example/demo"
TORN = ("sqlite", "torn")


@dataclass
class RecordingHub:
    """Hub's enqueue and register; keeps what would have been sent, by organisation."""

    handlers: dict = field(default_factory=dict)
    sent: dict = field(default_factory=lambda: defaultdict(list))

    def register(self, kind, handler):
        assert kind not in self.handlers
        self.handlers[kind] = handler

    def enqueue(self, conn, org, kind, body, *, run=""):
        assert len(canonical.canonical(body)) <= BODY_BYTES_MAX
        after_commit(conn, lambda: self.sent[org].append((kind, body, run)))

    def enqueue_all(self, conn, orgs, kind, body):
        for org in orgs:
            self.enqueue(conn, org, kind, body)

    def take(self, org, kind):
        found = [body for each, body, _ in self.sent[org] if each == kind]
        self.sent[org] = [row for row in self.sent[org] if row[0] != kind]
        return found


@dataclass
class RecordingEngine:
    """Remembers what it was told after commits."""

    told: list = field(default_factory=list)

    def negotiation_opened(self, negotiation_id, deadline):
        self.told.append(("opened", negotiation_id, deadline))

    def negotiation_ended(self, negotiation_id):
        self.told.append(("ended", negotiation_id))

    def run_created(self, run_id):
        self.told.append(("created", run_id))

    def run_changed(self, run_id):
        self.told.append(("changed", run_id))


class Clock:
    """Moves by hand."""

    def __init__(self):
        self.now = instants.now()

    def __call__(self):
        return instants.to_text(self.now)

    def pass_s(self, seconds):
        self.now += timedelta(seconds=seconds)


class World:
    """Everything, with short words for what nodes do."""

    def __init__(self, database, keys):
        self.keys = keys
        self.clock = Clock()
        self.log_keys = keys["coordinator"]
        self.charter = _charter(keys)
        self.db = database
        self.hub = RecordingHub()
        self.engine = RecordingEngine()
        self.feed = Feed()
        self.in_force = self.charter
        self.ledger = Ledger(CONSORTIUM, LOG_NAME, lambda text: sign_note(text, LOG_NAME, self.log_keys), self.hub)
        shared = {
            "charter_of": lambda conn: self.in_force,
            "ledger": self.ledger,
            "outbox": self.hub,
            "sign": self.sign,
            "engine": self.engine,
            "feed": self.feed,
            "clock": self.clock,
        }
        self.training = TrainingService(**shared)
        self.negotiation = NegotiationService(consortium=CONSORTIUM, agreements=self.training, **shared)
        self.training.register()
        self.negotiation.register()
        self._count = 0
        self.genesis = self._genesis()

    def sign(self, kind, body):
        return sign_statement(self.log_keys, kind=kind, consortium=CONSORTIUM, issuer="coordinator", body=body)

    def say(self, org, kind, body, by=None):
        return sign_statement(self.keys[by or org], kind=kind, consortium=CONSORTIUM, issuer=org, body=body)

    def deliver(self, org, kind, data):
        """As the hub does: a refusal undoes the handler's writes and is returned."""
        self._count += 1
        message = Message(f"m{self._count}", kind, org, (), "", data, seq=self._count)

        def take(conn):
            try:
                attempt(conn, lambda: self.hub.handlers[kind](conn, org, message))
            except ComityError as error:
                return error
            return None

        return self.db.transact(take)

    def tell(self, org, kind, statement):
        return self.deliver(org, kind, statement.to_bytes())

    def proposal(self, **changes):
        values = {
            "proposal_id": f"prop-{self._count + 1}",
            "revision": 1,
            "consortium": CONSORTIUM,
            "proposer": "alpha",
            "purpose": "research",
            "title": "Tumour classifier",
            "steps": (
                TrainStep(
                    id="train",
                    lead="alpha",
                    app=AppRef("ab" * 32, 1000, "app", "alpha", "1.0.0"),
                    rounds=2,
                    run_config={},
                    reply_timeout_s=60,
                ),
            ),
            "required": ("alpha", "beta", "gamma"),
            "optional": (),
            "minimum": 3,
            "datasets": tuple(DatasetAsk(org, "patients", ("a", "b")) for org in ORGS),
            "terms": Terms.parse({"purposes": ["research"], "rounds": 2}),
            "deadline": instants.to_text(self.clock.now + timedelta(seconds=300)),
        }
        return Proposal(**{**values, **changes})

    def propose(self, proposal=None, org="alpha"):
        proposal = proposal or self.proposal()
        receivers = {each: self.keys[each].public.sealing for each in {*proposal.asked, proposal.proposer}}
        ref, _ = seal_to_bytes([b"zip"], receivers, b"comity/app/v1/" + proposal.steps[0].app.digest.encode())
        said = self.say(org, "proposal", {**proposal.to_json(), "app_payload": ref.to_json()})
        return proposal, said, self.tell(org, "proposal.submit", said)

    def answer(self, org, proposal, decision="allow", **terms):
        body = Answer(proposal.digest, decision, (), Terms.parse(terms), "11" * 32, "22" * 32, "embedded").to_json()
        said = self.say(org, "answer", body)
        return said, self.tell(org, "proposal.answer", said)

    def sign_agreement(self, org, digest, by=None):
        bls = self.keys[by or org].bls_sign(message_for("agreement", digest))
        body = {"agreement": digest, "bls": base64.b64encode(bls).decode()}
        return self.tell(org, "agreement.signature", self.say(org, "agreement-signature", body))

    def agree(self, **changes):
        """Straight to a final agreement; returns (proposal, agreement digest, run)."""
        proposal, _, refusal = self.propose(self.proposal(**changes))
        assert refusal is None
        for org in proposal.asked:
            assert self.answer(org, proposal)[1] is None
        digest = canonical.digest(self.hub.take(proposal.asked[0], "agreement.sign")[-1]["agreement"])
        for org in proposal.asked:
            assert self.sign_agreement(org, digest) is None
        prepare = self.hub.take(proposal.asked[0], "run.prepare")
        return proposal, digest, prepare[-1]["run"] if prepare else ""

    def integrate(self):
        return self.db.transact(lambda conn: self.ledger.integrate(conn, "test"))

    def export(self):
        while self.integrate():
            pass
        return self.db.transact(lambda conn: b"".join(self.ledger.export(conn)))

    def read(self, fn):
        return self.db.transact(fn)

    def _genesis(self):
        digest = self.charter.digest
        signatures = {org: self.keys[org].bls_sign(message_for("charter", digest)) for org in ORGS}
        certificate = make_certificate(digest, signatures)
        said = self.sign("charter", {"charter": self.charter.to_json(), "certificate": certificate.to_json()})
        self.db.transact(lambda conn: self.ledger.append(conn, said, ORGS))
        return said


def _charter(keys):
    return Charter(
        version=1,
        consortium=CONSORTIUM,
        previous=None,
        members=tuple(Member(org, org.title(), f"{org} ltd", keys[org].public) for org in ORGS),
        log_name=LOG_NAME,
        log_key=base64.b64encode(keys["coordinator"].public.statement).decode(),
        quorum={"admit-member": QuorumRule("all")},
        max_checkpoint_age_s=600,
        defaults=Terms(),
    )


@pytest.fixture(scope="session")
def all_keys():
    return {name: OrgKeys.generate() for name in (*ORGS, "coordinator", "stranger")}


def pytest_collection_modifyitems(items):
    """One whole story meets its conflicts in every run of the tests, the others among the slow ones."""
    for item in items:
        mode = item.callspec.params.get("world") if hasattr(item, "callspec") else None
        if mode == TORN and not item.name.startswith("test_from_proposal_to_a_closed_run"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=modes(("sqlite", "once"), TORN, ("postgresql", "twice")))
def world(request, tmp_path, all_keys, databases):
    """Every transaction must be repeatable (ledger.md section 3): see `harness.torn`."""
    world = World(databases.in_mode(request.param, tmp_path), all_keys)
    world.calm = request.param[1] == "once"
    yield world
    world.db.close()


@pytest.fixture
def orgs():
    return ORGS


@pytest.fixture
def names():
    return SimpleNamespace(consortium=CONSORTIUM, log=LOG_NAME)
