"""How a replica is put together; `app.py` asks for it where the settings name one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import grpc.aio
import structlog
from sqlalchemy.exc import SQLAlchemyError

from comity.v1 import replica_pb2_grpc
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import spiffe_replica
from comity_coordinator.db import Database
from comity_coordinator.feed import Feed
from comity_coordinator.ledger.sequencer import Sequencer
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.membership.service import Authority
from comity_coordinator.negotiation.news import Teller
from comity_coordinator.negotiation.service import NegotiationService
from comity_coordinator.replicas.link import Identity
from comity_coordinator.replicas.service import EVENT, EVENT_BYTES_MAX, LEDGER, Replicas, new_boot
from comity_coordinator.replicas.servicer import ReplicaServicer
from comity_coordinator.replicas.spool import SharedSpool
from comity_coordinator.settings import CoordinatorSettings, split_address
from comity_coordinator.transport.hub import Admit, Hub
from comity_coordinator.transport.identity import Peer
from comity_coordinator.transport.payloads import Spool, SpoolLimits
from comity_coordinator.transport.server import Edge
from comity_coordinator.workflows.engine import RunningEngine
from comity_crypto import x509
from comity_crypto.keys import OrgKeys

CERTIFICATE_VALID_S = 7 * 86_400
NEWS_LOOK_EVERY_S = 5.0

Work = Callable[[], Awaitable[None]]
log = structlog.get_logger("comity.replicas")


class Parts(Protocol):
    """What replicas have to do with, of a coordinator."""

    database: Database
    ledger: Ledger
    negotiation: NegotiationService
    engine: RunningEngine
    feed: Feed


def replicas(
    settings: CoordinatorSettings, authority: Authority, keys: OrgKeys, database: Database, hub: Hub
) -> Replicas | None:
    """Return this replica, if the settings name one.

    Raises:
        ComityError: `UNSUPPORTED` where replicas could not work together: on SQLite, or each with an engine of its own.
    """
    if not settings.replica:
        return None
    if database.engine.dialect.name == "sqlite":
        raise ComityError(ErrorCode.UNSUPPORTED, "replicas need one PostgreSQL or CockroachDB: set the database's URL")
    if settings.workflows == "temporal" and not os.environ.get("TEMPORAL_ADDRESS"):
        raise ComityError(ErrorCode.UNSUPPORTED, "replicas need one Temporal: set TEMPORAL_ADDRESS")
    consortium, name = settings.consortium, settings.replica
    key_pem, certificate_pem = authority.key_pem, authority.certificate_pem
    me = Identity(
        name=name,
        boot=new_boot(),
        spiffe=spiffe_replica(consortium, name),
        authority_pem=certificate_pem,
        log_key=keys.public.statement,
        issue=partial(x509.issue_replica, key_pem, certificate_pem, consortium, name, CERTIFICATE_VALID_S),
    )
    return Replicas(database, hub, me)


def spool(settings: CoordinatorSettings, found: Replicas | None) -> Spool:
    """Return the spool of this process, with the way to those of other replicas if there are any."""
    limits = SpoolLimits(
        payload_bytes=settings.spool_payload_bytes,
        owner_bytes=settings.spool_owner_bytes,
        total_bytes=settings.spool_total_bytes,
    )
    folder = settings.home / "spool"
    return Spool(folder, limits) if found is None else SharedSpool(folder, limits, found.channels)


def edge(consortium: str, admit: Admit, found: Replicas | None) -> Edge:
    """Return the edge of this process; that of a replica takes nodes only while it is a place for them."""
    if found is None:
        return Edge(consortium, admit)

    async def ask(peer: Peer) -> None:
        found.check()
        await admit(peer)

    made = Edge(consortium, ask)
    found.on_away(made.end_calls)
    return made


def serve(
    server: grpc.aio.Server,
    hub: Hub,
    found: Replicas,
    payloads: Spool,
    certificate_digest: bytes,
    sign: Callable[[bytes], bytes],
) -> None:
    """Let `server` answer other replicas too."""
    assert isinstance(payloads, SharedSpool), "made by `spool`"
    servicer = ReplicaServicer(hub, found, payloads, certificate_digest, sign)
    replica_pb2_grpc.add_ReplicaServiceServicer_to_server(servicer, server)


async def together(settings: CoordinatorSettings, port: int, found: Replicas, parts: Parts) -> list[Work]:
    """Join the others; return the work that is done differently among replicas.

    Raises:
        ComityError: `MALFORMED` if the others could not know where to reach this one.
    """
    host = split_address(settings.listen)[0]
    if not settings.replica_address and host in ("0.0.0.0", "::"):  # noqa: S104 - compared only
        raise ComityError(ErrorCode.MALFORMED, "set `replica_address`: where other replicas reach this one")
    sequencer = Sequencer(parts.database, parts.ledger, partial(found.soon, LEDGER))
    found.on_hint(LEDGER, lambda _, __: sequencer.wake())
    found.on_hint(EVENT, lambda _, body: _show(parts.feed, body))
    found.on_lost(partial(_look_again, parts.engine, set()))
    parts.feed.also(found.publish)
    await found.start(settings.replica_address or f"{host}:{port}")
    teller = Teller(parts.database, parts.negotiation, NEWS_LOOK_EVERY_S)
    return [sequencer.run, teller.run, found.run]


def _show(feed: Feed, body: bytes) -> None:
    event: Any = canonical.parse(body, max_bytes=EVENT_BYTES_MAX)
    if isinstance(event, dict):
        feed.show(event)


def _look_again(engine: RunningEngine, tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.get_running_loop().create_task(_scan(engine))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _scan(engine: RunningEngine) -> None:
    try:
        await engine.look_again()
    except (ComityError, SQLAlchemyError) as error:
        log.error("replica.not_scanned", error=type(error).__name__)
