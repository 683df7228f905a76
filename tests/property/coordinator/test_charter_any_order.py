"""Charter decisions in any order: proposals, votes, denials, deadlines, duplicates, strangers. Whatever happens, every
proposal ends, one charter of a version is in force, and the history that comes out of it verifies from genesis on."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_coordinator import fsck
from comity_coordinator.db import attempt, open_database
from comity_coordinator.governance import store
from comity_coordinator.governance.service import Governance, charter_in_force
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.membership import store as _membership  # noqa: F401 - defines its tables
from comity_coordinator.transport.model import Message
from comity_crypto.keys import OrgKeys
from comity_crypto.notes import sign_note
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_policies.charter import Charter, Member, QuorumRule, genesis_name, reachable
from comity_policies.charter_votes import CharterProposal, CharterVote, Outcome
from comity_policies.history import verify_export
from comity_policies.terms import Terms

ORGS = ("a", "b", "c", "d")
KEYS = {name: OrgKeys.generate() for name in (*ORGS, "stranger", "coordinator")}
LOG = "log.example/demo"
START = datetime(2029, 1, 1, tzinfo=UTC)
GENESIS = Charter(
    version=1,
    consortium="demo",
    previous=None,
    members=tuple(Member(org, org, org, KEYS[org].public) for org in ORGS),
    log_name=LOG,
    log_key=base64.b64encode(KEYS["coordinator"].public.statement).decode(),
    quorum={
        "change-charter": QuorumRule("fraction", 2, 3),
        "suspend-member": QuorumRule("weighted", 4, weights={"a": 3, "b": 1, "c": 1, "d": 1}),
        "admit-member": QuorumRule("named", members=("a",)),
    },
    max_checkpoint_age_s=600,
    defaults=Terms(),
)

events = st.one_of(
    st.tuples(st.just("propose"), st.sampled_from(ORGS), st.integers(0, 3)),
    st.tuples(st.just("yes"), st.sampled_from((*ORGS, "stranger")), st.integers(0, 3)),
    st.tuples(st.just("yes"), st.sampled_from(ORGS), st.integers(0, 3)),
    st.tuples(st.just("no"), st.sampled_from(ORGS), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.integers(1, 70), st.just(0)),
)


class World:
    """One coordinator's governance and ledger, and members that say anything."""

    def __init__(self, folder: Path) -> None:
        self.now, self.count, self.handlers = START, 0, {}
        self.database = open_database(f"sqlite:///{folder / 'comity.db'}")
        self.database.create_all()
        self.ledger = Ledger("demo", LOG, lambda text: sign_note(text, LOG, KEYS["coordinator"]), self)  # type: ignore[arg-type]
        self.governance = Governance(
            "demo", LOG, KEYS["coordinator"].public.statement, self.sign, self.ledger.append, self.enqueue, self.clock
        )
        self.governance.ballots.register(self)  # type: ignore[arg-type]
        message = message_for("charter", GENESIS.digest)
        certificate = make_certificate(GENESIS.digest, {org: KEYS[org].bls_sign(message) for org in ORGS})
        said = self.sign("charter", {"charter": GENESIS.to_json(), "certificate": certificate.to_json()})

        def found(conn: Any) -> None:
            store.add_charter(conn, 1, GENESIS.digest, said.to_bytes())
            self.ledger.append(conn, said)

        self.database.transact(found)

    def register(self, kind: str, handler: Any) -> None:
        self.handlers[kind] = handler

    def enqueue(self, conn: Any, org: str, kind: str, body: Any, *, run: str = "") -> None:
        pass

    def enqueue_all(self, conn: Any, orgs: Any, kind: str, body: Any) -> None:
        pass

    def clock(self) -> str:
        return instants.to_text(self.now)

    def sign(self, kind: str, body: dict[str, Any]) -> Statement:
        return self.say("coordinator", kind, body)

    def say(self, org: str, kind: str, body: dict[str, Any]) -> Statement:
        return sign_statement(KEYS[org], kind=kind, consortium="demo", issuer=org, body=body, issued_at=self.clock())

    def tell(self, org: str, kind: str, said: Statement) -> bool:
        """Deliver a message; False if it was refused, with a code."""
        self.count += 1
        message = Message(f"m{self.count}", kind, org, (), "", said.to_bytes(), seq=self.count)

        def take(conn: Any) -> bool:
            try:
                attempt(conn, lambda: self.handlers[kind](conn, org, message))
            except ComityError:
                return False
            return True

        return self.database.transact(take)

    def following(self, choice: int) -> Charter:
        """One of four successors of the charter in force: three that differ, one that suspends or reinstates."""
        current = self.database.transact(charter_in_force)
        assert current is not None
        values: dict[str, Any] = {"max_checkpoint_age_s": current.max_checkpoint_age_s + choice + 1}
        if choice == 3:
            values = {"suspended": () if current.suspended else ("d",)}
        return replace(current, version=current.version + 1, previous=current.digest, **values)

    def do(self, event: tuple[Any, Any, int]) -> None:
        what, who, choice = event
        if what == "wait":
            self.now += timedelta(seconds=who)
            self.database.transact(self.governance.ballots.expire)
            return
        charter = self.following(choice)
        if what == "propose":
            current = self.database.transact(charter_in_force)
            kinds = ["change-charter"]
            if choice == 3:
                kinds = ["admit-member"] if current is not None and current.suspended else ["suspend-member"]
            deadline = instants.to_text(self.now + timedelta(seconds=60))
            body = CharterProposal(charter, tuple(kinds), "why", deadline).to_json()
            self.tell(who, "charter.propose", self.say(who, "charter-proposal", body))
            return
        bls = base64.b64encode(KEYS[who].bls_sign(message_for("charter", charter.digest))).decode()
        vote = CharterVote(charter.digest, what == "yes", bls if what == "yes" else None, "" if what == "yes" else "no")
        said = self.say(who, "charter-vote", vote.to_json())
        self.tell(who, "charter.vote", said)
        self.tell(who, "charter.vote", said)  # once more: the same statement changes nothing

    def check(self) -> None:
        """Nothing is open that its votes or its deadline have ended."""
        current = self.database.transact(charter_in_force)
        assert current is not None
        for row in self.database.transact(lambda conn: store.in_state(conn, Outcome.OPEN, 100)):
            proposal = CharterProposal.from_json(Statement.from_bytes(row.statement).body)
            votes = self.database.transact(lambda conn, row=row: store.votes_of(conn, row.charter_digest))
            assert proposal.charter.previous == current.digest
            assert reachable(current, proposal.charter, [org for org, allow, _ in votes if not allow])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(events, min_size=4, max_size=24))
def test_any_order(found: list[tuple[Any, Any, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        try:
            for event in found:
                world.do(event)
                world.check()
            world.do(("wait", 61, 0))
            assert world.database.transact(lambda conn: store.in_state(conn, Outcome.OPEN, 100)) == []
            while world.database.transact(lambda conn: world.ledger.integrate(conn, "test")):
                pass
            export = Path(name) / "export.jsonl"
            export.write_bytes(world.database.transact(lambda conn: b"".join(world.ledger.export(conn))))
            report = verify_export(export, genesis_name(GENESIS))
            assert [each.version for each in report.charters] == list(range(1, len(report.charters) + 1))
            current = world.database.transact(charter_in_force)
            assert current is not None
            assert current.digest == report.charters[-1].digest
            log_key = KEYS["coordinator"].public.statement
            assert world.database.transact(lambda conn: fsck.check(conn, world.ledger, log_key)) == []
        finally:
            world.database.close()
