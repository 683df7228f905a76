"""Who is calling: the identity in the certificate that TLS has verified.

Rules
1. TLS checked the chain to the consortium's authority. Here: exactly one URI name, a SPIFFE id of this consortium.
2. A join certificate may enrol, a replica's may call its own service, an organisation's may do everything else; nobody
   may call as the coordinator's server.
3. The certificate's dates are checked at every message, because a stream outlives them.
"""

from __future__ import annotations

from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR, parse_spiffe
from comity_coordinator.authorisation import REPLICA
from comity_crypto import x509

_PEERS_KEPT = 1_024


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller. `name` is the organisation, the token or the replica; `serial` and `fingerprint` are hexadecimal."""

    spiffe: str
    role: str
    name: str
    serial: str
    fingerprint: str
    expires_at: datetime

    def check_dates(self) -> None:
        """Raises `CERTIFICATE_INVALID` once the certificate has expired."""
        if instants.now() > self.expires_at:
            raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate has expired")


_current: ContextVar[Peer] = ContextVar("comity_peer")


def current_peer() -> Peer:
    """Return who calls the RPC that is being handled. Raises `UNAUTHENTICATED` outside one."""
    try:
        return _current.get()
    except LookupError as error:
        raise ComityError(ErrorCode.UNAUTHENTICATED, "no caller is known here") from error


def set_current_peer(peer: Peer) -> None:
    """Name the caller for the task that handles one RPC."""
    _current.set(peer)


class PeerReader:
    """Reads identities out of gRPC's authentication context; certificates already parsed are remembered."""

    def __init__(self, consortium: str) -> None:
        self._consortium = consortium
        self._known: OrderedDict[bytes, Peer] = OrderedDict()

    def read(self, context: Any) -> Peer:
        """Return the caller behind a `grpc.aio.ServicerContext`.

        Raises:
            ComityError: `UNAUTHENTICATED` without a certificate, `FORBIDDEN` for an identity of somebody else,
                `CERTIFICATE_INVALID` for an unreadable or expired one.
        """
        pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
        if not pem:
            raise ComityError(ErrorCode.UNAUTHENTICATED, "a client certificate is needed")
        peer = self._known.get(pem)
        if peer is None:
            peer = self._parse(pem)
            self._known[pem] = peer
            if len(self._known) > _PEERS_KEPT:
                self._known.popitem(last=False)
        peer.check_dates()
        return peer

    def _parse(self, pem: bytes) -> Peer:
        spiffe = x509.spiffe_of(pem)
        consortium, role, name = parse_spiffe(spiffe)
        if consortium != self._consortium or (role == COORDINATOR and not name):
            raise ComityError(ErrorCode.FORBIDDEN, "the certificate carries no caller's identity of this consortium")
        return Peer(
            spiffe=spiffe,
            role=REPLICA if role == COORDINATOR else role,
            name=name,
            serial=x509.certificate_serial(pem),
            fingerprint=x509.fingerprint(pem),
            expires_at=x509.expires_at(pem),
        )
