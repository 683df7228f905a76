"""What a lying operator can do to the ledger, and which honest node sees it (docs/ledger.md has the table)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from comity.wire import canonical, instants
from comity_crypto.notes import verify_note
from comity_node.ledger import following, incidents, pointers
from comity_node.ledger.following import WITHHELD_AFTER_S
from comity_node.transport.model import Message
from comity_policies.incidents import INCIDENT

Log = Any


def another_log(world, name: str, *entries) -> Log:
    """Return a history of the operator's making, signed like the true one."""
    return type(world.log)(world, name, entries)


async def test_honest_work_is_final_everywhere_and_nobody_complains(world) -> None:
    alpha = world.orgs["alpha"]
    world.log.add(alpha.says("proposal", number=1), world.operator_says("run-closed", run="r"))
    await world.settle()
    for org in world.orgs.values():
        assert (org.final(), org.stops(), org.may_work(), org.seen()) == (3, [], "", [])
        assert b"cosignature" not in org.seal()
        assert org.seal().count("\u2014".encode()) >= 1 + world.charter.witnesses.k


async def test_two_of_four_witnesses_make_nothing_final(world) -> None:
    world.log.add(world.operator_says("run-closed", run="r"))
    world.log.ask()
    for org in ("alpha", "beta", "alpha", "beta"):
        await world.orgs[org].look()
    assert [world.orgs[org].final() for org in ("alpha", "beta")] == [1, 1]
    await world.orgs["gamma"].look()
    await world.orgs["alpha"].look()
    assert world.orgs["alpha"].final() == 2


async def test_a_rewritten_entry_is_seen(world) -> None:
    victim = world.orgs["alpha"]
    old = world.operator_says("run-closed", run="r", state="FAILED")
    world.log.add(old)
    await world.settle()
    new = world.operator_says("run-closed", run="r", state="FINISHED")
    forged = another_log(world, "forged", world.genesis, new, world.operator_says("run-closed", run="s"))
    forged.ask()
    victim.log = forged
    await victim.look()
    assert victim.seen() == [("rewrite", 2)]
    assert victim.may_work() == "LEDGER_INVALID"
    evidence = victim.journal.transact(incidents.listed)[0].incident.evidence
    both = [verify_note(note, world.charter.log_name, world.log_keys.public.statement) for note in evidence]
    assert [each.size for each in both] == [2, 3]
    assert forged.db.transact(forged.witnessing.notes).asked.count("\u2014") == 1, "the witness did not cosign"


async def test_a_rewritten_entry_in_a_log_of_the_same_size_is_a_fork(world) -> None:
    victim = world.orgs["beta"]
    world.log.add(world.operator_says("run-closed", run="r", state="FAILED"))
    await world.settle()
    victim.log = another_log(world, "forged", world.genesis, world.operator_says("run-closed", run="r", state="OK"))
    await victim.look()
    assert victim.seen() == [("fork", 2)]


async def test_a_dropped_entry_is_seen(world) -> None:
    entries = [world.operator_says("run-closed", run=str(number)) for number in range(4)]
    world.log.add(*entries)
    await world.settle()
    left = (*entries[:1], *entries[2:], *(world.operator_says("run-closed", run=each) for each in "xyz"))
    shorter = another_log(world, "shorter", world.genesis, *left)
    for org in world.orgs.values():
        org.log = shorter
        await org.look()
        assert org.seen() == [("rewrite", 2)]


async def test_served_entries_that_are_not_the_checkpoint_s_are_seen(world) -> None:
    victim = world.orgs["gamma"]
    world.log.add(world.operator_says("run-closed", run="r"))

    def lie(name: str, answer: Any) -> Any:
        if name == "ListEntries":
            del answer.statements[:]
            answer.statements.append(world.operator_says("run-closed", run="another").to_bytes())
        return answer

    victim.stubs.lie = lie
    await victim.look()
    assert victim.seen() == [("altered", 2)]


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3)])
async def test_two_nodes_that_are_shown_two_histories_find_out_by_working_together(world, sizes) -> None:
    alpha, beta = world.orgs["alpha"], world.orgs["beta"]
    other = another_log(
        world,
        "other",
        world.genesis,
        *(world.operator_says("run-closed", run=f"b{number}") for number in range(sizes[1])),
    )
    world.log.add(*(world.operator_says("run-closed", run=f"a{number}") for number in range(sizes[0])))
    beta.log = other
    await alpha.look()
    await beta.look()
    assert alpha.seen() == beta.seen() == [], "each history is in order by itself"
    # Neither can become final: four witnesses, three needed, so that two histories need a liar besides.
    for log in (world.log, other):
        log.ask()
    await alpha.look()
    await beta.look()
    alpha.store.hear(world.log.note.encode())
    beta.store.hear(world.log.note.encode())
    await alpha.look(2)
    await beta.look(2)
    assert alpha.seen() == []
    assert beta.seen() == [("fork", 2)]
    assert beta.may_work() == "LEDGER_INVALID"


