"""The whole coordinator: commands, start, stop and start again, one process for each folder, the operator's API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import typer
from typer.testing import CliRunner

from comity.v1 import enrolment_pb2, enrolment_pb2_grpc, exchange_pb2, exchange_pb2_grpc
from comity.wire import canonical
from comity.wire.errors import ComityError
from comity_coordinator import setup
from comity_coordinator.app import Coordinator
from comity_coordinator.cli import register
from comity_coordinator.settings import CoordinatorSettings
from comity_crypto import x509
from comity_crypto.keys import OrgKeys
from comity_crypto.tokens import JoinToken, enrolment_message

_app = typer.Typer()
register(_app)


def _command(*arguments: str) -> Any:
    found = CliRunner().invoke(_app, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "coordinator"
    arguments = ("--consortium", "demo", "--address", "127.0.0.1:7443", "--listen", "127.0.0.1:0")
    made = _command("coordinator", "init", str(folder), *arguments, "--first-member", "alpha", "--workflows", "timers")
    assert JoinToken.parse(made["token"]).org == "alpha"
    (folder / "first.token").write_text(made["token"])
    return folder


class Running:
    """A coordinator in this process."""

    def __init__(self, home: Path) -> None:
        self.coordinator = Coordinator(CoordinatorSettings.load(home))
        self._task = asyncio.create_task(self.coordinator.run())

    async def ready(self) -> Running:
        waiting = asyncio.create_task(self.coordinator.ready.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        waiting.cancel()
        if self._task.done():
            self._task.result()
        return self

    async def stop(self) -> None:
        self.coordinator.stop()
        await asyncio.wait_for(self._task, 10)


@pytest.fixture
async def running(home: Path) -> AsyncIterator[Running]:
    found = await Running(home).ready()
    yield found
    await found.stop()


def _channel(port: int, token: JoinToken, key_pem: bytes, certificate_pem: bytes) -> Any:
    credentials = grpc.ssl_channel_credentials(token.authority_pem.encode(), key_pem, certificate_pem)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def _join(port: int, token: JoinToken, keys: OrgKeys) -> tuple[bytes, bytes]:
    key_pem, csr_pem = x509.make_csr(token.org)
    member_keys = canonical.canonical(keys.public.to_json())
    request = enrolment_pb2.EnrolRequest(
        org=token.org,
        invitation=token.invitation.to_bytes(),
        csr_pem=csr_pem,
        member_keys=member_keys,
        binding_signature=keys.sign(enrolment_message(token.token_id, csr_pem, member_keys)),
    )
    channel = _channel(port, token, token.join_key_pem.encode(), token.join_certificate_pem.encode())
    response = await enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(request, timeout=5)
    await channel.close()
    return key_pem, response.certificate_pem


async def _metrics(port: int) -> dict[str, float]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


async def test_stop_and_start_again_loses_nothing(home: Path, error_of: Any) -> None:
    token = JoinToken.parse((home / "first.token").read_text())
    first = await Running(home).ready()
    assert json.loads((home / "ready.json").read_text())["port"] == first.coordinator.port
    assert first.coordinator.metrics_port == 0  # off unless asked for
    key_pem, certificate_pem = await _join(first.coordinator.port, token, OrgKeys.generate())
    channel = _channel(first.coordinator.port, token, key_pem, certificate_pem)
    stream = exchange_pb2_grpc.ExchangeServiceStub(channel).Connect()
    hello = exchange_pb2.ConnectRequest(hello=exchange_pb2.Hello(protocol=1))
    await stream.write(hello)
    assert (await stream.read()).HasField("welcome")
    hub = first.coordinator.hub
    await first.coordinator.database.run(lambda conn: hub.enqueue(conn, "alpha", "offer", {"n": 1}))
    assert (await stream.read()).envelope.seq == 1
    await first.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert error_of(caught.value) == "UNAVAILABLE"
    await channel.close()
    assert not (home / "ready.json").exists()

    settings = json.loads((home / "coordinator.json").read_text())
    (home / "coordinator.json").write_text(json.dumps({**settings, "metrics": {"listen": "127.0.0.1:0"}}))
    second = await Running(home).ready()
    channel = _channel(second.coordinator.port, token, key_pem, certificate_pem)
    stream = exchange_pb2_grpc.ExchangeServiceStub(channel).Connect()
    await stream.write(hello)
    assert (await stream.read()).HasField("welcome")
    assert canonical.parse((await stream.read()).envelope.body) == {"n": 1}
    told = await _metrics(json.loads((home / "ready.json").read_text())["metrics_port"])
    assert told["comity_coordinator_connected_nodes"] == told["comity_coordinator_members"] == 1
    assert told['comity_coordinator_node_connected{org="alpha"}'] == 1
    assert told['comity_coordinator_outbox_messages{org="alpha"}'] == 1
    assert told["comity_coordinator_scrape_errors_total"] == 0
    assert told["comity_coordinator_database_transaction_seconds_count"] > 0
    # The operator revokes from another process: the next message is refused.
    assert await asyncio.to_thread(_command, "revoke", "alpha", "--home", str(home)) == {"revoked": "alpha"}
    await stream.write(exchange_pb2.ConnectRequest(heartbeat=exchange_pb2.Heartbeat(at="now")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert error_of(caught.value) == "REVOKED"
    await channel.close()
    await second.stop()
    members = _command("coordinator", "members", str(home))["members"]
    assert [(each["org"], each["revoked_at"] is not None) for each in members] == [("alpha", True)]


async def test_second_process_on_the_same_folder_is_refused(home: Path, running: Running) -> None:
    other = Coordinator(CoordinatorSettings.load(home))
    with pytest.raises(ComityError, match="CONFLICT"):
        await other.run()
    other.database.close()


async def test_operators_api_revokes_an_open_stream(home: Path, running: Running, error_of: Any) -> None:
    token = JoinToken.parse((home / "first.token").read_text())
    port = running.coordinator.port
    key_pem, certificate_pem = await _join(port, token, OrgKeys.generate())
    channel = _channel(port, token, key_pem, certificate_pem)
    stream = exchange_pb2_grpc.ExchangeServiceStub(channel).Connect()
    await stream.write(exchange_pb2.ConnectRequest(hello=exchange_pb2.Hello(protocol=1)))
    await stream.read()
    bearer = {"authorization": f"Bearer {(home / 'api.token').read_text()}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.coordinator.rest_port}") as client:
        assert (await client.get("/v1/status")).status_code == 401
        status = (await client.get("/v1/status", headers=bearer)).json()
        assert (status["consortium"], status["connected"]) == ("demo", ["alpha"])
        assert (await client.post("/v1/members/nobody/revoke", headers=bearer)).json()["code"] == "NOT_A_MEMBER"
        assert (await client.post("/v1/members/alpha/revoke", headers=bearer)).status_code == 200
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert error_of(caught.value) == "REVOKED"
    await channel.close()


async def test_token_command_and_taken_port(home: Path, running: Running) -> None:
    made = _command("coordinator", "token", str(home), "beta", "--valid-hours", "1")
    assert JoinToken.parse(made["token"]).org == "beta"
    settings = setup.new_settings(
        home.parent / "second", "demo", "127.0.0.1:7443", listen=f"127.0.0.1:{running.coordinator.port}"
    )
    setup.create(settings)
    other = Coordinator(CoordinatorSettings(**{**settings.model_dump(), "workflows": "timers"}))
    with pytest.raises(ComityError, match="UNAVAILABLE"):
        await other.run()


def test_real_process_is_ready_in_time_and_survives_kill_9(home: Path) -> None:
    script = "from comity_client.main import main; main()"
    command = [sys.executable, "-c", script, "coordinator", "up", str(home)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert line["event"] == "coordinator.ready"
        return process

    process = start()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)
    assert process.stderr is not None
    process.stderr.close()
    process = start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
