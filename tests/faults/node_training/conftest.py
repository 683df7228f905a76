"""A consortium in one process: real nodes' training services with real worker processes, joined by an in-memory link.

The switchboard stands for the coordinator: it relays (and can drop, repeat or delay), spools payloads, starts a run
when all parties are ready and closes it when the lead says that it ended.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from comity.v1 import ledger_pb2
from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.bundle import build_app, unpack
from comity_crypto.encoding import to_base64
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.sealing import SealedRef
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.journal import Journal
from comity_node.ledger.store import LedgerStore
from comity_node.reviews.service import ReviewService
from comity_node.settings import NodeSettings
from comity_node.training import closing, store
from comity_node.training.ports import FINAL
from comity_node.training.service import TrainingService
from comity_node.transport.model import Message
from comity_policies.charter import Charter, Member
from comity_policies.decisions import Decision, Stage
from comity_policies.documents import Agreement, AppRef, DatasetAsk, Proposal, Reason, Step, TrainStep, run_id
from comity_policies.terms import Terms

ROOT = Path(__file__).resolve().parents[3]
DUMMY = ROOT / "benchmarks" / "dummy_app"
ORGS = ("hospital-a", "hospital-b", "hospital-c")
CONSORTIUM = "oncology"


class OpenPolicy:
    """Allows everything except what a test puts into `denied`; counts what it was asked."""

    name = "test"
    bundle_digest = "0" * 64

    def __init__(self) -> None:
        self.denied: dict[Stage, Decision] = {}
        self.asked: list[tuple[Stage, dict[str, Any]]] = []

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        self.asked.append((stage, document))
        return self.denied.get(stage, Decision("allow"))

    def close(self) -> None:
        pass

    def deny(self, stage: Stage, rule: str, code: str = "NO") -> None:
        self.denied[stage] = Decision("deny", (Reason(rule, code, f"{rule} says no"),))


class Charters:
    def __init__(self, charter: Charter) -> None:
        self.charter: Charter | None = charter
        self.former: Charter | None = None

    def current(self) -> Charter | None:
        return self.charter

    def statement_keys(self, org: str) -> set[bytes]:
        return set() if self.charter is None else {self.charter.member(org).keys.statement}

    def statements_in_force(self) -> tuple[str, ...]:
        return ()

    def at(self, digest: str) -> Charter | None:
        chain = (self.charter, self.former)
        return next((each for each in chain if each is not None and each.digest == digest), None)


@dataclass
class Held:
    agreement: Agreement
    certificate: Any
    state: str = FINAL
    statement: Any = None


class Agreements:
    def __init__(self, apps: Path) -> None:
        self.apps = apps
        self.held: dict[str, Held] = {}

    def find(self, conn: Any, digest: str) -> Held:
        if digest not in self.held:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN)
        return self.held[digest]

    def app_folder(self, digest: str) -> Path:
        return self.apps / digest


@dataclass
class Spooled:
    size: int
    data: bytearray = field(default_factory=bytearray)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Switchboard:
    """What stands between the nodes. `drop`, `repeat` and `hold` decide about relayed messages by kind."""

    def __init__(self) -> None:
        self.links: dict[str, RigLink] = {}
        self.spool: dict[str, Spooled] = {}
        self.log: list[tuple[str, str, str]] = []
        self.durable: list[tuple[str, str, dict[str, Any]]] = []
        self.drop: Callable[[str, str, str], bool] = lambda kind, sender, receiver: False
        self.repeat = 1
        self.shuffle: random.Random | None = None
        self.ready: dict[str, set[str]] = {}
        self.parties: dict[str, tuple[str, ...]] = {}
        self.finished: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.log_keys = OrgKeys.generate()
        self.auto_close = True
        self.bytes_relayed = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def relay(
        self, sender: str, kind: str, statement: Statement, receivers: Any, run: str, inline: bytes
    ) -> None:
        for receiver in receivers:
            self.log.append((kind, sender, receiver))
            if self.drop(kind, sender, receiver):
                continue
            link = self.links.get(receiver)
            if link is None or not link.up:
                continue
            message = Message(
                "m-" + statement.digest[:20], 0, kind, sender, (receiver,), run, statement.to_bytes(), inline
            )
            self.bytes_relayed += len(message.body) + len(inline)
            for _ in range(self.repeat):
                self.spawn(self._hand(link, message))

    async def _hand(self, link: RigLink, message: Message) -> None:
        if self.shuffle is not None:
            await asyncio.sleep(self.shuffle.random() * 0.05)
        handler = link.handlers.get(message.kind)
        if handler is None or not link.up:
            return
        try:
            await handler(message)
        except ComityError as error:
            link.refused.append((message.kind, error))

    def take(self, org: str, kind: str, body: dict[str, Any]) -> None:
        """A durable message of a node, after its commit."""
        self.durable.append((org, kind, body))
        content = body["content"]["body"] if "content" in body else body
        if kind == "run.ready":
            ready = self.ready.setdefault(content["run"], set())
            ready.add(org)
            if ready == set(self.parties[content["run"]]):
                lead = self.leads[content["run"]]
                self.tell(lead, "run.start", {"run": content["run"]})
        if kind == "run.finished":
            future = self.finished[content["run"]]
            if not future.done():
                future.set_result(content)
            if self.auto_close:
                self.close_run(content["run"], content["state"])

    def close_run(self, run: str, state: str) -> None:
        body = {"run": run, "state": state}
        closed = sign_statement(
            self.log_keys, kind="run-closed", consortium=CONSORTIUM, issuer="coordinator", body=body
        )
        for org in self.parties[run]:
            self.tell(org, "run.closed", {"statement": closed.to_json()})

    leads: dict[str, str]

    def prepare(self, agreement: Agreement, use: int = 1) -> str:
        run = run_id(agreement.digest, use)
        lead = agreement.proposal.steps[0].lead
        self.leads = {**getattr(self, "leads", {}), run: lead}
        self.parties[run] = agreement.parties
        self.finished[run] = asyncio.get_running_loop().create_future()
        body = {"run": run, "agreement": agreement.digest, "lead": lead, "parties": list(agreement.parties)}
        for org in agreement.parties:
            self.tell(org, "run.prepare", body)
        return run

    def tell(self, org: str, kind: str, body: dict[str, Any]) -> None:
        link = self.links[org]
        message = Message("d-1", 1, kind, "coordinator", (), body.get("run", ""), canonical.canonical(body))
        link.line.put_nowait(message)


class RigLink:
    """The node's link, in memory. `up` False is a node that nobody reaches."""

    def __init__(self, board: Switchboard, org: str, journal: Journal) -> None:
        self.board, self.org, self.journal = board, org, journal
        self.handlers: dict[str, Any] = {}
        self.refused: list[tuple[str, ComityError]] = []
        self.presence: list[Any] = []
        self.refused_bodies: dict[str, Any] = {}
        self.connected_callbacks: list[Any] = []
        self.up = True
        old = board.links.get(org)
        self.line: asyncio.Queue[Message] = old.line if old is not None else asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        board.links[org] = self

    def register(self, kind: str, handler: Any) -> None:
        self.handlers[kind] = handler

    def on_refused(self, kind: str, callback: Any) -> None:
        self.refused_bodies[kind] = callback

    def on_connected(self, callback: Any) -> None:
        self.connected_callbacks.append(callback)

    def on_presence(self, callback: Any) -> None:
        self.presence.append(callback)

    @property
    def connected(self) -> bool:
        return self.up

    @property
    def connected_orgs(self) -> frozenset[str]:
        return frozenset(org for org, link in self.board.links.items() if link.up and org != self.org)

    def send(self, conn: Any, kind: str, body: Any, *, run: str = "") -> str:
        document = body.to_json() if isinstance(body, Statement) else dict(body)
        canonical.canonical(document)
        self.journal.after_commit(
            conn, lambda: self.loop.call_soon_threadsafe(self.board.take, self.org, kind, document)
        )
        return "m-1"

    async def relay(
        self, kind: str, statement: Statement, receivers: Any, *, run: str, inline: bytes = b""
    ) -> str | None:
        assert len(inline) <= 256 * 1024
        if not self.up:
            return None
        await self.board.relay(self.org, kind, statement, receivers, run, inline)
        return "m-1"

    async def work(self) -> None:
        while True:
            message = await self.line.get()
            try:
                await self.handlers[message.kind](message)
            except ComityError as error:
                self.refused.append((message.kind, error))