async def test_disjoint_sets_of_nodes_are_not_both_told_that_something_is_final(world) -> None:
    other = another_log(world, "other", world.genesis, world.operator_says("run-closed", run="b"))
    world.log.add(world.operator_says("run-closed", run="a"))
    for name in ("gamma", "delta"):
        world.orgs[name].log = other
    await world.settle(world.log, other)
    assert [org.final() for org in world.orgs.values()] == [1, 1, 1, 1], "2 of 4 cosigned each, and 3 are needed"
    world.pass_s(world.charter.max_checkpoint_age_s + 1)
    assert {org.may_work() for org in world.orgs.values()} == {"CHECKPOINT_STALE"}
    # The first sealed message across the border carries the evidence; both notes are the operator's own signatures.
    world.orgs["gamma"].store.hear(world.log.note.encode())
    await world.orgs["gamma"].look(2)
    assert ("fork", 2) in world.orgs["gamma"].seen()


async def test_evidence_of_a_fork_convinces_everybody_who_reads_it(world) -> None:
    beta = world.orgs["beta"]
    beta.log = another_log(world, "other", world.genesis, world.operator_says("run-closed", run="b"))
    world.log.add(world.operator_says("run-closed", run="a"))
    await world.settle()
    beta.store.hear(world.orgs["alpha"].seal())
    await beta.look(2)
    said = [each for each in beta.link.out if each.kind == INCIDENT]
    assert [each.body["kind"] for each in said] == ["fork"]
    beta.link.out = []
    world.log.add(*said)  # the operator dares, or another coordinator takes it
    await world.orgs["alpha"].look()
    assert world.orgs["alpha"].seen() == [("fork", 2)]
    assert world.orgs["alpha"].may_work() == "LEDGER_INVALID"


async def test_an_incident_is_told_at_once_and_read_at_once(world, monkeypatch) -> None:
    """Nobody looks by the clock here: what was seen goes out by itself, and its proof has others read it."""
    for each in world.orgs.values():
        await each.look()
    monkeypatch.setattr(following, "LOOK_EVERY_S", 3600.0)
    alpha, beta = world.orgs["alpha"], world.orgs["beta"]
    beta.log = another_log(world, "other", world.genesis, world.operator_says("run-closed", run="b"))
    world.log.add(world.operator_says("run-closed", run="a"))
    await world.settle()
    alpha.service.follower._looked_at = beta.service.follower._looked_at = asyncio.get_running_loop().time()
    await alpha.service.start()
    await beta.service.start()
    try:
        beta.store.hear(alpha.seal())
        said = await _soon(lambda: [each for each in beta.link.out if each.kind == INCIDENT])
        assert [each.body["kind"] for each in said] == ["fork"]
        world.log.add(*said)
        index = len(world.log.entries) - 1
        proof = {"statement": said[0].digest, "index": index, "hashes": []}
        body = canonical.canonical({"note": world.log.note, "proofs": [proof]})
        await alpha.service._proof(Message("c-1", 1, "ledger.proof", "coordinator", (), "", body))
        assert await _soon(alpha.seen) == [("fork", 2)]
    finally:
        await alpha.service.stop()
        await beta.service.stop()


async def _soon(look: Any) -> Any:
    async with asyncio.timeout(3):
        while not (found := look()):
            await asyncio.sleep(0.01)
    return found


async def test_a_withdrawal_that_is_not_told_is_read_in_the_ledger(world) -> None:
    said = world.orgs["alpha"].says("withdrawal", agreement="ab" * 32, proposal_id="p", reason="enough")
    world.log.add(said)  # entered, and nobody was sent the news
    for org in world.orgs.values():
        await org.look()
        assert org.withdrawn == [said.digest]


async def test_a_withdrawal_that_is_kept_out_is_missed_by_whoever_withdrew_and_then_work_stops(world) -> None:
    alpha = world.orgs["alpha"]
    said = alpha.says("withdrawal", agreement="ab" * 32, proposal_id="p", reason="enough")
    alpha.journal.transact(lambda conn: pointers.insist(conn, said.digest, "the withdrawal"))
    await alpha.look()
    assert alpha.seen() == []
    world.pass_s(WITHHELD_AFTER_S)
    await alpha.look()
    assert alpha.seen() == [("withheld", 2)]
    # It cosigns nothing any more; a second witness that is away or bribed, and nothing becomes final.
    world.log.add(world.operator_says("run-closed", run="r"))
    world.log.ask()
    for name in ("alpha", "beta", "gamma", "beta", "gamma"):
        await world.orgs[name].look()
    assert world.orgs["beta"].final() == 1
    world.pass_s(world.charter.max_checkpoint_age_s)
    assert world.orgs["beta"].may_work() == "CHECKPOINT_STALE"


