"""The ledger over a real database: order, tiles beyond one width, proofs, the lease, fsck as the oracle."""

import asyncio
import base64
import contextlib
import time

import pytest
from sqlalchemy import text

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import fsck
from comity_coordinator.ledger import service, store
from comity_coordinator.ledger.incidents import Incidents
from comity_coordinator.ledger.sequencer import PATIENT_S, Sequencer
from comity_coordinator.ledger.service import BATCH_MAX, NS_PER_S
from comity_crypto.merkle import leaf_hash, root, verify_consistency, verify_inclusion
from comity_crypto.notes import verify_note
from comity_policies.documents import Receipt
from comity_policies.incidents import INCIDENT, Incident

COUNT = BATCH_MAX + 88


def fill(world, count, org="beta"):
    said = [world.say(org, "note", {"n": number}) for number in range(count)]

    def append(conn):
        return [world.ledger.append(conn, each) for each in said]

    return said, world.db.transact(append)


def test_many_entries_have_proofs_and_the_tree_only_grows(world, names, monkeypatch):
    monkeypatch.setattr(service, "BATCH_SHARED_MAX", BATCH_MAX)
    said, added = fill(world, COUNT)
    assert all(added)
    sizes = []
    while world.integrate():
        note = world.read(world.ledger.checkpoint)
        sizes.append(verify_note(note, names.log, world.log_keys.public.statement))
    assert [each.size for each in sizes] == [BATCH_MAX, COUNT + 1]
    head = sizes[-1]
    leaves = [leaf_hash(each.to_bytes()) for each in (world.genesis, *said)]
    assert head.root == root(leaves)
    for index in (0, 1, 255, 256, 511, 512, COUNT):
        proof = world.read(lambda conn, index=index: world.ledger.inclusion(conn, (world.genesis, *said)[index].digest))
        assert proof.index == index
        verify_inclusion(leaves[index], index, head.size, proof.hashes, head.root)
    told = [(told["note"], each) for told in world.hub.take("beta", "ledger.proof") for each in told["proofs"]]
    assert [each["index"] for _, each in told] == list(range(COUNT + 1))
    for note, each in told[:: BATCH_MAX // 32]:
        hashes = [base64.b64decode(each) for each in each["hashes"]]
        seen = verify_note(note, names.log, world.log_keys.public.statement)
        verify_inclusion(leaves[each["index"]], each["index"], seen.size, hashes, seen.root)
    for old in sizes[:-1]:
        hashes = world.read(lambda conn, old=old: world.ledger.consistency(conn, [old.size, head.size])[0])
        verify_consistency(old.size, head.size, old.root, head.root, hashes)
    assert world.read(lambda conn: world.ledger.entries(conn, 255, 3)) == [each.to_bytes() for each in said[254:257]]
    assert world.read(lambda conn: fsck.check(conn, world.ledger, world.log_keys.public.statement)) == []


def test_every_member_is_told_of_an_incident_as_soon_as_it_is_entered(world):
    Incidents(lambda conn: world.charter, world.ledger).register(world.hub)
    while world.integrate():
        world.hub.sent.clear()
    seen = Incident("stale", "nothing became final", instants.now_text())
    said = world.say("beta", INCIDENT, seen.to_json())
    assert world.tell("beta", INCIDENT, said) is None
    assert world.integrate() == 1
    for org in ("alpha", "beta", "gamma"):
        (told,) = world.hub.take(org, "ledger.proof")
        assert [each["statement"] for each in told["proofs"]] == [said.digest]


def test_appending_twice_is_one_entry(world):
    said, _ = fill(world, 3)
    _, again = fill(world, 3)
    assert again == [False, False, False] or said
    world.db.transact(lambda conn: world.ledger.append(conn, said[0]))
    assert world.integrate() > 0
    assert world.db.transact(lambda conn: world.ledger.append(conn, said[0])) is False
    assert world.integrate() == 0


def test_what_is_written_in_bulk_comes_back_as_it_was(world):
    while world.integrate():
        pass
    texts = ["null", "", '"', "\\", '{a,"b"}', "\\x00", "a\nb", "\u00e9", " ", "%s"]
    rows = [
        (f"{n:020d}", f"{n:064x}", "NULL", each, bytes([n, 0, 34, 92] * 8), "beta,gamma")
        for n, each in enumerate(texts)
    ]
    world.db.transact(lambda conn: store._insert(conn, store.pending, rows))
    found = world.read(lambda conn: store.next_pending(conn, 100))
    shown = [(each.place, each.digest, each.kind, each.issuer, each.leaf_hash, "beta,gamma") for each in found]
    assert shown == rows
    assert {each.recipients for each in found} == {("beta", "gamma")}


def test_a_second_sequencer_waits_for_the_lease(world):
    fill(world, 1)
    assert world.integrate() == 2
    fill(world, 2)
    assert world.db.transact(lambda conn: world.ledger.integrate(conn, "other")) == 0
    world.db.transact(lambda conn: store.release_lease(conn, "test"))
    assert world.db.transact(lambda conn: world.ledger.integrate(conn, "other")) > 0


def test_a_transaction_that_fails_leaves_nothing(world):
    said = world.say("beta", "note", {"n": 1})

    def fails(conn):
        world.ledger.append(conn, said)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        world.db.transact(fails)
    assert world.read(lambda conn: store.has(conn, said.digest)) is False


def test_reading_out_of_range_is_refused(world):
    with pytest.raises(ComityError) as refusal:
        world.read(world.ledger.checkpoint)
    assert refusal.value.code is ErrorCode.NOT_FOUND
    world.integrate()
    for start, limit in ((-1, 1), (0, 257), (2**63, 1)):
        with pytest.raises(ComityError):
            world.read(lambda conn, start=start, limit=limit: world.ledger.entries(conn, start, limit))
    with pytest.raises(ComityError):
        world.read(lambda conn: world.ledger.consistency(conn, [1, 2]))
    assert world.read(lambda conn: world.ledger.entries(conn, 99, 0)) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("update ledger_statements set content = :raw where kind = 'note'", "bytes have changed"),
        ("update ledger_entries set leaf_hash = :raw where idx = 2", "leaf hash"),
        ("delete from ledger_entries where idx = 3", "missing"),
        ("update ledger_checkpoints set root = :raw", "root"),
        ("update ledger_checkpoints set note = replace(note, 'example', 'exemple')", "note"),
        ("update ledger_tiles set hashes = :raw", "tile"),
        (
            "insert into ledger_pending select '0', digest, kind, '', leaf_hash, '' from ledger_entries where idx = 1",
            "pending",
        ),
    ],
)
def test_fsck_finds_damage(world, damage, words):
    fill(world, 10)
    assert world.integrate() == 11
    public = world.log_keys.public.statement
    assert world.read(lambda conn: fsck.check(conn, world.ledger, public)) == []
    raw = {"raw": bytes(32 * 11) if words == "tile" else bytes(32)} if ":raw" in damage else {}
    world.db.transact(lambda conn: conn.execute(text(damage), raw))
    found = world.read(lambda conn: fsck.check(conn, world.ledger, public))
    assert any(words in each for each in found), found


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("update negotiation_agreements set state = 'draft'", "its agreement is not"),
        ("update training_runs set run = 'run-x'", "another name"),
        ("update training_runs set document = replace(document, '\"use\":1', '\"use\":2')", "does not follow"),
        ("update training_runs set document = replace(document, '\"closed\":false', '\"closed\":true')", "not ended"),
        ("update training_receipts set statement = 'x'", "never appended"),
        ("delete from training_receipts", "counted"),
    ],
)
def test_fsck_finds_states_that_disagree_with_the_ledger(world, damage, words):
    _, agreement, run = world.agree()
    receipt = Receipt(agreement, run, "train", "ab" * 32, 1, "result", None, "cd" * 32)
    said = world.say("beta", "receipt", receipt.to_json())
    assert world.deliver("beta", "receipts", canonical.canonical({"receipts": [said.to_json()]})) is None
    world.export()
    public = world.log_keys.public.statement
    assert world.read(lambda conn: fsck.check(conn, world.ledger, public)) == []
    world.db.transact(lambda conn: conn.exec_driver_sql(damage))
    found = world.read(lambda conn: fsck.check(conn, world.ledger, public))
    assert any(words in each for each in found), found


