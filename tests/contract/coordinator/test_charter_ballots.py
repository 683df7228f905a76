"""Charter proposals and votes at the coordinator, without a network: what counts, what ends, what history says."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import fsck, setup
from comity_coordinator.authorisation import METHODS, ROUTES
from comity_coordinator.governance import store
from comity_coordinator.governance.adoption import adopt
from comity_coordinator.governance.service import Governance, ProofsOnceNamed, charter_in_force
from comity_coordinator.membership import store as membership
from comity_coordinator.membership.model import MemberRow
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_policies.charter import Adopted, Charter, Member, QuorumRule, genesis_name
from comity_policies.charter_votes import CharterProposal, CharterVote
from comity_policies.history import verify_export

ALPHA, BETA, GAMMA = "alpha", "beta", "gamma"
NEWCOMER = OrgKeys.generate()


class Ballots:
    """The world of `conftest.py` with governance in it, and short words for what members do."""

    def __init__(self, world: Any, names: Any) -> None:
        self.world, self.names = world, names

        def sign(kind: str, body: dict[str, Any]) -> Statement:
            return sign_statement(
                world.log_keys, kind=kind, consortium="demo", issuer="coordinator", body=body, issued_at=world.clock()
            )

        log_key = world.log_keys.public.statement
        self.governance = Governance(
            "demo", names.log, log_key, sign, world.ledger.append, world.hub.enqueue, world.clock
        )
        self.governance.ballots.register(world.hub)
        genesis, said = world.charter, world.genesis
        world.read(lambda conn: store.add_charter(conn, 1, genesis.digest, said.to_bytes()))
        for org in (ALPHA, BETA, GAMMA):
            self.enrol(genesis.member(org))
        self.newcomer = Member("delta", "Delta", "delta ltd", NEWCOMER.public)

    def enrol(self, member: Member) -> None:
        row = MemberRow(member.org, member.title, member.owner, member.keys, "01", None, self.world.clock(), None)
        self.world.read(lambda conn: membership.add_member(conn, row))

    @property
    def charter(self) -> Charter:
        found = self.world.read(charter_in_force)
        assert found is not None
        return found

    def following(self, **values: Any) -> Charter:
        before = self.charter
        return replace(before, **{"version": before.version + 1, "previous": before.digest, **values})

    def propose(self, charter: Charter, *kinds: str, by: str = ALPHA, signer: str = "", s: int = 600) -> Any:
        """Propose; returns the refusal, None if it was taken."""
        clock = self.world.clock
        deadline = instants.to_text(clock.now + timedelta(seconds=s))
        body = CharterProposal(charter, kinds, "as discussed", deadline).to_json()
        return self.world.tell(by, "charter.propose", self.say(by, "charter-proposal", body, signer))

    def vote(self, org: str, charter: Charter, deny: str = "", signer: str = "") -> Any:
        bls = self.world.keys[signer or org].bls_sign(message_for("charter", charter.digest))
        text = None if deny else base64.b64encode(bls).decode()
        body = CharterVote(charter.digest, not deny, text, deny).to_json()
        return self.world.tell(org, "charter.vote", self.say(org, "charter-vote", body))

    def say(self, org: str, kind: str, body: dict[str, Any], signer: str = "") -> Statement:
        return sign_statement(
            self.world.keys[signer or org],
            kind=kind,
            consortium="demo",
            issuer=org,
            body=body,
            issued_at=self.world.clock(),
        )

    def ended(self) -> dict[str, Any]:
        return dict(Statement.from_json(self.world.hub.take(GAMMA, "charter.ended")[-1]["statement"]).body)

    def carry(self, charter: Charter, *kinds: str) -> None:
        assert self.propose(charter, *kinds) is None
        for org in (ALPHA, BETA, GAMMA):
            assert self.vote(org, charter) is None
        assert self.charter == charter

    def history(self, tmp_path: Any) -> Any:
        path = tmp_path / "export.jsonl"
        path.write_bytes(self.world.export())
        return verify_export(path, genesis_name(self.world.charter))


@pytest.fixture
def ballots(world: Any, names: Any) -> Ballots:
    return Ballots(world, names)


def code(refusal: Any) -> ErrorCode:
    assert refusal is not None, "it was taken"
    return ErrorCode(refusal.code)


def two_of_three(ballots: Ballots) -> Charter:
    rule = QuorumRule("fraction", 2, 3)
    quorum = {"suspend-member": rule, "admit-member": rule, "rotate-key": rule}
    charter = ballots.following(quorum=quorum)
    ballots.carry(charter, "change-charter")
    return charter


def test_members_carry_a_charter(ballots: Ballots, tmp_path: Any) -> None:
    hub, charter = ballots.world.hub, ballots.following(max_checkpoint_age_s=60)
    assert ballots.propose(charter, "change-charter") is None
    told = hub.take(GAMMA, "charter.proposed")
    assert [Statement.from_json(each["statement"]).issuer for each in told] == [ALPHA]
    for org in (BETA, ALPHA):
        assert ballots.vote(org, charter) is None
        assert ballots.charter.version == 1
    assert ballots.vote(GAMMA, charter) is None
    assert ballots.charter == charter
    assert len(hub.take(BETA, "charter.voted")) == 3
    final = Statement.from_json(hub.take(BETA, "charter.final")[-1]["statement"])
    assert [each["content"]["issuer"] for each in final.body["signatures"]] == [ALPHA, BETA, GAMMA]
    report = ballots.history(tmp_path)
    assert report.counts == {"charter": 2, "charter-proposal": 1, "charter-vote": 3}
    assert [(each.version, each.kinds) for each in report.charters] == [(1, ("genesis",)), (2, ("change-charter",))]


def test_a_denial_that_leaves_no_quorum_ends_it(ballots: Ballots, tmp_path: Any) -> None:
    charter = ballots.following(max_checkpoint_age_s=60)
    assert ballots.propose(charter, "change-charter") is None
    assert ballots.vote(ALPHA, charter) is None
    assert ballots.vote(BETA, charter, deny="too short") is None
    assert ballots.ended() | {"charter": "", "proposal": ""} == {
        "charter": "",
        "proposal": "",
        "state": "DENIED",
        "allowed": [ALPHA],
        "denied": [BETA],
        "missing": [GAMMA],
    }
    assert code(ballots.vote(GAMMA, charter)) is ErrorCode.ILLEGAL_EVENT
    assert ballots.vote(GAMMA, charter, deny="me too") is None
    assert code(ballots.vote(BETA, charter)) is ErrorCode.CONFLICT
    assert ballots.charter.version == 1
    assert ballots.history(tmp_path).counts["charter-vote"] == 3


def test_the_deadline_ends_it_and_names_who_did_not_vote(ballots: Ballots, tmp_path: Any) -> None:
    charter = ballots.following(max_checkpoint_age_s=60)
    assert ballots.propose(charter, "change-charter") is None
    assert ballots.vote(ALPHA, charter) is None
    assert ballots.world.read(ballots.governance.ballots.expire) == 0
    ballots.world.clock.pass_s(601)
    assert code(ballots.vote(BETA, charter)) is ErrorCode.ILLEGAL_EVENT
    assert ballots.world.read(ballots.governance.ballots.expire) == 1
    assert ballots.world.read(ballots.governance.ballots.expire) == 0
    ended = ballots.ended()
    assert (ended["state"], ended["missing"]) == ("EXPIRED", [BETA, GAMMA])
    # Put again, the same charter keeps the vote that was given.
    assert ballots.propose(charter, "change-charter", by=GAMMA) is None
    again = ballots.world.hub.take(BETA, "charter.proposed")[-1]
    assert [each["content"]["issuer"] for each in again["votes"]] == [ALPHA]
    for org in (BETA, GAMMA):
        assert ballots.vote(org, charter) is None
    assert ballots.charter == charter
    assert ballots.history(tmp_path).counts["charter-ended"] == 1


def test_one_charter_overtakes_the_others(ballots: Ballots, tmp_path: Any) -> None:
    first, second = ballots.following(max_checkpoint_age_s=60), ballots.following(max_checkpoint_age_s=61)
    for charter in (first, second):
        assert ballots.propose(charter, "change-charter") is None
    assert ballots.vote(GAMMA, second, deny="the other one") is None
    assert ballots.ended()["state"] == "DENIED"
    third = ballots.following(max_checkpoint_age_s=62)
    assert ballots.propose(third, "change-charter") is None
    for org in (ALPHA, BETA, GAMMA):
        assert ballots.vote(org, first) is None
    assert ballots.ended()["state"] == "SUPERSEDED"
    assert code(ballots.vote(ALPHA, third)) is ErrorCode.ILLEGAL_EVENT
    ballots.world.clock.pass_s(1)
    assert code(ballots.propose(third, "change-charter")) is ErrorCode.CHARTER_INVALID
    ballots.history(tmp_path)


def test_proposals_that_are_not_taken(ballots: Ballots) -> None:
    good = ballots.following(max_checkpoint_age_s=60)
    old = replace(good, previous="0c" * 32)
    newcomer = ballots.following(members=(*ballots.charter.members, ballots.newcomer))
    for refusal, expected in (
        (ballots.propose(good, "admit-member"), ErrorCode.CHARTER_INVALID),
        (ballots.propose(good, "admit-member", "change-charter"), ErrorCode.CHARTER_INVALID),
        (ballots.propose(old, "change-charter"), ErrorCode.CHARTER_INVALID),
        (ballots.propose(good, "change-charter", signer=BETA), ErrorCode.SIGNATURE_INVALID),
        (ballots.propose(good, "change-charter", by="stranger"), ErrorCode.NOT_A_MEMBER),
        (ballots.propose(good, "change-charter", s=91 * 86_400), ErrorCode.MALFORMED),
        (ballots.propose(good, "change-charter", s=-1), ErrorCode.MALFORMED),
        (ballots.propose(newcomer, "admit-member"), ErrorCode.NOT_FOUND),
    ):
        assert code(refusal) is expected
    ballots.enrol(replace(ballots.newcomer, keys=OrgKeys.generate().public))
    assert code(ballots.propose(newcomer, "admit-member")) is ErrorCode.CONFLICT
    assert ballots.propose(good, "change-charter") is None
    assert code(ballots.propose(good, "change-charter", by=BETA)) is ErrorCode.CONFLICT
    for age_s in range(1, 4):
        assert ballots.propose(ballots.following(max_checkpoint_age_s=age_s), "change-charter") is None
    more = ballots.following(max_checkpoint_age_s=99)
    assert code(ballots.propose(more, "change-charter")) is ErrorCode.BUSY
    assert ballots.propose(more, "change-charter", by=BETA) is None, "one member does not use up the others' share"


def test_votes_that_are_not_taken(ballots: Ballots) -> None:
    charter, other = ballots.following(max_checkpoint_age_s=60), ballots.following(max_checkpoint_age_s=61)
    assert ballots.propose(charter, "change-charter") is None
    for refusal, expected in (
        (ballots.vote(ALPHA, other), ErrorCode.NOT_FOUND),
        (ballots.vote(ALPHA, charter, signer=BETA), ErrorCode.SIGNATURE_INVALID),
        (ballots.vote("stranger", charter), ErrorCode.NOT_A_MEMBER),
    ):
        assert code(refusal) is expected
    bls = base64.b64encode(ballots.world.keys[BETA].bls_sign(message_for("agreement", charter.digest))).decode()
    forged = ballots.say(BETA, "charter-vote", CharterVote(charter.digest, True, bls, "").to_json())
    assert code(ballots.world.tell(BETA, "charter.vote", forged)) is ErrorCode.SIGNATURE_INVALID
    assert ballots.vote(ALPHA, charter) is None
    ballots.world.clock.pass_s(1)
    assert code(ballots.vote(ALPHA, charter)) is ErrorCode.ILLEGAL_EVENT
    assert code(ballots.vote(ALPHA, charter, deny="no")) is ErrorCode.CONFLICT
    replayed = ballots.say(BETA, "charter-vote", CharterVote(charter.digest, False, None, "no").to_json())
    assert code(ballots.world.tell(ALPHA, "charter.vote", replayed)) is ErrorCode.FORBIDDEN


def test_the_operator_has_no_vote(ballots: Ballots) -> None:
    """The coordinator's own key speaks for no member, and nothing that an operator may call decides anything."""
    charter = ballots.following(max_checkpoint_age_s=60)
    assert ballots.propose(charter, "change-charter") is None
    assert code(ballots.vote("coordinator", charter)) in (ErrorCode.NOT_A_MEMBER, ErrorCode.FORBIDDEN)
    assert code(ballots.propose(charter, "change-charter", by="coordinator")) in (
        ErrorCode.NOT_A_MEMBER,
        ErrorCode.FORBIDDEN,
    )
    for org in (ALPHA, BETA):
        assert ballots.vote(org, charter) is None
    assert ballots.charter.version == 1
    assert [path for method, path in ROUTES if method != "GET"] == ["/v1/members/{org}/revoke"]
    # A coordinator's further processes pass on what members said, and say nothing.
    others = {method for method, kind in METHODS.items() if kind not in ("join", "org")}
    assert others == {"/comity.v1.ReplicaService/Carry", "/comity.v1.ReplicaService/FetchPayload"}


