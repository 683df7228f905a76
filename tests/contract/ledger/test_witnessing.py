"""The coordinator's side of witnessing: who is asked about what and when, what counts, what an auditor makes of it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from comity.wire.errors import ComityError
from comity_coordinator.ledger import fsck, witness_store
from comity_coordinator.ledger.witnessing import CLOCK_SKEW_S, GIVEN_UP_S, PATIENT_S, ROUNDS_KEPT
from comity_crypto.notes import cosign_note, log_part, only_line
from comity_policies.charter import genesis_name
from comity_policies.history import verify_export


def cosign(world, org: str, *, keys: str = "", ahead_s: int = 0) -> Any:
    """Return a call that hands in a cosignature of what is asked now."""
    log = world.log
    found = log.db.transact(log.witnessing.notes)
    base = log_part(found.asked, world.charter.log_name)
    time_s = int(world.now().timestamp()) + ahead_s
    line = only_line(cosign_note(base, org, world.keys[keys or org], time_s), base)
    return lambda: log.db.transact(partial(log.witnessing.take, org=org, size=found.asked_size, line=line))


async def test_only_witnesses_count_with_their_own_key_and_a_clock_that_can_be(world) -> None:
    world.log.add(world.operator_says("run-closed", run="r"))
    world.log.ask()
    world.keys["stranger"] = world.keys["alpha"]
    refused = {
        "FORBIDDEN": cosign(world, "stranger"),
        "SIGNATURE_INVALID": cosign(world, "beta", keys="alpha"),
        "DEADLINE_PASSED": cosign(world, "beta", ahead_s=CLOCK_SKEW_S + 60),
    }
    for code, call in refused.items():
        with pytest.raises(ComityError, match=code):
            call()
    with pytest.raises(ComityError, match="NOT_FOUND"):
        world.log.db.transact(partial(world.log.witnessing.take, org="beta", size=99, line="x"))
    assert [cosign(world, org)() for org in ("beta", "beta", "gamma", "alpha", "delta")] == [
        False,
        False,
        False,
        True,
        True,
    ]


async def test_one_round_at_a_time_until_it_is_final_or_given_up(world) -> None:
    log = world.log
    assert log.db.transact(log.witnessing.due) == 0, "nothing is new"
    log.add(world.operator_says("run-closed", run="a"))
    assert log.db.transact(log.witnessing.due) == 2
    log.ask()
    log.add(world.operator_says("run-closed", run="b"))
    assert log.db.transact(log.witnessing.due) == 0, "the round before is open"
    world.pass_s(GIVEN_UP_S + 1)
    assert log.db.transact(log.witnessing.due) == 3
    assert not log.db.transact(witness_store.newest).final_at


async def test_words_of_a_negotiation_share_the_round_of_what_follows_them(world) -> None:
    log = world.log
    log.add(
        world.orgs["beta"].says("answer", proposal_digest="a"), world.orgs["beta"].says("answer", proposal_digest="b")
    )
    assert log.db.transact(log.witnessing.due) == 0, "an agreement may follow"
    log.add(world.operator_says("agreement", agreement="a"))
    assert log.db.transact(log.witnessing.due) == 4


async def test_words_of_a_negotiation_that_nothing_follows_wait_for_a_moment(world) -> None:
    log = world.log
    log.add(world.orgs["beta"].says("answer", proposal_digest="a"))
    world.pass_s(PATIENT_S - 1)
    log.add(world.orgs["beta"].says("answer", proposal_digest="b"))
    assert log.db.transact(log.witnessing.due) == 0
    world.pass_s(2)
    assert log.db.transact(log.witnessing.due) == 3, "the first of them has waited long enough"


async def test_old_rounds_are_forgotten_but_not_the_newest_final_one(world) -> None:
    for number in range(ROUNDS_KEPT + 6):
        world.log.add(world.operator_says("run-closed", run=str(number)))
        world.pass_s(GIVEN_UP_S + 1)
        world.log.ask()
    sizes = [each.size for each in world.log.db.transact(witness_store.all_rounds)]
    assert sizes[0] == 1, "the genesis is the newest that is final"
    for org in ("alpha", "beta", "gamma"):
        cosign(world, org)()
    world.log.add(world.operator_says("run-closed", run="last"))
    world.log.ask()
    sizes = [each.size for each in world.log.db.transact(witness_store.all_rounds)]
    assert len(sizes) == ROUNDS_KEPT
    assert world.log.db.transact(world.log.witnessing.notes).final_size == ROUNDS_KEPT + 7


@pytest.fixture
def export(world, tmp_path) -> Any:
    def write(change: Any = None) -> Any:
        lines = world.log.db.transact(lambda conn: list(world.log.ledger.export(conn)))
        header = json.loads(lines[0])
        if change is not None:
            change(header)
        path = tmp_path / "export.jsonl"
        path.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines[1:]))
        return verify_export(path, genesis_name(world.charter))

    return write


async def test_an_auditor_judges_finality_from_the_genesis_name_alone(world, export) -> None:
    (check,) = [each for each in export().checks if each.number == 12]
    assert (check.count, check.note.split(" since")[0]) == (1, "1 of 1 entries are final")

    def without(header: dict[str, Any]) -> None:
        del header["final"]

    (check,) = [each for each in export(without).checks if each.number == 12]
    assert (check.count, check.note) == (0, "nothing of 1 entries is known to be final")

    def too_few(header: dict[str, Any]) -> None:
        header["final"] = "".join(header["final"].splitlines(keepends=True)[:7])

    with pytest.raises(ComityError, match="obligation 12: 2 witnesses cosigned, and 3 make it final"):
        export(too_few)


async def test_fsck_checks_cosignatures(world) -> None:
    log, key = world.log, world.log_keys.public.statement

    def look() -> list[str]:
        return log.db.transact(lambda conn: fsck.check(conn, log.ledger, key))

    assert look() == []
    columns = witness_store.cosignatures.c
    line = cosign(world, "alpha")
    del line
    others = log.db.transact(lambda conn: witness_store.lines(conn, 1))
    swapped = others[0].replace(others[0][-20], "B" if others[0][-20] != "B" else "C")
    log.db.transact(
        lambda conn: conn.execute(
            update(witness_store.cosignatures).where(columns.line == others[0]).values(line=swapped)
        )
    )
    assert any("cosignatures" in each for each in look())
