"""Three real nodes' negotiation and the real coordinator's, joined in one process; the wire between may lie."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comity.wire import canonical, instants
from comity.wire.errors import ComityError
from comity_agents.flower.bundle import build_app
from comity_coordinator.attestation.service import EvidenceDesk
from comity_coordinator.db import Database, after_commit, attempt, open_database
from comity_coordinator.feed import Feed
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation.service import NegotiationService as CoordinatorNegotiation
from comity_coordinator.transport.model import Message as Inbound
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import sign_note
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import sign_statement
from comity_node.abilities import Abilities
from comity_node.access.model import Principal
from comity_node.attestation import service as node_attestation
from comity_node.attestation.trust import able
from comity_node.context import NodeContext
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger.store import LedgerStore
from comity_node.negotiation import service as node_negotiation
from comity_node.negotiation import store
from comity_node.reviews import service as node_reviews
from comity_node.reviews.service import ReviewService
from comity_node.settings import AttestationSettings, NodeSettings
from comity_node.transport.model import Message
from comity_policies.charter import Adopted, Charter, Member, QuorumRule, TrustRoot
from comity_policies.decisions import Decision, ReviewNeed
from comity_policies.documents import AppRef, Proposal, Reason, TrainStep
from comity_policies.terms import Terms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.machines import MEASUREMENT, Maker, Tsm

ORGS = ("alpha", "beta", "gamma")
CONSORTIUM = "demo"
DUMMY = Path(__file__).resolve().parents[3] / "benchmarks" / "dummy_app"


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> Any:
        return instants.now() + self.ahead

    def text(self) -> str:
        return instants.to_text(self())

    def pass_s(self, seconds: int) -> None:
        self.ahead += timedelta(seconds=seconds)


class Policy:
    """Answers what a test says; by default it allows."""

    name, bundle_digest = "test", "0" * 64

    def __init__(self) -> None:
        self.says = Decision("allow")
        self.asked = 0

    def decide(self, stage: Any, document: Any) -> Decision:
        self.asked += 1
        return self.says

    def close(self) -> None:
        pass

    def review(self, **terms: Any) -> None:
        reason = Reason("proposal.app", "UNREVIEWED", "somebody has to look")
        self.says = Decision("review", (reason,), Terms.parse(terms), review=ReviewNeed())

    def allow(self, **terms: Any) -> None:
        self.says = Decision("allow", terms=Terms.parse(terms))


class Spool:
    """Payloads by digest; `broken` is what a test lets go wrong."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.broken: ComityError | None = None

    async def put(self, data: bytes, ref: Any, receivers: Any) -> None:
        self.held[ref.digest] = bytes(data)

    async def get(self, ref: Any) -> Any:
        if self.broken is not None:
            raise self.broken
        yield self.held[ref.digest]


@dataclass
class NodeLink:
    """The node's side of the wire."""

    org: str
    journal: Journal
    ledger: LedgerStore
    out: deque[tuple[str, bytes]] = field(default_factory=deque)
    handlers: dict[str, Any] = field(default_factory=dict)
    refusing: dict[str, Any] = field(default_factory=dict)
    refusals: list[Any] = field(default_factory=list)
    opening: list[Any] = field(default_factory=list)

    def register(self, kind: str, handler: Any) -> None:
        self.handlers[kind] = handler

    def on_refused(self, kind: str, callback: Any) -> None:
        self.refusing[kind] = callback

    def on_refusal(self, callback: Any) -> None:
        self.refusals.append(callback)

    def on_connected(self, callback: Any) -> None:
        self.opening.append(callback)

    async def connect(self) -> None:
        for callback in self.opening:
            await callback()

    async def refused(self, kind: str, data: bytes, error: ComityError) -> None:
        if (callback := self.refusing.get(kind)) is not None:
            self.journal.transact(lambda conn: callback(conn, data))
        for tell in self.refusals:
            await tell("m", kind, error)

    def send(self, conn: Any, kind: str, body: Any, *, run: str = "") -> str:
        data = body.to_bytes()
        self.ledger.expect(conn, body)
        self.journal.after_commit(conn, lambda: self.out.append((kind, data)))
        return "m"


