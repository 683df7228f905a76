"""How long an intersection takes, by the number of identifiers on each side.

    python benchmarks/bench_intersection.py 10000 100000

Prints one JSON object a size: seconds of processor time for what each side does, so that a busy machine counts little,
and what crosses in megabytes. Half of the identifiers are common; the result is compared with the set intersection.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from comity_crypto.psi.identifiers import NORMALISATIONS, domain, own_set, scalar
from comity_crypto.psi.matching import common, own_rows, sorted_places
from comity_crypto.psi.messages import Kind, Message, ascending, message_of, points_of
from comity_crypto.psi.workers import PsiWorkers

T = TypeVar("T")
PLACE = domain("0" * 64, "run-0", "intersect")
ONE, OTHER = scalar(b"1" * 32), scalar(b"2" * 32)


async def _timed(row: dict[str, Any], name: str, work: Awaitable[T]) -> T:
    before = _child_cpu_s()
    try:
        return await work
    finally:
        row[name] = round(_child_cpu_s() - before, 2)


def _child_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def measure(keys: int) -> dict[str, Any]:
    """Intersect two sets of `keys` identifiers."""
    row: dict[str, Any] = {"keys": keys}
    workers = PsiWorkers(1)
    mine = own_set((f"person-{number}" for number in range(keys)), NORMALISATIONS, PLACE, b"1" * 32)
    half = range(keys // 2, keys // 2 + keys)
    theirs = own_set((f" Person-{number}" for number in half), NORMALISATIONS, PLACE, b"2" * 32)
    masked = await _timed(row, "mask_cpu_s", workers.mask(ONE, mine.elements))
    masked_theirs = ascending(points_of(await workers.mask(OTHER, theirs.elements)))
    doubled = ascending(points_of(await _timed(row, "mask_again_cpu_s", workers.remask(ONE, masked_theirs))))
    began = time.process_time()
    order, points = sorted_places(masked), points_of(masked)
    sent = b"".join(points[place] for place in order)
    question = Message(Kind.COMPARE, sent, doubled).to_bytes()
    asked = message_of(question, Kind.COMPARE)
    row["sort_and_check_cpu_s"] = round(time.process_time() - began, 2)
    matched = await workers.remask(OTHER, asked.first)
    places = common(matched, asked.second)
    rows = own_rows(places, order, mine)
    assert rows == list(range(keys // 2, keys)), "the result is not the intersection"
    row["to_partner_mb"] = round(len(question) / 1e6, 2)
    row["to_lead_mb"] = round((len(masked_theirs) + len(matched)) / 1e6, 2)
    return row


async def main(sizes: list[int]) -> None:
    """Print one row for each size."""
    for keys in sizes:
        print(json.dumps(await measure(keys)), flush=True)


if __name__ == "__main__":
    asyncio.run(main([int(each) for each in sys.argv[1:]] or [10_000]))
