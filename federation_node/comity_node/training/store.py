"""What training keeps in the node's journal: the only SQL of this capability.

Rules:
1. Functions take the connection of an open transaction; they never commit, so that a charge, a state and an outgoing
   message stand or fall together.
2. `orders` and `refusals` belong to this organisation as a party, `questions` and `answers` as a lead.
3. Payloads above `INLINE_BYTES_MAX` lie as files beside the journal; their names are in the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from comity.wire.errors import ComityError
from comity_node import journal
from comity_node.observability import metrics
from comity_node.training.profiles import sum_store
from comity_node.training.tables import (
    CANCELLED,
    CLOSED,
    FINISHED,
    AnswerRow,
    OrderRow,
    QuestionRow,
    ResultRow,
    RunRow,
    answers,
    claims,
    copies,
    events,
    orders,
    questions,
    receipts,
    refusals,
    results,
    runs,
)
from comity_policies.cohorts import Claim

UNCONFIRMED_MAX = 1_000
# A mark of the journal: numbers up to this one were given away by a journal that is lost.
RECEIPT_FLOOR = "receipt_floor"


def find_run(conn: Connection, run: str) -> RunRow | None:
    """Return one run."""
    row = conn.exec_driver_sql(_FIND_RUN, (run,)).one_or_none()
    return None if row is None else RunRow(*(*row[:-1], bool(row[-1])))


def list_runs(conn: Connection, *, closed: bool | None = None, limit: int = 1000) -> list[RunRow]:
    """Return the newest runs first."""
    query = select(runs).order_by(runs.c.prepared_at.desc(), runs.c.run).limit(limit)
    if closed is not None:
        query = query.where(runs.c.closed == closed)
    return [RunRow(*row) for row in conn.execute(query)]


def put_run(conn: Connection, row: RunRow) -> None:
    """Insert a run; an existing one stays as it is."""
    conn.execute(upsert(runs).values(**_columns(row)).on_conflict_do_nothing())


def change_run(conn: Connection, run: str, **values: Any) -> None:
    """Set columns of one run."""
    conn.execute(update(runs).where(runs.c.run == run).values(**values))


def find_order(conn: Connection, run: str, seq: int) -> OrderRow | None:
    """Return the order under a number of a run."""
    row = conn.exec_driver_sql(_FIND_ORDER, (run, seq)).one_or_none()
    return None if row is None else OrderRow(*(*row[:-1], bool(row[-1])))


def start_order(conn: Connection, row: OrderRow) -> None:
    """Record that an order was started; a second row under its number is an integrity error."""
    conn.exec_driver_sql(_START_ORDER, tuple(_columns(row).values()))


def finish_order(
    conn: Connection,
    run: str,
    seq: int,
    *,
    outcome: str,
    reply: bytes | None,
    inline: bytes | None,
    file: str | None,
    size_bytes: int | None,
    acked: bool,
) -> None:
    """Record an order's outcome, once."""
    values = (outcome, reply, inline, file, size_bytes, acked, run, seq)
    done = conn.exec_driver_sql(_FINISH_ORDER, values)
    assert done.rowcount == 1, "an order is finished once"


def ack_order(conn: Connection, order_digest: str, lead: str) -> None:
    """Record that the lead of an order has the answer to it."""
    conn.execute(update(orders).where(orders.c.digest == order_digest, orders.c.lead == lead).values(acked=True))


def unacked_orders(conn: Connection, limit: int) -> list[OrderRow]:
    """Return finished orders of runs still open whose answer another lead has not confirmed."""
    query = (
        select(orders)
        .join(runs, runs.c.run == orders.c.run)
        .where(orders.c.state == FINISHED, orders.c.acked.is_(False), runs.c.closed.is_(False))
        .order_by(orders.c.run, orders.c.seq)
        .limit(limit)
    )
    return [OrderRow(*row) for row in conn.execute(query)]


def around(conn: Connection, run: str, seq: int, word: str, round_no: int) -> tuple[int, int | None, int, bool]:
    """Return what stands around an order: largest round of this word before `seq` (0 if none), smallest after it (None
    if none), number of orders of this word in `round_no`, and whether the run has any order."""
    row = conn.exec_driver_sql(_AROUND, (run, word, seq, run, word, seq, run, word, round_no, run)).one()
    return int(row[0] or 0), None if row[1] is None else int(row[1]), int(row[2]), bool(row[3])


