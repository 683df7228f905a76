"""A real Prometheus with the shipped settings beside a real consortium: it reads every process, takes the rules, finds
what the dashboards show, and notices a node that died."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness.consortium import ORGS, Consortium
from harness.tables import table

from comity_agents.flower.bundle import build_app
from comity_client.demo.cast import free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed here"),
]
ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
DUMMY = ROOT / "benchmarks" / "dummy_app"
STOP_S = 20.0
# What has nothing to show as long as nothing goes wrong, and without a bundle of the consortium.
QUIET = ("errors", "failures", "refused", "failed", "retries", "== 0", "gate_seconds")


class Watched(Consortium):
    """As `Consortium`; every process tells its metrics on loopback."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.listens = {name: f"127.0.0.1:{free_port()}" for name in ("coordinator", *ORGS)}

    def environment(self, name: str) -> dict[str, str]:
        """Let the coordinator listen."""
        told = {"COMITY_COORDINATOR_METRICS": json.dumps({"listen": self.listens["coordinator"]})}
        return super().environment(name) | (told if name == "coordinator" else {})

    def joined(self, org: str) -> None:
        """Let a node listen."""
        path = self.home(org) / "node.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"listen": self.listens[org]}}))


class Prometheus:
    """The server, asked over HTTP."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer; None while the server starts."""
        try:
            answer = self._client.get(path, params=parameters)
        except httpx.TransportError:
            return None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        found = answer.json()
        assert found["status"] == "success", (parameters, found)
        return found["data"]

    def health(self) -> list[str]:
        """Return how each target is."""
        return [each["health"] for each in (self.ask("targets") or {"activeTargets": []})["activeTargets"]]

    def value(self, query: str) -> list[Any]:
        """Return the series that a query gives now."""
        return list(self.ask("query", query=query)["result"])


@contextmanager
def prometheus(folder: Path, listens: dict[str, str]) -> Iterator[Prometheus]:
    """Run a Prometheus with the shipped settings, but for the addresses and how often it looks."""
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in settings["rule_files"]]
    of_coordinator, of_nodes = settings["scrape_configs"]
    of_coordinator["static_configs"] = [{"targets": [listens["coordinator"]]}]
    of_nodes["static_configs"] = [{"targets": [listens[org] for org in ORGS]}]
    path, port = folder / "prometheus.yml", free_port()
    path.write_text(yaml.safe_dump(settings))
    with (folder / "logs" / "prometheus.log").open("wb") as log:
        child = subprocess.Popen(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'series'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", trust_env=False, timeout=10) as client:
                yield Prometheus(client)
        finally:
            child.terminate()
            child.wait(STOP_S)


def test_prometheus_reads_the_consortium(tmp_path: Path) -> None:
    consortium = Watched(tmp_path)
    try:
        consortium.found(
            {org: {"patients": table(tmp_path / f"{org}.csv")} for org in ORGS}, (build_app(DUMMY).digest,)
        )
        with prometheus(tmp_path, consortium.listens) as server:
            consortium.until(lambda: server.health() == ["up"] * 4, "Prometheus reads all four")
            ran(consortium)
            ended = (
                'sum(increase(comity_node_rounds_led_total[1h])) > 0 and sum(comity_node_runs{state="COMPLETED"}) > 0'
            )
            consortium.until(lambda: server.value(ended), "the run is seen")
            rules = [each for group in server.ask("rules")["groups"] for each in group["rules"]]
            assert {each["health"] for each in rules} == {"ok"}
            assert server.value('ALERTS{severity="page",alertstate="firing"}') == []
            consortium.until(lambda: not empty(server), "every query of the dashboards shows something")
            consortium.kill(ORGS[2])
            gone = f'ALERTS{{alertname="ComityNodeDown",instance="{consortium.listens[ORGS[2]]}"}}'
            consortium.until(lambda: server.value(gone), "the alert of a dead node is pending")
            away = f'ALERTS{{alertname="ComityNodeGone",org="{ORGS[2]}"}}'
            consortium.until(lambda: server.value(away), "the operator sees whose node is away")
    finally:
        left = consortium.stop()
    assert left == []


def ran(consortium: Consortium) -> None:
    """Train once."""
    wish = {"app": str(DUMMY), "purpose": "research", "dataset": "patients", "title": "watched", "rounds": 3,
            "run_config": {"params": 10}, "deadline_s": 600, "terms": {"min_participants": 3}}  # fmt: skip
    run = consortium.run_of(consortium.agreed(consortium.propose(wish)))
    assert consortium.ended(run).state == "COMPLETED"


def empty(server: Prometheus) -> set[str]:
    """Return the queries of the dashboards that show nothing and should."""
    found = set()
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$instance", ".*")
                if not any(each in query for each in QUIET) and not server.value(query):
                    found.add(query)
    return found
