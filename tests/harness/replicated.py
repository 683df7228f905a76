"""A consortium whose coordinator is two processes on one PostgreSQL and one Temporal, for tests.

Rules:
1. The first replica is `coordinator`, the second one `coordinator-b`; each node knows both addresses, and
   every other one begins with the second.
2. The database's password travels in the environment.
3. With `namespaces` every node, replica, the database and Temporal are each in a network namespace of their own, and a
   partition drops all packets between two of them. A node's other address stays in reach, as another way does.
4. Without, what may be partitioned goes through a gate: replica to replica, one node to its replica, a replica to the
   database.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psycopg
from harness.consortium import COMITY, CONSORTIUM, LEAD, ORGS, Consortium
from harness.gates import Gate
from harness.namespaces import Namespaces
from harness.postgres import PostgresServer
from harness.temporal import SharedTemporal

from comity_client.demo.cast import free_port

FIRST, SECOND = "coordinator", "coordinator-b"
REPLICAS = (FIRST, SECOND)
PARTITION_S = (5.0, 20.0)
PARTITION_SHARE = 4  # of the draws, beside one for each part that is killed
CUTS = (
    (FIRST, SECOND),
    *((org, replica) for org in ORGS for replica in REPLICAS),
    *((replica, server) for replica in REPLICAS for server in ("database", "temporal")),
)


class ReplicatedConsortium(Consortium):
    """As `Consortium`; `database` and `temporal` may be killed and started again, `cuts` be partitioned."""

    coordinators = REPLICAS

    def __init__(self, folder: Path, aggregation: str = "plain", *, namespaces: bool = False) -> None:
        super().__init__(folder, aggregation)
        self.parts = (*Consortium.parts, "database", *["partition"] * (PARTITION_SHARE if namespaces else 1))
        self._gates: dict[str, Gate] = {}
        self._healing: threading.Timer | None = None
        self._net = Namespaces((*REPLICAS, *ORGS, "database", "temporal")) if namespaces else None
        if self._net is None:
            self.cuts: tuple[tuple[str, ...], ...] = tuple((each,) for each in ("replicas", "node", "database"))
            self.database, self.temporal = PostgresServer(durable=True, tcp=True), SharedTemporal()
        else:
            self.cuts = CUTS
            self.database = PostgresServer(
                durable=True, tcp=True, host=self._net.host("database"), space=self._net.space("database")
            )
            self.temporal = SharedTemporal(self._net.host("temporal"), self._net.prefix("temporal"))
            for name in (*REPLICAS, *ORGS):
                self.use(name, (*self._net.prefix(name), *COMITY))
            self.use("", (*self._net.prefix(FIRST), *COMITY))
        self.addresses = {
            name: f"{self._net.host(name) if self._net else '127.0.0.1'}:{free_port()}" for name in REPLICAS
        }
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
        self._url = self._url_of_second = self.database.url("comity")
        if self._net is None:
            at = f"{self.database.host}:{self.database.port}"
            self._gates = {"database": Gate(at), "node": Gate(self.addresses[SECOND])}
            self._gates |= {f"replicas {name}": Gate(address) for name, address in self.addresses.items()}
            self._url_of_second = self._url.replace(at, self._gates["database"].address)
        self.temporal.start()
        made = self.ok(
            *("coordinator", "init", str(self.home(FIRST)), "--consortium", CONSORTIUM, "--first-member", LEAD),
            *("--address", self.addresses[FIRST], "--replica", "a"),
            *("--replica-address", self._between(FIRST)),
        )
        self.ok(
            *("coordinator", "replica", str(self.home(SECOND)), "--of", str(self.home(FIRST))),
            *("--replica", "b", "--address", self.addresses[SECOND]),
            *("--replica-address", self._between(SECOND)),
        )
        self.up(*REPLICAS)
        return str(made["token"])

    def _between(self, name: str) -> str:
        """Return where the other replica finds `name`."""
        return self._gates[f"replicas {name}"].address if self._gates else self.addresses[name]

    def joined(self, org: str) -> None:
        """Name both addresses; every other organisation begins with the second."""
        path = self.home(org) / "node.json"
        settings = json.loads(path.read_text())
        order = list(self.addresses.values())
        if ORGS.index(org) % 2:
            order = [self._gates["node"].address if self._gates else order[1], order[0]]
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

    def supervised_by_engine(self, run: str) -> bool:
        """Tell whether Temporal has run the workflow of a run to its end."""
        return self.temporal.workflows().get(f"run/{run}") == "completed"

    def strike(self, part: str, name: str, lasts_s: float = 0.0) -> bool:
        """Also: the database or Temporal, killed and started again; a partition of `lasts_s`, `name` one of `cuts`."""
        if part == "database":
            self.database.kill()
            self.database.start()
        elif part == "temporal":
            self.temporal.kill()
            self.temporal.start()
        elif part == "partition":
            self._partition(tuple(name.split(" and ")))
            self._healing = threading.Timer(lasts_s, self.heal)
            self._healing.daemon = True
            self._healing.start()
        else:
            return super().strike(part, name)
        return True

    def _partition(self, cut: tuple[str, ...]) -> None:
        if self._net is not None:
            self._net.cut(*cut)
        for gate in (gate for where, gate in self._gates.items() if where.startswith(cut[0])):
            gate.shut()

    def heal(self) -> None:
        """End every partition."""
        if self._healing is not None:
            self._healing.cancel()
        if self._net is not None:
            self._net.join()
        for gate in self._gates.values():
            gate.open()

    def unordered(self) -> int:
        """Return how many statements of the ledger have no index yet."""
        with psycopg.connect(self.database.dsn("comity")) as conn:
            row = conn.execute("select count(*) from ledger_pending").fetchone()
            return int(row[0]) if row else 0

    def stop(self) -> list[int]:
        """End everything, the database and the engine last."""
        self.heal()
        left = super().stop()
        for gate in self._gates.values():
            gate.close()
        self.temporal.stop()
        self.database.stop()
        if self._net is not None:
            self._net.close()
        return left