def find_refusal(conn: Connection, order_digest: str) -> bytes | None:
    """Return the stored refusal of an order."""
    row = conn.exec_driver_sql(_FIND_REFUSAL, (order_digest,)).one_or_none()
    return None if row is None else bytes(row[0])


def put_refusal(conn: Connection, order_digest: str, run: str, reply: bytes) -> None:
    """Store the refusal of an order."""
    conn.execute(upsert(refusals).values(order_digest=order_digest, run=run, reply=reply).on_conflict_do_nothing())


def count_refusals(conn: Connection, run: str) -> int:
    """Return how many orders of a run were refused."""
    return int(conn.execute(select(func.count()).select_from(refusals).where(refusals.c.run == run)).scalar_one())


def spent(conn: Connection, agreement: str) -> dict[str, int]:
    """Return what was spent of an agreement's grant, by field."""
    return {field: int(amount) for field, amount in conn.exec_driver_sql(_SPENT, (agreement,))}


def spend(conn: Connection, agreement: str, amounts: Mapping[str, int]) -> None:
    """Add `amounts` to what was spent."""
    for field, amount in amounts.items():
        metrics.SPENT.add(field, by=amount)
    conn.exec_driver_sql(_SPEND, [(agreement, field, amount) for field, amount in amounts.items()])


def spend_all(conn: Connection, agreement: str, limits: Mapping[str, int]) -> None:
    """Book a whole grant as spent."""
    known = spent(conn, agreement)
    spend(conn, agreement, {field: max(0, limit - known.get(field, 0)) for field, limit in limits.items()})


def end_all(conn: Connection, now: str, error: ComityError) -> int:
    """End and close every open run; returns how many."""
    open_runs = list(conn.execute(select(runs.c.run).where(runs.c.closed.is_(False))).scalars())
    values = {"state": CANCELLED, "ended_at": now, "error": json.dumps(error.to_json())}
    for run in open_runs:
        conn.execute(update(runs).where(runs.c.run == run, runs.c.ended_at.is_(None)).values(**values))
        change_run(conn, run, closed=True)
        forget_work(conn, run)
    return len(open_runs)


def next_receipt_no(conn: Connection) -> int:
    """Return the next receipt's number; it never goes back, so receipts show a journal that was restored."""
    return int(conn.exec_driver_sql(_NEXT_RECEIPT, (RECEIPT_FLOOR,)).scalar_one())


def knows_receipt(conn: Connection, number: int, statement: bytes) -> bool:
    """Tell whether this journal wrote that very receipt, or was recovered when it was there already."""
    found = conn.execute(select(receipts.c.statement).where(receipts.c.no == number)).scalar_one_or_none()
    if found is not None and bytes(found) == statement:
        return True
    return number <= int(journal.mark(conn, RECEIPT_FLOOR) or 0)


def put_receipt(conn: Connection, no: int, run: str, statement: bytes, claim: Claim | None = None) -> None:
    """Store a signed receipt that waits to be sent, and what it will prove when it is."""
    sql = "INSERT INTO training_receipts (no, run, statement, sent) VALUES (?, ?, ?, 0)"
    conn.exec_driver_sql(sql, (no, run, statement))
    if claim is not None:
        conn.execute(insert(claims).values(no=no, minimum=claim.minimum, cohort=claim.cohort))


def unsent_receipts(conn: Connection, limit: int) -> list[tuple[int, bytes, Claim | None]]:
    """Return the oldest receipts that were not handed to the link yet, with what they have to prove."""
    joined = receipts.outerjoin(claims, claims.c.no == receipts.c.no)
    query = select(receipts.c.no, receipts.c.statement, claims.c.minimum, claims.c.cohort).select_from(joined)
    rows = conn.execute(query.where(receipts.c.sent.is_(False)).order_by(receipts.c.no).limit(limit))
    return [
        (int(no), bytes(data), None if minimum is None else Claim(int(minimum), int(cohort)))
        for no, data, minimum, cohort in rows
    ]


def prove_receipt(conn: Connection, no: int, statement: bytes) -> None:
    """Put the statement that proves what was claimed in the place of the one that only says it."""
    conn.execute(update(receipts).where(receipts.c.no == no, receipts.c.sent.is_(False)).values(statement=statement))
    conn.execute(delete(claims).where(claims.c.no == no))


