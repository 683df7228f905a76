"""Bad input to a run: each ends in a named code, in a receipt where it should, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import replace

import pytest

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, sign_statement
from comity_node.training import store
from comity_node.transport.model import Message
from comity_policies.decisions import Stage

SMALL = {"params": 100, "num-server-rounds": 2}
PAIR = ("hospital-a", "hospital-b")


@pytest.fixture
def app_with(dummy, tmp_path):
    """A copy of the dummy app with other text in one of its modules."""

    def make(module, text):
        folder = tmp_path / "app"
        shutil.copytree(dummy, folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "dummy" / f"{module}.py"
        path.write_text(text(path.read_text()))
        return folder

    return make


async def run_of(rig, agreement):
    run = rig.board.prepare(agreement)
    return run, await rig.finish(run)


def order_to_forge(rig, **changes):
    """The first order that B got, rebuilt with changes and signed by `signer`."""
    node = rig.nodes["hospital-a"]
    rows = node.read(lambda conn: store.list_questions(conn, next(iter(rig.board.parties))))
    statement = Statement.from_bytes(rows[0].statement)
    signer = changes.pop("signer", "hospital-a")
    body = {**statement.body, **changes}
    return sign_statement(
        rig.keys[signer], kind="order", consortium="oncology", issuer=signer, body=body
    ), rows[0].inline  # fmt: skip


async def hand(rig, org, statement, inline):
    message = Message("m-x", 0, "order", statement.issuer, (org,), "", statement.to_bytes(), inline or b"")
    await rig.nodes[org].service._participant.on_order(message)


async def answer_of(rig, org, statement):
    """What B said to an order, from the switchboard's log of replies."""
    found = []

    async def seen():
        return found

    relay = rig.board.relay

    async def listen(sender, kind, reply, *rest):
        if kind == "reply" and reply.body["order"] == statement.digest:
            found.append(reply.body)
        await relay(sender, kind, reply, *rest)

    rig.board.relay = listen
    return found


async def test_a_dispatch_denial_names_its_rule_in_manifest_and_receipt(rig, dummy):
    rig.nodes["hospital-b"].policy.deny(Stage.DISPATCH, "dispatch.hours", "HOURS")
    _, finished = await run_of(rig, rig.agree(dummy, rounds=2, config=SMALL))
    assert finished["state"] == "COMPLETED"
    dropped = [{"org": "hospital-b", "code": "POLICY_DENIED"}]
    assert [row["dropped"] for row in finished["manifest"]] == [dropped, dropped]
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 2)
    receipt = rig.receipts("hospital-b")[0]
    assert (receipt["outcome"], receipt["code"]) == ("refused", "POLICY_DENIED")
    assert receipt["predicates"]["dispatch_allowed"] is False
    assert receipt["predicates"]["grant_left"] is True
    assert receipt["grants"] == {}


async def test_min_participants_turns_a_denial_into_a_failed_run(rig, dummy):
    rig.nodes["hospital-b"].policy.deny(Stage.DISPATCH, "dispatch.hours")
    agreement = rig.agree(dummy, rounds=2, config=SMALL, terms={"min_participants": 3})
    _, finished = await run_of(rig, agreement)
    assert finished["state"] == "FAILED"
    assert finished["error"]["code"] == "PARTICIPANTS_TOO_FEW"
    assert "hospital-b: POLICY_DENIED" in finished["error"]["detail"]


async def test_an_egress_denial_lets_nothing_out(rig, dummy):
    rig.nodes["hospital-b"].policy.deny(Stage.EGRESS, "egress.kind")
    agreement = rig.agree(dummy, rounds=1, config={**SMALL, "num-server-rounds": 1}, parties=PAIR)
    _, finished = await run_of(rig, agreement)
    assert finished["manifest"][0]["dropped"] == [{"org": "hospital-b", "code": "EGRESS_DENIED"}]
    await rig.until(lambda: rig.receipts("hospital-b"))
    receipt = rig.receipts("hospital-b")[0]
    assert (receipt["outcome"], receipt["result"], receipt["egress_bytes"]) == ("failed", None, 0)
    assert "egress_bytes" not in rig.spent("hospital-b", agreement)


async def test_terms_bind_without_any_policy(rig, dummy):
    agreement = rig.agree(
        dummy, rounds=1, config={**SMALL, "num-server-rounds": 1}, terms={"egress": ["statistic"]}, parties=PAIR
    )
    _, finished = await run_of(rig, agreement)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "EGRESS_DENIED")


async def test_a_cohort_below_the_terms_keeps_the_result_inside(rig, dummy):
    terms = {"min_cohort": {"hospital-c/patients": 41}}
    agreement = rig.agree(dummy, rounds=1, config={**SMALL, "num-server-rounds": 1}, terms=terms)
    _, finished = await run_of(rig, agreement)
    assert finished["manifest"][0]["dropped"] == [{"org": "hospital-c", "code": "EGRESS_DENIED"}]


