"""The consortium of `faults/node_training` under `lead-key`, with the real coordinator's part on a real spool."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_coordinator.training.model import Run, create
from comity_coordinator.training.sums import Sums
from comity_coordinator.transport.model import Message as CoordinatorMessage
from comity_coordinator.transport.payloads import CHUNK_BYTES, Spool
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.statements import Statement, verify_statement
from comity_node.training.profiles import sum_exchange
from comity_node.transport.model import Message
from comity_policies import sums
from comity_policies.documents import Receipt
from comity_policies.orders import SumProof


def _rig_module() -> Any:
    path = Path(__file__).resolve().parents[1] / "node_training" / "conftest.py"
    spec = importlib.util.spec_from_file_location("comity_tests_training_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


rig_module = _rig_module()
ORGS = rig_module.ORGS


class Charters:
    def __init__(self, rig: Any) -> None:
        self.rig = rig

    def __call__(self, conn: Any) -> Any:
        return self.rig.charter


class NoDatabase:
    """Runs what the sums ask of the database; `runs` is patched in by the rig."""

    async def run(self, fn: Any) -> Any:
        return fn(None)


class SumBoard(rig_module.Switchboard):  # type: ignore[misc]
    """A switchboard with the coordinator's sums behind it: it sees what it relays, and has a spool on disk."""

    def __init__(self, rig: Any, folder: Path, workers: BfvWorkers) -> None:
        super().__init__()
        self.rig, self.folder, self.workers = rig, folder, workers
        self.seen: list[tuple[str, bytes]] = []
        self.words: list[tuple[str, str]] = []
        self.runs: dict[str, Run] = {}
        self.change: Any = lambda sender, statement: statement
        self.start_coordinator()

    def start_coordinator(self) -> None:
        self.store = Spool(self.folder)
        self.sums = Sums(NoDatabase(), Charters(self.rig), self.store, self.word)  # type: ignore[arg-type]
        self.sums._workers = self.workers
        self.sum_task = asyncio.ensure_future(self.sums.run())

    async def stop_coordinator(self) -> None:
        self.sum_task.cancel()
        await asyncio.gather(self.sum_task, return_exceptions=True)
        self.sums._workers = None
        await self.sums.close()
        self.store.close()

    def word(self, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> bool:
        self.words.append((org, body["kind"]))
        self.log.append((kind, COORDINATOR, org))
        link = self.links.get(org)
        if link is None or not link.up or self.drop(kind, COORDINATOR, org):
            return False
        message = Message("w-1", 0, kind, COORDINATOR, (), run, canonical.canonical(body))
        for _ in range(self.repeat):
            self.spawn(self._hand(link, message))
        return True

    async def relay(self, sender: str, kind: str, statement: Any, receivers: Any, run: str, inline: bytes) -> None:
        self.seen.append((kind, statement.to_bytes() + inline))
        if kind == "secagg" and not self.drop(kind, sender, COORDINATOR):
            for _ in range(self.repeat):
                data = statement.to_bytes()
                self.sums.observe(CoordinatorMessage("m-1", kind, sender, tuple(receivers), run, data))
        await super().relay(sender, kind, statement, receivers, run, inline)

    def prepare(self, agreement: Any, use: int = 1) -> str:
        run: str = super().prepare(agreement, use)
        steps = tuple(step.id for step in agreement.proposal.steps)
        made = create(
            run, agreement.digest, use, self.leads[run], agreement.parties, steps, {"uses": 1, "rounds": 99}, 600,
            "2029-01-01T00:00:00Z",
        )  # fmt: skip
        self.runs[run] = made
        return run


class SumPayloads:
    """The real spool, without a wire."""

    def __init__(self, board: SumBoard, org: str) -> None:
        self.board, self.org = board, org

    async def put(self, source: Any, ref: Any, receivers: Any) -> None:
        data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        assert len(data) == ref.size
        link = self.board.links[self.org]
        if not link.up:
            raise ComityError(ErrorCode.UNAVAILABLE)
        store = self.board.store
        if store.stat(self.org, ref.digest)[1]:
            return
        upload = store.begin(self.org, ref.digest, ref.size, frozenset(receivers), 0)
        for start in range(0, ref.size, CHUNK_BYTES):
            if upload.complete:
                return
            await upload.add(data[start : start + CHUNK_BYTES])

    async def get(self, ref: Any) -> AsyncIterator[bytes]:
        async for chunk in self.board.store.read(self.org, ref.digest, 0):
            yield chunk


class SumRig(rig_module.Rig):  # type: ignore[misc]
    def __init__(self, folder: Path, workers: BfvWorkers) -> None:
        super().__init__(folder)
        log_keys = self.board.log_keys  # the charter names them
        self.board = SumBoard(self, folder / "spool", workers)
        self.board.log_keys = log_keys
        self.workers = workers

    def payloads(self, org: str) -> SumPayloads:
        return SumPayloads(self.board, org)

    def proved_sums(self, agreement: Any, run: str) -> dict[int, tuple[str, ...]]:
        """Return who is in each sum that the lead proves, by the order's number, once proof and receipts agree."""
        orders: dict[str, dict[str, Receipt]] = {}
        for org in agreement.parties:
            for body in self.receipts(org):
                if body["run"] == run and body["outcome"] == "result":
                    orders.setdefault(body["order"], {})[org] = Receipt.from_json(body)
        found = {}
        for sender, kind, body in self.board.durable:
            for each in body["proofs"] if kind == "sum-proofs" else ():
                statement = Statement.from_json(each)
                verify_statement(statement, self.keys[sender].public.statement, kind=sums.KIND)
                said = SumProof.from_json(statement.body)
                if said.run == run:
                    sums.check(said, sender, agreement, orders[said.order])
                    found[said.seq] = said.contributors
        return found

    def agree(self, app: Path, *, terms: dict[str, Any] | None = None, **wishes: Any) -> Any:
        # The dummy adds one to each parameter and weighs one example.
        clip = f"{1.01 * wishes.get('config', {}).get('params', 10_000) ** 0.5:.3f}"
        wanted = {"aggregation": "lead-key", "clip_norm": clip, "weight_max": 1, **(terms or {})}
        return super().agree(app, terms=wanted, **wishes)


@pytest.fixture
async def workers() -> AsyncIterator[BfvWorkers]:
    async with BfvWorkers(2) as pool:
        await pool.warm(AGG_Q16)
        yield pool


@pytest.fixture
async def rig(tmp_path: Path, workers: BfvWorkers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SumRig]:
    rig = SumRig(tmp_path, workers)
    monkeypatch.setattr(sum_exchange, "RESEND_S", 0.5)
    monkeypatch.setattr("comity_coordinator.training.sums.store.get", lambda conn, run: rig.board.runs.get(run))
    monkeypatch.setattr(rig_module, "RigPayloads", lambda board: None)
    made = rig_module.RigNode.up

    async def up(node: Any) -> None:
        monkeypatch.setattr(rig_module, "RigPayloads", lambda board: SumPayloads(board, node.org))
        monkeypatch.setattr("comity_node.training.profiles.sum_exchange.BfvWorkers", lambda size: _Lent(workers))
        await made(node)

    monkeypatch.setattr(rig_module.RigNode, "up", up)
    await rig.up()
    for node in rig.nodes.values():
        node.add_data()
    try:
        yield rig
    finally:
        await rig.down()
        await rig.board.stop_coordinator()


class _Lent:
    """The shared pool, whose borrowers do not close it."""

    def __init__(self, workers: BfvWorkers) -> None:
        self._workers = workers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def close(self) -> None:
        pass


@pytest.fixture
def dummy() -> Path:
    found: Path = rig_module.DUMMY
    return found
