"""What appending to the ledger costs: `bench_ledger.py [--entries 2000] [--repeat 3] [--databases sqlite postgresql]`.

Rows `{database, writers, appends_per_s, integrated_per_s, raw_batched_insert_per_s, ratio, integrated_ratio, p95_ms,
verify_entries_per_s, …}` in `benchmarks/out/ledger.json`:
* `appends_per_s`: signed statements of about 600 bytes, from the first append to the commit of the last one, which is
  where an append is acknowledged: it is durable and will be entered, whatever dies. Appended by `writers` processes
  (SQLite: by the one thread that it has, which sequences in between), `rows_per_commit` in a transaction, while a
  sequencer in a process of its own works on the same queue; `ratio` is of this;
* `integrated_per_s`: the same, to the checkpoint that covers the last one, with indexes, tiles, signed checkpoints and
  inclusion proofs. This is what the log bears for ever; more than this for a while makes the queue longer;
* `raw_batched_insert_per_s`: what the ledger leaves behind (the statement's row and the entry's row, the same bytes,
  the same indexes), written into copies of its tables by as many processes with as many rows in a commit, by psycopg
  or sqlite3 in statements of many rows, under the same `synchronous_commit`; nothing is hashed, queued or proved;
* `raw_arrays_per_s` (PostgreSQL): the same rows in the form that the ledger itself uses, one array for each column;
  `ratio_to_arrays` and `integrated_ratio_to_arrays` are of this;
* `p95_ms`: of a transaction that appends `rows_per_commit` statements;
* `cpu_us`: processor time of one append, all processes of ours and the database's; with the load beside it, because
  others use this machine's cores too;
* `signature_us`: checking one statement's signature at the ingress, which neither figure contains;
* `verify_entries_per_s`: `comity ledger verify` of an export of receipts, every signature checked, with all cores: the
  median of `verify_runs`.

Runs of both kinds take turns and the medians count. PostgreSQL is started for this: fsync and full_page_writes on,
`synchronous_commit = on`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ledger_export
from sqlalchemy import Connection, MetaData, func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from harness import postgres

from comity_coordinator.db import Database, open_database
from comity_coordinator.ledger import store
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.migrations import schema
from comity_crypto.keys import OrgKeys
from comity_crypto.merkle import leaf_hash
from comity_crypto.notes import sign_note
from comity_crypto.statements import Statement, sign_statement, verify_statement

OUT = Path(__file__).parent / "out" / "ledger.json"
TARGETS = {"ratio": 0.5, "sqlite_appends_per_s": 3_000, "verify_entries_per_s": 15_000}
ROWS_PER_COMMIT = 64
VERIFIED_TURNS = 7
WRITERS = {"sqlite": 1, "postgresql": 8}
LOG = "bench.example/demo"
WAIT_S = 300.0
_ARRAYS = {str: "text", bytes: "bytea", int: "bigint"}


class Nowhere:
    """Proofs are made and not sent: sending is what `bench_negotiation.py` measures."""

    def enqueue(self, conn: Connection, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        """Drop it."""

    enqueue_all = register = enqueue  # type: ignore[assignment]


@dataclass(slots=True)
class Took:
    """What one process measured; times in seconds."""

    began: float
    ended: float
    cpu_s: float
    waits_s: list[float]
    # Of one that appends and then sequences what is left: when it had appended all.
    appended: float | None = None


def corpus(writer: int, count: int) -> list[Statement]:
    """Return signed statements as receipts are: about 600 bytes, no two alike."""
    keys = OrgKeys.generate()
    body = {"agreement": "ab" * 32, "run": "run-1", "order": "cd" * 32, "result": "ef" * 32, "holds": "cohort >= 10"}
    return [
        sign_statement(
            keys, kind="receipt", consortium="demo", issuer=f"org-{writer:02d}", body={**body, "n": n, "w": writer}
        )
        for n in range(count)
    ]


def ledger() -> Ledger:
    """Return the log, with keys of its own."""
    keys = OrgKeys.generate()
    return Ledger("demo", LOG, lambda text: sign_note(text, LOG, keys), Nowhere())  # type: ignore[arg-type]


def _append(url: str, writer: int, count: int, start: Any, out: Any) -> None:
    said, log, database = corpus(writer, count), ledger(), open_database(url)
    database.transact(lambda conn: store.has(conn, "0"))  # connected
    start.wait()
    out.put(_timed(said, lambda batch: database.transact(lambda conn: log.append_all(conn, batch))))
    database.close()


def _raw(url: str, writer: int, count: int, arrays: bool, start: Any, out: Any) -> None:
    said, database = corpus(writer, count), open_database(url)
    rows = raw_rows(writer * count, said)
    raw = database.engine.raw_connection()
    sqlite = database.engine.dialect.name == "sqlite"
    start.wait()
    out.put(_timed(rows, lambda batch: insert_raw(raw, batch, sqlite=sqlite, arrays=arrays)))
    raw.close()
    database.close()


def _timed(items: list[Any], write: Callable[[list[Any]], Any]) -> Took:
    cpu, began, waits = time.process_time(), time.monotonic(), []
    for first in range(0, len(items), ROWS_PER_COMMIT):
        at = time.monotonic()
        write(items[first : first + ROWS_PER_COMMIT])
        waits.append(time.monotonic() - at)
    return Took(began, time.monotonic(), time.process_time() - cpu, waits)


def _sequence(url: str, total: int, start: Any, out: Any) -> None:
    log, database = ledger(), open_database(url)
    database.transact(lambda conn: store.has(conn, "0"))
    start.wait()
    cpu, began, done = time.process_time(), time.monotonic(), 0
    while done < total and time.monotonic() < began + WAIT_S:
        found = database.transact(lambda conn: log.integrate(conn, "bench"))
        done += found
        if not found:
            time.sleep(0.005)
    out.put(Took(began, time.monotonic(), time.process_time() - cpu, []))
    database.close()


def raw_rows(first: int, said: list[Statement]) -> list[tuple[Any, ...]]:
    """Return for each statement its row and its entry's row, as the ledger would leave them."""
    return [
        (
            (each.digest, each.kind, each.issuer, each.to_bytes(), each.issued_at),
            (first + n, each.digest, leaf_hash(each.to_bytes()), each.kind),
        )
        for n, each in enumerate(said)
    ]