class NodeRig:
    """One organisation."""

    def __init__(self, world: Any, org: str) -> None:
        home = world.folder / org
        self.org, self.policy = org, Policy()
        settings = NodeSettings(
            home=home,
            org=org,
            consortium=CONSORTIUM,
            title=org,
            owner=org,
            coordinator="127.0.0.1:1",
            log_key=base64.b64encode(world.keys["coordinator"].public.statement).decode(),
            genesis=world.charter.digest,
            attestation=world.attestation(home),
        )
        settings.make_folders()
        self.journal = Journal.open(settings.journal_file)
        ledger = LedgerStore()
        self.link = NodeLink(org, self.journal, ledger)
        self.context = NodeContext(
            settings=settings,
            keys=world.keys[org],
            keystore=None,  # type: ignore[arg-type]
            journal=self.journal,
            link=self.link,  # type: ignore[arg-type]
            dialer=None,  # type: ignore[arg-type]
            payloads=world.spool,
            charters=CharterStore(settings, self.journal),
            ledger=ledger,
            policy=self.policy,  # type: ignore[arg-type]
            clock=world.clock,
        )
        self.reviews: ReviewService = node_reviews.build(self.context)
        profiles = frozenset({"plain", "lead-key"})
        self.context.services.add(Abilities(profiles, "sandbox", attests=able(settings)))
        self.attestation = node_attestation.build(self.context)
        self.service = node_negotiation.build(self.context)
        self.journal.create_all()

    def read(self, fn: Callable[[Any], Any]) -> Any:
        return self.journal.transact(fn)

    def answer(self, proposal: Proposal) -> Any:
        return self.read(lambda conn: store.find_answer(conn, proposal.digest))

    def open_items(self) -> list[Any]:
        from comity_node.reviews import store as review_store

        return list(self.read(lambda conn: review_store.every(conn, open_only=True, whole=True)))

    async def vote(self, decision: str, reason: str = "looked at it", user: str = "ruth") -> None:
        (item,) = self.open_items()
        who = Principal(user, frozenset({"reviewer", "admin"}), "token")
        await self.reviews.vote(item.ask.id, who, decision=decision, reason=reason, document=item.ask.document_digest)


