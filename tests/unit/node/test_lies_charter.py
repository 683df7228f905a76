"""A node decides on charters by what it can verify itself; a lying coordinator is caught at each lie."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.keystore import FileKeyStore
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.governance import ballot_store, service
from comity_node.governance.proposing import Wish, apply_setting, differences, next_charter
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger.store import LedgerStore, Seen
from comity_node.settings import NodeSettings
from comity_node.training.standing import read_receipt
from comity_node.transport import store as link_store
from comity_node.transport.model import Message
from comity_policies.charter import Adopted, AgentRef, Charter, Member, QuorumRule, TrustRoot
from comity_policies.charter_votes import CharterEnded, CharterProposal, CharterVote
from comity_policies.decisions import Decision
from comity_policies.documents import Reason

A, B, C, D = "hospital-a", "hospital-b", "hospital-c", "hospital-d"


class Link:
    """Keeps what is sent; never connected, so that nobody waits for an echo."""

    connected = False

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.handlers: dict[str, Any] = {}
        self.refusing: dict[str, Any] = {}
        self.sent: list[tuple[str, Statement]] = []
        self.redialled = 0

    def redial(self) -> None:
        self.redialled += 1

    def register(self, kind: str, handler: Any) -> None:
        self.handlers[kind] = handler

    def on_refused(self, kind: str, callback: Any) -> None:
        self.refusing[kind] = callback

    def on_refusal(self, callback: Any) -> None:
        pass

    def on_connected(self, callback: Any) -> None:
        pass

    def send(self, conn: Any, kind: str, body: Statement, *, run: str = "") -> str:
        self.journal.after_commit(conn, lambda: self.sent.append((kind, body)))
        return f"m-{len(self.sent)}"


class Policy:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.says = Decision("review")
        self.asked: list[dict[str, Any]] = []

    def decide(self, stage: Any, document: dict[str, Any]) -> Decision:
        self.asked.append(document)
        return self.says


class Rig:
    """hospital-a's node, and everybody else's keys."""

    def __init__(self, folder: Path, consortium: Any) -> None:
        self.consortium = consortium
        self.now: datetime = instants.now()
        settings = NodeSettings(
            home=folder,
            org=A,
            consortium="demo",
            title=A,
            owner=A,
            coordinator="127.0.0.1:1",
            log_key=base64.b64encode(consortium.log.public.statement).decode(),
        )
        settings.make_folders()
        self.keys: OrgKeys = FileKeyStore(settings.keys_folder).create()
        self.all = {**consortium.keys, A: self.keys}
        self.journal, self.policy = Journal.open(folder / "journal.db"), Policy()
        self.link, self.charters = Link(self.journal), CharterStore(settings, self.journal)
        nothing: Any = None
        self.node = NodeContext(
            settings=settings,
            keys=self.keys,
            keystore=FileKeyStore(settings.keys_folder),
            journal=self.journal,
            link=self.link,  # type: ignore[arg-type]
            dialer=nothing,
            payloads=nothing,
            charters=self.charters,
            ledger=LedgerStore(),
            policy=self.policy,  # type: ignore[arg-type]
            clock=lambda: self.now,
        )
        self.service = service.build(self.node)
        self.decisions = self.service.decisions
        self.journal.create_all()
        members = tuple(Member(org, org, org, self.all[org].public) for org in (A, B, C))
        rule = QuorumRule("fraction", 2, 3)
        self.genesis = replace(
            consortium.charter(),
            members=members,
            quorum={"admit-member": rule, "suspend-member": rule, "change-charter": rule, "rotate-key": rule},
        )

    async def found(self) -> None:
        self.journal.transact(lambda conn: self.charters.sign_once(conn, self.genesis))
        await self.accept(self.genesis, (A, B, C))

    async def accept(self, charter: Charter, signers: tuple[str, ...]) -> None:
        message = message_for("charter", charter.digest)
        certificate = make_certificate(charter.digest, {org: self.all[org].bls_sign(message) for org in signers})
        body = {"charter": charter.to_json(), "certificate": certificate.to_json(), "signatures": []}
        said = sign_statement(self.consortium.log, kind="charter", consortium="demo", issuer="coordinator", body=body)
        await self.tell("charter.final", {"statement": said.to_json()})

    async def tell(self, kind: str, body: dict[str, Any]) -> None:
        await self.link.handlers[kind](Message("m", 1, kind, "coordinator", (), "", canonical.canonical(body)))

    def say(self, org: str, kind: str, body: dict[str, Any], keys: OrgKeys | None = None) -> Statement:
        signer = keys or (self.consortium.log if org == "coordinator" else self.all[org])
        at = instants.to_text(self.now)
        return sign_statement(signer, kind=kind, consortium="demo", issuer=org, body=body, issued_at=at)

    def proposal(self, charter: Charter, *kinds: str, by: str = B, keys: OrgKeys | None = None) -> Statement:
        deadline = instants.to_text(self.now + timedelta(seconds=600))
        return self.say(by, "charter-proposal", CharterProposal(charter, kinds, "why", deadline).to_json(), keys)

    def ballot(self, org: str, charter: Charter, deny: str = "", keys: OrgKeys | None = None) -> Statement:
        bls = (keys or self.all[org]).bls_sign(message_for("charter", charter.digest))
        text = None if deny else base64.b64encode(bls).decode()
        return self.say(org, "charter-vote", CharterVote(charter.digest, not deny, text, deny).to_json())

    async def proposed(self, charter: Charter, *kinds: str, by: str = B) -> None:
        await self.tell("charter.proposed", {"statement": self.proposal(charter, *kinds, by=by).to_json(), "votes": []})

    async def voted(self, said: Statement) -> None:
        await self.tell("charter.voted", {"statement": said.to_json()})

    def following(self, **values: Any) -> Charter:
        before = self.charters.in_force()
        return replace(before, **{"version": before.version + 1, "previous": before.digest, **values})

    def admitting(self) -> Charter:
        return self.following(members=(*self.genesis.members, Member(D, D, D, self.all[D].public)))

    def candidates(self) -> dict[str, Member]:
        found = self.journal.transact(ballot_store.candidates)
        return {each.member.org: each.member for each in found}


@pytest.fixture
async def rig(tmp_path: Path, consortium: Any) -> Any:
    made = Rig(tmp_path, consortium)
    await made.found()
    yield made
    made.journal.close()


async def refused(doing: Any) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        await doing
    return caught.value.code


async def test_a_person_votes_by_the_name_and_the_policy_is_asked(rig: Rig) -> None:
    charter = rig.admitting()
    await rig.proposed(charter, "admit-member")
    view = await rig.decisions.show(charter.digest)
    assert (view["state"], view["awaited"], view["needed"]) == ("OPEN", [A, B, C], {"admit-member": "2/3"})
    assert view["differences"] == [f"admit {D}: {D}, {D}, fingerprint {rig.all[D].public.fingerprint()}"]
    assert await refused(rig.decisions.vote("b" * 26)) is ErrorCode.NOT_FOUND
    rig.policy.says = Decision("deny", (Reason("membership.fingerprint", "FINGERPRINT", "another one"),))
    assert await refused(rig.decisions.vote(view["name"])) is ErrorCode.POLICY_DENIED
    assert rig.policy.asked[-1]["candidate"]["org"] == D
    assert rig.policy.asked[-1]["sponsor"] == B
    done = await rig.decisions.vote(view["name"], reason="I have called them myself")
    assert (done["allowed"], done["state"]) == ([A], "OPEN")
    kind, said = rig.link.sent[-1]
    assert (kind, said.kind, said.body["allow"]) == ("charter.vote", "charter-vote", True)
    await rig.voted(rig.ballot(B, charter))
    # Two of three said yes: carried, whatever the coordinator does now; it comes into force with the certificate.
    assert (await rig.decisions.show(charter.digest))["state"] == "CARRIED"
    await rig.accept(charter, (A, B))
    assert (await rig.decisions.show(charter.digest))["in_force"] is True


async def test_proposals_that_a_lying_coordinator_shows(rig: Rig) -> None:
    good = rig.following(max_checkpoint_age_s=60)
    other_chain = replace(good, previous="0c" * 32)
    old = replace(rig.genesis, version=2, previous=rig.genesis.digest)
    for said, code in (
        (rig.proposal(good, "change-charter", keys=rig.all[C]), ErrorCode.SIGNATURE_INVALID),
        (rig.proposal(good, "change-charter", by=D), ErrorCode.NOT_A_MEMBER),
        (rig.proposal(good, "admit-member"), ErrorCode.CHARTER_INVALID),
        (rig.proposal(other_chain, "change-charter"), ErrorCode.CHARTER_INVALID),
        (rig.proposal(old, "change-charter"), ErrorCode.CHARTER_INVALID),
        (replace(rig.proposal(good, "change-charter"), issuer=C), ErrorCode.SIGNATURE_INVALID),
    ):
        assert await refused(rig.tell("charter.proposed", {"statement": said.to_json(), "votes": []})) is code
    forged = rig.ballot(C, good, keys=rig.all[B])
    said = rig.proposal(good, "change-charter").to_json()
    told = rig.tell("charter.proposed", {"statement": said, "votes": [forged.to_json()]})
    assert await refused(told) is ErrorCode.SIGNATURE_INVALID
    assert await rig.decisions.listed() == []


async def test_votes_that_a_lying_coordinator_shows(rig: Rig) -> None:
    charter, other = rig.following(max_checkpoint_age_s=60), rig.following(max_checkpoint_age_s=61)
    await rig.proposed(charter, "change-charter")
    for said, code in (
        (rig.ballot(C, charter, keys=rig.all[B]), ErrorCode.SIGNATURE_INVALID),
        (rig.ballot(D, charter), ErrorCode.NOT_A_MEMBER),
        (rig.ballot(C, other), ErrorCode.NOT_FOUND),
        (replace(rig.ballot(C, charter, deny="no"), issuer=B), ErrorCode.SIGNATURE_INVALID),
    ):
        assert await refused(rig.voted(said)) is code
    await rig.voted(rig.ballot(C, charter))
    await rig.voted(rig.ballot(C, charter))  # delivered twice, counted once
    assert await refused(rig.voted(rig.ballot(C, charter, deny="after all"))) is ErrorCode.CONFLICT
    assert (await rig.decisions.show(charter.digest))["allowed"] == [C]


async def test_charters_that_a_lying_coordinator_states(rig: Rig) -> None:
    charter = rig.following(max_checkpoint_age_s=60)
    twice = replace(charter, version=3, previous=charter.digest)
    rival = replace(rig.genesis, max_checkpoint_age_s=9)  # another genesis, once there is one
    for bad, signers in ((charter, (A,)), (charter, (A, D)), (twice, (A, B, C)), (rival, (A, B))):
        code = await refused(rig.service._accept(_final(rig, bad, signers)))
        assert code in (ErrorCode.QUORUM_MISSING, ErrorCode.CHARTER_INVALID), bad.version
    assert rig.charters.in_force() == rig.genesis
    good = _final(rig, charter, (A, B))
    for signers in ([A, A], [B, A], [A, B, C], [A, C], [A]):  # duplicated, out of order, added, exchanged, missing
        body = {**good.body, "certificate": {**good.body["certificate"], "signers": signers}}
        code = await refused(rig.service._accept(rig.say("coordinator", "charter", body)))
        assert code in (ErrorCode.MALFORMED, ErrorCode.QUORUM_MISSING), signers
    forged = make_certificate(charter.digest, {org: rig.all[D].bls_sign(b"other") for org in (A, B)})
    body = {**good.body, "certificate": forged.to_json()}
    assert await refused(rig.service._accept(rig.say("coordinator", "charter", body))) is ErrorCode.QUORUM_MISSING
    await rig.accept(charter, (A, B))
    assert rig.charters.in_force() == charter
    await rig.accept(rig.genesis, (A, B, C))  # an old charter, shown again, changes nothing
    assert rig.charters.in_force() == charter


def _final(rig: Rig, charter: Charter, signers: tuple[str, ...]) -> Statement:
    message = message_for("charter", charter.digest)
    certificate = make_certificate(charter.digest, {org: rig.all[org].bls_sign(message) for org in signers})
    body = {"charter": charter.to_json(), "certificate": certificate.to_json(), "signatures": []}
    return rig.say("coordinator", "charter", body)


async def test_an_end_that_is_not_true_changes_nothing_here(rig: Rig) -> None:
    charter = rig.following(max_checkpoint_age_s=60)
    said = rig.proposal(charter, "change-charter")
    await rig.tell("charter.proposed", {"statement": said.to_json(), "votes": []})
    ended = CharterEnded(charter.digest, said.digest, "DENIED", (), (B, C), (A,)).to_json()
    await rig.tell("charter.ended", {"statement": rig.say("coordinator", "charter-ended", ended).to_json()})
    assert (await rig.decisions.show(charter.digest))["state"] == "OPEN"
    forged = rig.say("coordinator", "charter-ended", ended, keys=rig.all[B])
    told = rig.tell("charter.ended", {"statement": forged.to_json()})
    assert await refused(told) is ErrorCode.SIGNATURE_INVALID
    rig.now += timedelta(seconds=601)
    view = await rig.decisions.show(charter.digest)
    assert (view["state"], view["missing"], view["awaited"]) == ("EXPIRED", [A, B, C], [])
    assert await refused(rig.decisions.vote(charter.digest)) is ErrorCode.DEADLINE_PASSED


async def test_one_successor_is_signed_until_it_is_impossible(rig: Rig) -> None:
    first, second = rig.following(max_checkpoint_age_s=60), rig.following(max_checkpoint_age_s=61)
    await rig.proposed(first, "change-charter")
    await rig.proposed(second, "change-charter")
    await rig.decisions.vote(first.digest)
    assert await refused(rig.decisions.vote(second.digest)) is ErrorCode.CONFLICT
    assert await refused(rig.decisions.vote(first.digest, deny="no")) is ErrorCode.CONFLICT
    await rig.voted(rig.ballot(B, first, deny="no"))
    assert await refused(rig.decisions.vote(second.digest)) is ErrorCode.CONFLICT, "C could still carry the first"
    await rig.voted(rig.ballot(C, first, deny="no"))
    assert (await rig.decisions.vote(second.digest))["allowed"] == [A]
    third = rig.following(max_checkpoint_age_s=62)
    await rig.proposed(third, "change-charter")
    assert await refused(rig.decisions.vote(third.digest)) is ErrorCode.CONFLICT
    assert await refused(rig.decisions.vote(third.digest, instead_of=first.digest)) is ErrorCode.CONFLICT
    assert (await rig.decisions.vote(third.digest, instead_of=second.digest))["allowed"] == [A]


async def test_who_denied_does_not_sign_and_the_same_is_put_again_as_another_attempt(rig: Rig) -> None:
    wish = Wish(settings={"max_checkpoint_age_s": "60"})
    first = rig.following(max_checkpoint_age_s=60)
    await rig.proposed(first, "change-charter")
    await rig.decisions.vote(first.digest, deny="not yet")
    assert await refused(rig.decisions.vote(first.digest)) is ErrorCode.CONFLICT
    view = await rig.decisions.propose(wish, "again")
    assert (view["attempt"], view["state"]) == (2, "OPEN")
    assert "not taken it yet" in view["then"]
    again = CharterProposal.from_json(rig.link.sent[-1][1].body)
    assert (again.charter.attempt, replace(again.charter, attempt=1)) == (2, first)


async def test_strange_keys_in_our_name_are_never_signed(rig: Rig) -> None:
    stolen = tuple(replace(each, keys=rig.all[D].public) if each.org == A else each for each in rig.genesis.members)
    charter = rig.following(members=stolen)
    await rig.proposed(charter, "rotate-key")
    assert await refused(rig.decisions.vote(charter.digest)) is ErrorCode.CHARTER_INVALID


async def test_own_keys_are_switched_when_the_members_have_decided(rig: Rig) -> None:
    org, public = rig.service.next_keys()
    assert (org, public) == rig.service.next_keys(), "made once"
    before = rig.keys.public.fingerprint()
    charter = next_charter(rig.charters.in_force(), Wish(keys=(org, public)), {})
    await rig.proposed(charter, "rotate-key")
    await rig.decisions.vote(charter.digest)
    assert rig.node.keys.public == rig.keys.public, "not before it is in force"
    await rig.accept(charter, (A, B))
    assert rig.node.keys.public == public
    store = FileKeyStore(rig.node.settings.keys_folder)
    assert store.load().public == public
    assert (rig.node.settings.keys_folder / f"former-{before}.json").exists()
    assert not rig.service.own_keys.switch(), "once"


async def test_a_sponsor_proposes_its_guest_by_itself_once(rig: Rig) -> None:
    member = Member(D, D, D, rig.all[D].public)
    await rig.tell("charter.candidate", {"member": member.to_json(), "sponsor": B})
    assert rig.link.sent == []
    await rig.tell("charter.candidate", {"member": member.to_json(), "sponsor": A})
    ((kind, said),) = rig.link.sent
    assert (kind, said.kind) == ("charter.propose", "charter-proposal")
    assert CharterProposal.from_json(said.body).charter == rig.admitting()
    await rig.tell("charter.proposed", {"statement": said.to_json(), "votes": []})
    await rig.tell("charter.candidate", {"member": member.to_json(), "sponsor": A})
    assert len(rig.link.sent) == 1
    # Overtaken by another charter, it is proposed again on top of that one.
    first = rig.following(max_checkpoint_age_s=60)
    await rig.accept(first, (A, B))
    ended = CharterEnded(rig_digest(said), said.digest, "SUPERSEDED", (), (), (A, B, C)).to_json()
    await rig.tell("charter.ended", {"statement": rig.say("coordinator", "charter-ended", ended).to_json()})
    await rig.tell("charter.candidate", {"member": member.to_json(), "sponsor": A})
    assert CharterProposal.from_json(rig.link.sent[-1][1].body).charter.version == 3


def rig_digest(said: Statement) -> str:
    return str(CharterProposal.from_json(said.body).charter.digest)


async def test_a_member_that_was_removed_is_taken_back_with_the_keys_that_it_had(rig: Rig) -> None:
    await rig.accept(rig.following(members=rig.genesis.members[:2]), (A, B))
    await rig.decisions.propose(Wish(admit=(C,)), "they are back")
    charter = CharterProposal.from_json(rig.link.sent[-1][1].body).charter
    assert charter.members == rig.genesis.members


async def test_a_guest_that_the_own_policy_denies_is_not_sponsored(rig: Rig) -> None:
    rig.policy.says = Decision("deny", (Reason("membership.fingerprint", "FINGERPRINT", "another one"),))
    member = Member(D, D, D, rig.all[D].public)
    await rig.tell("charter.candidate", {"member": member.to_json(), "sponsor": A})
    assert rig.link.sent == []


async def test_a_refused_vote_may_be_given_again(rig: Rig) -> None:
    charter = rig.following(max_checkpoint_age_s=60)
    await rig.proposed(charter, "change-charter")
    await rig.decisions.vote(charter.digest)
    kind, said = rig.link.sent[-1]
    rig.journal.transact(lambda conn: rig.link.refusing[kind](conn, said.to_bytes()))
    assert (await rig.decisions.show(charter.digest))["allowed"] == []
    assert (await rig.decisions.vote(charter.digest))["allowed"] == [A]


def test_wishes_become_charters(consortium: Any) -> None:
    before = replace(consortium.charter(), quorum={"admit-member": QuorumRule("fraction", 2, 3)})
    settings = {
        "quorum.admit-member": "named:hospital-a",
        "quorum.suspend-member": "weighted:3:hospital-a=2,hospital-b=1,hospital-c=1",
        "roles.accountant": "hospital-b",
        "defaults.rounds": "5",
        "defaults.purposes": '["research"]',
        "max_checkpoint_age_s": "60",
    }
    after = next_charter(before, Wish(settings=settings), {})
    assert differences(before, after) == [
        'defaults.purposes: none -> ["research"]',
        "defaults.rounds: none -> 5",
        "max_checkpoint_age_s: 600 -> 60",
        "quorum.admit-member: 2/3 -> named:hospital-a",
        "quorum.suspend-member: all -> weighted:3:hospital-a=2,hospital-b=1,hospital-c=1",
        'roles.accountant: none -> ["hospital-b"]',
    ]
    back = next_charter(after, Wish(settings={"quorum.suspend-member": "default", "roles.accountant": ""}), {})
    assert (back.rule("suspend-member"), back.roles) == (QuorumRule("all"), {})
    for key, text in (("quorum.x", "all"), ("quorum.admit-member", "most"), ("log_key", "x"), ("defaults.x", "1")):
        with pytest.raises(ComityError):
            next_charter(before, Wish(settings={key: text}), {})
    with pytest.raises(ComityError, match="MALFORMED"):
        apply_setting(before, {}, "quorum.admit-member", "a" * 20_000)
    for wish, code in (
        (Wish(), ErrorCode.ILLEGAL_EVENT),
        (Wish(withdraw_agents=("tumours@1.0.0",)), ErrorCode.NOT_FOUND),
        (Wish(distrust=("sev-snp:milan",)), ErrorCode.NOT_FOUND),
        (Wish(admit=("hospital-z",)), ErrorCode.NOT_FOUND),
        (Wish(admit=("hospital-a",)), ErrorCode.ALREADY_A_MEMBER),
        (Wish(suspend=("hospital-z",)), ErrorCode.NOT_A_MEMBER),
        (Wish(remove=("hospital-z",)), ErrorCode.NOT_A_MEMBER),
    ):
        with pytest.raises(ComityError) as caught:
            next_charter(before, wish, {})
        assert caught.value.code is code


async def test_a_successor_that_took_over_less_than_was_seen_gets_no_signature(rig: Rig) -> None:
    root = bytes(range(32))
    rig.journal.transact(lambda conn: rig.node.ledger.see(conn, Seen(9, root, "note")))
    log_key = base64.b64encode(rig.all[D].public.statement).decode()
    for size, told, code in (
        (8, root, ErrorCode.LEDGER_INVALID),
        (9, bytes(32), ErrorCode.LEDGER_INVALID),
        (9, root, None),
    ):
        end = Adopted(rig.genesis.log_name, size, told.hex())
        charter = rig.following(log_key=log_key, adopted=end)
        await rig.proposed(charter, "change-coordinator")
        if code is not None:
            assert await refused(rig.decisions.vote(charter.digest)) is code
            continue
        await rig.decisions.vote(charter.digest)
        await rig.voted(rig.ballot(B, charter))
        # Only the log that the charter names may state it, and only with the members' certificate.
        former = _final(rig, charter, (A, B, C))
        assert await refused(rig.service._accept(former)) is ErrorCode.SIGNATURE_INVALID
        rig.consortium = replace(rig.consortium, log=rig.all[D])
        assert await refused(rig.service._accept(_final(rig, charter, (A, B)))) is ErrorCode.QUORUM_MISSING
        before, put = rig.genesis, rig.proposal(rig.following(max_checkpoint_age_s=60), "change-charter")
        await rig.tell("charter.proposed", {"statement": put.to_json(), "votes": []})
        await rig.accept(charter, (A, B, C))
        assert rig.charters.in_force() == charter
        assert rig.link.redialled == 1
        # The new log ends what was open under the old one.
        ended = CharterEnded(rig_digest(put), put.digest, "SUPERSEDED", (), (), (A, B, C)).to_json()
        await rig.tell("charter.ended", {"statement": rig.say("coordinator", "charter-ended", ended).to_json()})
        forged = rig.say("coordinator", "charter-ended", ended, keys=rig.all[B]).to_json()
        assert await refused(rig.tell("charter.ended", {"statement": forged})) is ErrorCode.SIGNATURE_INVALID
        assert before == rig.charters.at(before.digest)


def test_messages_that_wait_begin_anew_with_another_coordinator(journal: Journal) -> None:
    def send(conn: Any) -> None:
        for number in range(4):
            link_store.append(conn, f"m-{number}", "answer", "", b"{}")
        link_store.acknowledged(conn, 2)
        link_store.received(conn, 1)

    journal.transact(send)
    journal.transact(link_store.restart)
    journal.transact(link_store.restart)  # after a crash it is done again
    position = journal.transact(link_store.position)
    assert (position.sent_seq, position.received_seq) == (2, 0)
    waiting = journal.transact(lambda conn: link_store.waiting(conn, 0, 10, A))
    assert [(each.seq, each.id) for each in waiting] == [(1, "m-2"), (2, "m-3")]


async def test_a_crash_before_the_switch_of_keys_is_made_good_at_the_start(rig: Rig) -> None:
    org, public = rig.service.next_keys()
    charter = next_charter(rig.charters.in_force(), Wish(keys=(org, public)), {})
    await rig.charters.accept(_final(rig, charter, (A, B)))  # in the journal; the process dies here
    assert rig.node.keys.public != public
    await rig.service.start()
    assert rig.node.keys.public == public
    await rig.service.start()
    assert rig.node.keys.public == public


async def test_receipts_from_before_a_rotation_are_still_ours(rig: Rig) -> None:
    def receipt(keys: OrgKeys) -> bytes:
        return rig.say(A, "receipt", {"order": "0a" * 32}, keys).to_bytes()

    old, strange = receipt(rig.keys), receipt(rig.all[D])
    org, public = rig.service.next_keys()
    await rig.accept(next_charter(rig.charters.in_force(), Wish(keys=(org, public)), {}), (A, B))
    assert rig.node.keys.public == public
    assert read_receipt(rig.node, old) is not None
    assert read_receipt(rig.node, receipt(rig.node.keys)) is not None
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        read_receipt(rig.node, strange)


@pytest.mark.parametrize("named", ["0c" * 32, "tumours@1.0.0"])
def test_what_was_published_or_trusted_is_taken_off(rig: Rig, named: str) -> None:
    app, other = AgentRef("0c" * 32, "tumours", "1.0.0", A), AgentRef("0d" * 32, "tumours", "1.1.0", A)
    root = TrustRoot("sev-snp", "milan", "0e" * 32)
    before = rig.charters.in_force()
    listed = next_charter(before, Wish(agents=(app, other), trust_roots=(root,)), {})
    assert (listed.agents, listed.trust_roots) == ((app, other), (root,))
    assert next_charter(listed, Wish(withdraw_agents=(named,)), {}).agents == (other,)
    assert next_charter(listed, Wish(distrust=("sev-snp:milan",)), {}).trust_roots == ()