def insert_raw(raw: Any, batch: list[Any], *, sqlite: bool, arrays: bool = False) -> None:
    """Insert a batch into both tables and commit: two statements of many rows."""
    cursor, mark = raw.cursor(), "?" if sqlite else "%s"
    if sqlite:
        cursor.execute("BEGIN IMMEDIATE")
    for table, rows in (("raw_statements", [row[0] for row in batch]), ("raw_entries", [row[1] for row in batch])):
        if arrays:
            columns = list(zip(*rows, strict=True))
            marks = ",".join(f"%s::{_ARRAYS[type(each[0])]}[]" for each in columns)
            sent = [list(each) if type(each[0]) is int else store.array_text(each) for each in columns]
            cursor.execute(f"INSERT INTO {table} SELECT * FROM unnest({marks})", sent)
            continue
        values = ",".join(["(" + ",".join([mark] * len(rows[0])) + ")"] * len(rows))
        cursor.execute(f"INSERT INTO {table} VALUES {values}", [value for row in rows for value in row])
    cursor.execute("COMMIT") if sqlite else raw.commit()


def _together(works: list[tuple[Any, ...]]) -> list[Took]:
    """Run each (function, *arguments) in a process of its own, all from the same moment on."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(len(works)), context.Queue()
    running = [context.Process(target=work[0], args=(*work[1:], start, out)) for work in works]
    for process in running:
        process.start()
    found = [out.get(timeout=WAIT_S) for _ in running]
    for process in running:
        process.join(WAIT_S)
    return found


def _fresh(url: str) -> Database:
    database = open_database(url)
    schema.prepare(database)
    copy = MetaData()
    for table in (store.statements, store.entries):
        made = table.to_metadata(copy, name=table.name.replace("ledger_", "raw_"))
        for index in made.indexes:
            index.name = f"raw_{index.name}"
    with database.engine.begin() as conn:
        copy.create_all(conn)
    return database


def ours(url: str, writers: int, count: int, server: int | None) -> tuple[float, float, float, float]:
    """Return (appends, p95 of a transaction in ms, processor time of an append in us, integrated): rates a second."""
    before = _cpu_of(server)
    if url.startswith("sqlite"):
        took = _alone(url, count)
    else:
        works = [(_append, url, writer, count) for writer in range(writers)]
        took = _together([*works, (_sequence, url, writers * count)])
    total = writers * count
    began = min(each.began for each in took)
    whole = max(each.ended for each in took) - began
    acknowledged = max(each.appended or each.ended for each in took if each.waits_s) - began
    waits = sorted(wait for each in took for wait in each.waits_s)
    cpu = sum(each.cpu_s for each in took) + _cpu_of(server) - before
    return total / acknowledged, waits[int(len(waits) * 0.95)] * 1e3, cpu / total * 1e6, total / whole


def _alone(url: str, count: int) -> list[Took]:
    """SQLite has one writer at a time, and the coordinator one thread for it: it appends, and sequences in between."""
    said, log, database = corpus(0, count), ledger(), open_database(url)
    database.transact(lambda conn: store.has(conn, "0"))

    def write(batch: list[Statement]) -> None:
        database.transact(lambda conn: log.append_all(conn, batch))
        if write.batches % 4 == 3:  # type: ignore[attr-defined]
            database.transact(lambda conn: log.integrate(conn, "bench"))
        write.batches += 1  # type: ignore[attr-defined]

    write.batches = 0  # type: ignore[attr-defined]
    took = _timed(said, write)
    took.appended = took.ended
    while database.transact(lambda conn: log.integrate(conn, "bench")):
        pass
    took.ended = time.monotonic()
    left = database.transact(lambda conn: conn.execute(select(func.count()).select_from(store.entries)).scalar_one())
    assert left == count
    database.close()
    return [took]


def raw(url: str, writers: int, count: int, *, arrays: bool = False) -> float:
    """Return rows a second of the raw insert."""
    took = _together([(_raw, url, writer, count, arrays) for writer in range(writers)])
    return writers * count / (max(each.ended for each in took) - min(each.began for each in took))


def _cpu_of(server: int | None) -> float:
    """Processor time of a PostgreSQL with its living and its ended children, in seconds."""
    if server is None:
        return 0.0
    ticks, total = os.sysconf("SC_CLK_TCK"), 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(entry.name) == server:
            total += sum(int(each) for each in fields[11:15])
        elif int(fields[1]) == server:
            total += int(fields[11]) + int(fields[12])
    return total / ticks


def _row(backend: str, server: postgres.PostgresServer | None, folder: Path, options: Any) -> dict[str, Any]:
    writers, figures, raws, others = WRITERS[backend], [], [], []
    loads = [os.getloadavg()[0]]
    for turn in range(options.repeat):
        if server is None:
            url = f"sqlite:///{folder / f'{turn}.db'}"
        else:
            server.create_database(f"bench{turn}")
            url = server.url(f"bench{turn}")
        count = options.entries if server else options.entries * 4
        _fresh(url).close()
        raws.append(raw(url, writers, count))
        figures.append(ours(url, writers, count, server.process.pid if server and server.process else None))
        if server:
            # In tables of its own: in those of the first they would stand twice.
            server.create_database(f"arrays{turn}")
            _fresh(server.url(f"arrays{turn}")).close()
            others.append(raw(server.url(f"arrays{turn}"), writers, count, arrays=True))
        loads.append(os.getloadavg()[0])
    appends, bare = statistics.median(each[0] for each in figures), statistics.median(raws)
    return {
        "database": backend,
        "writers": writers,
        "appends_per_s": round(appends),
        "integrated_per_s": round(statistics.median(each[3] for each in figures)),
        "raw_batched_insert_per_s": round(bare),
        "ratio": round(statistics.median(a[0] / b for a, b in zip(figures, raws, strict=True)), 2),
        "integrated_ratio": round(statistics.median(a[3] / b for a, b in zip(figures, raws, strict=True)), 2),
        **_to_arrays(figures, others),
        "p95_ms": round(statistics.median(each[1] for each in figures), 1),
        "cpu_us": round(statistics.median(each[2] for each in figures)),
        "rows_per_commit": ROWS_PER_COMMIT,
        "bytes": len(corpus(0, 1)[0].to_bytes()),
        "load": [round(min(loads), 1), round(max(loads), 1)],
    }


def _to_arrays(figures: list[tuple[float, float, float, float]], others: list[float]) -> dict[str, Any]:
    if not others:
        return {}
    return {
        "raw_arrays_per_s": round(statistics.median(others)),
        "ratio_to_arrays": round(statistics.median(a[0] / b for a, b in zip(figures, others, strict=True)), 2),
        "integrated_ratio_to_arrays": round(
            statistics.median(a[3] / b for a, b in zip(figures, others, strict=True)), 2
        ),
    }


def _signature_us() -> float:
    said = corpus(0, 2_000)
    keys = OrgKeys.generate()
    said = [sign_statement(keys, kind="receipt", consortium="demo", issuer="alpha", body=each.body) for each in said]
    cpu = time.process_time()
    for each in said:
        verify_statement(each, keys.public.statement)
    return round((time.process_time() - cpu) / len(said) * 1e6)


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=2_000, help="statements of each writer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--verified", type=int, default=30_000, help="entries of the export")
    parser.add_argument("--databases", nargs="+", default=list(WRITERS))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    verified = ledger_export.measure(options.verified, VERIFIED_TURNS)
    with tempfile.TemporaryDirectory(prefix="comity-bench-") as name:
        for backend in options.databases:
            if backend == "sqlite":
                rows.append(_row(backend, None, Path(name), options))
                continue
            if postgres.installed() is None:
                print("PostgreSQL is not installed: no row of it")
                continue
            server = postgres.PostgresServer()
            server.start(die_with_me=True)
            try:
                rows.append(_row(backend, server, Path(name), options))
            finally:
                server.stop()
    for row in rows:
        row.update(verified, signature_us=_signature_us())
        print(json.dumps(row))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"targets": TARGETS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
