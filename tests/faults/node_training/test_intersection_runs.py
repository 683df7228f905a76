"""Whole intersections between two nodes with the real library: what is learned, what is paid, what is refused."""

from __future__ import annotations

import csv
import json
import os

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_crypto.psi.messages import Kind, Message
from comity_node.intersections import model
from comity_node.intersections import store as intersections
from comity_node.intersections.carried import carried, carry
from comity_node.intersections.own import OwnSide
from comity_policies.decisions import Stage
from comity_policies.documents import DatasetAsk, IntersectStep, KeyColumn

LEAD, PARTNER = "hospital-a", "hospital-b"
MINE = ["P-1", " p-2 ", "p-3", "", "P-1", "only-a", *(f"x{number}" for number in range(20))]
THEIRS = ["p-3", "p-1", "p-9", "p-9", *(f"X{number} " for number in range(12))]
# p-1 (twice), p-3 and x0 to x11.
COMMON, COMMON_ROWS = 14, [0, 2, 4, *range(6, 18)]


def _add(node, column):
    path = node.home / "people.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "identifier"])
        writer.writerows([[30, each] for each in column])
    node.service.catalogue.add("people", path, classification="pseudonymous", replace=True)


@pytest.fixture
def agree(rig):
    _add(rig.nodes[LEAD], MINE)
    _add(rig.nodes[PARTNER], THEIRS)
    keys = tuple(KeyColumn(org, "people", "identifier") for org in (LEAD, PARTNER))

    def agree(mode="cardinality", terms=None, uses=1):
        step = IntersectStep("meet", LEAD, PARTNER, keys, mode, 60)
        asks = tuple(DatasetAsk(org, "people", ("identifier",)) for org in (LEAD, PARTNER))
        return rig.agree_on(step, asks, (LEAD, PARTNER), terms, uses)

    return agree


async def test_both_learn_how_many_and_nobody_which(rig, agree):
    agreement = agree()
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]) == ("COMPLETED", None)
    assert finished["orders"] == {LEAD: 1, PARTNER: 2}
    for org in (LEAD, PARTNER):
        await rig.until((rig.result(org, run) / "card.json").exists)
        card = json.loads((rig.result(org, run) / "card.json").read_text())
        assert card["metrics"][0]["metrics"] == {"common": COMMON}
        assert card["step"]["kind"] == "intersect"
        assert not (rig.result(org, run) / "rows.csv").exists()
    await rig.until(lambda: len(rig.receipts(PARTNER)) == 2 and len(rig.receipts(LEAD)) == 1)
    assert rig.spent(PARTNER, agreement)["releases"] == 2
    assert rig.spent(PARTNER, agreement)["uses"] == 1
    facts = [asked["result"] for stage, asked in rig.nodes[PARTNER].policy.asked if stage is Stage.EGRESS]
    # Three keys and twelve more at the partner; its policy sees the count before the lead does.
    assert [(fact["kind"], fact["cohort"]) for fact in facts] == [("statistic", 15), ("statistic", COMMON)]
    assert {fact["aggregation"] for fact in facts} == {"intersect"}


async def test_rows_stay_at_the_lead(rig, agree):
    run = rig.board.prepare(agree("ids", terms={"egress": ["statistic", "record"]}))
    assert (await rig.finish(run))["state"] == "COMPLETED"
    path = rig.result(LEAD, run) / "rows.csv"
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row", "identifier"]
    assert [int(row) for row, _ in rows[1:]] == COMMON_ROWS
    assert [each for _, each in rows[1:]] == [MINE[row] for row in COMMON_ROWS]
    assert not (rig.result(PARTNER, run) / "rows.csv").exists()
    sent = b"".join(bytes(entry.data) for entry in rig.board.spool.values())
    assert b"p-1" not in sent.lower()
    kinds = [asked["result"]["kind"] for stage, asked in rig.nodes[PARTNER].policy.asked if stage is Stage.EGRESS]
    assert kinds == ["statistic", "record"]


@pytest.mark.parametrize(
    ("mode", "terms", "orders"),
    [
        ("cardinality", {"min_cohort": {f"{PARTNER}/people": COMMON + 1}}, 2),
        pytest.param("cardinality", {"min_cohort": {f"{LEAD}/people": 100}}, 1, marks=pytest.mark.slow),
        pytest.param("ids", {"egress": ["statistic"]}, 2, marks=pytest.mark.slow),
    ],
    ids=["few-common", "few-own", "records-stay"],
)
async def test_the_policy_of_the_data_s_owner_keeps_a_result_inside(rig, agree, mode, terms, orders):
    run = rig.board.prepare(agree(mode, terms=terms))
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    assert finished["error"]["code"] == str(ErrorCode.EGRESS_DENIED)
    assert str(COMMON) not in json.dumps(finished["error"])
    assert sum(kind == "order" for kind, *_ in rig.board.log) >= orders
    assert not rig.result(LEAD, run).exists()


