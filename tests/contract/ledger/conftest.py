"""Four real nodes' ledger and a real log whose operator may lie to each of them, in one process without a wire."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comity.v1 import ledger_pb2
from comity.wire import instants
from comity.wire.errors import ComityError
from comity_coordinator.db import open_database
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.ledger.witnessing import Witnessing
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import sign_note
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.governance import service as governance
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger import incidents
from comity_node.ledger import service as node_ledger
from comity_node.ledger.store import LedgerStore
from comity_node.settings import NodeSettings
from comity_policies.charter import Charter, Member, WitnessRule
from comity_policies.terms import Terms

ORGS = ("alpha", "beta", "gamma", "delta")
CONSORTIUM = "demo"
LOG = "coordinator.example/demo"


class Silence:
    """A hub that sends nothing: proofs and offers are no part of this."""

    def register(self, kind: str, handler: Any) -> None: ...
    def enqueue(self, conn: Any, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None: ...
    def enqueue_all(self, conn: Any, orgs: Any, kind: str, body: dict[str, Any]) -> None: ...


class Log:
    """One history, in a database of its own, signed by the operator's key."""

    def __init__(self, world: World, name: str, entries: tuple[Statement, ...] = ()) -> None:
        self.world, self.entries = world, list[Statement]()
        file = world.folder / f"{name}.db"
        known = file.exists()
        self.db = open_database(f"sqlite:///{file}")
        if not known:
            self.db.create_all()
        keys = world.log_keys
        self.ledger = Ledger(CONSORTIUM, LOG, lambda text: sign_note(text, LOG, keys), Silence())
        self.witnessing = Witnessing(lambda conn: world.charter, lambda: world.now().timestamp())
        self.entries.extend(entries if known else ())
        self.add(*(() if known else entries))
        world.logs.append(self)

    def add(self, *entries: Statement) -> None:
        """Enter statements, each batch under one checkpoint."""
        for entry in entries:
            self.db.transact(partial(self.ledger.append, statement=entry))
            self.entries.append(entry)
        while self.db.transact(partial(self.ledger.integrate, holder="test")):
            pass

    def ask(self) -> None:
        """Put the newest checkpoint to the witnesses."""
        self.db.transact(self.witnessing.open_round)

    @property
    def note(self) -> str:
        return self.db.transact(self.ledger.checkpoint)


class Stubs:
    """What a node dials: the log that the operator shows this node. `lie(name, response)` may change an answer."""

    def __init__(self, org: Org) -> None:
        self.org = org
        self.lie: Any = lambda name, response: response

    def ledger(self) -> Stubs:
        return self

    witness = ledger

    async def GetCheckpoint(self, request: Any, timeout: float | None = None) -> Any:  # noqa: N802
        log = self.org.log
        found = log.db.transact(log.witnessing.notes)
        answer = ledger_pb2.GetCheckpointResponse(note=log.note, asked=found.asked, final=found.final)
        return self.lie("GetCheckpoint", answer)

    async def ListEntries(self, request: Any, timeout: float | None = None) -> Any:  # noqa: N802
        log = self.org.log
        page = log.db.transact(partial(log.ledger.entries, start=request.start, limit=request.limit))
        return self.lie("ListEntries", ledger_pb2.ListEntriesResponse(statements=page))

    async def GetConsistencyProof(self, request: Any, timeout: float | None = None) -> Any:  # noqa: N802
        sizes = (request.old_size, request.new_size, *request.further_sizes)
        first, *further = self.org.log.db.transact(partial(self.org.log.ledger.consistency, sizes=sizes))
        steps = [ledger_pb2.ConsistencyStep(hashes=hashes) for hashes in further]
        return ledger_pb2.GetConsistencyProofResponse(hashes=first, further=steps)

    async def AddCosignature(self, request: Any, timeout: float | None = None) -> Any:  # noqa: N802
        log, me = self.org.log, self.org.name
        final = log.db.transact(partial(log.witnessing.take, org=me, size=request.size, line=request.line))
        return ledger_pb2.AddCosignatureResponse(final=final)


class Link:
    """A stream that is open; what is sent waits in `out` until the operator takes it."""

    connected = True

    def __init__(self) -> None:
        self.out: list[Statement] = []

    def register(self, kind: str, handler: Any) -> None: ...
    def on_connected(self, callback: Any) -> None: ...
    def on_refused(self, kind: str, callback: Any) -> None: ...
    def on_refusal(self, callback: Any) -> None: ...
    def redial(self) -> None: ...

    def send(self, conn: Any, kind: str, body: Statement, *, run: str = "") -> str:
        self.out.append(body)
        return "m"


