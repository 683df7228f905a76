"""A node on a journal restored from a backup does no work: neither others' orders nor its own as a lead."""

from __future__ import annotations

import shutil

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.negotiation import store as negotiation
from comity_node.recovery import Remembered, book
from comity_node.training import store
from comity_node.transport import store as _link_tables  # noqa: F401 - the rig's link is in memory; recovery's is not

CONFIG = {"params": 100, "num-server-rounds": 2}
LATER = "2099-01-01T00:00:00Z"


async def run_of(rig, agreement, use=1):
    return await rig.finish(rig.board.prepare(agreement, use))


async def restored(rig, org, backup):
    """Stop a node, put the backup in place of its journal, start it again."""
    node = rig.nodes[org]
    await node.down()
    for path in node.home.glob("journal.db*"):
        path.unlink()
    shutil.copy(backup, node.home / "journal.db")
    await node.up()


async def backed_up(rig, org, tmp_path):
    """Copy a stopped node's journal away, as a backup does."""
    node = rig.nodes[org]
    await node.down()
    backup = tmp_path / f"{org}.backup"
    shutil.copy(node.home / "journal.db", backup)
    await node.up()
    return backup


@pytest.mark.parametrize("org", ["hospital-b", "hospital-a"])
async def test_spent_grants_do_not_come_back_with_a_backup(rig, dummy, tmp_path, org):
    agreement = rig.agree(dummy, rounds=2, config=CONFIG, uses=2)
    signed = "2026-11-22T10:00:00Z"
    rig.nodes[org].journal.transact(lambda conn: negotiation.add_agreement(conn, agreement, signed))
    backup = await backed_up(rig, org, tmp_path)
    assert (await run_of(rig, agreement))["state"] == "COMPLETED"
    await rig.until(lambda: len(rig.receipts(org)) == 2)

    await restored(rig, org, backup)
    assert rig.spent(org, agreement) == {}  # what the backup says, and what nobody may act on
    node = rig.nodes[org]
    ledger = node.service._participant._node.ledger

    def behind():
        with pytest.raises(ComityError) as refused:
            node.read(ledger.check)
        return refused.value.code is ErrorCode.JOURNAL_BEHIND

    await rig.until(node.service._standing._known.is_set)
    assert behind()
    run = rig.board.prepare(agreement, 2)
    await rig.until(lambda: run in rig.board.ready and len(rig.board.ready[run]) == 2)
    assert org not in rig.board.ready[run]
    assert rig.spent(org, agreement) == {}

    # `comity node recover` books what is open as spent, for good.
    node.journal.transact(lambda conn: book(conn, Remembered(2, 0, 0), LATER))
    node.read(ledger.check)
    assert rig.spent(org, agreement) == agreement.limits
    assert node.read(store.next_receipt_no) == 3
    await restored_again(rig, org)
    node.read(ledger.check)


async def restored_again(rig, org):
    """A recovered node starts, asks, and is content."""
    node = rig.nodes[org]
    await node.down()
    await node.up()
    await rig.until(node.service._standing._known.is_set)
