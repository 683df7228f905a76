"""Many nodes' streams in one process, for `bench_nodes.py`: what a node's link does on the wire, without its journal.

Each opens its own connection with its own certificate (mutual TLS), says Hello, checks the Welcome, reads, beats, and
dials again by the link's own pauses. Commands are lines of JSON on standard input, answered by one line each:
{"connected": SECONDS}  wait until every stream is open; when each one opened last (Unix seconds), attempts in all
{"order": [RUN, ORGS, SIZE_BYTES]}  the first stream relays an order of that size to all; when it was sent
{"orders": SECONDS}     wait until every other stream of this process has an order; when each came
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from comity.v1 import exchange_pb2
from comity.wire.errors import ComityError
from comity_node.transport.dial import dial_with
from comity_node.transport.link import BACKOFF_FIRST_S, BACKOFF_MAX_S
from comity_node.transport.session import Session, open_session

RECEIVERS_AT_ONCE = 64


class Stream:
    """One node's stream."""

    def __init__(self, org: str, told: dict[str, Any]) -> None:
        self.org = org
        self._told = told
        self.session: Session | None = None
        self.opened_at = self.order_at = 0.0
        self.attempts = 0

    async def run(self) -> None:
        """Keep it open."""
        failed = 0
        while True:
            with contextlib.suppress(ComityError):
                self.attempts += 1
                await self._once()
            failed = 1 if self.session is not None else failed + 1
            self.session = None
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failed - 1, 10))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _once(self) -> None:
        told = self._told
        key, certificate = (Path(told["folder"]) / f"{self.org}.{end}" for end in ("key", "crt"))
        channel = dial_with(told["address"], key.read_bytes(), certificate.read_bytes(), told["authority"].encode())
        try:
            self.session = await open_session(
                channel,
                log_key=bytes.fromhex(told["log_key"]),
                spiffe_id=f"spiffe://{told['consortium']}/org/{self.org}",
                received_seq=0,
                isolation="process",
            )
            self.opened_at = time.time()
            warm = asyncio.create_task(self.session.keep_warm())
            try:
                async for frame in self.session.frames():
                    if frame.HasField("envelope") and frame.envelope.kind == "order":
                        self.order_at = time.time()
            finally:
                warm.cancel()
                await asyncio.gather(warm, return_exceptions=True)
        finally:
            await channel.close()

    async def order(self, run: str, orgs: list[str], size_bytes: int) -> None:
        """Relay one order to `orgs`."""
        assert self.session is not None
        body, inline = b'{"kind":"order"}', secrets.token_bytes(size_bytes)
        for start in range(0, len(orgs), RECEIVERS_AT_ONCE):
            envelope = exchange_pb2.Envelope(
                id=f"m-{secrets.token_hex(8)}", kind="order", sender=self.org, run=run, body=body,
                receivers=orgs[start : start + RECEIVERS_AT_ONCE], inline_payload=inline,
            )  # fmt: skip
            await self.session.write(exchange_pb2.ConnectRequest(envelope=envelope))


async def until(streams: list[Stream], done: Any, timeout_s: float) -> bool:
    """Wait until `done(stream)` for all; False if time runs out."""
    end = time.monotonic() + timeout_s
    while not all(done(each) for each in streams):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def main() -> None:
    """Serve commands until standard input ends."""
    told = json.loads(sys.stdin.readline())
    streams = [Stream(org, told) for org in told["orgs"]]
    tasks = [asyncio.create_task(each.run()) for each in streams]
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if "connected" in command:
            done = await until(streams, lambda each: each.session is not None, command["connected"])
            answer = {"done": done, "at": [each.opened_at for each in streams if each.session is not None]}
            answer["attempts"] = sum(each.attempts for each in streams)
        elif "order" in command:
            sent_at = time.time()
            await streams[0].order(*command["order"])
            answer = {"at": sent_at}
        else:
            others = [each for each in streams if each.org != told["lead"]]
            done = await until(others, lambda each: each.order_at > 0, command["orders"])
            answer = {"done": done, "at": [each.order_at for each in others if each.order_at > 0]}
        print(json.dumps(answer), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
