"""What every capability of the node is given when it is built: the frame of the node, and each other's services.

A capability is a package with `service.py: build(node: NodeContext) -> Service` and, if people use it, `api.py:
router(node: NodeContext) -> APIRouter`. `build` registers handlers on `node.link` and puts its service into
`node.services`; nothing may start before `start()`. A capability comes alive by one line in `app.py: CAPABILITIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from comity_crypto.keys import OrgKeys
    from comity_crypto.keystore import KeyStore
    from comity_node.governance.store import CharterStore
    from comity_node.journal import Journal
    from comity_node.ledger.store import LedgerStore
    from comity_node.settings import NodeSettings
    from comity_node.transport.dial import Dialer
    from comity_node.transport.link import Link
    from comity_node.transport.payloads import Payloads
    from comity_policies.engine import PolicyEngine

S = TypeVar("S")


class Service(Protocol):
    """A capability at work."""

    async def start(self) -> None:
        """Resume what the journal says is unfinished; the link dials only after every service has started."""

    async def stop(self) -> None:
        """End tasks and children; what is unfinished stays in the journal."""


class Services:
    """The services of this node, each found by its type."""

    def __init__(self) -> None:
        self._by_type: dict[type[object], object] = {}

    def add(self, service: object) -> None:
        """Offer `service` to the other capabilities; one of a type."""
        assert type(service) not in self._by_type, "a service is added once"
        self._by_type[type(service)] = service

    def get(self, kind: type[S]) -> S:
        """Return the service of type `kind`; asking for one that was not built is a mistake in `app.py`."""
        service = self._by_type[kind]
        assert isinstance(service, kind)
        return service


@dataclass(frozen=True)
class NodeContext:
    """The frame of the node. `clock` returns the present, aware, in UTC; `dialer` is for calls beside the stream."""

    settings: NodeSettings
    keys: OrgKeys = field(repr=False)
    keystore: KeyStore
    journal: Journal
    link: Link
    dialer: Dialer
    payloads: Payloads
    charters: CharterStore
    ledger: LedgerStore
    policy: PolicyEngine
    clock: Callable[[], datetime]
    services: Services = field(default_factory=Services)

    def take_keys(self, keys: OrgKeys) -> None:
        """Use other keys of this organisation from now on; everybody asks for `keys` anew at each use."""
        # The one change that the frame knows: members have put the new keys into force while the node runs.
        object.__setattr__(self, "keys", keys)