@pytest.mark.slow
async def test_a_second_use_gives_unrelated_bytes_and_is_paid_for(rig, agree):
    agreement = agree(uses=2)
    for use in (1, 2):
        run = rig.board.prepare(agreement, use)
        assert (await rig.finish(run))["state"] == "COMPLETED"
        await rig.until(lambda run=run: (rig.result(PARTNER, run) / "card.json").exists())
    assert rig.spent(PARTNER, agreement)["uses"] == 2
    refused = rig.board.prepare(agreement, 2)
    assert refused == run, "there is no third use"


@pytest.mark.parametrize("victim", [LEAD, pytest.param(PARTNER, marks=pytest.mark.slow)])
async def test_a_node_that_dies_in_the_middle_goes_on_where_it_was(rig, agree, victim):
    agreement = agree("ids", terms={"egress": ["statistic", "record"]})
    node = rig.nodes[victim]
    rig.board.drop = lambda kind, sender, receiver: (
        kind == "reply" and sum(each[0] == "reply" for each in rig.board.log) == 2
    )
    run = rig.board.prepare(agreement)
    await rig.until(lambda: sum(kind == "reply" for kind, *_ in rig.board.log) >= 2)
    await node.crash()
    rig.board.drop = lambda kind, sender, receiver: False
    await node.up()
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED"
    with (rig.result(LEAD, run) / "rows.csv").open(newline="") as file:
        assert [int(row) for row, _ in list(csv.reader(file))[1:]] == COMMON_ROWS
    assert rig.spent(PARTNER, agreement)["releases"] == 2
    known = rig.nodes[PARTNER].read(lambda conn: intersections.party(conn, run))
    assert known.masked == 256
    assert len(known.compared) == 64


async def test_a_partner_that_answers_nonsense_is_named(rig, agree, monkeypatch):
    monkeypatch.setattr(model, "answer", lambda mode, matched, mine: Message(Kind.MATCHED, matched, count=COMMON + 1))
    run = rig.board.prepare(agree("ids", terms={"egress": ["statistic", "record"]}))
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", str(ErrorCode.REPLY_SHAPE))
    assert finished["error"]["facts"]["org"] == PARTNER
    assert not (rig.result(LEAD, run) / "rows.csv").exists()


@pytest.mark.slow
async def test_a_lead_whose_worker_dies_begins_again(rig, agree, monkeypatch):
    doubled, calls = OwnSide.doubled, []

    async def dies_once(side, points):
        calls.append(len(points))
        if len(calls) == 1:
            raise ComityError(ErrorCode.WORKER_DIED, "killed")
        return await doubled(side, points)

    monkeypatch.setattr(OwnSide, "doubled", dies_once)
    run = rig.board.prepare(agree())
    assert (await rig.finish(run))["state"] == "COMPLETED"
    assert len(calls) == 3
    assert rig.board.durable
    await rig.until(lambda: len(rig.receipts(PARTNER)) == 2)


@pytest.mark.parametrize(
    "data", [b"", b"CPSI", b"\x00" * 64, bytes(range(256)) * 8], ids=["nothing", "text", "zeros", "noise"]
)
async def test_a_content_that_is_no_message_is_refused(data):
    whole = memory.write_parts([data])
    with pytest.raises(ComityError) as caught:
        carried(*whole)
    assert caught.value.code is ErrorCode.REPLY_SHAPE
    os.close(whole[0])


async def test_a_message_is_carried_there_and_back():
    for message in (b"", b"x", bytes(range(256)) * 99):
        fd, size = carry(message)
        assert carried(fd, size) == message
        os.close(fd)


async def test_a_node_without_the_library_takes_no_part(rig, agree, monkeypatch):
    node = rig.nodes[PARTNER]
    await node.down()
    monkeypatch.setattr("comity_node.training.service.library_here", lambda: False)
    await node.up()
    assert "intersect" not in node.service.abilities.kinds
    assert "intersect" in rig.nodes[LEAD].service.abilities.kinds
    assert "intersect" not in rig.nodes[LEAD].service.abilities.profiles