def receipts_of(conn: Connection, run: str) -> list[bytes]:
    """Return the signed receipts of a run."""
    query = select(receipts.c.statement).where(receipts.c.run == run).order_by(receipts.c.no)
    return [bytes(data) for data in conn.execute(query).scalars()]


def closed_untold(conn: Connection, last_event: str) -> list[tuple[str, str]]:
    """Return (run, state) of closed runs whose last event is missing."""
    told = select(events.c.run).where(events.c.run == runs.c.run, events.c.kind == last_event).exists()
    query = select(runs.c.run, runs.c.state).where(runs.c.closed.is_(True), ~told)
    return [(str(run), str(state)) for run, state in conn.execute(query.order_by(runs.c.run))]


def mark_receipts_sent(conn: Connection, numbers: Sequence[int]) -> None:
    """Record that receipts were handed to the link."""
    conn.execute(update(receipts).where(receipts.c.no.in_(numbers)).values(sent=True))


def find_question(conn: Connection, run: str, seq: int) -> QuestionRow | None:
    """Return a recorded question."""
    row = conn.execute(select(questions).where(questions.c.run == run, questions.c.seq == seq)).one_or_none()
    return None if row is None else QuestionRow(*row)


def put_question(conn: Connection, row: QuestionRow) -> None:
    """Record a question before anybody hears it."""
    conn.exec_driver_sql(_PUT_QUESTION, tuple(_columns(row).values()))


def list_questions(conn: Connection, run: str) -> list[QuestionRow]:
    """Return a run's questions in order."""
    return [QuestionRow(*row) for row in conn.execute(select(questions).where(questions.c.run == run).order_by("seq"))]


def last_question_seq(conn: Connection, run: str) -> int:
    """Return the number of the last recorded question, -1 if there is none."""
    query = select(func.max(questions.c.seq)).where(questions.c.run == run)
    last = conn.execute(query).scalar_one()
    return -1 if last is None else int(last)


def close_question(conn: Connection, run: str, seq: int) -> None:
    """Record that a question takes no more answers."""
    conn.execute(update(questions).where(questions.c.run == run, questions.c.seq == seq).values(state=CLOSED))


def put_answer(conn: Connection, row: AnswerRow) -> None:
    """Record an answer; the first one counts."""
    conn.exec_driver_sql(_PUT_ANSWER, tuple(_columns(row).values()))


def list_answers(conn: Connection, run: str, seq: int | None = None) -> list[AnswerRow]:
    """Return the answers of a run, or to one question, sorted by question and organisation."""
    query = select(answers).where(answers.c.run == run).order_by(answers.c.seq, answers.c.org)
    if seq is not None:
        query = query.where(answers.c.seq == seq)
    return [AnswerRow(*row) for row in conn.execute(query)]


def list_outcomes(conn: Connection, run: str) -> dict[tuple[int, str], str]:
    """Return the outcome of every recorded answer of a run, by (question, organisation)."""
    rows = conn.execute(select(answers.c.seq, answers.c.org, answers.c.outcome).where(answers.c.run == run))
    return {(int(seq), str(org)): str(outcome) for seq, org, outcome in rows}


def put_result(conn: Connection, row: ResultRow, recipients: Sequence[str]) -> None:
    """Record a result of our own run and to whom it is owed."""
    conn.execute(upsert(results).values(**_columns(row)).on_conflict_do_nothing())
    for org in recipients:
        conn.execute(upsert(copies).values(run=row.run, org=org, acked=False).on_conflict_do_nothing())


def unconfirmed_results(conn: Connection) -> list[tuple[ResultRow, list[str]]]:
    """Return our results that somebody has not confirmed, with those organisations."""
    pending = select(copies.c.run, copies.c.org).where(copies.c.acked.is_(False)).order_by(copies.c.run, copies.c.org)
    by_run: dict[str, list[str]] = {}
    for run, org in conn.execute(pending.limit(UNCONFIRMED_MAX)):
        by_run.setdefault(run, []).append(org)
    rows = conn.execute(select(results).where(results.c.run.in_(by_run)))
    return [(found, by_run[found.run]) for found in (ResultRow(*row) for row in rows)]