def test_a_suspended_member_neither_votes_nor_proposes(ballots: Ballots, tmp_path: Any) -> None:
    two_of_three(ballots)
    barred = ballots.following(suspended=(GAMMA,))
    assert ballots.propose(barred, "suspend-member") is None
    for org in (ALPHA, BETA):
        assert ballots.vote(org, barred) is None
    assert ballots.charter.voters == (ALPHA, BETA)
    back = ballots.following(suspended=())
    assert code(ballots.propose(back, "admit-member", by=GAMMA)) is ErrorCode.SUSPENDED
    assert ballots.propose(back, "admit-member") is None
    assert code(ballots.vote(GAMMA, back)) is ErrorCode.SUSPENDED
    for org in (ALPHA, BETA):
        assert ballots.vote(org, back) is None
    assert ballots.charter.voters == (ALPHA, BETA, GAMMA)
    kinds = [each.kinds for each in ballots.history(tmp_path).charters]
    assert kinds == [("genesis",), ("change-charter",), ("suspend-member",), ("admit-member",)]


def test_a_newcomer_and_rotated_keys(ballots: Ballots) -> None:
    two_of_three(ballots)
    world = ballots.world
    ballots.enrol(ballots.newcomer)
    world.read(lambda conn: ballots.governance.ballots.candidate(conn, ballots.newcomer, BETA))
    told = world.hub.take(GAMMA, "charter.candidate")
    assert told == [{"member": ballots.newcomer.to_json(), "sponsor": BETA}]
    admitted = ballots.following(members=(*ballots.charter.members, ballots.newcomer))
    assert ballots.propose(admitted, "admit-member", by=BETA) is None
    for org in (BETA, GAMMA):
        assert ballots.vote(org, admitted) is None
    assert world.hub.take("delta", "charter.final"), "a newcomer is told"
    fresh = OrgKeys.generate()
    members = tuple(replace(each, keys=fresh.public) if each.org == GAMMA else each for each in admitted.members)
    rotated = ballots.following(members=members)
    assert ballots.propose(rotated, "rotate-key", by=GAMMA) is None
    for org in (ALPHA, BETA, GAMMA):
        assert ballots.vote(org, rotated) is None
    assert ballots.charter == rotated
    assert world.read(lambda conn: membership.member(conn, GAMMA)).keys == fresh.public
    assert code(ballots.propose(ballots.following(max_checkpoint_age_s=9), "change-charter", by=GAMMA)) is (
        ErrorCode.SIGNATURE_INVALID
    )
    assert canonical.digest(rotated.to_json()) == rotated.digest