class World:
    """Coordinator, nodes and the wire. `alter(org, kind, body)` may change what the coordinator sends, or drop it."""

    def __init__(
        self,
        folder: Path,
        keys: dict[str, OrgKeys],
        machines: dict[str, Tsm] | None = None,
        database: Callable[[str], Database] | None = None,
    ) -> None:
        """`database` opens an empty one for a coordinator, by its log's name; by default a file of SQLite."""
        self._database = database or self._file
        self.folder, self.keys, self.clock, self.spool = folder, keys, Clock(), Spool()
        self.machines = machines or {}
        self.inbound: deque[tuple[str, str, dict[str, Any]]] = deque()
        self.handlers: dict[str, Any] = {}
        self.refused: list[tuple[str, str, ComityError]] = []
        self.failed: list[tuple[str, str, ComityError]] = []
        self.log: list[tuple[str, str, dict[str, Any]]] = []
        self.alter: Callable[[str, str, dict[str, Any]], dict[str, Any] | None] = lambda org, kind, body: body
        self.count = 0
        self.charter = self._charter()
        self.final: list[str] = []
        self.open()
        self.genesis = self.final_charter(self.charter)
        self.db.transact(lambda conn: self.ledger.append(conn, self.genesis, ORGS))
        self.nodes = {org: NodeRig(self, org) for org in ORGS}

    def open(self) -> None:
        """Begin with a coordinator that knows nothing yet."""
        name, keys = self.charter.log_name, self.keys["coordinator"]
        self.db = self._database(name)
        self.ledger = Ledger(CONSORTIUM, name, lambda text: sign_note(text, name, keys), self)
        self.engine = SimpleNamespace(negotiation_opened=lambda *a: None, negotiation_ended=lambda *a: None)
        self.desk = EvidenceDesk(
            charter_of=lambda conn: self.charter,
            ledger=self.ledger,
            outbox=self,
            agreements=self,
            clock=self.clock.text,
        )
        self.negotiation = CoordinatorNegotiation(
            consortium=CONSORTIUM,
            charter_of=lambda conn: self.charter,
            ledger=self.ledger,
            outbox=self,
            sign=self.sign,
            engine=self.engine,  # type: ignore[arg-type]
            agreements=self.desk,
            feed=Feed(),
            clock=self.clock.text,
        )
        self.negotiation.register()
        self.desk.register(self.negotiation)

    def _file(self, name: str) -> Database:
        made = open_database(f"sqlite:///{self.folder / name}.db")
        made.create_all()
        return made

    async def move(self) -> None:
        """Put another coordinator in this one's place: what it knew is gone, and the members have named the other."""
        self.inbound.clear()
        for node in self.nodes.values():
            node.link.out.clear()
            await node.link.connect()
        self.keys["coordinator"], before = OrgKeys.generate(), self.charter
        key = base64.b64encode(self.keys["coordinator"].public.statement).decode()
        self.charter = replace(
            before,
            version=before.version + 1,
            previous=before.digest,
            log_name="log.next",
            log_key=key,
            adopted=Adopted(before.log_name, 1, "ab" * 32),
        )
        self.db.close()
        self.open()
        for node in self.nodes.values():
            await node.context.charters.accept(self.final_charter(self.charter))
            await node.link.connect()

    # the coordinator's hub

    def register(self, kind: str, handler: Any) -> None:
        self.handlers[kind] = handler

    def enqueue(self, conn: Any, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        after_commit(conn, lambda: self.inbound.append((org, kind, body)))

    def enqueue_all(self, conn: Any, orgs: Any, kind: str, body: dict[str, Any]) -> None:
        for org in orgs:
            self.enqueue(conn, org, kind, body)

    def agreement_final(self, conn: Any, agreement: Any) -> None:
        after_commit(conn, lambda: self.final.append(agreement.digest))

    def agreement_withdrawn(self, conn: Any, agreement: str, org: str, reason: str) -> None:
        pass

    def sign(self, kind: str, body: dict[str, Any]) -> Any:
        keys = self.keys["coordinator"]
        return sign_statement(keys, kind=kind, consortium=CONSORTIUM, issuer="coordinator", body=body)

    def deliver(self, org: str, kind: str, data: bytes) -> ComityError | None:
        self.count += 1
        message = Inbound(f"m{self.count}", kind, org, (), "", data, seq=self.count)

        def take(conn: Any) -> ComityError | None:
            try:
                attempt(conn, lambda: self.handlers[kind](conn, org, message))
            except ComityError as error:
                return error
            return None

        return self.db.transact(take)

    async def settle(self) -> None:
        """Carry messages until nobody says anything any more."""
        for _ in range(10_000):
            moved = False
            for node in self.nodes.values():
                while node.link.out:
                    moved = True
                    kind, data = node.link.out.popleft()
                    error = self.deliver(node.org, kind, data)
                    if error is not None:
                        self.refused.append((node.org, kind, error))
                        await node.link.refused(kind, data, error)
            while self.inbound:
                moved = True
                org, kind, body = self.inbound.popleft()
                changed = self.alter(org, kind, body)
                if changed is not None:
                    await self.hand(org, kind, changed)
            if not moved and not self.db.transact(lambda conn: self.negotiation.tell_news(conn, 64)):
                return
            await asyncio.sleep(0)
        raise AssertionError("it never ends")

    async def hand(self, org: str, kind: str, body: dict[str, Any]) -> None:
        self.log.append((org, kind, body))
        handler = self.nodes[org].link.handlers.get(kind)
        if handler is None:
            return
        self.count += 1
        message = Message(f"c{self.count}", self.count, kind, "coordinator", (), "", canonical.canonical(body))
        try:
            await handler(message)
        except ComityError as error:
            self.failed.append((org, kind, error))

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.02)
                await self.settle()

    # words for tests

    def proposal(self, **changes: Any) -> Proposal:
        bundle = build_app(DUMMY)
        app = AppRef(bundle.digest, bundle.size, bundle.name, bundle.publisher, bundle.version)
        values: dict[str, Any] = {
            "proposal_id": f"prop-{len(self.log) + 1}",
            "revision": 1,
            "consortium": CONSORTIUM,
            "proposer": "alpha",
            "purpose": "research",
            "title": "Rounds",
            "steps": (TrainStep("train", "alpha", app, 3, {"num-server-rounds": 3}, 60),),
            "required": ORGS,
            "optional": (),
            "minimum": 3,
            "datasets": (),
            "terms": Terms.parse({"purposes": ["research"], "rounds": 3}),
            "deadline": instants.to_text(self.clock() + timedelta(seconds=300)),
        }
        return Proposal(**{**values, **changes})

    async def propose(self, *, user: str = "", **changes: Any) -> Proposal:
        proposal = self.proposal(**changes)
        await self.nodes["alpha"].service.propose(proposal, build_app(DUMMY).data, user=user)
        await self.settle()
        return proposal

    def news(self, proposal: Proposal, org: str = "alpha") -> dict[str, Any]:
        found = self.nodes[org].read(lambda conn: store.find_proposal(conn, proposal.digest)).news
        assert found is not None
        return dict(found)

    def legs(self, proposal: Proposal) -> dict[str, str]:
        return {leg["org"]: leg["state"] for leg in self.news(proposal)["legs"]}

    def export(self) -> bytes:
        while self.db.transact(lambda conn: self.ledger.integrate(conn, "test")):
            pass
        return self.db.transact(lambda conn: b"".join(self.ledger.export(conn)))

    def deadline(self, subject: str) -> str | None:
        return self.db.transact(lambda conn: self.negotiation.on_deadline(conn, subject))

    def final_charter(self, charter: Charter) -> Any:
        message = message_for("charter", charter.digest)
        certificate = make_certificate(charter.digest, {org: self.keys[org].bls_sign(message) for org in ORGS})
        body = {"charter": charter.to_json(), "certificate": certificate.to_json(), "signatures": []}
        return self.sign("charter", body)

    def _charter(self, **changes: Any) -> Charter:
        values: dict[str, Any] = {
            "version": 1,
            "consortium": CONSORTIUM,
            "previous": None,
            "members": tuple(Member(org, org, org, self.keys[org].public) for org in ORGS),
            "log_name": "log.demo",
            "log_key": base64.b64encode(self.keys["coordinator"].public.statement).decode(),
            "quorum": {"admit-member": QuorumRule("all"), "change-charter": QuorumRule("all")},
            "max_checkpoint_age_s": 600,
            "defaults": Terms(),
            "trust_roots": self._trusted(),
        }
        return Charter(**{**values, **changes})

    def _trusted(self) -> tuple[TrustRoot, ...]:
        """The machines' maker and what they run; nothing where there are no machines."""
        for machine in self.machines.values():
            workload = hashlib.sha256(MEASUREMENT).hexdigest()
            return (
                TrustRoot("sev-snp", "maker", machine.maker.root),
                TrustRoot("sev-snp-measurement", "node", workload),
            )
        return ()

    def attestation(self, home: Path) -> AttestationSettings | None:
        """An organisation's settings: only one that has a machine attests."""
        machine = self.machines.get(home.name)
        floor = {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 213}
        return machine and AttestationSettings.model_validate({"report_root": machine.root, "snp_floor": floor})

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.context.charters.accept(self.genesis)
            await node.reviews.start()
            await node.attestation.start()
            await node.service.start()

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.service.stop()
            await node.attestation.stop()
            await node.reviews.stop()
            node.journal.close()
        self.db.close()


@pytest.fixture(scope="session")
def consortium_keys() -> dict[str, OrgKeys]:
    return {name: OrgKeys.generate() for name in (*ORGS, "coordinator", "stranger")}


@pytest.fixture
async def world(request: Any, tmp_path: Path, consortium_keys: dict[str, OrgKeys]) -> Any:
    """The coordinator is on SQLite, or on the database that a test names as this fixture's parameter."""
    backend, database = getattr(request, "param", "sqlite"), None
    if backend != "sqlite":
        databases = request.getfixturevalue("databases")
        database = lambda name: databases.fresh(backend, tmp_path)  # noqa: E731 - one line
    made = World(tmp_path, consortium_keys, database=database)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def attested(tmp_path: Path, consortium_keys: dict[str, OrgKeys]) -> Any:
    """A world in which every organisation has a confidential machine of one maker."""
    maker = Maker()
    machines = {org: Tsm(tmp_path / f"tsm-{org}", maker) for org in ORGS}
    made = World(tmp_path, consortium_keys, machines)
    await made.start()
    yield made
    await made.stop()
    for machine in machines.values():
        machine.close()
