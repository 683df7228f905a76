"""What `make faults --replicas 2` cuts connections with: every packet between two is gone, and comes after all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import namespaces

SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("up", flush=True)
near, _ = server.accept()
while data := near.recv(1):
    near.sendall(data)
"""
ASK = """
import socket, sys
far = socket.create_connection((sys.argv[1], 7000), timeout=5)
for line in sys.stdin:
    far.settimeout(float(line))
    try:
        far.sendall(b"x")
        print(far.recv(1).decode(), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
"""
PATIENT, SHORT = "5\n", "0.2\n"


@pytest.fixture
def net() -> Iterator[namespaces.Namespaces]:
    if why := namespaces.missing():
        pytest.skip(f"no network namespaces here: {why}")
    made = namespaces.Namespaces(("a", "b", "c"))
    yield made
    made.close()
    assert list(Path("/run/netns").glob(made.space("a").rpartition("/")[2][:-1] + "*")) == []


def test_a_cut_drops_all_between_two_and_nothing_else(net: namespaces.Namespaces) -> None:
    with _run(net, "a", SERVE, net.host("a")) as server:
        assert _said(server) == "up"
        with _run(net, "b", ASK, net.host("a")) as client:
            assert _told(client, PATIENT) == "x"
            net.cut("a", "b")
            assert _told(client, SHORT) == "nothing"
            assert _reaches(net, "c", "a")
            assert _reaches(net, "c", "b")
            assert not _reaches(net, "b", "a")
            assert not _reaches(net, "a", "b")
            net.join()
            # The connection stood, and the kernel sends again what was lost.
            assert _told(client, PATIENT) == "x"
            client.kill()
        server.kill()


def _run(net: namespaces.Namespaces, name: str, program: str, host: str) -> subprocess.Popen[str]:
    command = [*net.prefix(name), sys.executable, "-S", "-c", program, host]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _told(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()
    return _said(process)


def _reaches(net: namespaces.Namespaces, one: str, other: str) -> bool:
    """A port where nobody listens answers with a refusal, unless nothing comes through."""
    program = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], 7001)) != 111)"
    dial = "import socket; socket.setdefaulttimeout(0.2); " + program
    command = [*net.prefix(one), sys.executable, "-S", "-c", dial, net.host(other)]
    return subprocess.run(command, check=False).returncode == 0