def test_a_successor_takes_over_and_waits_for_the_members(ballots: Ballots, tmp_path: Any) -> None:
    world = ballots.world
    ballots.carry(ballots.following(max_checkpoint_age_s=60), "change-charter")
    waiting = ballots.following(max_checkpoint_age_s=61)
    assert ballots.propose(waiting, "change-charter") is None
    export, genesis = tmp_path / "export.jsonl", genesis_name(world.charter)
    export.write_bytes(world.export())

    def settings(name: str, consortium: str = "demo") -> Any:
        return setup.new_settings(tmp_path / name, consortium, "127.0.0.1:7443", workflows="timers")

    for name, consortium, typed, orgs, expected in (
        ("a", "demo", "b" * 26, (ALPHA,), ErrorCode.LEDGER_INVALID),
        ("b", "others", genesis, (ALPHA,), ErrorCode.CONFLICT),
    ):
        with pytest.raises(ComityError) as refused:
            adopt(settings(name, consortium), export, typed, orgs, 600)
        assert refused.value.code is expected
        assert not (tmp_path / name).exists()
    with pytest.raises(ComityError, match="NOT_A_MEMBER"):
        adopt(settings("c"), export, genesis, ("stranger",), 600)
    assert not (tmp_path / "c").exists(), "half a coordinator is none"
    made = adopt(settings("next"), export, genesis, (ALPHA, BETA), 600)
    assert {org: token.genesis for org, token in made.tokens.items()} == {ALPHA: genesis, BETA: genesis}
    report = ballots.history(tmp_path)
    assert (made.offer()["size"], made.offer()["root"]) == (report.size, report.root)
    with setup.database(settings("next")) as database:
        assert database.transact(charter_in_force) == ballots.charter
        opened = database.transact(lambda conn: store.in_state(conn, "OPEN", 10))
        assert [row.charter_digest for row in opened] == [waiting.digest]
        assert [row.state for row in database.transact(lambda conn: store.in_state(conn, "CARRIED", 10))] == ["CARRIED"]