async def test_egress_bytes_are_counted_and_end(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config=SMALL, terms={"egress_bytes": 1500}, parties=PAIR)
    _, finished = await run_of(rig, agreement)
    assert finished["state"] == "FAILED"
    assert finished["error"]["code"] == "GRANT_EXHAUSTED"
    assert all(rig.spent(org, agreement)["egress_bytes"] <= 1500 for org in PAIR)


async def test_more_rounds_than_agreed_are_refused_by_every_party(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config=SMALL, parties=PAIR)
    _, finished = await run_of(rig, agreement)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "ORDER_MISMATCH")
    assert all(rig.spent(org, agreement)["rounds"] == 1 for org in PAIR)


async def test_an_expired_agreement_is_refused(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config=SMALL, terms={"not_after": "2020-01-01T00:00:00Z"}, parties=PAIR)
    _, finished = await run_of(rig, agreement)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "GRANT_EXPIRED")


async def test_a_withdrawal_stops_the_next_order(rig, dummy):
    agreement = rig.agree(dummy, rounds=30, config={**SMALL, "num-server-rounds": 30}, parties=PAIR)
    run = rig.board.prepare(agreement)
    await rig.until(lambda: rig.spent("hospital-b", agreement).get("rounds", 0) >= 2)
    held = rig.nodes["hospital-b"].agreements.held[agreement.digest]
    held.state = "withdrawn"
    spent = rig.spent("hospital-b", agreement)["rounds"]
    finished = await rig.finish(run)
    assert finished["manifest"][-1]["dropped"] == [{"org": "hospital-b", "code": "WITHDRAWN"}]
    assert rig.spent("hospital-b", agreement)["rounds"] <= spent + 1


def put(before, new):
    """A change to a module's text: `new` goes before the first `before`."""
    return lambda old: old.replace(before, f"{new}\n    {before}", 1)


@pytest.mark.parametrize(
    ("module", "text", "code"),
    [
        ("client_app", put("arrays = ", "raise ValueError('row 17')"), "APP_FAILED"),
        ("client_app", put("return Message", "return None"), "APP_SILENT"),
        ("server_app", put("config = ", "raise ValueError('no')"), "APP_FAILED"),
        ("server_app", put("config = ", "return"), "APP_SILENT"),
        ("server_app", lambda old: "import missing_module\n" + old, "APP_INVALID"),
    ],
)
async def test_an_app_that_misbehaves_fails_the_run_by_name(rig, app_with, module, text, code):
    agreement = rig.agree(app_with(module, text), rounds=2, config=SMALL, parties=PAIR)
    _, finished = await run_of(rig, agreement)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", code)
    assert finished["result"] is None
    assert "row 17" not in str(rig.board.durable)


async def test_an_app_that_asks_otherwise_after_a_restart_diverges(rig, app_with):
    chance = "import os\nimport numpy as np\nOFFSET = int.from_bytes(os.urandom(2), 'big')\n"

    def text(old):
        return old.replace("import numpy as np", chance).replace("np.zeros(int", "OFFSET + np.zeros(int")

    folder = app_with("server_app", text)
    agreement = rig.agree(folder, rounds=9, config={**SMALL, "num-server-rounds": 9}, parties=PAIR)
    run = rig.board.prepare(agreement)
    await rig.until(lambda: rig.spent("hospital-b", agreement).get("rounds", 0) >= 2)
    os.killpg(rig.nodes["hospital-a"].service.runs.host(run)._process.pid, signal.SIGKILL)
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("DIVERGED", "RUN_DIVERGED")
    facts = finished["error"]["facts"]
    assert facts["recorded"] != facts["asked"]


async def test_a_missing_column_keeps_the_run_from_starting(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config=SMALL, columns=("age", "shoe-size"), parties=PAIR)
    run = rig.board.prepare(agreement)
    events = rig.nodes["hospital-b"].service.events
    async with asyncio.timeout(20):
        async for event in events.watch(run):
            if event.kind == "unready":
                break
    assert event.body["error"]["code"] == "DATASET_COLUMNS"
    assert not rig.board.ready.get(run)


async def test_a_silent_party_is_dropped_at_the_deadline(rig, dummy):
    rig.board.drop = lambda kind, sender, receiver: receiver == "hospital-c" and kind == "order"
    agreement = rig.agree(dummy, rounds=1, config={**SMALL, "num-server-rounds": 1}, timeout_s=2)
    _, finished = await run_of(rig, agreement)
    assert finished["state"] == "COMPLETED"
    assert finished["manifest"][0]["dropped"] == [{"org": "hospital-c", "code": "TIMEOUT"}]


