"""Joining, genesis, rotation and revocation with real processes over mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from comity.v1 import membership_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keystore import FileKeyStore
from comity_node.transport.dial import Dialer, ask

pytestmark = pytest.mark.e2e
A, B, C, D = "hospital-a", "hospital-b", "hospital-c", "hospital-d"
NODE_READY_S_MAX = 2.0
IDLE_PSS_MB_MAX = 150.0


def charters_as(home: Path, port: int) -> None:
    """Ask for the charters with the certificate below `home`."""

    async def call() -> None:
        dialer = Dialer(f"127.0.0.1:{port}", FileKeyStore(home))
        try:
            await ask(dialer.membership().ListCharters, membership_pb2.ListChartersRequest(from_version=1))
        finally:
            await dialer.close()

    asyncio.run(call())


@pytest.mark.slow
def test_from_the_first_token_to_revocation(cast) -> None:
    token = cast.init(A)
    middle = len(token) // 2
    altered = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    assert cast.refused("node", "join", "-", "--home", str(cast.home(A)), stdin=altered)["code"] == "TOKEN_INVALID"
    assert cast.refused("node", "join", "-", "--home", str(cast.home(A)), stdin=token)["code"] == "UNAVAILABLE"
    cast.start("coordinator")
    joined = cast.ok("node", "join", "-", "--home", str(cast.home(A)), stdin=token)
    again = cast.refused("node", "join", "-", "--home", str(cast.home("elsewhere")), stdin=token)
    assert again["code"] == "TOKEN_USED"
    cast.start(A)
    cast.connected(A)
    assert cast.status(A)["fingerprint"] == joined["fingerprint"]
    for org in (B, C):
        token = cast.ok("invite", org, "--home", str(cast.home(A)))["token"]
        cast.ok("node", "join", "-", "--home", str(cast.home(org)), stdin=token)
        cast.start(org)
        cast.connected(org)

    shown = cast.ok("genesis", "show", "--home", str(cast.home(B)))
    fingerprints = {member["org"]: member["fingerprint"] for member in shown["draft"]["members"]}
    assert fingerprints == {org: cast.status(org)["fingerprint"] for org in (A, B, C)}
    name = shown["draft"]["name"]
    wrong = name.replace(name[0], "a" if name[0] != "a" else "b", 1)
    assert cast.refused("genesis", "sign", wrong, "--home", str(cast.home(A)))["code"] == "GENESIS_MISMATCH"
    finals = [cast.ok("genesis", "sign", name, "--home", str(cast.home(org)))["final"] for org in (A, B, C)]
    assert finals == [False, False, True]
    for org in (A, B, C):
        wait_genesis(cast, org, name)
        wait_proof(cast, org)

    late(cast, name)
    rotation(cast)
    revocation(cast)
    for org in (A, B):
        ready_s, cpu_s, pss_mb = cast.ready_s[org], cast.ready_cpu_s[org], cast.pss_mb(org)
        print(f"node {org}: ready in {ready_s:.2f} s ({cpu_s:.2f} s of processor), idle {pss_mb:.0f} MB")
        assert pss_mb <= IDLE_PSS_MB_MAX
        assert cast.stop(org) == 0
        assert not (cast.home(org) / "api.sock").exists()
    assert min(cast.ready_cpu_s[org] for org in (A, B, C)) <= NODE_READY_S_MAX


def wait_genesis(cast, org: str, name: str) -> None:
    cast.wait(lambda: cast.status(org)["genesis"] == name, f"{org} has the charter")


def wait_proof(cast, org: str) -> None:
    """The charter's inclusion in the ledger is proved to every founder."""
    cast.wait(lambda: cast.api(org).get("/v1/ledger")["entries"].get("included"), f"{org} has the charter's proof")
    assert cast.api(org).get("/v1/ledger")["alarms"] == []


def late(cast, name: str) -> None:
    """A newcomer needs the genesis digest, and is a member once two thirds have signed."""
    token = cast.ok("invite", D, "--home", str(cast.home(B)))["token"]
    join = ("node", "join", "-", "--home", str(cast.home(D)))
    assert cast.refused(*join, stdin=token)["code"] == "GENESIS_MISMATCH"
    typed = "b" * 26 if not name.startswith("b") else "c" * 26
    assert cast.refused(*join, "--genesis", typed, stdin=token)["code"] == "GENESIS_MISMATCH"
    assert not cast.home(D).exists()
    cast.ok(*join, "--genesis", name, stdin=token)
    cast.start(D)
    wait_genesis(cast, D, name)
    assert D not in cast.status(D)["members"]
    draft = cast.ok("genesis", "show", "--home", str(cast.home(A)))["draft"]
    assert draft["version"] == 2
    assert not cast.ok("genesis", "sign", draft["name"], "--home", str(cast.home(A)))["final"]
    assert cast.ok("genesis", "sign", draft["digest"], "--home", str(cast.home(C)))["final"]
    for org in (A, B, C, D):
        cast.wait(lambda org=org: D in cast.status(org)["members"], f"{org} knows the newcomer")


def rotation(cast) -> None:
    """A new certificate takes over while the node runs; the old one is refused."""
    old = cast.folder / "old-keys"
    shutil.copytree(cast.home(B) / "keys", old)
    charters_as(old, cast.port)
    done = cast.ok("node", "rotate", "--home", str(cast.home(B)))
    assert done["running_node"] is True
    cast.connected(B)
    charters_as(cast.home(B) / "keys", cast.port)
    with pytest.raises(ComityError) as refused:
        charters_as(old, cast.port)
    assert refused.value.code is ErrorCode.CERTIFICATE_INVALID
    assert cast.ok("genesis", "show", "--home", str(cast.home(B)))["draft"] is None  # the charter in force instead


def revocation(cast) -> None:
    """Revoked: the next message is refused, on the open stream too."""
    cast.connected(C)
    cast.ok("revoke", C, "--home", str(cast.home("coordinator")))
    with pytest.raises(ComityError) as refused:
        charters_as(cast.home(C) / "keys", cast.port)
    assert refused.value.code is ErrorCode.REVOKED
    cast.kill(D)
    cast.start(D)  # its presence is a message to everybody
    state = cast.wait(lambda: not (found := cast.status(C)["link"])["connected"] and found, "the stream is refused")
    assert state["error"]["code"] == "REVOKED"
    cast.connected(A)