def test_before_it_is_named_a_successor_does_nothing_else(ballots: Ballots, names: Any, all_keys: Any) -> None:
    world, fresh = ballots.world, all_keys["stranger"]
    world.hub.handlers.clear()
    key = fresh.public.statement
    sign = lambda kind, body: sign_statement(fresh, kind=kind, consortium="demo", issuer="coordinator", body=body)  # noqa: E731
    successor = Governance("demo", "next/demo", key, sign, world.ledger.append, world.hub.enqueue, world.clock)
    successor.ballots.register(world.hub)
    with pytest.raises(ComityError, match="CHARTER_INVALID"):
        world.read(successor.in_charge)
    assert code(ballots.propose(ballots.following(max_checkpoint_age_s=9), "change-charter")) is (
        ErrorCode.CHARTER_INVALID
    )
    end = Adopted(names.log, 1, "0e" * 32)
    log_key = base64.b64encode(key).decode()
    abandoned = ballots.following(log_name="next/demo", log_key=log_key, adopted=replace(end, size=2))
    assert ballots.propose(abandoned, "change-coordinator") is None
    assert ballots.vote(BETA, abandoned, deny="it took over too little") is None
    assert world.hub.take(GAMMA, "charter.ended") == [], "its word does not count yet"
    charter = ballots.following(log_name="next/demo", log_key=log_key, adopted=end)
    assert ballots.propose(charter, "change-coordinator") is None
    for org in (ALPHA, BETA, GAMMA):
        assert ballots.vote(org, charter) is None
    assert world.read(successor.in_charge) == charter
    final = Statement.from_json(world.hub.take(BETA, "charter.final")[-1]["statement"])
    verify_statement(final, key, kind="charter")
    impostor = replace(world.charter.member(ALPHA), keys=NEWCOMER.public)
    with pytest.raises(ComityError, match="CONFLICT"):
        world.read(lambda conn: successor.ballots.candidate(conn, impostor, "coordinator"))