class RigPayloads:
    """The spool, in memory, with downloads that follow uploads."""

    def __init__(self, board: Switchboard) -> None:
        self.board = board

    async def put(self, source: Any, ref: SealedRef, receivers: Any) -> None:
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        assert len(data) == ref.size
        entry = self.board.spool.get(ref.digest)
        if entry is not None and len(entry.data) == ref.size:
            return
        entry = self.board.spool.setdefault(ref.digest, Spooled(ref.size))
        async with entry.changed:
            entry.data[:] = data
            entry.changed.notify_all()

    async def get(self, ref: SealedRef) -> AsyncIterator[bytes]:
        entry = self.board.spool.setdefault(ref.digest, Spooled(ref.size))
        async with entry.changed:
            async with asyncio.timeout(10):
                await entry.changed.wait_for(lambda: len(entry.data) == ref.size)
        for start in range(0, ref.size, 512 * 1024):
            yield bytes(memoryview(entry.data)[start : start + 512 * 1024])


class RigDialer:
    """The coordinator's ledger, as far as it knows this organisation's receipts."""

    def __init__(self, board: Switchboard, org: str) -> None:
        self.board, self.org = board, org

    def ledger(self) -> RigDialer:
        return self

    async def GetStanding(self, request: Any, timeout: float | None = None) -> Any:  # noqa: N802 - gRPC's name
        own = [body for sender, kind, body in self.board.durable if sender == self.org and kind == "receipts"]
        found = [Statement.from_json(each) for body in own for each in body["receipts"]]
        newest = max(found, key=lambda each: int(each.body["journal_seq"]), default=None)
        return ledger_pb2.GetStandingResponse(receipt=b"" if newest is None else newest.to_bytes())


