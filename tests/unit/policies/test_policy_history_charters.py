"""Obligation 3: how charters were decided is verified offline, each lie under its number, across coordinators."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.encoding import to_base64
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import Checkpoint, sign_note
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement, sign_statement
from comity_policies.charter import Adopted, Charter, QuorumRule, genesis_name
from comity_policies.charter_votes import CharterEnded, CharterProposal, CharterVote
from comity_policies.history import Report, verify_export

A, B, C = ORGS = ("hospital-a", "hospital-b", "hospital-c")
AT, DEADLINE, LATE = "2029-01-01T00:00:00Z", "2029-01-02T00:00:00Z", "2029-01-02T00:00:01Z"
NEXT_LOG = OrgKeys.generate()


class Story:
    """Statements in order, and what they say; `log` is the key that speaks for the coordinator now."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world, self.folder, self.log = world, folder, world.log
        self.genesis: Charter = replace(world.charter, quorum={"change-charter": QuorumRule("fraction", 2, 3)})
        self.entries: list[Statement] = [self.charter(self.genesis, ORGS)]

    def say(self, org: str, kind: str, body: dict[str, Any], at: str = AT) -> Statement:
        keys = self.log if org == "coordinator" else self.world.keys[org]
        return sign_statement(keys, kind=kind, consortium="hospitals", issuer=org, body=body, issued_at=at)

    def proposal(self, charter: Charter, *kinds: str, by: str = A) -> Statement:
        body = CharterProposal(charter, kinds or ("change-charter",), "why", DEADLINE).to_json()
        return self.say(by, "charter-proposal", body)

    def vote(self, org: str, charter: Charter, deny: str = "", at: str = AT) -> Statement:
        bls = to_base64(self.world.keys[org].bls_sign(message_for("charter", charter.digest)))
        body = CharterVote(charter.digest, not deny, None if deny else bls, deny).to_json()
        return self.say(org, "charter-vote", body, at)

    def charter(self, charter: Charter, orgs: tuple[str, ...], votes: list[Statement] | None = None) -> Statement:
        certificate = self.world.certificate("charter", charter.digest, orgs).to_json()
        signatures = [each.to_json() for each in votes or []]
        body = {"charter": charter.to_json(), "certificate": certificate, "signatures": signatures}
        return self.say("coordinator", "charter", body)

    def ended(self, put: Statement, state: str, yes: Any, no: Any, missing: Any, at: str = AT) -> Statement:
        digest = CharterProposal.from_json(put.body).charter.digest
        return self.say(
            "coordinator", "charter-ended", CharterEnded(digest, put.digest, state, yes, no, missing).to_json(), at
        )

    def second(self, **values: Any) -> Charter:
        return replace(
            self.genesis, version=2, previous=self.genesis.digest, **(values or {"max_checkpoint_age_s": 60})
        )

    def root(self, entries: list[Statement]) -> bytes:
        return merkle.root([merkle.leaf_hash(each.to_bytes()) for each in entries])

    def verify(self, *more: Statement) -> Report:
        entries = [*self.entries, *more]
        path = self.folder / "export.jsonl"
        name = self.genesis.log_name
        checkpoint = Checkpoint(name, len(entries), self.root(entries))
        note = sign_note(checkpoint.text(), name, self.log)
        header = {
            "format": "comity-ledger-export/1",
            "consortium": "hospitals",
            "size": len(entries),
            "checkpoint": note,
        }
        rows = [
            {"index": index, "statement": base64.b64encode(each.to_bytes()).decode()}
            for index, each in enumerate(entries)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
        return verify_export(path, genesis_name(self.genesis))

    def fails(self, *more: Statement, obligation: int = 3) -> None:
        with pytest.raises(ComityError) as caught:
            self.verify(*more)
        assert caught.value.code == ErrorCode.LEDGER_INVALID
        assert caught.value.facts["obligation"] == obligation, caught.value


@pytest.fixture
def story(world: Any, tmp_path: Path) -> Story:
    return Story(world, tmp_path)


def test_a_charter_with_its_votes(story: Story) -> None:
    charter = story.second()
    votes = [story.vote(A, charter), story.vote(B, charter)]
    report = story.verify(story.proposal(charter), *votes, story.charter(charter, (A, B), votes))
    assert [(each.version, each.signers) for each in report.charters] == [(1, ORGS), (2, (A, B))]
    assert {each.number: each.count for each in report.checks}[3] == 4


def test_a_charter_that_carries_other_votes_than_it_joins(story: Story) -> None:
    charter, other = story.second(), story.second(max_checkpoint_age_s=61)
    a, b, c = (story.vote(org, charter) for org in ORGS)
    put = story.proposal(charter)
    story.fails(put, a, b, story.charter(charter, (A, B), [a]))
    story.fails(put, a, c, story.charter(charter, (A, B), [a, c]))
    story.fails(put, a, b, story.charter(charter, (A, B), [a, story.vote(B, charter, deny="no")]))
    story.fails(put, a, b, story.charter(charter, (A, B), [a, story.vote(B, other)]))
    story.fails(put, a, story.charter(charter, (A,), [a]))


def test_proposals_and_votes_that_do_not_hold(story: Story, world: Any) -> None:
    charter = story.second()
    put, yes = story.proposal(charter), story.vote(A, charter)
    story.fails(yes)  # nobody proposed it
    story.fails(put, yes, story.vote(A, charter, deny="and no"))
    story.fails(story.proposal(charter, "admit-member"))
    story.fails(story.proposal(replace(charter, previous="0c" * 32)))
    forged = replace(yes, issuer=B)
    story.fails(put, forged, obligation=4)
    bls = to_base64(world.keys[B].bls_sign(message_for("charter", charter.digest)))
    stolen = story.say(A, "charter-vote", CharterVote(charter.digest, True, bls, "").to_json())
    story.fails(put, stolen)
    story.fails(story.say("coordinator", "charter-vote", yes.body), obligation=4)


def test_a_suspended_member_has_no_vote(story: Story) -> None:
    barred = story.second(suspended=(C,))
    votes = [story.vote(org, barred) for org in ORGS]
    before = [story.proposal(barred, "suspend-member"), *votes, story.charter(barred, ORGS, votes)]
    third = replace(barred, version=3, previous=barred.digest, max_checkpoint_age_s=60)
    put = story.proposal(third)
    two = [story.vote(A, third), story.vote(B, third)]
    story.verify(*before, put, *two, story.charter(third, (A, B), two))
    story.fails(*before, put, story.vote(C, third))
    story.fails(*before, story.proposal(third, by=C))
    story.fails(*before, put, two[0], story.charter(third, (A, C)))


def test_ends_that_the_votes_do_not_bear_out(story: Story) -> None:
    charter = story.second()
    put, yes, no = story.proposal(charter), story.vote(A, charter), story.vote(B, charter, deny="no")
    other_no = story.vote(C, charter, deny="no")
    story.verify(put, yes, story.ended(put, "EXPIRED", (A,), (), (B, C), LATE))
    story.verify(put, no, other_no, story.ended(put, "DENIED", (), (B, C), (A,)))
    story.fails(put, yes, story.ended(put, "EXPIRED", (A,), (), (B, C), AT))
    story.fails(put, yes, story.ended(put, "EXPIRED", (), (), ORGS, LATE))
    story.fails(put, no, story.ended(put, "DENIED", (), (B,), (A, C)))
    story.fails(put, story.ended(put, "SUPERSEDED", (), (), ORGS))
    over = story.ended(put, "EXPIRED", (), (), ORGS, LATE)
    story.verify(put, over, no)  # a late denial frees members
    story.fails(put, over, yes)
    story.fails(put, over, over, obligation=1)
    twice = story.ended(put, "EXPIRED", (), (), ORGS, "2029-01-02T00:00:09Z")
    story.fails(put, over, twice)
    again = replace(over, issued_at="2029-01-02T00:00:08Z")
    story.fails(put, over, again, obligation=4)


def test_one_charter_overtakes_another(story: Story) -> None:
    charter, other = story.second(), story.second(max_checkpoint_age_s=61)
    votes = [story.vote(A, charter), story.vote(B, charter)]
    put, late = story.proposal(charter), story.proposal(other)
    rest = [put, late, *votes, story.charter(charter, (A, B), votes)]
    story.verify(*rest, story.ended(late, "SUPERSEDED", (), (), ORGS))
    story.fails(*rest, story.ended(late, "EXPIRED", (), (), ORGS, LATE))
    story.fails(*rest, story.ended(put, "SUPERSEDED", (A, B), (), (C,)))
    story.fails(*rest, story.vote(A, other))


def changed(story: Story, end: Adopted) -> list[Statement]:
    """The vote on a new coordinator, and its charter, stated by the new log."""
    charter = story.second(log_key=to_base64(NEXT_LOG.public.statement), adopted=end)
    votes = [story.vote(org, charter) for org in ORGS]
    put = story.proposal(charter, "change-coordinator")
    story.log = NEXT_LOG
    return [put, *votes, story.charter(charter, ORGS, votes)]


def test_history_goes_on_across_a_change_of_coordinator(story: Story) -> None:
    end = Adopted(story.genesis.log_name, 1, story.root(story.entries).hex())
    report = story.verify(*changed(story, end))
    assert report.charters[-1].kinds == ("change-coordinator",)


@pytest.mark.parametrize("lie", ["root", "size"])
def test_a_successor_that_rewrites_what_it_took_over(story: Story, lie: str) -> None:
    true = Adopted(story.genesis.log_name, 1, story.root(story.entries).hex())
    story.fails(*changed(story, replace(true, root="0e" * 32) if lie == "root" else replace(true, size=2)))


def test_the_former_log_cannot_state_what_follows(story: Story, world: Any) -> None:
    end = Adopted(story.genesis.log_name, 1, story.root(story.entries).hex())
    entries = changed(story, end)
    story.log = world.log
    *votes, charter = entries
    usurped = story.say("coordinator", "charter", charter.body)
    story.log = NEXT_LOG
    story.fails(*votes, usurped, obligation=4)
