"""Many connected nodes at one coordinator: `make bench-nodes` writes benchmarks/out/nodes.json.

The coordinator is the product's own process on SQLite, started through `comity`. The nodes are streams over real gRPC
and mutual TLS, each with its own connection and certificate, many in one client process; they have no journal, policy
or worker, because a thousand of those would measure this machine's memory. They are entered as members in the
database, not through a thousand enrolments.

Measured: seconds until all are connected the first time; memory (PSS) of the coordinator; its processor time while all
only beat; seconds until an order that one node relays to all others has reached the last; and, after `kill -9` of the
coordinator and a new start, seconds from its being ready until the last node is back, the most that came back in any
one second, and how often each had to dial.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import effort
import memory

from comity.wire import instants
from comity_client.demo.cast import free_port
from comity_coordinator import setup
from comity_coordinator.membership import store as members
from comity_coordinator.membership.model import MemberRow
from comity_coordinator.settings import CoordinatorSettings
from comity_coordinator.training import store as runs
from comity_coordinator.training.model import Run, RunState
from comity_crypto import x509
from comity_crypto.keys import OrgKeys

OUT = Path(__file__).parent / "out" / "nodes.json"
CONSORTIUM, RUN = "many-net", "run-of-all"
WAIT_S = 180.0
LIMITS = {"heartbeat_cores": 1.0, "memory_mb": 1_024, "broadcast_s": 5.0, "reconnect_s": 30.0}


class Bench:
    """One coordinator and its client processes."""

    def __init__(self, folder: Path, nodes: int, processes: int) -> None:
        self.home = folder / "coordinator"
        self.orgs = [f"org-{number:04}" for number in range(nodes)]
        self._certificates = folder / "certificates"
        self._certificates.mkdir()
        self._processes = processes
        self._address = f"127.0.0.1:{free_port()}"
        self.coordinator: subprocess.Popen[bytes] | None = None
        self.clients: list[subprocess.Popen[str]] = []

    def prepare(self) -> None:
        """Make the coordinator, its members, their certificates, and a run of all."""
        settings = setup.new_settings(self.home, CONSORTIUM, self._address, workflows="timers")
        setup.create(settings)
        authority = setup.authority(settings)
        keys, now = OrgKeys.generate().public, instants.now_text()
        rows = []
        for org in self.orgs:
            key_pem, csr_pem = x509.make_csr(org)
            certificate = x509.issue_node(authority.key_pem, authority.certificate_pem, csr_pem, CONSORTIUM, org)
            (self._certificates / f"{org}.key").write_bytes(key_pem)
            (self._certificates / f"{org}.crt").write_bytes(certificate)
            rows.append(MemberRow(org, org, org, keys, x509.certificate_serial(certificate), None, now, None))
        # Closed: nobody supervises it; its parties may talk.
        parties = tuple(self.orgs)
        run = Run(RUN, "0" * 64, 1, parties[0], parties, ("train",), {}, 600, RunState.RUNNING, now, now, closed=True)
        with setup.database(settings) as database:
            for row in rows:
                database.transact(partial(members.add_member, row=row))
            database.transact(lambda conn: runs.create(conn, run, now))

    def start(self) -> float:
        """Start the coordinator; returns when it was ready, Unix seconds."""
        command = [str(Path(sys.executable).with_name("comity")), "coordinator", "up", str(self.home)]
        ready = self.home / "ready.json"
        with (self.home / "log").open("ab") as log:
            self.coordinator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + WAIT_S
        while True:
            try:
                if json.loads(ready.read_text())["pid"] == self.coordinator.pid:
                    return time.time()
            except (OSError, ValueError):
                pass
            if time.monotonic() > end or self.coordinator.poll() is not None:
                raise RuntimeError((self.home / "log").read_text()[-2_000:])
            time.sleep(0.02)

    def connect(self) -> None:
        """Start the client processes."""
        settings = CoordinatorSettings.load(self.home)
        told = {
            "address": self._address,
            "authority": setup.authority(settings).certificate_pem.decode(),
            "log_key": setup.log_keys(settings).public.statement.hex(),
            "consortium": CONSORTIUM,
            "folder": str(self._certificates),
            "lead": self.orgs[0],
        }
        for number in range(self._processes):
            client = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("node_streams.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.clients.append(client)
            self._say(client, {**told, "orgs": self.orgs[number :: self._processes]})

    def ask(self, command: dict[str, Any], *clients: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """Give a command to clients (by default all) and return their answers."""
        asked = clients or tuple(self.clients)
        for client in asked:
            self._say(client, command)
        return [json.loads(client.stdout.readline()) for client in asked if client.stdout]

    def kill(self) -> None:
        """`kill -9` the coordinator."""
        assert self.coordinator is not None
        self.coordinator.send_signal(signal.SIGKILL)
        self.coordinator.wait()

    def stop(self) -> None:
        """End everything."""
        for client in self.clients:
            client.kill()
            client.wait()
        if self.coordinator is not None and self.coordinator.poll() is None:
            self.coordinator.terminate()
            self.coordinator.wait(20)

    @staticmethod
    def _say(client: subprocess.Popen[str], command: dict[str, Any]) -> None:
        assert client.stdin is not None
        client.stdin.write(json.dumps(command) + "\n")
        client.stdin.flush()


def measure(bench: Bench, idle_s: float, order_bytes: int) -> dict[str, Any]:
    """Return the row."""
    bench.prepare()
    bench.start()
    assert bench.coordinator is not None
    begun = time.time()
    bench.connect()
    joined = bench.ask({"connected": WAIT_S})
    assert all(each["done"] for each in joined), "not all nodes could connect"
    first_s = max(max(each["at"]) for each in joined) - begun
    time.sleep(2)
    pid = bench.coordinator.pid
    before = effort.spent(pid)
    time.sleep(idle_s)
    cores = (effort.spent(pid) - before) / idle_s
    before = effort.spent(pid)
    sent_at = bench.ask({"order": [RUN, bench.orgs[1:], order_bytes]}, bench.clients[0])[0]["at"]
    reached = bench.ask({"orders": WAIT_S})
    assert all(each["done"] for each in reached), "the order did not reach all"
    broadcast_s = max(max(each["at"]) for each in reached) - sent_at
    broadcast_cpu_s = effort.spent(pid) - before
    used_mb = memory.pss_bytes(pid) / (1 << 20)
    dialled = sum(each["attempts"] for each in joined)
    bench.kill()
    ready_at = bench.start()
    again = bench.ask({"connected": WAIT_S})
    assert all(each["done"] for each in again), "not all nodes came back"
    back = [at - ready_at for each in again for at in each["at"]]
    in_one_second = max(Counter(int(max(0.0, at)) for at in back).values())
    return {
        "nodes": len(bench.orgs),
        "client_processes": len(bench.clients),
        "first_connect_s": round(first_s, 2),
        "heartbeat_cores": round(cores, 3),
        "memory_mb": round(max(used_mb, memory.pss_bytes(bench.coordinator.pid) / (1 << 20)), 1),
        "order_bytes": order_bytes,
        "broadcast_s": round(broadcast_s, 3),
        "broadcast_cpu_s": round(broadcast_cpu_s, 2),
        "reconnect_s": round(max(back), 2),
        "reconnect_cpu_s": round(effort.spent(bench.coordinator.pid), 2),
        "most_in_one_second": in_one_second,
        "dials_per_node": round((sum(each["attempts"] for each in again) - dialled) / len(bench.orgs), 2),
    }


def main() -> int:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--processes", type=int, default=4, help="client processes")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long heartbeats are measured")
    parser.add_argument("--order-bytes", type=int, default=64 << 10)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="comity-nodes-") as folder:
        bench = Bench(Path(folder), asked.nodes, asked.processes)
        try:
            row = measure(bench, asked.idle_s, asked.order_bytes)
        finally:
            bench.stop()
    row |= {"load": round(load, 2), "limits": LIMITS, "ok": all(row[name] <= most for name, most in LIMITS.items())}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"rows": [row]}, indent=2) + "\n")
    print(json.dumps(row))
    return 0 if row["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
