"""The operator's API over a real socket: guarded, read-only but for revoke, and an export that an auditor accepts."""

import asyncio
import contextlib
import json

import httpx
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import after_commit
from comity_coordinator.ledger import witness_store
from comity_coordinator.observability import store as observed
from comity_coordinator.operator_api import operator_server
from comity_policies.history import verify_export

TOKEN = "a-token-for-tests"


@contextlib.asynccontextmanager
async def served(world, revoked):
    server = operator_server(
        listen="127.0.0.1:0",
        token=TOKEN,
        db=world.db,
        ledger=world.ledger,
        feed=world.feed,
        members=lambda conn: (),
        revoke=lambda conn, org: after_commit(conn, lambda: revoked.append(org)),
        connected=lambda: frozenset({"beta"}),
    )
    await server.start()
    headers = {"authorization": f"Bearer {TOKEN}"}
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=10, trust_env=False) as client:
        yield client
    await server.stop()


def test_how_long_witnesses_are_awaited(world):
    """A round that was given up goes on counting until a later one is final."""

    def since():
        return world.db.transact(observed.read).unsigned_since

    assert since() == ""
    for size, asked_at in ((1, "2026-11-01T00:00:00Z"), (2, "2026-11-01T00:01:00Z"), (3, "2026-11-01T00:02:00Z")):
        world.db.transact(lambda conn, size=size, at=asked_at: witness_store.open_round(conn, size, at, 8))
    assert since() == "2026-11-01T00:00:00Z"
    world.db.transact(lambda conn: witness_store.set_final(conn, 2, "2026-11-01T00:03:00Z"))
    assert since() == "2026-11-01T00:02:00Z"
    world.db.transact(lambda conn: witness_store.set_final(conn, 3, "2026-11-01T00:03:00Z"))
    assert since() == ""


async def test_states_proofs_and_an_export_that_verifies(world, tmp_path):
    proposal, agreement, run = world.agree()
    other, _, _ = world.propose()
    export = world.export()
    revoked = []
    counts = world.db.transact(observed.read)
    assert counts.negotiations == {"FINALIZED": 1, "ANSWERING": 1}
    assert (counts.runs, counts.runs_open) == ({"PREPARING": 1}, 1)
    assert (counts.ledger_pending, counts.oldest_pending_at) == (0, "")
    assert counts.ledger_entries == json.loads(export.splitlines()[0])["size"]
    async with served(world, revoked) as client:
        status = (await client.get("/v1/status")).json()
        assert status["connected"] == ["beta"]
        assert status["ledger"]["pending"] == 0
        assert (status["open_negotiations"], status["open_runs"]) == (1, 1)
        listed = (await client.get("/v1/negotiations", params={"only_open": True})).json()
        assert [row["proposal_id"] for row in listed["negotiations"]] == [other.proposal_id]
        first = (await client.get("/v1/negotiations", params={"limit": 1})).json()
        assert first["next"] == first["negotiations"][0]["proposal_id"]
        one = (await client.get(f"/v1/negotiations/{proposal.proposal_id}")).json()
        assert (one["state"], one["agreement"], one["agreement_state"]) == ("FINALIZED", agreement, "final")
        found = (await client.get(f"/v1/runs/{run}")).json()
        assert found["awaited"] == ["alpha", "beta", "gamma"]
        assert (await client.get("/v1/runs")).json()["runs"][0]["run"] == run
        assert (await client.get(f"/v1/ledger/proof/{world.genesis.digest}")).json()["index"] == 0
        assert (await client.get("/v1/ledger/consistency?old_size=1&new_size=2")).json()["hashes"]
        assert len((await client.get("/v1/ledger/entries?limit=2")).json()["statements"]) == 2
        assert (await client.get("/v1/ledger/checkpoint")).json()["note"] in json.loads(export.splitlines()[0]).values()
        streamed = (await client.get("/v1/ledger/export")).content
        assert streamed == export
        assert (await client.post("/v1/members/beta/revoke")).json() == {"revoked": "beta"}
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "Comity coordinator"
    assert revoked == ["beta"]
    (tmp_path / "export").write_bytes(streamed)
    verify_export(tmp_path / "export", world.charter.digest)


async def test_refusals_are_problem_documents(world):
    async with served(world, []) as client:
        for path, code, status in (
            ("/v1/runs/none", "NOT_FOUND", 404),
            ("/v1/negotiations/none", "NOT_FOUND", 404),
            ("/v1/ledger/checkpoint", "NOT_FOUND", 404),
            ("/v1/ledger/proof/zz", "MALFORMED", 400),
            ("/v1/ledger/entries?limit=1000", "MALFORMED", 400),
            ("/v1/nothing", "NOT_FOUND", 404),
        ):
            answer = await client.get(path)
            assert (answer.json()["code"], answer.status_code) == (code, status), path
            assert answer.headers["content-type"] == "application/problem+json"
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            client.headers.pop("authorization", None)
            answer = await client.get("/v1/status", headers=header)
            assert answer.status_code == 401
        assert (await client.get("/v1/live")).json() == {"live": True}


async def test_events_tell_ids_and_states(world):
    async with served(world, []) as client, client.stream("GET", "/v1/events") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == ": connected"
        while not world.feed._watchers:
            await asyncio.sleep(0.01)
        proposal, _, _ = await asyncio.to_thread(world.propose)
        found = [await asyncio.wait_for(anext(lines), 5) for _ in range(3)]
    assert "event: negotiation" in found
    data = next(line for line in found if line.startswith("data: "))
    assert json.loads(data[6:]) == {"kind": "negotiation", "id": proposal.proposal_id, "state": "ANSWERING"}


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:0", "example.org:0"])
def test_it_binds_loopback_only(world, listen):
    with pytest.raises(ComityError) as refusal:
        operator_server(
            listen=listen,
            token=TOKEN,
            db=world.db,
            ledger=world.ledger,
            feed=world.feed,
            members=lambda conn: (),
            revoke=lambda conn, org: None,
            connected=frozenset,
        )
    assert refusal.value.code is ErrorCode.FORBIDDEN
