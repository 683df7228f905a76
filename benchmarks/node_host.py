"""Several organisations' nodes in one process, told what to do over standard input: for `bench_negotiation.py`.

Each node is the product's own `Node`: journal, policy engine, local API, link over mutual TLS. They share the process
only, because fifty interpreters on one machine would measure its memory.

Commands are lines of JSON; each is answered by one line:
{"sign": NAME}             sign the genesis at every node; {}
{"charter": NAME}          wait until it is in force everywhere; {}
{"propose": [TITLE, ...]}  propose at the first node, all at once; the seconds until each was proved, and agreements
{"witnessed": [DIGEST, ...]}   wait until these agreements are below a final checkpoint at every node; the instant
{"final": [DIGEST, ...]}   wait until these agreements are final and proved at every node; the instant, Unix seconds
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from comity.wire import heap, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.app import Node
from comity_node.context import NodeContext
from comity_node.governance.service import GovernanceService
from comity_node.ledger.store import EntryState
from comity_node.negotiation import store
from comity_node.negotiation.drafting import TrainWish, draft
from comity_node.negotiation.service import NegotiationService
from comity_node.negotiation.tables import agreements
from comity_node.settings import NodeSettings

LOOK_S = 0.004
# Many parties take seconds; to look more often would be part of what is measured.
FEW, LOOK_MANY_S = 10, 0.02
WAIT_S = 240.0
WAIT = timedelta(seconds=WAIT_S)
APP = Path(__file__).parent / "dummy_app"


class Host:
    """The nodes of this process; the first is the proposer's, if it is here."""

    def __init__(self, homes: list[Path]) -> None:
        self.nodes = [Node(NodeSettings.load(home)) for home in homes]
        self._look_s = LOOK_S

    async def run(self) -> None:
        """Start everything, serve commands until standard input ends, and stop."""
        ready = [asyncio.Event() for _ in self.nodes]
        running = [asyncio.create_task(node.run(event.set)) for node, event in zip(self.nodes, ready, strict=True)]
        await asyncio.gather(*(event.wait() for event in ready))
        heap.settle()
        await self._until(lambda: all(node.context.link.connected for node in self.nodes))
        _say({"ready": len(self.nodes)})
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            (what, value), *_ = json.loads(line).items()
            _say(await getattr(self, what)(value))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def sign(self, name: str) -> dict[str, Any]:
        for node in self.nodes:
            await node.context.services.get(GovernanceService).sign(name)
        return {}

    async def charter(self, name: str) -> dict[str, Any]:
        await self._until(lambda: all(node.context.charters.genesis_name() == name for node in self.nodes))
        return {}

    async def propose(self, titles: list[str]) -> dict[str, Any]:
        """Propose as `comity train` does, without the command's own start."""
        members = len(self.nodes[0].context.charters.in_force().organisations)
        look_s = LOOK_S if members <= FEW else LOOK_MANY_S
        self._look_s = look_s * len(titles)  # looking is not what is measured
        done = await asyncio.gather(*(self._propose(title) for title in titles))
        return {"seconds": [each[0] for each in done], "agreements": [each[1] for each in done]}

    async def witnessed(self, digests: list[str]) -> dict[str, Any]:
        await asyncio.gather(*(self._witnessed(node.context, digests) for node in self.nodes))
        return {"at": time.time()}

    async def _witnessed(self, node: NodeContext, digests: list[str]) -> None:
        def check(conn: Connection) -> None:
            stored = [store.find_agreement(conn, digest) for digest in digests]
            said = [each.statement.digest for each in stored if each.statement is not None]
            if len(said) < len(stored):
                raise ComityError(ErrorCode.NOT_FINAL)
            node.ledger.check_final(conn, node.charters.current(), said, node.clock())

        await node.ledger.wait_final(node.journal, check)

    async def final(self, digests: list[str]) -> dict[str, Any]:
        for node in self.nodes:
            for digest in digests:
                await self._proved(node, digest)
        return {"at": time.time()}

    async def _propose(self, title: str) -> tuple[float, str]:
        node = self.nodes[0].context
        begun = time.perf_counter()
        wish = TrainWish(app=APP, purpose="research", dataset="patients", title=title, columns=("x", "y"))
        charter = node.charters.in_force()
        proposal, bundle = await asyncio.to_thread(
            draft, wish, charter=charter, me=node.settings.org, own_columns=("x", "y"), now=instants.now()
        )
        # Nothing runs afterwards: what is measured is the agreement.
        proposal = replace(proposal, start="manual", deadline=instants.to_text(instants.now() + WAIT))
        await node.services.get(NegotiationService).propose(proposal, bundle.data)
        digest = proposal.digest

        found: str = await self._look(node, lambda conn: store.final_of(conn, digest))
        await self._proved(self.nodes[0], found)
        return time.perf_counter() - begun, found

    async def _proved(self, node: Node, agreement: str) -> None:
        """Wait until the agreement's certificate was verified here, and its place in the ledger proved."""
        ledger = node.context.ledger

        def entered(conn: Connection) -> str | None:
            """Return the digest of the agreement's entry, without reading fifty answers for it."""
            query = select(agreements.c.statement).where(agreements.c.digest == agreement)
            data = conn.execute(query.where(agreements.c.state == "final")).scalar_one_or_none()
            return None if data is None else hashlib.sha256(data).hexdigest()

        statement: str = await self._look(node.context, entered)
        await self._look(node.context, lambda conn: ledger.state_of(conn, statement) is EntryState.INCLUDED)

    async def _look(self, node: NodeContext, found: Callable[[Connection], Any]) -> Any:
        """Return the first true answer of `found`, asked of the journal every `LOOK_S` seconds."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            if answer := await node.journal.run(found):
                return answer
            await asyncio.sleep(self._look_s)
        raise TimeoutError("it takes too long; see the logs")

    @staticmethod
    async def _until(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_S
        while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(LOOK_S)


def _say(answer: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(answer) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def main() -> None:
    """Host the nodes whose homes are the arguments."""
    os.umask(0o077)
    from comity.wire.logs import configure

    configure()
    profile = os.environ.get("COMITY_BENCH_PROFILE")
    host = Host([Path(each) for each in sys.argv[1:]])
    if profile is None:
        asyncio.run(host.run())
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    try:
        asyncio.run(host.run())
    finally:
        profiler.disable()
        profiler.dump_stats(f"{profile}.{host.nodes[0].context.settings.org}")


if __name__ == "__main__":
    main()