def confirm_result(conn: Connection, run: str, org: str) -> str | None:
    """Record that a recipient keeps a result; returns the file of the sealed form once nobody awaits it any more."""
    conn.execute(update(copies).where(copies.c.run == run, copies.c.org == org).values(acked=True))
    awaited = select(func.count()).select_from(copies).where(copies.c.run == run, copies.c.acked.is_(False))
    if conn.execute(awaited).scalar_one():
        return None
    file = conn.execute(select(results.c.file).where(results.c.run == run)).scalar_one_or_none()
    conn.execute(update(results).where(results.c.run == run).values(file=None, inline=None))
    return None if file is None else str(file)


def put_event(conn: Connection, run: str, at: str, kind: str, body: str) -> None:
    """Append an event to a run's story, under the next number."""
    conn.exec_driver_sql(_PUT_EVENT, (run, run, at, kind, body))


def list_events(conn: Connection, run: str, after_no: int, limit: int) -> list[tuple[int, str, str, str]]:
    """Return (number, instant, kind, body as JSON text) of a run's events behind `after_no`."""
    query = select(events.c.no, events.c.at, events.c.kind, events.c.body)
    query = query.where(events.c.run == run, events.c.no > after_no).order_by(events.c.no).limit(limit)
    return [(int(no), at, kind, body) for no, at, kind, body in conn.execute(query)]


def files_of(conn: Connection, run: str) -> list[str]:
    """Return the names of all payload files of a run's orders, questions and answers."""
    names: set[str] = set()
    for table in (orders, questions, answers):
        query = select(table.c.file).where(table.c.run == run, table.c.file.is_not(None))
        names.update(name for (name,) in conn.execute(query))
    return sorted(names.union(sum_store.files_of(conn, run)))


def forget_work(conn: Connection, run: str) -> None:
    """Drop a closed run's questions and answers, and the payloads of its orders; orders themselves stay on record."""
    for table in (questions, answers, refusals):
        conn.execute(delete(table).where(table.c.run == run))
    sum_store.forget(conn, run)
    conn.execute(update(orders).where(orders.c.run == run).values(inline=None, file=None, reply=None, acked=True))


def _columns(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _names(table: Table) -> str:
    return ", ".join(column.name for column in table.columns)


def _insert(table: Table) -> str:
    marks = ", ".join("?" for _ in table.columns)
    return f"INSERT INTO {table.name} ({_names(table)}) VALUES ({marks})"  # noqa: S608 - names of our own tables


# What every order needs, as text: building the same expressions anew costs more than SQLite takes to answer them.
_FIND_RUN = f"SELECT {_names(runs)} FROM training_runs WHERE run = ?"  # noqa: S608 - names of our own tables
_FIND_ORDER = f"SELECT {_names(orders)} FROM training_orders WHERE run = ? AND seq = ?"  # noqa: S608 - as above
_START_ORDER = _insert(orders)
_FINISH_ORDER = (
    "UPDATE training_orders SET state = 'finished', outcome = ?, reply = ?, inline = ?, file = ?, size_bytes = ?,"
    " acked = ? WHERE run = ? AND seq = ? AND state = 'started'"
)
_PUT_QUESTION = _insert(questions)
_PUT_ANSWER = _insert(answers) + " ON CONFLICT DO NOTHING"
_NEXT_RECEIPT = (
    "SELECT 1 + max((SELECT coalesce(max(no), 0) FROM training_receipts),"
    " coalesce((SELECT CAST(value AS INTEGER) FROM journal_marks WHERE name = ?), 0))"
)
_FIND_REFUSAL = "SELECT reply FROM training_refusals WHERE order_digest = ?"
_SPENT = "SELECT field, spent FROM training_grants WHERE agreement = ?"
_SPEND = (
    "INSERT INTO training_grants (agreement, field, spent) VALUES (?, ?, ?) "
    "ON CONFLICT (agreement, field) DO UPDATE SET spent = spent + excluded.spent"
)
_AROUND = (
    "SELECT (SELECT max(round) FROM training_orders WHERE run = ? AND word = ? AND seq < ?),"
    " (SELECT min(round) FROM training_orders WHERE run = ? AND word = ? AND seq > ?),"
    " (SELECT count(*) FROM training_orders WHERE run = ? AND word = ? AND round = ?),"
    " EXISTS (SELECT 1 FROM training_orders WHERE run = ?)"
)
_PUT_EVENT = (
    "INSERT INTO training_events (run, no, at, kind, body)"
    " VALUES (?, (SELECT coalesce(max(no), 0) + 1 FROM training_events WHERE run = ?), ?, ?, ?)"
)
