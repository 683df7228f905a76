"""The library in processes of its own: exact on the curve, named refusals for hostile points, and for its own death."""

import asyncio

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import NORMALISATIONS, domain, own_set, scalar
from comity_crypto.psi.matching import common, own_rows, sorted_places
from comity_crypto.psi.messages import POINT_BYTES, ascending, points_of
from comity_crypto.psi.workers import PsiWorkers

PLACE = domain("a" * 64, "run-1", "match")
ONE, OTHER = scalar(b"1" * 32), scalar(b"2" * 32)


async def test_two_sets_on_the_curve():
    """Duplicates, spellings and empty identifiers; two processes for what is large enough."""
    workers = PsiWorkers(2)
    mine = ["anna", "BORIS", "", "zoë", "anna", "Nobody", *(f"only-mine-{number}" for number in range(30))]
    theirs = ["Zoe\u0308", " boris", "ANNA", "carl", "carl", *(f"only-theirs-{number}" for number in range(300))]
    own, other = (
        own_set(column, NORMALISATIONS, PLACE, secret * 32) for column, secret in ((mine, b"1"), (theirs, b"2"))
    )
    masked, masked_theirs = await asyncio.gather(workers.mask(ONE, own.elements), workers.mask(OTHER, other.elements))
    order, points = sorted_places(masked), points_of(masked)
    sent = b"".join(points[place] for place in order)
    assert sent == ascending(points)
    both, both_theirs = await asyncio.gather(workers.remask(OTHER, sent), workers.remask(ONE, masked_theirs))
    places = common(both, both_theirs)
    assert len(places) == 3
    assert own_rows(places, order, own) == [0, 1, 3, 4]
    assert not common(masked, masked_theirs), "under one key nothing is common"


async def test_padding_that_matches_is_a_lie():
    own = own_set(["anna"], NORMALISATIONS, PLACE, b"1" * 32)
    with pytest.raises(ComityError) as caught:
        own_rows([1], range(own.count), own)
    assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


async def test_a_large_job_is_split_and_keeps_its_order(monkeypatch):
    monkeypatch.setattr("comity_crypto.psi.workers._ITEMS_PER_PART_MIN", 100)
    elements = b"".join(bytes([number]) * 32 for number in range(201))
    split, whole = await asyncio.gather(PsiWorkers(2).mask(ONE, elements), PsiWorkers(1).mask(ONE, elements))
    assert split == whole
    assert len(split) == 201 * POINT_BYTES


async def test_hostile_points_and_a_worker_that_dies_or_lingers():
    good = await PsiWorkers().mask(ONE, bytes(32 * 3))
    cases = [
        (PsiWorkers(), good + b"\x02" + b"\xff" * 32, ErrorCode.CIPHERTEXT_INVALID),
        (PsiWorkers(), b"\x00" * POINT_BYTES + good * 3_000, ErrorCode.CIPHERTEXT_INVALID),
        (PsiWorkers(memory_bytes=1 << 16), good * 700, ErrorCode.WORKER_DIED),
        (PsiWorkers(module="comity_crypto.psi.nowhere"), good, ErrorCode.WORKER_DIED),
        (PsiWorkers(timeout_s=0.02), good, ErrorCode.WORKER_TIMEOUT),
    ]

    async def code_of(workers, points):
        with pytest.raises(ComityError) as caught:
            await workers.remask(ONE, points)
        return caught.value.code

    assert await asyncio.gather(*(code_of(workers, points) for workers, points, _ in cases)) == [
        code for _, _, code in cases
    ]


async def test_a_cancelled_job_leaves_no_process(monkeypatch):
    started = []
    start = asyncio.create_subprocess_exec

    async def seen(*command, **options):
        started.append(await start(*command, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", seen)
    job = asyncio.create_task(PsiWorkers().mask(ONE, bytes(32 * 50_000)))
    while not started:
        await asyncio.sleep(0.01)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert started[0].returncode is not None


async def test_sizes_that_are_our_own_mistake():
    for key, items in ((ONE, b"short"), (b"short", bytes(32))):
        with pytest.raises(ComityError) as caught:
            await PsiWorkers().mask(key, items)
        assert caught.value.code is ErrorCode.INTERNAL
