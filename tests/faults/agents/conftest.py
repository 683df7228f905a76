"""A Flower app that misbehaves on demand, and workers of it at the strongest level of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from comity_agents import memory
from comity_agents.flower.codec import Content, Record, array_entry
from comity_agents.flower.workers import ClientWorker, HostSettings, ServerAppProcess
from comity_agents.sandbox import Limits, best_isolation

PROJECT = """
[project]
name = "bad"
version = "1"
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "server:app"
clientapp = "client:app"
[tool.flwr.app.config]
mode = "fine"
path = ""
"""

CLIENT = """
import array, glob, mmap, os, socket, struct, time
import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def channel():
    for path in glob.glob("/proc/self/fd/*"):
        try:
            found = socket.socket(fileno=int(path.rsplit("/", 1)[1]))
        except OSError:
            continue
        if found.family == socket.AF_UNIX:
            return found
        found.detach()


def frame(text, blob=0):
    return struct.pack("!4sIQ", b"CMF1", len(text), blob) + text


def with_blob(text, writable):
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(fd, b"12345")
    keep = mmap.mmap(fd, 5) if writable else None
    channel().sendmsg([frame(text, 5)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    time.sleep(60)
    return keep


@app.train()
def train(message, context):
    mode, path = context.run_config["mode"], context.run_config["path"]
    # The message's own wish wins, so that one worker can be asked for different misdeeds.
    mode = message.content["config"].get("mode", mode)
    print("SECRET-OF-THE-OWNER mode", mode, flush=True)
    count = context.state.setdefault("seen", MetricRecord({"n": 0}))
    count["n"] += 1
    size = 4
    if mode == "raise":
        raise ValueError("SECRET-OF-THE-OWNER")
    if mode == "exit":
        raise SystemExit(3)
    if mode == "nothing":
        return None
    if mode == "empty":
        return Message(RecordDict(), reply_to=message)
    if mode == "error":
        return Message(Error(7, "SECRET-OF-THE-OWNER"), reply_to=message)
    if mode == "die":
        os.kill(os.getpid(), 9)
    if mode == "late":
        time.sleep(60)
    if mode == "large":
        size = 1_000_000
    if mode == "garbage":
        channel().send(os.urandom(4096))
        time.sleep(60)
    if mode == "other-id":
        channel().send(frame(b'{"op":"reply","id":"another"}'))
        time.sleep(60)
    if mode == "unsealed":
        with_blob(b'{"op":"reply","id":"1"}', True)
    if mode == "huge-header":
        channel().send(struct.pack("!4sIQ", b"CMF1", 1 << 31, 0))
        time.sleep(60)
    if mode == "dtype":
        return Message(RecordDict({"a": ArrayRecord([np.array(["text"])])}), reply_to=message)
    if mode == "memory":
        np.ones(1 << 29, np.uint8).sum()
    facts = {"n": count["n"], "num-examples": 1, "pid": os.getpid()}
    if mode == "look":
        facts["network"] = int(reaches_network())
        facts["reads"] = int(os.path.exists(path))
        facts["writes"] = int(writes("/usr/x") or writes(os.path.dirname(__file__) + "/x") or writes("/x"))
        facts["environment"] = sum("SECRET" in value for value in os.environ.values())
    arrays = ArrayRecord([np.ones(size, np.float32)])
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(facts)}), reply_to=message)


def reaches_network():
    try:
        socket.create_connection(("127.0.0.1", int(os.environ.get("PORT", "1"))), timeout=1)
    except ConnectionRefusedError:
        return len(socket.if_nameindex()) > 1
    except OSError:
        return False
    return True


def writes(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True
"""

SERVER = """
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import numpy as np

app = ServerApp()


def question(grid, nodes=None, **config):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(4, np.float32)]), "config": ConfigRecord(config)})
    return [Message(content, node, "train") for node in nodes or grid.get_node_ids()]


@app.main()
def main(grid, context):
    mode = context.run_config["mode"]
    if mode == "silent":
        return
    if mode == "raise":
        raise RuntimeError("SECRET-OF-THE-OWNER")
    if mode == "swallow":
        try:
            grid.send_and_receive(question(grid))
        except Exception:
            pass
        return
    if mode == "stranger":
        grid.send_and_receive(question(grid, nodes=[12345]))
    if mode == "distinct":
        first, *others = grid.get_node_ids()
        grid.send_and_receive([*question(grid, others, a=1), *question(grid, [first], a=2)])
    if mode == "poll":
        wanted, seen = set(grid.push_messages(question(grid))), []
        while wanted:
            for reply in grid.pull_messages(wanted):
                seen.append(reply.metadata.src_node_id)
                wanted.discard(reply.metadata.reply_to_message_id)
        return
    grid.send_and_receive(question(grid))
"""


@pytest.fixture
def bad_app(tmp_path: Path) -> Path:
    folder = tmp_path / "bad_app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "client.py").write_text(CLIENT)
    (folder / "server.py").write_text(SERVER)
    return folder


@pytest.fixture
def settings_for(tmp_path: Path, bad_app: Path):
    def make(name: str, **changes) -> HostSettings:
        scratch = tmp_path / name
        scratch.mkdir()
        plain = {"run": "run-1", "app_dir": bad_app, "scratch": scratch, "log": tmp_path / f"{name}.log"}
        return HostSettings(**{**plain, "isolation": best_isolation(), "limits": Limits(open_files=256), **changes})

    return make


@pytest.fixture
async def worker(settings_for):
    made = ClientWorker(settings_for("worker"), node_id=5, node_config={})
    yield made
    await made.close()


@pytest.fixture
async def server_for(settings_for):
    made = []

    def make(mode: str, nodes: tuple[int, ...] = (30, 10, 20), **changes) -> ServerAppProcess:
        settings = settings_for(f"server{len(made)}", run_config={"mode": mode})
        made.append(ServerAppProcess(settings, node_ids=nodes, **changes))
        return made[-1]

    yield make
    for process in made:
        await process.close()


@pytest.fixture
def order():
    """Make the blob of an order whose config carries what the app shall do."""
    fds = []

    def make(mode: str) -> tuple[int, int]:
        arrays = Record("arrays", "array", (array_entry("0", np.zeros(4, np.float32)),))
        content = Content((arrays, Record("config", "config", (("mode", mode),))))
        fd, size = memory.write_parts(content.parts())
        fds.append(fd)
        return fd, size

    yield make
    for fd in fds:
        os.close(fd)