def test_proofs_leave_once_the_log_is_named(ballots: Ballots, all_keys: Any) -> None:
    hub = ballots.world.hub
    for key, told in ((all_keys["stranger"], 0), (all_keys["coordinator"], 1)):
        outbox = ProofsOnceNamed(hub, key.public.statement)
        ballots.world.read(lambda conn, outbox=outbox: outbox.enqueue(conn, ALPHA, "ledger.proof", {}))  # type: ignore[misc]
        assert len(hub.take(ALPHA, "ledger.proof")) == told


def test_fsck_finds_what_was_done_to_decisions(ballots: Ballots) -> None:
    world, columns = ballots.world, store.proposals.c
    ballots.carry(ballots.following(max_checkpoint_age_s=60), "change-charter")
    waiting = ballots.following(max_checkpoint_age_s=61)
    assert ballots.propose(waiting, "change-charter") is None
    world.export()

    def findings() -> list[str]:
        key = world.log_keys.public.statement
        return list(world.read(lambda conn: fsck.check(conn, world.ledger, key)))

    assert findings() == []
    of_waiting = columns.charter_digest == waiting.digest
    for table, values, words in (
        (store.proposals, {"state": "CARRIED"}, "is not in force"),
        (store.proposals, {"statement": ballots.say(ALPHA, "charter-vote", {"charter": {}}).to_bytes()}, "appended"),
    ):
        before = world.read(lambda conn: store.newest_of(conn, waiting.digest))
        world.read(lambda conn, t=table, v=values: conn.execute(t.update().where(of_waiting).values(**v)))  # type: ignore[misc]
        assert any(words in each for each in findings()), words
        same = {"state": before.state, "statement": before.statement}
        world.read(lambda conn, v=same: conn.execute(store.proposals.update().where(of_waiting).values(**v)))  # type: ignore[misc]
    world.read(
        lambda conn: conn.execute(store.charters.update().where(store.charters.c.version == 2).values(version=3))
    )
    assert any("does not follow" in each for each in findings())
