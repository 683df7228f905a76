"""The node's side of the two Flower processes: the warm ClientApp worker and the lead's ServerApp. Imports no flwr.

Rules:
1. A process of an app is hostile: every frame is checked here; a bad one ends the process. What comes back is a checked
   frame with a sealed blob, or a `ComityError`; a blob's *content* is judged by `codec.read_blob`, by the caller.
2. Every wait has a deadline. A process that misses it is killed with its group, and started anew at the next call.
3. What an app prints goes to the owner's log, bounded, and never crosses the channel; neither does an exception's text.

Frames to and from `client_host` (JSON header, `+ blob` = content in the form of `codec.py`):
    node   {"op":"setup","app_dir","node_id","run_id","node_config","run_config","seed"}
    worker {"op":"ready"} | {"op":"failed","code":"APP_INVALID"}
    node   {"op":"message","id","type","group","ttl_s"} + blob                          (one at a time)
    worker {"op":"reply","id","timings":{"decode_s","app_s","encode_s"}} + blob
           | {"op":"reply","id","error":"APP_FAILED"|"APP_SILENT"|"REPLY_SHAPE"}        (the worker lives on)

Frames to and from `server_host`:
    node   {"op":"setup","app_dir","node_ids","run_id","run_config","seed","results_min","sums"}
    app    {"op":"ready"} | {"op":"failed","code":"APP_INVALID"}
    app    {"op":"ask","seq","dst":[node ids, ascending],"type","group","ttl_s","timeout_s"} + blob
           one frame for each *distinct* content of a push; `seq` counts 0, 1, 2 … over the run and is, with type,
           receivers and the blob's digest, what a replay compares
    node   {"op":"reply","seq","src"} + blob | {"op":"reply","seq","src","error":{code, detail, facts}}
           exactly one for each (seq, dst), in any order
    app    {"op":"progress","phase","round","stage":"train"|"evaluate"|"server","metrics":{name: number or list}}
    app    {"op":"finished","source":"strategy"|"outgoing"|"none","questions","timings":{"encode_s",
           "decode_s","wait_s"},"rounds":[{"phase","round","train","evaluate","server"}]} + blob (one array record; no
           blob if source is none)
           | {"op":"failed","code":"APP_FAILED"|"APP_SILENT"|"PARTICIPANTS_TOO_FEW"|"APP_INVALID"}
           | {"op":"failed","code":"STRATEGY_REFUSED","reason": a key of `events.REFUSALS`}
Both hosts end when the node closes the channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import HEADER_BYTES_MAX, AsyncChannel, Frame, pair
from comity_agents.flower.events import Ask, Event, Failed, Finished, Progress, Reply, RoundMetrics, event_of, reported
from comity_agents.flower.log import LogDrain
from comity_agents.sandbox import IsolationLevel, Limits, interpreter_paths, kill, spawn
from comity_agents.threads import carried_out

LOG_BYTES_MAX = 16 << 20

ConfigValue = bool | int | float | str

__all__ = [
    "Ask",
    "ClientWorker",
    "Event",
    "Failed",
    "Finished",
    "HostSettings",
    "Progress",
    "Reply",
    "RoundMetrics",
    "ServerAppProcess",
    "node_number",
    "run_number",
]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What both kinds of process need to start.

    `scratch` must exist (the only writable folder); `app_dir` holds the unpacked app; `readonly` are further paths that
    the app may read (the granted data); `run` is the run's id, from which the Flower run id and all seeds follow.
    """

    run: str
    app_dir: Path
    scratch: Path
    log: Path
    isolation: IsolationLevel
    run_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    readonly: tuple[Path, ...] = ()
    python: Path = Path(sys.executable)
    limits: Limits = field(default_factory=Limits)
    threads: int = 1
    start_timeout_s: float = 60.0


def run_number(run: str) -> int:
    """Return the Flower run id of a run: 63 bits of the SHA-256 of its name, never 0."""
    return int.from_bytes(hashlib.sha256(b"comity/run/v1\x00" + run.encode()).digest()[:8], "big") >> 1 or 1


def node_number(agreement: str, org: str) -> int:
    """Return an organisation's Flower node id in an agreement: 62 bits of a SHA-256, never 0 or 1 (the ServerApp)."""
    text = f"{agreement}\x00{org}".encode()
    return 2 + (int.from_bytes(hashlib.sha256(b"comity/node/v1\x00" + text).digest()[:8], "big") >> 2)