async def test_an_old_checkpoint_that_is_shown_again_is_seen(world) -> None:
    victim, old = world.orgs["delta"], world.log.note
    world.log.add(world.operator_says("run-closed", run="r"))
    await world.settle()

    def lie(name: str, answer: Any) -> Any:
        if name == "GetCheckpoint":
            answer.note = old
        return answer

    victim.stubs.lie = lie
    await victim.look()
    assert victim.seen() == [("rollback", 2)]


async def test_a_frozen_ledger_stops_the_work(world) -> None:
    """The operator shows what it showed, and takes no cosignatures: that is all that it can do without being seen."""
    victim = world.orgs["alpha"]
    frozen = world.log.db.transact(world.log.witnessing.notes)

    def lie(name: str, answer: Any) -> Any:
        if name == "GetCheckpoint":
            answer.asked = answer.final = frozen.final
        return answer

    victim.stubs.lie = lie
    world.pass_s(world.charter.max_checkpoint_age_s - 30)
    await victim.look()
    assert victim.may_work() == ""
    world.pass_s(60)
    await victim.look()
    assert victim.may_work() == "CHECKPOINT_STALE"
    assert victim.seen() == [("stale", 1)]
    assert victim.stops() == [], "nobody has to acknowledge it: fresh cosignatures suffice"
    victim.stubs.lie = lambda name, answer: answer
    await world.settle()
    assert victim.may_work() == ""


async def test_a_back_dated_entry_is_seen(world) -> None:
    long_ago = instants.to_text(world.now() - timedelta(days=2))
    world.log.add(world.operator_says("run-closed", issued_at=long_ago, run="r"))
    for org in world.orgs.values():
        await org.look()
        assert org.seen() == [("back-dated", 2)]
        assert org.stops() == [], "an entry's place counts and not its date: it is told, and changes nothing"


async def test_an_entry_in_a_member_s_name_that_it_did_not_sign_is_seen(world) -> None:
    forged = world.orgs["beta"].says("withdrawal", agreement="ab" * 32, proposal_id="p", reason="no")
    named = forged.to_json()
    named["content"]["issuer"] = "alpha"
    world.log.add(type(forged).from_json(named))
    await world.orgs["alpha"].look()
    assert world.orgs["alpha"].seen() == [("forged", 2)]


async def test_a_restored_backup_is_seen(world) -> None:
    backup = tuple(world.log.entries)
    world.log.add(*(world.operator_says("run-closed", run=str(number)) for number in range(3)))
    await world.settle()
    restored = another_log(world, "restored", *backup)
    for org in world.orgs.values():
        org.log = restored
        await org.look()
        assert org.seen() == [("rollback", 2)]
    grown = another_log(world, "grown", *backup, *(world.operator_says("run-closed", run=f"n{n}") for n in range(9)))
    late = world.orgs["alpha"]
    incident = late.journal.transact(incidents.listed)[0]
    late.log = grown
    await late.look()
    assert late.final() == 4, "nothing of the new history counts before an admin says so"
    await late.service.acknowledge(incident.id, "ada", "the operator restored a backup; what is lost was compared")
    grown.ask()
    for org in world.orgs.values():
        org.log = grown
        for each in org.journal.transact(incidents.listed):
            if each.stops:
                await org.service.acknowledge(each.id, "ada", "so did we")
    await world.settle(grown)
    assert {org.final() for org in world.orgs.values()} == {10}
    assert {org.may_work() for org in world.orgs.values()} == {""}


async def test_a_witness_never_goes_back(world) -> None:
    alpha = world.orgs["alpha"]
    world.log.add(world.operator_says("run-closed", run="r"))
    await world.settle()
    before = alpha.journal.transact(lambda conn: pointers.get(conn, pointers.COSIGNED))
    assert before.size == 2
    other = another_log(world, "other", world.genesis, world.operator_says("run-closed", run="another"))
    other.ask()
    alpha.stubs.lie = lambda name, answer: answer
    alpha.log = other
    await alpha.look(3)
    assert other.db.transact(other.witnessing.notes).final == ""
    assert alpha.journal.transact(lambda conn: pointers.get(conn, pointers.COSIGNED)) == before