class RigNode:
    """One organisation's node: training only."""

    def __init__(self, rig: Rig, org: str) -> None:
        self.rig, self.org = rig, org
        self.home = rig.folder / org
        self.home.mkdir(exist_ok=True)
        self.policy = OpenPolicy()
        self.agreements = Agreements(rig.folder / "apps")
        self.keys = rig.keys[org]
        self.limits: dict[str, int] = {}
        self.service: TrainingService | None = None
        self._task: asyncio.Task[None] | None = None

    async def up(self) -> None:
        settings = NodeSettings(
            home=self.home, org=self.org, consortium=CONSORTIUM, title=self.org, owner=self.org,
            coordinator="127.0.0.1:1", log_key=to_base64(self.rig.board.log_keys.public.statement),
            isolation="process", aggregation="plain", limits=self.limits,
        )  # fmt: skip
        settings.make_folders()
        self.journal = Journal.open(settings.journal_file)
        self.link = RigLink(self.rig.board, self.org, self.journal)
        self.charters = Charters(self.rig.charter)
        self.context = context = NodeContext(
            settings=settings, keys=self.keys, keystore=None, journal=self.journal, link=self.link,
            dialer=RigDialer(self.rig.board, self.org),
            payloads=RigPayloads(self.rig.board), charters=self.charters, ledger=LedgerStore(),
            policy=self.policy, clock=instants.now,
        )  # fmt: skip
        self.reviews = ReviewService(context)
        self.service = TrainingService(context, self.agreements, self.reviews)
        self.service.register()
        self.journal.create_all()
        await self.reviews.start()
        await self.service.start()
        for callback in self.link.connected_callbacks:
            await callback()
        self._task = asyncio.create_task(self.link.work())
        await self._presence(True)

    async def down(self) -> None:
        """Stop in order."""
        await self._leave()
        if self.service is not None:
            await self.service.stop()
            self.service = None
        await self.reviews.stop()
        self.journal.close()

    async def crash(self) -> None:
        """Stop as a killed process does: nothing more is written, children die."""
        await self._leave()
        service, self.service = self.service, None
        if service is None:
            return
        await self.reviews.stop()
        behind = service._behind
        if behind._task is not None:
            behind._task.cancel()
        self.journal._closed = True  # every later write is refused, as in a process that is gone
        await service.runs.stop()
        for part in (service._participant, service._replies, service.results, service._receipts):
            await part.stop()
        await service._workshop.stop()
        self.journal._closed = False
        self.journal.close()

    async def _leave(self) -> None:
        self.link.up = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._presence(False)

    async def _presence(self, here: bool) -> None:
        for other in self.rig.nodes.values():
            if other is not self and other.service is not None:
                for callback in other.link.presence:
                    await callback(frozenset({self.org}), here)
                if here:
                    for callback in self.link.presence:
                        await callback(frozenset({other.org}), True)

    def add_data(self, records: int = 40) -> None:
        path = self.home / "patients.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["age", "name", "outcome"])
            writer.writerows([[30 + row, f"patient-{row}", row % 2] for row in range(records)])
        assert self.service is not None
        self.service.catalogue.add("patients", path, classification="pseudonymous", replace=True)

    def read(self, fn: Any) -> Any:
        return self.journal.transact(fn)

    @property
    def worker_pid(self) -> int | None:
        assert self.service is not None
        stations = list(self.service._workshop._stations.values())
        return stations[0].worker.pid if stations else None


