"""Orders and confirmations from where none should come: they cost their receiver neither receipts, room nor grants."""

from __future__ import annotations

import asyncio

import pytest

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import sign_statement
from comity_node.training.enforcement import run_id
from comity_node.transport.model import Message
from comity_policies.documents import OrderHeader

PAYLOAD = {"digest": "ab" * 32, "size": 100, "boxes": {}}


def order_for(rig, agreed, signer="hospital-a", **changes):
    """An order to B, signed by `signer`."""
    body = {
        "agreement": agreed.digest,
        "run": run_id(agreed.digest, 1),
        "step": "fit",
        "round": 1,
        "seq": 0,
        "message_type": "train",
        "lead": signer,
        "receivers": ["hospital-a", "hospital-b", "hospital-c"],
        "payload": PAYLOAD,
        "content_digest": "cd" * 32,
        "reply_by": "2099-01-01T00:00:00Z",
        **changes,
    }
    OrderHeader.from_json(body)
    return sign_statement(rig.keys[signer], kind="order", consortium="oncology", issuer=signer, body=body)


async def hand(rig, statement, kind="order", sender=None):
    message = Message("m-x", 0, kind, sender or statement.issuer, ("hospital-b",), "", statement.to_bytes())
    await rig.nodes["hospital-b"].link.handlers[kind](message)
    await settled(rig)


async def settled(rig):
    participant = rig.nodes["hospital-b"].service._participant
    await asyncio.gather(*participant._active.values(), return_exceptions=True)


def journalled(rig):
    """Receipts and refusals in B's journal."""

    def count(conn):
        tables = ("training_receipts", "training_refusals", "training_orders")
        return tuple(conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() for table in tables)

    return rig.nodes["hospital-b"].read(count)


async def test_orders_about_nothing_of_ours_leave_no_trace(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    for changes in (
        {"agreement": "ef" * 32},
        {"run": "run-of-nobody"},
        {"run": run_id(agreement.digest, 2)},
        {"step": "other"},
    ):
        await hand(rig, order_for(rig, agreement, **changes))
    assert journalled(rig) == (0, 0, 0)


async def test_a_party_that_is_not_the_lead_leaves_a_receipt_and_no_order(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    await hand(rig, order_for(rig, agreement, "hospital-c"))
    assert journalled(rig) == (1, 1, 0)
    await rig.until(lambda: rig.receipts("hospital-b"))
    assert rig.receipts("hospital-b")[0]["code"] == "ORDER_NOT_LEAD"


async def test_refusals_for_now_are_bounded_too(rig, dummy, monkeypatch):
    monkeypatch.setattr("comity_node.training.participant.REFUSALS_MAX", 3)
    agreement = rig.agree(dummy, rounds=3)
    node = rig.nodes["hospital-b"]

    def unavailable(conn):
        raise ComityError(ErrorCode.POLICY_UNAVAILABLE)

    monkeypatch.setattr(node.service._participant._node.ledger, "check", unavailable)
    for seq in range(6):
        await hand(rig, order_for(rig, agreement, seq=seq))
    assert journalled(rig) == (3, 0, 0)


async def test_nobody_takes_the_place_of_anothers_order(rig, dummy, monkeypatch):
    agreement = rig.agree(dummy, rounds=3)
    participant = rig.nodes["hospital-b"].service._participant
    release = asyncio.Event()

    async def wait(order):
        await release.wait()

    monkeypatch.setattr(participant, "_serve", wait)
    handler = rig.nodes["hospital-b"].link.handlers["order"]

    async def send(statement):
        await handler(Message("m-x", 0, "order", statement.issuer, ("hospital-b",), "", statement.to_bytes()))

    for seq in range(16):
        await send(order_for(rig, agreement, "hospital-c", seq=seq))
    with pytest.raises(ComityError) as refused:
        await send(order_for(rig, agreement, "hospital-c", seq=16))
    assert refused.value.code is ErrorCode.BUSY
    await send(order_for(rig, agreement, "hospital-a", seq=0))
    assert len(participant._active) == 17
    release.set()
    await settled(rig)


async def test_nobody_relays_what_another_one_signed(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    with pytest.raises(ComityError) as refused:
        await hand(rig, order_for(rig, agreement, "hospital-a"), sender="hospital-c")
    assert refused.value.code is ErrorCode.FORBIDDEN


async def test_a_ledger_that_contradicts_itself_ends_all_work(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    node = rig.nodes["hospital-b"]
    ledger = node.service._participant._node.ledger
    node.journal.transact(lambda conn: ledger.alarm(conn, "two checkpoints of one size", "notes"))
    await hand(rig, order_for(rig, agreement))
    await rig.until(lambda: rig.receipts("hospital-b"))
    receipt = rig.receipts("hospital-b")[0]
    assert (receipt["code"], receipt["predicates"]) == ("LEDGER_INVALID", {"signed_by_lead": False})
    assert rig.spent("hospital-b", agreement) == {}


async def test_a_bad_receipt_does_not_keep_the_others_off_the_ledger(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    for seq in range(3):
        await hand(rig, order_for(rig, agreement, "hospital-c", seq=seq))

    def sent():
        return [each for _, kind, body in rig.board.durable if kind == "receipts" for each in body["receipts"]]

    # On a busy machine they leave in several batches.
    await rig.until(lambda: len(sent()) == 3)
    node, batch = rig.nodes["hospital-b"], {"receipts": sent()}
    rig.board.durable.clear()
    refused = node.link.refused_bodies["receipts"]
    ledger = node.service._participant._node.ledger
    assert node.read(ledger.counts) == {"expected": 3}
    node.journal.transact(lambda conn: refused(conn, canonical.canonical(batch)))
    await rig.until(lambda: len(rig.board.durable) == 3)
    assert [len(body["receipts"]) for _, _, body in rig.board.durable] == [1, 1, 1]
    single = canonical.canonical(rig.board.durable[0][2])
    node.journal.transact(lambda conn: refused(conn, single))
    assert node.read(ledger.counts) == {"expected": 2}


async def test_a_confirmation_for_another_party_confirms_nothing(rig, dummy):
    agreement = rig.agree(dummy, rounds=3)
    body = {"run": run_id(agreement.digest, 1), "order": "ab" * 32, "receiver": "hospital-c"}
    statement = sign_statement(
        rig.keys["hospital-a"], kind="reply-ack", consortium="oncology", issuer="hospital-a", body=body
    )
    with pytest.raises(ComityError) as refused:
        await hand(rig, statement, kind="reply.ack")
    assert refused.value.code is ErrorCode.ORDER_MISMATCH
