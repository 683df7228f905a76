"""A ClientApp that breaks every rule: each time a named error, nothing of the owner's crosses, the next call works."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower import workers
from comity_agents.flower.codec import read_blob
from comity_agents.flower.workers import ClientWorker
from comity_agents.sandbox import IsolationLevel, Limits, best_isolation

HEADER = {"id": "1", "type": "train", "group": "1"}


async def call(worker: ClientWorker, order, mode: str, deadline_s: float = 20, reply_bytes_max: int = 1 << 20):
    reply = await worker.call(HEADER, *order(mode), deadline_s, reply_bytes_max)
    try:
        with reply.mapped() as view:
            content = read_blob(bytes(view))
    finally:
        reply.close()
    return content.metrics["metrics"]


LIVES_ON = {
    "raise": ErrorCode.APP_FAILED,
    "exit": ErrorCode.APP_FAILED,
    "error": ErrorCode.APP_FAILED,
    "nothing": ErrorCode.APP_SILENT,
    "empty": ErrorCode.APP_SILENT,
    "dtype": ErrorCode.REPLY_SHAPE,
}
IS_KILLED = {
    "die": ErrorCode.WORKER_DIED,
    "garbage": ErrorCode.REPLY_SHAPE,
    "other-id": ErrorCode.REPLY_SHAPE,
    "unsealed": ErrorCode.REPLY_SHAPE,
    "huge-header": ErrorCode.REPLY_TOO_LARGE,
    "large": ErrorCode.REPLY_TOO_LARGE,
    "late": ErrorCode.WORKER_TIMEOUT,
}


async def test_failures_of_the_app_are_typed_and_the_warm_worker_lives_on(worker, order, tmp_path):
    assert (await call(worker, order, "fine"))["n"] == 1
    pid = worker.pid
    for mode, code in LIVES_ON.items():
        with pytest.raises(ComityError) as caught:
            await call(worker, order, mode)
        assert caught.value.code is code, mode
        assert "SECRET" not in str(caught.value.to_json())
        assert worker.pid == pid
    assert (await call(worker, order, "fine"))["n"] == len(LIVES_ON) + 2
    await worker.close()
    log = (tmp_path / "worker.log").read_text()
    assert "ValueError: SECRET-OF-THE-OWNER" in log
    assert (tmp_path / "worker.log").stat().st_mode & 0o777 == 0o600


async def test_a_worker_that_breaks_the_channel_is_killed_and_started_anew(worker, order):
    for mode, code in IS_KILLED.items():
        with pytest.raises(ComityError) as caught:
            await call(worker, order, mode, deadline_s=1.0 if mode == "late" else 20)
        assert caught.value.code is code, mode
        assert not worker.alive
    assert (await call(worker, order, "fine"))["n"] == 1


async def test_kill_9_in_mid_call_is_noticed_at_once_and_the_next_call_works(worker, order):
    await worker.start()
    waiting = asyncio.create_task(call(worker, order, "late", deadline_s=30))
    await asyncio.sleep(0.3)
    os.killpg(worker.pid, signal.SIGKILL)
    begin = asyncio.get_running_loop().time()
    with pytest.raises(ComityError) as caught:
        await waiting
    assert caught.value.code is ErrorCode.WORKER_DIED
    assert asyncio.get_running_loop().time() - begin < 5
    assert (await call(worker, order, "fine"))["n"] == 1


async def test_a_cancelled_call_leaves_nothing_for_the_next(worker, order):
    await worker.start()
    waiting = asyncio.create_task(call(worker, order, "late", deadline_s=30))
    await asyncio.sleep(0.2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not worker.alive
    assert (await call(worker, order, "fine"))["n"] == 1


async def test_a_start_that_is_cancelled_while_the_process_begins_leaves_none(worker, order, monkeypatch):
    begun, seen, spawn = asyncio.Event(), [], workers.spawn
    loop = asyncio.get_running_loop()

    def slow(*args, **settings):
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.2)
        seen.append(spawn(*args, **settings))
        return seen[0]

    monkeypatch.setattr(workers, "spawn", slow)
    starting = asyncio.create_task(worker.start())
    await begun.wait()
    starting.cancel()
    await asyncio.sleep(0)
    starting.cancel()  # nor does somebody in a hurry
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert len(seen) == 1
    assert seen[0].returncode == -signal.SIGKILL
    monkeypatch.undo()
    assert (await call(worker, order, "fine"))["n"] == 1


NOT_AN_APP = ["import nothing_of_this_name", "raise SystemExit(0)", "app = 5", "", "import os; os._exit(0)"]


@pytest.mark.parametrize("code", NOT_AN_APP)
async def test_an_app_that_does_not_import_is_named_invalid(settings_for, bad_app, order, code):
    (bad_app / "client.py").write_text(code)
    worker = ClientWorker(settings_for("worker"), node_id=5, node_config={})
    with pytest.raises(ComityError) as caught:
        await call(worker, order, "fine")
    assert caught.value.code is (ErrorCode.WORKER_DIED if "_exit" in code else ErrorCode.APP_INVALID)
    assert not worker.alive


async def test_a_setting_that_the_app_does_not_have_is_named(settings_for, order):
    worker = ClientWorker(settings_for("worker", run_config={"other": 1}), node_id=5, node_config={})
    with pytest.raises(ComityError) as caught:
        await worker.start()
    assert caught.value.code is ErrorCode.APP_INVALID


async def test_memory_is_bounded(settings_for, order):
    settings = settings_for("worker", limits=Limits(memory_bytes=400 << 20))
    worker = ClientWorker(settings, node_id=5, node_config={})
    with pytest.raises(ComityError) as caught:
        await call(worker, order, "memory")
    assert caught.value.code is ErrorCode.APP_FAILED
    assert (await call(worker, order, "fine"))["n"] == 2
    await worker.close()


@pytest.mark.skipif(best_isolation() < IsolationLevel.SANDBOX, reason="no bubblewrap on this machine")
async def test_the_sandbox_hides_disk_network_and_environment(settings_for, order, tmp_path, monkeypatch):
    secret, granted = tmp_path / "key.pem", tmp_path / "data.csv"
    secret.write_text("SECRET")
    granted.write_text("1")
    monkeypatch.setenv("NODE_SECRET", "SECRET")
    for path, seen in ((secret, 0), (granted, 1)):
        settings = replace(settings_for(path.stem), readonly=(granted,), run_config={"path": str(path)})
        worker = ClientWorker(settings, node_id=5, node_config={})
        facts = await call(worker, order, "look")
        await worker.close()
        assert (facts["network"], facts["reads"], facts["writes"], facts["environment"]) == (0, seen, 0, 0)


async def test_a_log_is_bounded(settings_for, bad_app, order, tmp_path, monkeypatch):
    monkeypatch.setattr("comity_agents.flower.workers.LOG_BYTES_MAX", 1000)
    (bad_app / "client.py").write_text("print('x' * 1_000_000)\n" + (bad_app / "client.py").read_text())
    worker = ClientWorker(settings_for("worker"), node_id=5, node_config={})
    assert (await call(worker, order, "fine"))["n"] == 1
    await worker.close()
    assert (tmp_path / "worker.log").stat().st_size == 1000


async def test_no_descriptor_and_no_process_is_left(worker, order):
    await call(worker, order, "fine")
    await worker.close()
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no /proc")
    before = len(list(folder.iterdir()))
    for mode in ("fine", "die", "unsealed"):
        try:
            await call(worker, order, mode)
        except ComityError:
            continue
        finally:
            await worker.close()
    # the orders' own blobs belong to the test
    assert len(list(folder.iterdir())) == before + 3
