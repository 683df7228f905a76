"""A consortium whose coordinator is two processes on one PostgreSQL and one Temporal, for tests.

Rules:
1. The first replica is `coordinator`, the second one `coordinator-b`; each node knows both addresses, and
   every other one begins with the second.
2. The database's password travels in the environment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
from harness.consortium import CONSORTIUM, LEAD, ORGS, Consortium
from harness.postgres import PostgresServer
from harness.temporal import SharedTemporal

from comity_client.demo.cast import free_port

FIRST, SECOND = "coordinator", "coordinator-b"
REPLICAS = (FIRST, SECOND)


class ReplicatedConsortium(Consortium):
    """As `Consortium`; `database` and `temporal` may be killed and started again."""

    def __init__(self, folder: Path, aggregation: str = "plain") -> None:
        super().__init__(folder, aggregation)
        self.database = PostgresServer(durable=True, tcp=True)
        self.temporal = SharedTemporal()
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in REPLICAS}
        self._url = ""

    def environment(self, name: str) -> dict[str, str]:
        """Let coordinators and commands find the database, coordinators Temporal besides."""
        found = super().environment(name)
        if name.startswith("coordinator") or not name:
            found["COMITY_COORDINATOR_DATABASE_URL"] = self._url
            found["TEMPORAL_ADDRESS"] = self.temporal.address
        return found

    def found_coordinator(self) -> str:
        """Start database and engine, make and start both replicas; returns the first member's token."""
        self.database.start()
        self.database.create_database("comity")
        self._url = self.database.url("comity")
        self.temporal.start()
        made = self.ok(
            *("coordinator", "init", str(self.home(FIRST)), "--consortium", CONSORTIUM, "--first-member", LEAD),
            *("--address", self.addresses[FIRST], "--replica", "a"),
        )
        self.ok(
            *("coordinator", "replica", str(self.home(SECOND)), "--of", str(self.home(FIRST))),
            *("--replica", "b", "--address", self.addresses[SECOND]),
        )
        self.up(*REPLICAS)
        return str(made["token"])

    def joined(self, org: str) -> None:
        """Name both addresses; every other organisation begins with the second."""
        path = self.home(org) / "node.json"
        settings = json.loads(path.read_text())
        order = list(self.addresses.values())
        if ORGS.index(org) % 2:
            order.reverse()
        settings |= {"coordinator": order[0], "coordinators": order[1:]}
        path.write_text(json.dumps(settings))

    def replica_status(self, name: str) -> dict[str, Any]:
        """Return what a replica says of itself and the others."""
        import httpx

        ready = json.loads((self.home(name) / "ready.json").read_text())
        token = (self.home(name) / "api.token").read_text().strip()
        answer = httpx.get(
            f"http://127.0.0.1:{ready['rest_port']}/v1/status",
            headers={"authorization": f"Bearer {token}"},
            timeout=10,
            trust_env=False,
        )
        found: dict[str, Any] = answer.raise_for_status().json()["replica"]
        return found

    def unordered(self) -> int:
        """Return how many statements of the ledger have no index yet."""
        with psycopg.connect(self.database.dsn("comity")) as conn:
            row = conn.execute("select count(*) from ledger_pending").fetchone()
            return int(row[0]) if row else 0

    def stop(self) -> list[int]:
        """End everything, the database and the engine last."""
        left = super().stop()
        self.temporal.stop()
        self.database.stop()
        return left
