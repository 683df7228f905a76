"""A consortium whose coordinator is two processes on one PostgreSQL and one Temporal, for tests.

Rules:
1. The first replica is `coordinator`, the second one `coordinator-b`; each node knows both addresses, and
   every other one begins with the second.
2. The database's password travels in the environment.
3. What may be partitioned goes through a gate: replica to replica, one node to its replica, a replica to the database.
   The node's own second address stays in reach, as another way through a network does.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psycopg
from harness.consortium import CONSORTIUM, LEAD, ORGS, Consortium
from harness.gates import Gate
from harness.postgres import PostgresServer
from harness.temporal import SharedTemporal

from comity_client.demo.cast import free_port

FIRST, SECOND = "coordinator", "coordinator-b"
REPLICAS = (FIRST, SECOND)
PARTITION_S = 8.0


class ReplicatedConsortium(Consortium):
    """As `Consortium`; `database` and `temporal` may be killed and started again."""

    parts = (*Consortium.parts, "database", "partition")
    coordinators = REPLICAS

    def __init__(self, folder: Path, aggregation: str = "plain") -> None:
        super().__init__(folder, aggregation)
        self._gates: dict[str, Gate] = {}
        self.database = PostgresServer(durable=True, tcp=True)
        self.temporal = SharedTemporal()
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in REPLICAS}
        self._url = self._url_of_second = ""

    def environment(self, name: str) -> dict[str, str]:
        """Let coordinators and commands find the database, coordinators Temporal besides."""
        found = super().environment(name)
        if name.startswith("coordinator") or not name:
            found["COMITY_COORDINATOR_DATABASE_URL"] = self._url if name != SECOND else self._url_of_second
            found["TEMPORAL_ADDRESS"] = self.temporal.address
        return found

    def found_coordinator(self) -> str:
        """Start database and engine, make and start both replicas; returns the first member's token."""
        self.database.start()
        self.database.create_database("comity")
        self._url = self.database.url("comity")
        at = f"127.0.0.1:{self.database.port}"
        self._gates = {"database": Gate(at), "node": Gate(self.addresses[SECOND])}
        self._gates |= {f"replicas {name}": Gate(address) for name, address in self.addresses.items()}
        self._url_of_second = self._url.replace(at, self._gates["database"].address)
        self.temporal.start()
        made = self.ok(
            *("coordinator", "init", str(self.home(FIRST)), "--consortium", CONSORTIUM, "--first-member", LEAD),
            *("--address", self.addresses[FIRST], "--replica", "a"),
            *("--replica-address", self._gates[f"replicas {FIRST}"].address),
        )
        self.ok(
            *("coordinator", "replica", str(self.home(SECOND)), "--of", str(self.home(FIRST))),
            *("--replica", "b", "--address", self.addresses[SECOND]),
            *("--replica-address", self._gates[f"replicas {SECOND}"].address),
        )
        self.up(*REPLICAS)
        return str(made["token"])

    def joined(self, org: str) -> None:
        """Name both addresses; every other organisation begins with the second."""
        path = self.home(org) / "node.json"
        settings = json.loads(path.read_text())
        order = list(self.addresses.values())
        if ORGS.index(org) % 2:
            order = [self._gates["node"].address, order[0]]
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

    def strike(self, part: str, name: str) -> bool:
        """Also: the database or Temporal, killed and started again; a partition, healed after a while."""
        if part == "database":
            self.database.kill()
            self.database.start()
        elif part == "temporal":
            self.temporal.kill()
            self.temporal.start()
        elif part == "partition":
            cut = [gate for where, gate in self._gates.items() if where.startswith(name)]
            for gate in cut:
                gate.shut()
            timer = threading.Timer(PARTITION_S, lambda: [gate.open() for gate in cut])
            timer.daemon = True
            timer.start()
        else:
            return super().strike(part, name)
        return True

    def unordered(self) -> int:
        """Return how many statements of the ledger have no index yet."""
        with psycopg.connect(self.database.dsn("comity")) as conn:
            row = conn.execute("select count(*) from ledger_pending").fetchone()
            return int(row[0]) if row else 0

    def stop(self) -> list[int]:
        """End everything, the database and the engine last."""
        left = super().stop()
        for gate in self._gates.values():
            gate.close()
        self.temporal.stop()
        self.database.stop()
        return left