class Org:
    """One organisation's node, as far as the ledger goes."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.log, self.keys = world, name, world.log, world.keys[name]
        settings = NodeSettings(
            home=world.folder / name,
            org=name,
            consortium=CONSORTIUM,
            title=name,
            owner=name,
            coordinator="127.0.0.1:1",
            log_key=base64.b64encode(world.log_keys.public.statement).decode(),
            genesis=world.charter.digest,
        )
        settings.make_folders()
        self.journal, self.link, self.stubs = Journal.open(settings.journal_file), Link(), Stubs(self)
        nothing: Any = None
        self.store = LedgerStore()
        self.context = NodeContext(
            settings=settings,
            keys=self.keys,
            keystore=nothing,
            journal=self.journal,
            link=self.link,  # type: ignore[arg-type]
            dialer=self.stubs,  # type: ignore[arg-type]
            payloads=nothing,
            charters=CharterStore(settings, self.journal),
            ledger=self.store,
            policy=nothing,
            clock=world.now,
        )
        governance.build(self.context)
        self.service = node_ledger.build(self.context)
        self.withdrawn: list[str] = []

        async def withdrawn(statement: Statement) -> None:
            self.withdrawn.append(statement.digest)

        self.service.reader.on_entry("withdrawal", withdrawn)
        if world.founded is None:
            self.journal.create_all()
        self.context.charters.load()
        self.journal.transact(self.store.load)

    async def look(self, times: int = 1) -> None:
        """Look as every ten seconds, and compare what was seen."""
        for _ in range(times):
            try:
                await self.service.follower.look(poll=True)
                await self.service._compare_all()  # what a background task does by the clock
            except ComityError as error:
                self.world.refused.append((self.name, error))

    def seen(self) -> list[tuple[str, int]]:
        """Return (kind, number of pieces of evidence) of what was seen here."""
        found = self.journal.transact(incidents.listed)
        return [(each.incident.kind, len(each.incident.evidence)) for each in found if not each.org]

    def stops(self) -> list[str]:
        return self.journal.transact(self.store.alarms)

    def final(self) -> int:
        return self.store.final.size

    def may_work(self) -> str:
        """Return why no new order would be taken here, "" if one would."""
        charter, digests = self.context.charters.current(), self.context.charters.statements_in_force()
        try:
            self.journal.transact(self.store.check)
            self.journal.transact(lambda conn: self.store.check_final(conn, charter, digests, self.world.now()))
        except ComityError as error:
            return str(error.code)
        return ""

    def says(self, kind: str, **body: Any) -> Statement:
        return sign_statement(self.keys, kind=kind, consortium=CONSORTIUM, issuer=self.name, body=body)

    def seal(self) -> bytes:
        """Return what this node's next sealed message carries."""
        return self.store.carried


class World:
    """The operator's key, the members, the history that everybody is shown at first."""

    def __init__(self, folder: Path, founded: World | None = None) -> None:
        """With `founded`, whose files were copied to `folder`, everybody goes on from there."""
        self.folder, self.ahead, self.founded = folder, timedelta(), founded
        self.logs: list[Log] = []
        self.refused: list[tuple[str, ComityError]] = []
        if founded is None:
            self._write()
        else:
            self.log_keys, self.keys, self.charter = founded.log_keys, dict(founded.keys), founded.charter
            self.genesis = founded.genesis
        self.log = Log(self, "log", (self.genesis,))
        self.orgs = {org: Org(self, org) for org in ORGS}

    def _write(self) -> None:
        self.log_keys = OrgKeys.generate()
        self.keys = {org: OrgKeys.generate() for org in ORGS}
        self.charter = Charter(
            version=1,
            consortium=CONSORTIUM,
            previous=None,
            members=tuple(Member(org, org, org, self.keys[org].public) for org in ORGS),
            log_name=LOG,
            log_key=base64.b64encode(self.log_keys.public.statement).decode(),
            quorum={},
            max_checkpoint_age_s=600,
            defaults=Terms(),
            witnesses=WitnessRule.of(ORGS),
        )
        message = message_for("charter", self.charter.digest)
        certificate = make_certificate(self.charter.digest, {org: self.keys[org].bls_sign(message) for org in ORGS})
        body = {"charter": self.charter.to_json(), "certificate": certificate.to_json(), "signatures": []}
        self.genesis = self.operator_says("charter", **body)

    def now(self) -> datetime:
        return instants.now() + self.ahead

    def pass_s(self, seconds: int) -> None:
        self.ahead += timedelta(seconds=seconds)

    def operator_says(self, kind: str, issued_at: str | None = None, **body: Any) -> Statement:
        """Return a statement of the coordinator."""
        return sign_statement(
            self.log_keys, kind=kind, consortium=CONSORTIUM, issuer="coordinator", body=body, issued_at=issued_at
        )

    async def found(self) -> None:
        """Every node has the genesis charter, and it is final."""
        for org in self.orgs.values():
            await org.context.services.get(governance.GovernanceService).entered(self.genesis)
        await self.settle()

    async def settle(self, *logs: Log) -> None:
        """Everybody cosigns what is newest in the log that it is shown, and learns that it is final."""
        for log in logs or (self.log,):
            log.ask()
        for _ in range(2):
            for org in self.orgs.values():
                await org.look()

    async def deliver(self) -> None:
        """The operator takes what the nodes said into the log of each."""
        for org in self.orgs.values():
            said, org.link.out = org.link.out, []
            org.log.add(*said)

    async def whisper(self, sender: str, receiver: str) -> None:
        """A sealed message goes from one node to another."""
        self.orgs[receiver].store.hear(self.orgs[sender].seal())
        await self.orgs[receiver].look(2)

    def close(self) -> None:
        for org in self.orgs.values():
            org.journal.close()
        for log in self.logs:
            log.db.close()


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A consortium whose genesis is final: its files are copied, because to found one takes most of a test's time."""
    made = World(tmp_path_factory.mktemp("founded"))
    asyncio.run(made.found())
    made.close()
    return made


@pytest.fixture
async def world(tmp_path: Path, founded: World) -> AsyncIterator[World]:
    made = World(shutil.copytree(founded.folder, tmp_path / "world"), founded)
    yield made
    made.close()
