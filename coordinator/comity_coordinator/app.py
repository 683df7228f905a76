"""The composition root: the only place where the coordinator's parts meet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.observability import starting
from comity.v1 import (
    enrolment_pb2_grpc,
    exchange_pb2_grpc,
    ledger_pb2_grpc,
    membership_pb2_grpc,
    payload_pb2_grpc,
)
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_coordinator import setup
from comity_coordinator.attestation.service import EvidenceDesk
from comity_coordinator.db import Database, open_database
from comity_coordinator.feed import Feed
from comity_coordinator.governance.policy import ConsortiumGate
from comity_coordinator.governance.service import Governance, ProofsOnceNamed, genesis_in_force
from comity_coordinator.ledger.incidents import Incidents
from comity_coordinator.ledger.sequencer import Sequencer
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.ledger.servicer import LedgerReadServicer, LedgerWitnessServicer
from comity_coordinator.ledger.witnessing import Rounds, Witnessing
from comity_coordinator.membership.registry import Registry
from comity_coordinator.membership.service import Membership
from comity_coordinator.membership.servicer import EnrolmentServicer, MembershipServicer
from comity_coordinator.migrations import schema
from comity_coordinator.negotiation.news import Teller
from comity_coordinator.negotiation.service import NegotiationService
from comity_coordinator.observability import metrics
from comity_coordinator.observability.gauges import Gauges
from comity_coordinator.operator_api import operator_server
from comity_coordinator.replicas import wiring
from comity_coordinator.settings import CoordinatorSettings, split_address
from comity_coordinator.standing import Memory
from comity_coordinator.training.deletions import Deletions
from comity_coordinator.training.service import TrainingService
from comity_coordinator.training.sums import KIND, Sums
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.payload_servicer import PayloadServicer
from comity_coordinator.transport.server import build_server, refuse_old_tls
from comity_coordinator.transport.servicer import ExchangeServicer
from comity_coordinator.workflows.engine import RunningEngine
from comity_coordinator.workflows.timers import TimerEngine
from comity_crypto import x509
from comity_crypto.notes import sign_note
from comity_crypto.statements import Statement, sign_statement

SWEEP_EVERY_S = 10.0
BALLOTS_EVERY_S = 2.0
# Appears when everything answers and goes when it ends: the ports, for whoever started us.
READY_FILE = "ready.json"

log = structlog.get_logger()


class Coordinator:
    """One coordinator in this process: built from its folder, run until stopped."""

    metrics_port = 0  # none

    def __init__(self, settings: CoordinatorSettings) -> None:
        """Read keys and open the database. Raises `KEY_UNREADABLE`, `MALFORMED`."""
        self.settings = settings
        self.keys = setup.log_keys(settings)
        self.authority = setup.authority(settings)
        self.tls = setup.server_tls(settings)
        self.database: Database = open_database(settings.database)
        self.feed = Feed()
        self.registry = Registry(self.database)
        self.hub = Hub(self.database, self.registry.admit)
        self.engine = _engine(settings, self.database)
        self.membership = Membership(self.authority, self.keys, genesis_in_force)
        log_name = settings.log_name
        proofs = ProofsOnceNamed(self.hub, self.keys.public.statement)
        self.ledger = Ledger(settings.consortium, log_name, lambda text: sign_note(text, log_name, self.keys), proofs)
        self.governance = Governance(
            settings.consortium,
            log_name,
            self.keys.public.statement,
            self.sign,
            self.ledger.append,
            self.hub.enqueue,
        )
        self.replicas = wiring.replicas(settings, self.authority, self.keys, self.database, self.hub)
        self.spool = wiring.spool(settings, self.replicas)
        self.sums = Sums(self.database, self.governance.in_charge, self.spool, self.hub.tell)
        self.training = TrainingService(
            charter_of=self.governance.in_charge,
            ledger=self.ledger,
            outbox=self.hub,
            sign=self.sign,
            engine=self.engine,
            feed=self.feed,
            expect_sums=self.sums.expect,
        )
        self.attestation = EvidenceDesk(
            charter_of=self.governance.in_charge, ledger=self.ledger, outbox=self.hub, agreements=self.training
        )
        self.gate = ConsortiumGate(settings.home, settings.opa_url)
        self.negotiation = NegotiationService(
            consortium=settings.consortium,
            charter_of=self.governance.in_charge,
            ledger=self.ledger,
            outbox=self.hub,
            sign=self.sign,
            engine=self.engine,
            agreements=self.attestation,
            feed=self.feed,
            gate=self.gate,
        )
        self.port = 0
        self.rest_port = 0
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()

    def sign(self, kind: str, body: dict[str, Any]) -> Statement:
        """Return a statement of the coordinator, signed by the log's key."""
        return sign_statement(self.keys, kind=kind, consortium=self.settings.consortium, issuer=COORDINATOR, body=body)

    def revoke(self, conn: Connection, org: str) -> None:
        """Refuse the transport to `org` from now on and end its stream. Raises `NOT_A_MEMBER`."""
        self.membership.revoke(conn, org)
        self.hub.drop_after_commit(conn, org, ComityError(ErrorCode.REVOKED))

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            ComityError: `CONFLICT` if another process serves this folder, `UNAVAILABLE` if the port is taken.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(setup.sole_process(self.settings.home))
            ready_file = self.settings.home / READY_FILE
            ready_file.unlink(missing_ok=True)
            stack.callback(ready_file.unlink, missing_ok=True)
            stack.callback(self.database.close)
            stack.callback(self.spool.close)
            stack.callback(self.gate.close)
            change = self.settings.migrate == "auto"
            await asyncio.to_thread(schema.prepare, self.database, change=change)
            await self._tell(stack)
            self.governance.ballots.register(self.hub)
            self.membership.on_enrolled(self.governance.ballots.candidate)
            self.negotiation.register()
            self.attestation.register(self.negotiation)
            Incidents(self.governance.in_charge, self.ledger).register(self.hub)
            Deletions(self.governance.in_charge, self.ledger).register(self.hub)
            self.governance.on_charter(self.negotiation.charter_changed)
            self.training.register()
            self.hub.authorise_runs(self.training.parties_of)
            self.hub.observe(KIND, self.sums.observe)
            stack.push_async_callback(self.sums.close)
            witnessing = Witnessing(self.governance.in_charge)
            rounds = Rounds(self.database, witnessing, self.hub.tell, self.hub.here)
            self.ledger.on_checkpoint(rounds.wake)
            if self.replicas is not None:
                self.hub.join(self.replicas)
            await self._serve_nodes(stack, rounds)
            await self.engine.start(self.negotiation, self.training)
            stack.push_async_callback(self.engine.close)
            await self._serve_operator(stack)
            work: list[wiring.Work] = [rounds.run, self._sweep, self._end_ballots, self.sums.run]
            if self.replicas is None:
                work += [Sequencer(self.database, self.ledger).run, Teller(self.database, self.negotiation).run]
            else:
                work += await wiring.together(self.settings, self.port, self.replicas, self)
            tasks = [_keep(stack, each) for each in work]
            self._announce()
            stopped = asyncio.create_task(self._stop.wait())
            waiting: list[asyncio.Future[Any]] = [*tasks, stopped]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            for ended in done:
                ended.result()

    async def _tell(self, stack: AsyncExitStack) -> None:
        gauges = Gauges(self.database, self.hub, self.spool, self.engine)
        telling = starting.Telling("comity-coordinator", metrics.BOOK, gauges.read, metrics.READ_ERRORS)
        self.metrics_port = await starting.begin(stack, telling, self.settings.metrics, self.settings.traces)

    async def _serve_nodes(self, stack: AsyncExitStack, rounds: Rounds) -> None:
        edge = wiring.edge(self.settings.consortium, self.registry.admit, self.replicas)
        server, self.port = build_server(edge, self.tls, self.settings.listen)
        digest = bytes.fromhex(x509.fingerprint(self.tls.certificate_pem))
        log_key = self.keys.public.statement
        exchange_pb2_grpc.add_ExchangeServiceServicer_to_server(
            ExchangeServicer(self.hub, digest, self.keys.sign), server
        )
        payload_pb2_grpc.add_PayloadServiceServicer_to_server(PayloadServicer(self.spool), server)
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(
            EnrolmentServicer(self.database, self.membership, self.authority, log_key), server
        )
        membership_pb2_grpc.add_MembershipServiceServicer_to_server(
            MembershipServicer(self.database, self.membership, self.governance, self.authority), server
        )
        ledger_pb2_grpc.add_LedgerReadServiceServicer_to_server(
            LedgerReadServicer(self.database, self.ledger, Memory(self.ledger), rounds.witnessing), server
        )
        ledger_pb2_grpc.add_LedgerWitnessServiceServicer_to_server(LedgerWitnessServicer(self.database, rounds), server)
        if self.replicas is not None:
            wiring.serve(server, self.hub, self.replicas, self.spool, digest, self.keys.sign)
        await server.start()
        stack.push_async_callback(server.stop, self.settings.stop_grace_s)
        stack.callback(self.hub.drop_all, ComityError(ErrorCode.UNAVAILABLE, "the coordinator stops"))
        host = split_address(self.settings.listen)[0]
        await refuse_old_tls("127.0.0.1" if host == "0.0.0.0" else host, self.port)  # noqa: S104 - compared only

    async def _serve_operator(self, stack: AsyncExitStack) -> None:
        operator = operator_server(
            listen=self.settings.rest_listen,
            token=(self.settings.home / "api.token").read_text().strip(),
            db=self.database,
            ledger=self.ledger,
            feed=self.feed,
            members=self.membership.members,
            revoke=self.revoke,
            connected=self.hub.connected,
            replica=lambda: None if self.replicas is None else self.replicas.standing(),
        )
        await operator.start()
        stack.push_async_callback(operator.stop)
        self.rest_port = operator.port

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.spool.sweep()

    async def _end_ballots(self) -> None:
        """Every charter proposal ends at its deadline; whoever is late is named then."""
        while True:
            await asyncio.sleep(BALLOTS_EVERY_S)
            try:
                await self.database.run(self.governance.ballots.expire)
            except (ComityError, SQLAlchemyError) as error:
                log.error("ballots.not_ended", error=type(error).__name__, code=str(getattr(error, "code", "")))

    def _announce(self) -> None:
        where = {"port": self.port, "rest_port": self.rest_port}
        if self.metrics_port:
            where["metrics_port"] = self.metrics_port
        path = self.settings.home / READY_FILE
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps({"pid": os.getpid(), **where}))
        beside.replace(path)
        self.ready.set()
        log.info("coordinator.ready", consortium=self.settings.consortium, **where)


def _engine(settings: CoordinatorSettings, database: Database) -> RunningEngine:
    if settings.workflows == "timers":
        return TimerEngine(database)
    # Imported here: its SDK is paid for only by a coordinator that uses it.
    from comity_coordinator.workflows.temporal import TemporalEngine

    return TemporalEngine(database, settings.home)


def _keep(stack: AsyncExitStack, work: Callable[[], Awaitable[None]]) -> asyncio.Future[None]:
    task = asyncio.ensure_future(work())

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
    return task