def test_fsck_finds_a_statement_whose_signature_does_not_hold(world):
    forged = world.say("beta", "receipt", {"n": 1}, by="stranger")
    world.db.transact(lambda conn: world.ledger.append(conn, forged))
    world.integrate()
    found = world.read(lambda conn: fsck.check(conn, world.ledger, world.log_keys.public.statement))
    assert any("signature" in each for each in found), found


def test_what_is_in_no_hurry_is_entered_with_what_is_or_once_it_has_waited(world, monkeypatch):
    fill(world, 1)
    while world.integrate():
        pass
    patient = world.say("beta", "answer", {"n": 1})
    world.db.transact(lambda conn: world.ledger.append(conn, patient, patient=True))
    look = lambda conn: world.ledger.integrate(conn, "test", waited_s=PATIENT_S)  # noqa: E731
    assert world.db.transact(look) == 0
    later_ns = time.time_ns() + (PATIENT_S + 1) * NS_PER_S
    monkeypatch.setattr("comity_coordinator.ledger.service.time.time_ns", lambda: later_ns)
    assert world.db.transact(look) == 1


async def test_the_sequencer_flushes_soon_after_an_append(world):
    sequencer = Sequencer(world.db, world.ledger)
    task = asyncio.create_task(sequencer.run())
    try:
        await asyncio.sleep(0.2)
        said = world.say("beta", "note", {"n": 1})
        started = instants.now()
        await world.db.run(lambda conn: world.ledger.append(conn, said))
        for _ in range(100):
            proofs = [proof for each in world.hub.take("beta", "ledger.proof") for proof in each["proofs"]]
            if any(proof["statement"] == said.digest for proof in proofs):
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("no proof came")
        assert (instants.now() - started).total_seconds() < (0.5 if world.calm else 5.0)
        assert base64.b64decode(proofs[-1]["hashes"][0])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert world.db.transact(lambda conn: world.ledger.integrate(conn, "other")) == 0
    fill(world, 1)
    assert world.db.transact(lambda conn: world.ledger.integrate(conn, "other")) == 1
