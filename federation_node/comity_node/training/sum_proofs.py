"""What a lead states of its secure sums once the run is closed and all receipts are in: that it can open them.

Rules:
1. What opens a sum of commitments is the total, which the journal keeps with the answers until the run is closed, and
   the blinding, which follows from the node's secret: a process that dies in between loses neither.
2. Statements go in the transaction that closes the run, in the order of the questions, in batches.
3. A batch that is refused goes once more, one by one: a sum that a lost process left without one common set of
   commitments must not keep the others off the ledger. That one stays unproved, and `comity ledger verify` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import structlog
from sqlalchemy import Connection

from comity.wire import canonical
from comity_crypto.encoding import to_base64
from comity_crypto.statements import Statement, sign_statement
from comity_crypto.zk import openings, pedersen
from comity_node.context import NodeContext
from comity_node.training import store
from comity_node.training.profiles.plain import RESULT
from comity_node.training.profiles.weighing import lead_blinding
from comity_node.training.tables import AnswerRow
from comity_policies import sums
from comity_policies.documents import OrderHeader
from comity_policies.orders import SumProof

MESSAGE = "sum-proofs"
BATCH_MAX = 64

log = structlog.get_logger("comity.node.training")


def send(conn: Connection, node: NodeContext, run: str) -> None:
    """Prove every sum of a run that this node led (about 0.6 ms each), within a transaction."""
    statements = list(_statements(conn, node, run))
    for start in range(0, len(statements), BATCH_MAX):
        batch = statements[start : start + BATCH_MAX]
        for each in batch:
            node.ledger.expect(conn, each)
        node.link.send(conn, MESSAGE, {"proofs": [each.to_json() for each in batch]})


def refused(node: NodeContext, conn: Connection, body: bytes) -> None:
    """Send a refused batch's statements one by one; give up one that was alone."""
    statements = [Statement.from_json(each) for each in canonical.parse(body)["proofs"]]
    if len(statements) == 1:
        log.warning("sum.unproved", run=statements[0].body.get("run"), order=statements[0].body.get("order"))
        node.ledger.forget(conn, statements[0].to_bytes())
        return
    for each in statements:
        node.link.send(conn, MESSAGE, {"proofs": [each.to_json()]})


def _statements(conn: Connection, node: NodeContext, run: str) -> Iterator[Statement]:
    given = dict[int, AnswerRow]()
    for row in store.list_answers(conn, run):
        if row.outcome == RESULT and row.reference is not None:
            given.setdefault(row.seq, row)
    for question in store.list_questions(conn, run):
        answered = given.get(question.seq)
        named = {} if answered is None else json.loads(str(answered.reference))
        if named.get("total") is None or node.settings.org not in named["members"]:
            continue
        order = Statement.from_bytes(question.statement)
        header = OrderHeader.from_json(order.body)
        yield _stated(node, header, order.digest, tuple(named["members"]), int(named["total"]))


def _stated(node: NodeContext, order: OrderHeader, digest: str, members: tuple[str, ...], total: int) -> Statement:
    commitment, opening = pedersen.commit(total, lead_blinding(node, order.agreement, digest))
    proof = openings.prove_opening(commitment, opening, sums.binding_of(order.agreement, digest, order.lead))
    said = SumProof(order.agreement, order.run, digest, order.seq, members, to_base64(commitment), to_base64(proof))
    settings = node.settings
    return sign_statement(
        node.keys, kind=sums.KIND, consortium=settings.consortium, issuer=settings.org, body=said.to_json()
    )