class _Host(ABC):
    """A sandboxed process with a channel; started by `start`, killed with its group by `close`."""

    def __init__(self, module: str, settings: HostSettings) -> None:
        self._module = module
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: AsyncChannel | None = None
        self._log: LogDrain | None = None

    @property
    def pid(self) -> int | None:
        """The process (the sandbox's outermost), or None."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process runs and its channel is open."""
        return self._process is not None and self._channel is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process and wait until it has imported the app.

        Raises:
            ComityError: `APP_INVALID` if the app cannot be imported; `WORKER_TIMEOUT`, `WORKER_DIED`,
                `ISOLATION_TOO_WEAK`; `REPLY_SHAPE` if it answers with something else.
        """
        await self.close()
        ours, theirs = pair()
        self._channel = AsyncChannel(ours)
        try:
            self._log = LogDrain(self._settings.log, LOG_BYTES_MAX)
            with contextlib.closing(theirs):
                await self._begin(theirs, self._log.write_fd)
            self._log.started()
            await self._bounded_send(self._setup())
            frame = await self._receive(self._settings.start_timeout_s, 0)
            self._judge_ready(frame)
        except BaseException:  # also when cancelled: no process stays without an owner
            await self.close()
            raise

    async def close(self) -> None:
        """Kill the process with its group and close the channel; harmless if nothing runs."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        log, self._log = self._log, None
        try:
            if self._process is not None:
                process, self._process = self._process, None
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, kill, process))
        finally:
            if log is not None:
                log.close()

    async def _begin(self, theirs: socket.socket, log_fd: int) -> None:
        """Start the process; one that starts for a cancelled caller has its owner here, too."""
        beginning = asyncio.get_running_loop().run_in_executor(None, self._spawn, theirs, log_fd)
        try:
            await carried_out(beginning)
        finally:
            if beginning.exception() is None:
                self._process = beginning.result()

    @abstractmethod
    def _setup(self) -> dict[str, Any]:
        """The first frame to the process."""

    def _common_setup(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "op": "setup",
            "app_dir": str(settings.app_dir.absolute()),
            "run_id": run_number(settings.run),
            "run_config": dict(settings.run_config),
        }

    def _spawn(self, theirs: socket.socket, log_fd: int) -> subprocess.Popen[bytes]:
        settings = self._settings
        hash_seed = run_number(settings.run) & 0xFFFFFFFF
        return spawn(
            [str(settings.python), "-P", "-s", "-m", self._module, str(theirs.fileno())],
            level=settings.isolation,
            limits=settings.limits,
            readonly=[*interpreter_paths(settings.python), settings.app_dir, *settings.readonly],
            writable=settings.scratch,
            env={
                "PYTHONHASHSEED": str(hash_seed),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_HOME": str(settings.scratch.absolute() / ".flwr"),
                "OMP_NUM_THREADS": str(settings.threads),
                "OPENBLAS_NUM_THREADS": str(settings.threads),
                "MKL_NUM_THREADS": str(settings.threads),
            },
            pass_fds=(theirs.fileno(),),
            log=log_fd,
        )

    async def _bounded_send(self, header: dict[str, Any], fd: int | None = None, size: int = 0) -> None:
        if self._channel is None:
            raise ComityError(ErrorCode.WORKER_DIED, "the process does not run")
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._channel.send(header, fd, size)
        except TimeoutError as error:
            raise ComityError(ErrorCode.WORKER_TIMEOUT, "the process does not read") from error

    async def _receive(self, timeout_s: float | None, blob_bytes_max: int) -> Frame:
        """Receive a frame; the codes are those of a worker, whoever noticed the fault."""
        if self._channel is None:
            raise ComityError(ErrorCode.WORKER_DIED, "the process does not run")
        try:
            return await self._channel.recv(timeout_s, HEADER_BYTES_MAX, blob_bytes_max)
        except ComityError as error:
            raise _as_workers(error) from error

    def _judge_ready(self, frame: Frame) -> None:
        frame.close()
        if frame.header.get("op") == "failed":
            raise reported(frame.header.get("code"))
        if frame.header.get("op") != "ready":
            raise ComityError(ErrorCode.REPLY_SHAPE, "the process started with another frame than `ready`")


