"""What the bytes of a round cost by themselves: the same mutual-TLS gRPC streams, and nothing else.

A round here is one upload by the lead, two downloads of it by the others, two uploads by them and two downloads by the
lead, in chunks of 512 KiB through one relay process that passes chunks on as they come. No sealing, no disk, no checks.

    raw_stream.py --bytes 40000000 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import comity  # noqa: F401 - first, since it sets the TLS suites before gRPC is loaded

# isort: split
import grpc
import grpc.aio

from comity_crypto import x509

CHUNK_BYTES = 512 * 1024
QUEUE_CHUNKS = 8
PEERS = ("b", "c")
TIMEOUT_S = 300.0
_OPTIONS: list[tuple[str, Any]] = [("grpc.max_receive_message_length", 4 << 20), ("grpc.so_reuseport", 0)]


class Relay(grpc.GenericRpcHandler):
    """`Put` takes chunks for the receivers named in the metadata, `Get` passes them on."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[bytes]] = defaultdict(lambda: asyncio.Queue(QUEUE_CHUNKS))

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == "/raw/Put":
            return grpc.stream_unary_rpc_method_handler(self._put)
        return grpc.unary_stream_rpc_method_handler(self._get)

    async def _put(self, chunks: AsyncIterator[bytes], context: Any) -> bytes:
        queues = [self._queues[str(value)] for key, value in context.invocation_metadata() if key == "to"]
        async for chunk in chunks:
            for queue in queues:
                await queue.put(chunk)
        for queue in queues:
            await queue.put(b"")
        return b""

    async def _get(self, name: bytes, _: Any) -> AsyncIterator[bytes]:
        queue = self._queues[name.decode()]
        while chunk := await queue.get():
            yield chunk
        self._queues.pop(name.decode(), None)


async def relay(folder: Path) -> None:
    """Serve until the parent closes our standard input."""
    pem = {name: (folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")}
    credentials = grpc.ssl_server_credentials([(pem["server.key"], pem["server.pem"])], pem["ca.pem"], True)
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((Relay(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop(1.0)


class Peer:
    """One end of the streams, with a connection of its own for each direction, as a node has."""

    def __init__(self, folder: Path, port: int) -> None:
        pem = {name: (folder / name).read_bytes() for name in ("node.key", "node.pem", "ca.pem")}
        credentials = grpc.ssl_channel_credentials(pem["ca.pem"], pem["node.key"], pem["node.pem"])
        options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) for _ in range(2)]

    async def put(self, data: memoryview, *names: str) -> None:
        """Upload `data` for the queues `names`."""

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), CHUNK_BYTES):
                yield bytes(data[start : start + CHUNK_BYTES])

        call = self._channels[0].stream_unary("/raw/Put")
        await call(chunks(), metadata=[("to", name) for name in names], timeout=TIMEOUT_S)

    async def get(self, name: str) -> int:
        """Download what is in queue `name`; returns its size in bytes."""
        size = 0
        async for chunk in self._channels[1].unary_stream("/raw/Get")(name.encode(), timeout=TIMEOUT_S):
            size += len(chunk)
        return size


async def follower(folder: Path, port: int, name: str, rounds: int) -> None:
    """Download, then upload the same number of bytes, round by round."""
    peer = Peer(folder, port)
    for number in range(rounds):
        size = await peer.get(f"{number}.{name}")
        await peer.put(memoryview(bytes(size)), f"{number}.{name}.reply")


async def lead(folder: Path, port: int, size_bytes: int, rounds: int) -> list[float]:
    """Return the seconds of each round."""
    peer, data, took = Peer(folder, port), memoryview(os.urandom(size_bytes)), []
    for number in range(rounds):
        begun = time.perf_counter()
        await asyncio.gather(
            peer.put(data, *(f"{number}.{name}" for name in PEERS)),
            *(peer.get(f"{number}.{name}.reply") for name in PEERS),
        )
        took.append(time.perf_counter() - begun)
    return took


def measure(size_bytes: int, rounds: int) -> list[float]:
    """Return the seconds of each of `rounds` rounds of payloads of `size_bytes`, after one that connects."""
    with tempfile.TemporaryDirectory(prefix="comity-raw-") as name:
        folder = Path(name)
        _write_keys(folder)
        command = [sys.executable, __file__, "--folder", name]
        server = subprocess.Popen([*command, "--as", "relay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        others: list[subprocess.Popen[Any]] = []
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            shared = [*command, "--port", port, "--rounds", str(rounds + 1)]
            others = [subprocess.Popen([*shared, "--as", each]) for each in PEERS]
            done = subprocess.run(
                [*shared, "--as", "lead", "--bytes", str(size_bytes)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=TIMEOUT_S,
            )
            found: list[float] = json.loads(done.stdout)
            return found[1:]
        finally:
            for process in (*others, server):
                process.kill()
                process.wait()


def _write_keys(folder: Path) -> None:
    ca_key, ca = x509.create_authority("bench")
    server_key, server = x509.issue_server(ca_key, ca, "bench", ["localhost"], ["127.0.0.1"])
    key, request = x509.make_csr("node")
    node = x509.issue_node(ca_key, ca, request, "bench", "hospital-a")
    files = {"ca.pem": ca, "server.key": server_key, "server.pem": server, "node.key": key, "node.pem": node}
    for name, data in files.items():
        (folder / name).write_bytes(data)


def main() -> None:
    """Measure and print one JSON row, or play one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--as", dest="part", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "relay":
        asyncio.run(relay(given.folder))
    elif given.part == "lead":
        print(json.dumps(asyncio.run(lead(given.folder, given.port, given.bytes, given.rounds))))
    elif given.part:
        asyncio.run(follower(given.folder, given.port, given.part, given.rounds))
    else:
        took = measure(given.bytes, given.rounds)
        row = {"bytes": given.bytes, "median_s": statistics.median(took), "min_s": min(took)}
        print(json.dumps({key: round(value, 4) for key, value in row.items()}))


if __name__ == "__main__":
    main()
