"""Two organisations open each round's sum, each for itself, over the nodes' real stack; nobody else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from comity.wire.errors import ErrorCode
from comity_crypto.secagg.threshold import compared
from comity_crypto.statements import Statement
from comity_node.training.profiles import threshold_collector, threshold_fusing

PARAMS = 2_000
LEAD, OPENER, THIRD = "hospital-a", "hospital-b", "hospital-c"
BOTH = sorted((LEAD, OPENER))


def began(rig, dummy, opened_by=(OPENER,)):
    config = {"params": PARAMS, "num-server-rounds": 1}
    agreement = rig.agree(dummy, rounds=1, config=config, opened_by=opened_by)
    return rig.board.prepare(agreement)


async def events(rig, org, run, kind):
    page = await rig.nodes[org].service.events.page(run)
    return [event.body for event in page if event.kind == kind]


def opened_receipts(rig, org):
    return {each["order"]: each["opened"] for each in rig.receipts(org) if each["outcome"] == "opened"}


async def test_two_openers_each_have_the_sum_and_sign_for_the_same_one(consortium, dummy):
    rig = consortium
    run = began(rig, dummy)
    finished = await rig.finish(run, 60)
    assert finished["state"] == "COMPLETED", finished
    sums = rig.nodes[OPENER].service.sums
    await rig.until(lambda: len(opened_receipts(rig, OPENER)) == 1, 20)
    cards = await sums.list(run)
    assert [(card["round"], card["message_type"]) for card in cards] == [(1, "train")]
    assert [(card["openers"], card["members"]) for card in cards] == [(BOTH, sorted(rig.nodes))]
    # What it opened is what the lead's app was given, which here became the model.
    found = await sums.find(run, 1, "train")
    assert {path.stat().st_mode & 0o777 for path in found.folder.iterdir()} == {0o600}
    assert found.folder.stat().st_mode & 0o777 == 0o700
    await rig.until((rig.result(LEAD, run) / "card.json").exists, 20)
    with np.load(found.folder / "model.npz") as seen, np.load(rig.result(LEAD, run) / "model.npz") as final:
        # The app averages three equal means once more; one level of one party is worth eighty times as much.
        assert np.allclose(seen[seen.files[0]], final[final.files[0]], rtol=0, atol=1e-6)
    # Both signed for it, by one digest, an order; the third party has nothing to sign for, and keeps nothing.
    await rig.until(lambda: len(opened_receipts(rig, LEAD)) == 1, 20)
    assert opened_receipts(rig, LEAD) == opened_receipts(rig, OPENER)
    assert set(opened_receipts(rig, OPENER).values()) == {card["opened"] for card in cards}
    assert opened_receipts(rig, THIRD) == {}
    assert await rig.nodes[THIRD].service.sums.list(run) == []
    assert await events(rig, LEAD, run, "incident") == await events(rig, OPENER, run, "incident") == []
    # Shares are sealed to two, and the coordinator has neither key.
    said = [Statement.from_bytes(body).body for kind, body in rig.board.seen if kind == "secagg"]
    shares = [body["public_key"] for body in said if body["message"]["kind"] == "secagg.share-ready"]
    assert {tuple(sorted(ref["boxes"])) for ref in shares} == {(LEAD,), (OPENER,), tuple(BOTH)}


async def test_an_opener_without_the_sum_stops_nobody_and_different_sums_are_an_incident(
    consortium, dummy, monkeypatch
):
    rig, digest = consortium, compared.sum_digest
    places = iter(range(1_000))
    # Every opener sees another sum than the other one.
    monkeypatch.setattr(threshold_fusing, "sum_digest", lambda *args: digest(f"{next(places):064x}", *args[1:]))
    run = began(rig, dummy)
    assert (await rig.finish(run, 60))["state"] == "COMPLETED"

    async def named(org):
        return {each["error"]["facts"]["organisations"] for each in await events(rig, org, run, "incident")}

    for org in BOTH:
        for _ in range(200):
            if await named(org):
                break
            await rig.nodes[org].service._behind.flush()
        assert await named(org) == {",".join(BOTH)}
    code = (await events(rig, LEAD, run, "incident"))[0]["error"]["code"]
    assert code == ErrorCode.SUMS_DIFFER
    first = opened_receipts(rig, LEAD)
    assert all(first[order] != said for order, said in opened_receipts(rig, OPENER).items() if order in first)


@pytest.mark.parametrize("opened_by", [None, (OPENER,)])
async def test_a_lead_that_adds_an_opener_is_refused_by_every_holder(consortium, dummy, monkeypatch, opened_by):
    """Also by the one that it would add, and by its own part: no holder says a word, and no share is made."""
    rig = consortium
    wider = tuple(sorted({LEAD, THIRD, *(opened_by or ())}))
    monkeypatch.setattr(threshold_collector, "openers_of", lambda step, parties: wider)
    began(rig, dummy, opened_by)
    others = [rig.nodes[org] for org in (OPENER, THIRD)]
    await rig.until(lambda: all(node.link.refused for node in others), 30)
    refusals = {(error.code, error.facts.get("org")) for node in others for _, error in node.link.refused}
    assert refusals == {(ErrorCode.ROSTER_MISMATCH, THIRD)}
    assert not any(b'secagg.ready"' in body or b"share-ready" in body for _, body in rig.board.seen)


async def test_a_coordinator_that_names_another_opener_breaks_the_leads_signature(consortium, dummy, monkeypatch):
    rig = consortium

    relay = rig.board.relay

    async def widened(sender, kind, statement, receivers, run, inline):
        message = statement.body.get("message", {})
        if message.get("kind") == "secagg.threshold-offer":
            body = {**message["body"], "openers": sorted((LEAD, THIRD))}
            statement = replace(statement, body={**statement.body, "message": {**message, "body": body}})
        await relay(sender, kind, statement, receivers, run, inline)

    monkeypatch.setattr(rig.board, "relay", widened)
    began(rig, dummy, None)
    others = [rig.nodes[org] for org in (OPENER, THIRD)]
    await rig.until(lambda: all(node.link.refused for node in others), 30)
    assert {error.code for node in others for _, error in node.link.refused} == {ErrorCode.SIGNATURE_INVALID}
    assert not any(b"share-ready" in body for _, body in rig.board.seen)
