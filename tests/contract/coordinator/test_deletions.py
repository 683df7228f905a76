"""A party's word that a run's data is gone: after the run was closed, from parties, on the agreed time, once."""

from __future__ import annotations

import pytest

from comity.wire.errors import ErrorCode
from comity_coordinator import fsck
from comity_coordinator.training.deletions import Deletions
from comity_policies.deletions import COUNT_MAX, Deletion
from comity_policies.history import verify_export
from comity_policies.terms import Terms

COUNTS = {"results": 3, "payloads": 1, "events": 12}


@pytest.fixture
def ended(world):
    """A closed run under terms that name a time; returns a maker of deletions of it."""
    Deletions(lambda conn: world.in_force, world.ledger).register(world.hub)
    terms = Terms.parse({"purposes": ["research"], "rounds": 2, "retention_s": 60})
    _, agreement, run = world.agree(terms=terms)

    def made(**changes):
        values = {"agreement": agreement, "run": run, "retention_s": 60, "ended_at": "2026-11-23T00:00:00Z"}
        return Deletion(**{**values, "counts": COUNTS, **changes})

    return made


def tell(world, org, deletion):
    refusal = world.tell(org, "deletion", world.say(org, "deletion", deletion.to_json()))
    return refusal and refusal.code


def close(world, run):
    for _ in range(2):  # nobody is ready in time, then nobody hands in what is owed
        world.clock.pass_s(2_000)
        world.read(lambda conn: world.training.on_deadline(conn, run))


def test_a_deletion_gets_in_once_and_only_when_it_may(world, ended, tmp_path):
    assert tell(world, "alpha", ended()) is ErrorCode.ILLEGAL_EVENT
    close(world, ended().run)
    assert tell(world, "stranger", ended()) is ErrorCode.NOT_A_MEMBER
    assert tell(world, "alpha", ended(retention_s=61)) is ErrorCode.TERMS_CONFLICT
    assert tell(world, "alpha", ended(agreement="ab" * 32)) is ErrorCode.AGREEMENT_UNKNOWN
    assert tell(world, "alpha", ended(run="run-unknown")) is ErrorCode.NOT_FOUND
    said = world.say("alpha", "deletion", ended().to_json())
    assert world.tell("alpha", "deletion", said) is None
    assert world.tell("alpha", "deletion", said) is None  # the same again, after a broken stream
    assert tell(world, "alpha", ended(counts={**COUNTS, "events": 0})) is ErrorCode.CONFLICT
    assert tell(world, "beta", ended()) is None
    export = tmp_path / "export.jsonl"
    export.write_bytes(world.export())
    assert export.read_bytes().count(b"\n") == verify_export(export, world.charter.digest).size + 1
    assert world.read(lambda conn: fsck.check(conn, world.ledger, world.log_keys.public.statement)) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"counts": {**COUNTS, "events": -1}},
        {"counts": {**COUNTS, "events": True}},
        {"counts": {**COUNTS, "events": COUNT_MAX + 1}},
        {"counts": {"results": 1}},
        {"counts": {**COUNTS, "names": 1}},
        {"digests": ["ab" * 32] * 17},
        {"digests": ["patient 7"]},
        {"ended_at": "yesterday"},
        {"retention_s": 60.5},
        {"extra": 1},
    ],
)
def test_a_deletion_holds_counts_and_digests_and_nothing_else(odd):
    good = Deletion("ab" * 32, "run-1", 60, "2026-11-23T00:00:00Z", COUNTS).to_json()
    assert Deletion.from_json(good).to_json() == good
    with pytest.raises(Exception, match="MALFORMED"):
        Deletion.from_json({**good, **odd})