class Rig:
    """The consortium."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = Switchboard()
        self.keys = {org: OrgKeys.generate() for org in ORGS}
        members = tuple(Member(org, org, org, self.keys[org].public) for org in ORGS)
        self.charter = Charter(
            1, CONSORTIUM, None, members, "log.example/oncology", to_base64(self.board.log_keys.public.statement), {},
            3600, Terms(),
        )  # fmt: skip
        self.nodes = {org: RigNode(self, org) for org in ORGS}
        (folder / "apps").mkdir()

    async def up(self) -> None:
        for node in self.nodes.values():
            await node.up()

    async def down(self) -> None:
        for task in list(self.board.tasks):
            task.cancel()
        await asyncio.gather(*self.board.tasks, return_exceptions=True)
        for node in self.nodes.values():
            if node.service is not None:
                await node.down()

    def agree(
        self, app: Path, *, rounds: int, config: dict[str, Any] | None = None, terms: dict[str, Any] | None = None,
        columns: tuple[str, ...] = ("age", "outcome"), datasets: bool = True, timeout_s: int = 60, uses: int = 1,
        parties: tuple[str, ...] = ORGS, opened_by: tuple[str, ...] | None = None,
    ) -> Agreement:  # fmt: skip
        bundle = build_app(app)
        if not (self.folder / "apps" / bundle.digest).exists():
            unpack(bundle.data, self.folder / "apps" / bundle.digest)
        ref = AppRef(bundle.digest, bundle.size, bundle.name, bundle.publisher, bundle.version)
        step = TrainStep("fit", ORGS[0], ref, rounds, config or {}, timeout_s, opened_by=opened_by)
        asks = tuple(DatasetAsk(org, "patients", columns) for org in parties) if datasets else ()
        return self.agree_on(step, asks, parties, terms, uses)

    def agree_on(
        self, step: Step, asks: tuple[DatasetAsk, ...], parties: tuple[str, ...],
        terms: dict[str, Any] | None = None, uses: int = 1,
    ) -> Agreement:  # fmt: skip
        """Let `parties` hold an agreement with this one step."""
        wanted = Terms.parse({"purposes": ["research"], "aggregation": "plain", **(terms or {})})
        proposal = Proposal(
            f"p-{random.randbytes(6).hex()}", 1, CONSORTIUM, ORGS[0], "research", "a test", (step,), parties, (),
            len(parties), asks, wanted, "2099-01-01T00:00:00Z", uses,
        )  # fmt: skip
        agreement = Agreement("agr-1", CONSORTIUM, self.charter.digest, proposal, parties, wanted)
        message = message_for("agreement", agreement.digest)
        signatures = {org: self.keys[org].bls_sign(message) for org in parties}
        for org in parties:
            held = Held(agreement, make_certificate(agreement.digest, signatures))
            self.nodes[org].agreements.held[agreement.digest] = held
        return agreement

    async def finish(self, run: str, timeout_s: float = 60) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self.board.finished[run])

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    def receipts(self, org: str) -> list[dict[str, Any]]:
        found = []
        for sender, kind, body in self.board.durable:
            if sender == org and kind == "receipts":
                for each in body["receipts"]:
                    statement = Statement.from_json(each)
                    verify_statement(statement, self.keys[org].public.statement, kind="receipt")
                    found.append(statement.body)
        return found

    def result(self, org: str, run: str) -> Path:
        return self.nodes[org].home / "results" / run

    def model_digest(self, org: str, run: str) -> str:
        return hashlib.sha256((self.result(org, run) / "content.bin").read_bytes()).hexdigest()

    def spent(self, org: str, agreement: Agreement) -> dict[str, int]:
        return self.nodes[org].read(lambda conn: store.spent(conn, agreement.digest))


@pytest.fixture(autouse=True)
def _no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switchboard keeps no ledger: nobody waits for its proofs."""
    monkeypatch.setattr(closing, "PROVED_WITHIN_S", 0.1)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.up()
    for node in rig.nodes.values():
        node.add_data()
    try:
        yield rig
    finally:
        await rig.down()
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def dummy() -> Path:
    return DUMMY


@pytest.fixture
def example() -> Path:
    return ROOT / "examples" / "hospitals" / "app"