async def test_a_journal_that_is_full_for_a_while_loses_nothing(rig, dummy, monkeypatch):
    monkeypatch.setattr("comity_node.training.questions.RESEND_S", 0.2)
    node = rig.nodes["hospital-b"]
    whole, full = node.journal.run, True

    async def run(fn):
        if full:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the journal's disk is full")
        return await whole(fn)

    agreement = rig.agree(dummy, rounds=2, config=SMALL, parties=PAIR)
    name = rig.board.prepare(agreement)
    await rig.until(lambda: "hospital-b" in rig.board.ready.get(name, ()))
    monkeypatch.setattr(node.journal, "run", run)
    await rig.until(lambda: rig.board.log.count(("reply", "hospital-b", "hospital-a")) >= 2)
    full = False
    finished = await rig.finish(name)
    assert finished["state"] == "COMPLETED"
    assert all(row["dropped"] == [] for row in finished["manifest"])
    assert rig.spent("hospital-b", agreement)["rounds"] == 2


REFUSED_ORDERS = [
    ({"signer": "hospital-b"}, "ORDER_NOT_LEAD"),
    ({"signer": "hospital-b", "lead": "hospital-b"}, "ORDER_NOT_LEAD"),
    ({"agreement": "f" * 64}, "AGREEMENT_UNKNOWN"),
    ({"step": "other", "seq": 50}, "ORDER_MISMATCH"),
    ({"run": "run-0123", "seq": 50}, "ORDER_MISMATCH"),
    ({"round": 99, "seq": 50}, "ORDER_MISMATCH"),
    ({"round": 1, "seq": 50}, "ORDER_MISMATCH"),
    ({"message_type": "delete", "seq": 50}, "ORDER_MISMATCH"),
    ({"receivers": ["hospital-a"], "seq": 50}, "ORDER_MISMATCH"),
    ({"reply_by": "2020-01-01T00:00:00Z", "seq": 50}, "DEADLINE_PASSED"),
    ({"content_digest": "e" * 64}, "ORDER_REPLAYED"),
]


async def test_orders_that_were_not_agreed_are_refused_by_name(rig, dummy):
    rig.board.auto_close = False
    agreement = rig.agree(dummy, rounds=3, config={**SMALL, "num-server-rounds": 1}, parties=PAIR)
    await run_of(rig, agreement)
    before = rig.spent("hospital-b", agreement)
    for changes, code in REFUSED_ORDERS:
        statement, inline = order_to_forge(rig, **{"reply_by": "2098-01-01T00:00:00Z", **changes})
        answers = await answer_of(rig, "hospital-b", statement)
        await hand(rig, "hospital-b", statement, inline)
        await rig.until(lambda answers=answers: answers)
        assert answers[0]["outcome"] == "refused"
        assert answers[0]["error"]["code"] == code, changes
        assert rig.spent("hospital-b", agreement) == before
        await rig.until(lambda: not rig.nodes["hospital-b"].service._participant._active)
    # What belongs to no run and step of an agreement that B signed has no place in the ledger.
    placed = [code for changes, code in REFUSED_ORDERS if not {"agreement", "run", "step"} & set(changes)]
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 1 + len(placed))
    assert [receipt["code"] for receipt in rig.receipts("hospital-b")[1:]] == placed


async def test_an_altered_order_gets_no_answer_and_no_receipt(rig, dummy):
    rig.board.auto_close = False
    agreement = rig.agree(dummy, rounds=3, config={**SMALL, "num-server-rounds": 1}, parties=PAIR)
    await run_of(rig, agreement)
    statement, inline = order_to_forge(rig, seq=7, round=2, reply_by="2098-01-01T00:00:00Z")
    altered = replace(statement, body={**statement.body, "round": 3})
    answers = await answer_of(rig, "hospital-b", altered)
    await hand(rig, "hospital-b", altered, inline)
    participant = rig.nodes["hospital-b"].service._participant
    await rig.until(lambda: not participant._active)
    assert answers == []
    assert rig.nodes["hospital-b"].read(lambda conn: store.find_order(conn, altered.body["run"], 7)) is None


async def test_the_same_order_twice_is_answered_from_the_journal(rig, dummy):
    rig.board.auto_close = False
    agreement = rig.agree(dummy, rounds=3, config={**SMALL, "num-server-rounds": 1}, parties=PAIR)
    await run_of(rig, agreement)
    rows = rig.nodes["hospital-a"].read(lambda conn: store.list_questions(conn, next(iter(rig.board.parties))))
    statement = Statement.from_bytes(rows[0].statement)
    asked = len(rig.nodes["hospital-b"].policy.asked)
    stored = rig.nodes["hospital-b"].read(lambda conn: store.find_order(conn, statement.body["run"], 0)).reply
    answers = await answer_of(rig, "hospital-b", statement)
    await hand(rig, "hospital-b", statement, rows[0].inline)
    await rig.until(lambda: answers)
    assert answers[0] == Statement.from_bytes(stored).body
    assert len(rig.nodes["hospital-b"].policy.asked) == asked
    assert instants.parse(statement.body["reply_by"])