class ClientWorker(_Host):
    """The warm ClientApp of one run at one node: imports once, keeps `context.state` between calls.

    A worker that failed its call by dying, lateness or garbage loses `context.state`; the next call starts a new one.
    """

    def __init__(self, settings: HostSettings, *, node_id: int, node_config: Mapping[str, ConfigValue]) -> None:
        super().__init__("comity_agents.flower.client_host", settings)
        self._node_id = node_id
        self._node_config = dict(node_config)
        self._turn = asyncio.Lock()

    async def call(
        self, header: Mapping[str, Any], blob_fd: int, size: int, deadline_s: float, reply_bytes_max: int
    ) -> Reply:
        """Give the app one message and return its reply; starts the process if it does not run.

        Args:
            header: `id` (text, echoed), `type` (train, evaluate, query, or one with `.action`), `group`; `ttl_s`
                optional.
            blob_fd: the message's content; sealed here if it is not yet, and kept by the caller.
            deadline_s: seconds from sending to the reply; the start of the process has its own bound.

        Raises:
            ComityError: `APP_INVALID`, `APP_FAILED`, `APP_SILENT` (the app's fault), `REPLY_SHAPE` (garbage),
                `REPLY_TOO_LARGE`, `WORKER_TIMEOUT`, `WORKER_DIED`.
        """
        message = {"ttl_s": deadline_s, "group": "", **header, "op": "message"}
        with contextlib.suppress(OSError):
            memory.seal(blob_fd)  # the content that is judged and journalled is the content that the app sees
        async with self._turn:
            if not self.alive:
                await self.start()
            try:
                async with asyncio.timeout(deadline_s):
                    await self._bounded_send(message, blob_fd, size)
                    frame = await self._receive(None, reply_bytes_max)
                if frame.header.get("op") != "reply" or frame.header.get("id") != message.get("id"):
                    frame.close()
                    raise ComityError(ErrorCode.REPLY_SHAPE, "the worker answered another message")
            except TimeoutError as error:
                await self.close()
                raise ComityError(ErrorCode.WORKER_TIMEOUT, limit_s=int(deadline_s)) from error
            except BaseException:  # also when cancelled: an answer that comes later must not meet the next call
                await self.close()
                raise
        if "error" in frame.header or frame.fd is None:
            frame.close()
            raise reported(frame.header.get("error", ErrorCode.APP_SILENT))
        return Reply(frame.header, frame.take(), frame.size_bytes)

    def _setup(self) -> dict[str, Any]:
        seed = f"{self._settings.run}\x00{self._node_id}"
        return {
            **self._common_setup(),
            "node_id": self._node_id,
            "node_config": self._node_config,
            "seed": run_number(seed),
        }


class ServerAppProcess(_Host):
    """The lead's ServerApp: asks through `events`, is answered through `send_reply`.

    Args:
        node_ids: the agreement's fixed list of nodes (`node_number`); the app sees it in ascending order.
        results_min: a question answered with fewer results than this fails the run (never 0).
        sums: every reply will be one mean, so a strategy that cannot work on it is refused before it asks.
    """

    def __init__(
        self,
        settings: HostSettings,
        *,
        node_ids: tuple[int, ...],
        results_min: int = 1,
        sums: bool = False,
        blob_bytes_max: int = 4 << 30,
        silence_s_max: float = 24 * 3600.0,
    ) -> None:
        super().__init__("comity_agents.flower.server_host", settings)
        self._node_ids = tuple(sorted(node_ids))
        self._results_min = max(1, results_min)
        self._sums = sums
        self._blob_bytes_max = blob_bytes_max
        self._silence_s_max = silence_s_max
        self._next_seq = 0

    async def start(self) -> None:
        """As `_Host.start`; the questions of a process started anew count from 0 again."""
        self._next_seq = 0
        await super().start()

    async def events(self) -> AsyncIterator[Event]:
        """Yield what the app asks and reports; ends after `Finished` or `Failed`, and then the process is closed.

        Raises:
            ComityError: `WORKER_DIED`, `WORKER_TIMEOUT` (nothing for `silence_s_max`, which includes its waiting for
                replies), `REPLY_SHAPE` or `REPLY_TOO_LARGE` for a frame that breaks the rules; the process is closed.
        """
        try:
            while True:  # bounded: questions by QUESTIONS_MAX, silence by a deadline
                frame = await self._receive(self._silence_s_max, self._blob_bytes_max)
                event = event_of(frame, self._next_seq, self._node_ids)
                self._next_seq += isinstance(event, Ask)
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            await self.close()

    async def send_reply(
        self, seq: int, src: int, fd: int | None = None, size: int = 0, error: ComityError | None = None
    ) -> None:
        """Answer question `seq` for node `src`: a content (the caller keeps `fd`) or an error. Raises `WORKER_DIED`."""
        header: dict[str, Any] = {"op": "reply", "seq": seq, "src": src}
        if error is not None or fd is None:
            header["error"] = (error or ComityError(ErrorCode.APP_SILENT)).to_json()
            fd, size = None, 0
        await self._bounded_send(header, fd, size)

    def _setup(self) -> dict[str, Any]:
        return {
            **self._common_setup(),
            "node_ids": list(self._node_ids),
            "results_min": self._results_min,
            "sums": self._sums,
            "seed": run_number(self._settings.run),
        }


def _as_workers(error: ComityError) -> ComityError:
    codes = {
        ErrorCode.TIMEOUT: ErrorCode.WORKER_TIMEOUT,
        ErrorCode.TOO_LARGE: ErrorCode.REPLY_TOO_LARGE,
        ErrorCode.MALFORMED: ErrorCode.REPLY_SHAPE,
    }
    return ComityError(codes.get(error.code, ErrorCode.WORKER_DIED), error.detail, **error.facts)
