"""Shares of collective keys at rest: kept whole, private, used once, erased; and boxes that carry them."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.frame.boxes import BOX_KEY_BYTES, BoxKey
from comity_crypto.secagg.threshold import ceremony
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_crypto.secagg.threshold.boxes import box_bytes, open_dealt, seal_dealt
from comity_crypto.secagg.threshold.keys import dealt_bytes
from comity_crypto.secagg.threshold.messages import KeyPlan, ThresholdOffer
from comity_crypto.secagg.threshold.workers import share_piece_bytes
from comity_node.journal import Journal
from comity_node.training.profiles import threshold_store
from comity_node.training.profiles.threshold_keeping import KeyKeeping
from comity_node.training.profiles.threshold_part import quorum_of
from comity_policies.terms import Terms

ORGS = ("org-00", "org-01", "org-02")
KEYS = ("1" * 64, "2" * 64)
OTHER = "f" * 64
PLAN = KeyPlan("agr-1", "run-1", 0, ORGS[0], ORGS, 2, AGG_Q16.name, AGG_Q16.digest, 2)
BATCH = KeyBatch(PLAN, KEYS, "a" * 64)
PUBLIC = [bytes([index]) * AGG_Q16.key_bytes for index in range(2)]
SHARES = [bytes([index + 7]) * share_piece_bytes(AGG_Q16) for index in range(2)]


def offer(**changes: Any) -> ThresholdOffer:
    base = ThresholdOffer(
        agreement="agr-1",
        run="run-1",
        step="train",
        round=1,
        attempt=0,
        lead=ORGS[0],
        parties=ORGS,
        minimum=3,
        parameters=AGG_Q16.name,
        parameters_digest=AGG_Q16.digest,
        key_id=KEYS[0],
        order_digest=OTHER,
        chunks=1,
        ceremony=PLAN.digest,
        transcript=BATCH.transcript,
        holders=ORGS,
        threshold=2,
        openers=ORGS[:1],
        box_key=bytes(BOX_KEY_BYTES),
    )
    return replace(base, **changes)


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[KeyKeeping]:
    journal = Journal.open(tmp_path / "journal.db")
    journal.create_all()
    folder = tmp_path / "payloads"
    folder.mkdir(mode=0o700)
    made = KeyKeeping(journal, folder)
    await made.put(BATCH, PUBLIC, SHARES)
    yield made
    journal.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "payloads").iterdir())


async def test_a_key_comes_back_once_and_is_private(keeping: KeyKeeping, tmp_path: Path) -> None:
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)] == [0o600, 0o600]
    assert [key for _, key in await keeping.fresh("run-1")] == list(KEYS)
    assert (await keeping.fresh("run-1"))[0][0] == BATCH
    held = await keeping.take(offer())
    assert (held.public, held.share, held.batch) == (PUBLIC[0], SHARES[0], BATCH)
    assert "\\x07" not in repr(held)
    assert [key for _, key in await keeping.fresh("run-1")] == [KEYS[1]]
    for again in (offer(), offer(round=2), offer(attempt=1)):
        with pytest.raises(ComityError) as caught:
            await keeping.take(again)
        assert caught.value.code is ErrorCode.ORDER_REPLAYED


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"agreement": "agr-2"}, "agreement"),
        ({"run": "run-2"}, "run"),
        ({"lead": "org-01", "openers": ("org-01",)}, "lead"),
        ({"ceremony": OTHER}, "ceremony"),
        ({"transcript": OTHER}, "transcript"),
        ({"holders": (*ORGS, "org-03")}, "holders"),
        ({"threshold": 3}, "threshold"),
    ],
)
async def test_an_offer_that_is_not_the_ceremonys_takes_nothing(
    keeping: KeyKeeping, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ComityError) as caught:
        await keeping.take(offer(**change))
    assert caught.value.code is ErrorCode.ROSTER_MISMATCH
    assert caught.value.facts["field"] == field
    assert len(await keeping.fresh("run-1")) == 2


async def test_an_unknown_key_is_refused(keeping: KeyKeeping) -> None:
    with pytest.raises(ComityError) as caught:
        await keeping.take(offer(key_id=OTHER))
    assert caught.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(ComityError):
        BATCH.check_offer(offer(key_id=OTHER))


async def test_an_erased_key_is_overwritten_gone_and_never_taken(keeping: KeyKeeping, tmp_path: Path) -> None:
    await keeping.take(offer())
    path = files(tmp_path)[0]
    held_open = os.open(path, os.O_RDONLY)
    await keeping.erase(KEYS[0])
    await keeping.erase(KEYS[0])
    assert not path.exists()
    assert not any(os.pread(held_open, 1 << 20, 0)), "who had it open reads zeros"
    os.close(held_open)
    await keeping.erase(KEYS[1])
    with pytest.raises(ComityError) as caught:
        await keeping.take(offer(key_id=KEYS[1]))
    assert caught.value.code is ErrorCode.ORDER_REPLAYED
    assert files(tmp_path) == []


async def test_what_a_dead_process_took_is_erased_and_the_rest_stays(keeping: KeyKeeping, tmp_path: Path) -> None:
    await keeping.take(offer())
    later = KeyKeeping(keeping._journal, tmp_path / "payloads")
    assert await later.sweep() == 1
    assert await later.sweep() == 0
    assert [path.name for path in files(tmp_path)] == [f"key-{KEYS[1]}"]
    assert (await later.take(offer(key_id=KEYS[1]))).share == SHARES[1]


async def test_files_that_no_journal_names_are_erased(keeping: KeyKeeping, tmp_path: Path) -> None:
    (tmp_path / "payloads" / f"key-{OTHER}").write_bytes(b"of a process that died before it could record it")
    assert await keeping.sweep() == 1
    assert len(files(tmp_path)) == 2
    await keeping._journal.run(threshold_store.forget_all)  # a recovered node
    assert await keeping.sweep() == 2
    assert files(tmp_path) == []
    with pytest.raises(ComityError):
        await keeping.take(offer())


async def test_a_file_that_is_gone_or_cut_is_named(keeping: KeyKeeping, tmp_path: Path) -> None:
    first, second = files(tmp_path)
    first.unlink()
    second.write_bytes(b"short")
    for key_id in KEYS:
        with pytest.raises(ComityError) as caught:
            await keeping.take(offer(key_id=key_id))
        assert caught.value.code is ErrorCode.PAYLOAD_MISSING


async def test_a_batch_that_cannot_be_recorded_leaves_no_file(keeping: KeyKeeping, tmp_path: Path) -> None:
    more = replace(BATCH, keys=("3" * 64, KEYS[1]), transcript=OTHER)
    with pytest.raises(ComityError) as caught:
        await keeping.put(more, PUBLIC, SHARES)
    assert caught.value.code is ErrorCode.CONFLICT
    assert [path.name for path in files(tmp_path)] == [f"key-{key}" for key in KEYS]
    assert (await keeping.take(offer(key_id=KEYS[1]))).share == SHARES[1], "and touches none that was there"
    with pytest.raises(ComityError):
        await keeping.put(replace(BATCH, keys=("4" * 64,)), PUBLIC, SHARES)


async def test_a_forgotten_run_leaves_nothing(keeping: KeyKeeping, tmp_path: Path) -> None:
    await keeping.forget("run-2")
    assert len(await keeping.fresh("run-1")) == 2
    await keeping.forget("run-1")
    assert await keeping.fresh("run-1") == []
    assert files(tmp_path) == []


def test_a_batch_is_of_a_ceremony_that_ended_well() -> None:
    assert KeyBatch.from_json(BATCH.to_json()) == BATCH
    state, _ = ceremony.start(ORGS[0], PLAN, box_key=BoxKey().public, entropy=os.urandom, now=0.0)
    with pytest.raises(ComityError):
        KeyBatch.of(state)


def test_a_box_opens_at_its_receiver_in_its_place_only() -> None:
    private, dealt = BoxKey(), os.urandom(2 * dealt_bytes(AGG_Q16))
    box = seal_dealt(PLAN, "org-00", "org-01", private.public, dealt)
    assert len(box) == box_bytes(PLAN)
    assert open_dealt(PLAN, "org-00", "org-01", private, box) == dealt
    changed = bytearray(box)
    changed[-20] ^= 1
    head = bytearray(box)
    head[5] ^= 1
    attempts = [
        (PLAN, "org-02", "org-01", private, box),
        (PLAN, "org-00", "org-02", private, box),
        (replace(PLAN, number=1), "org-00", "org-01", private, box),
        (PLAN, "org-00", "org-01", BoxKey(), box),
        (PLAN, "org-00", "org-01", private, bytes(changed)),
        (PLAN, "org-00", "org-01", private, bytes(head)),
        (PLAN, "org-00", "org-01", private, box[:-1]),
        (PLAN, "org-00", "org-01", private, b""),
    ]
    for plan, sender, receiver, key, data in attempts:
        with pytest.raises(ComityError) as caught:
            open_dealt(plan, sender, receiver, key, data)
        assert caught.value.code is ErrorCode.SEAL_BROKEN
        assert caught.value.facts["org"] == sender


@pytest.mark.parametrize(
    ("parties", "named", "quorum"),
    [(3, None, 3), (4, None, 3), (10, None, 7), (3, 2, 2), (3, 1, 2), (4, 4, 4), (10, 2, 6), (10, 9, 9)],
)
def test_the_quorum_is_what_the_terms_name_and_a_majority_at_least(
    parties: int, named: int | None, quorum: int
) -> None:
    terms = Terms.parse({"aggregation": "threshold", **({} if named is None else {"release_quorum": named})})
    asked = SimpleNamespace(parties=tuple(f"org-{place:02d}" for place in range(parties)), terms=terms)
    assert quorum_of(asked) == quorum  # type: ignore[arg-type]
