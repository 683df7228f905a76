"""Charter proposals and votes: taken from members, counted here, and counted again by every node.

Rules, in this order (negotiation.md section 6):
1. a message is judged whole (form, a member that may vote, signatures, what it is about) before anything is written;
2. state, ledger entry and messages to the members commit together;
3. enough yes put the charter into force at once and end every other open proposal; a denial that makes the quorum
   impossible, or the deadline, ends a proposal with the names of those who voted and of those who did not;
4. a late denial is still taken: it frees members to sign another charter of this version. A late yes is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import inbound
from comity_coordinator.governance import model, store
from comity_coordinator.governance.ports import Append, Enforce, Send
from comity_coordinator.governance.store import ProposalRow
from comity_coordinator.membership import store as membership_store
from comity_coordinator.transport.model import Message
from comity_crypto.statements import Statement
from comity_policies.charter import Charter, Member
from comity_policies.charter_votes import (
    ENDED,
    PROPOSAL,
    PROPOSAL_BYTES_MAX,
    VOTE,
    VOTE_BYTES_MAX,
    Ballot,
    CharterEnded,
    CharterProposal,
    Outcome,
    read_proposal,
    read_vote,
)
from comity_policies.terms import PARTIES_MAX

# Each member has its own share: nobody keeps the others from deciding by proposing much.
OPEN_PER_PROPOSER_MAX = 4
OPEN_MAX = OPEN_PER_PROPOSER_MAX * PARTIES_MAX
PROPOSED, VOTED, OVER, CANDIDATE = "charter.proposed", "charter.voted", "charter.ended", "charter.candidate"


class Ballots:
    """Use cases of charter proposals. Methods that take `conn` run inside the caller's transaction and may run again.

    Args:
        charter_of: returns the charter in force.
        enforce: puts a charter with these yes votes into force; raises if they do not suffice.
        sign, append, send: as in `service.Governance`.
        clock: the present as text.
        log_key: this coordinator's; while the charter in force names another one, only a charter that names this one
            may be proposed, and nothing is stated in the coordinator's name.
    """

    def __init__(
        self,
        charter_of: inbound.CharterOf,
        enforce: Enforce,
        sign: Callable[[str, dict[str, Any]], Statement],
        append: Append,
        send: Send,
        clock: Callable[[], str] = instants.now_text,
        log_key: bytes = b"",
    ) -> None:
        self._charter_of = charter_of
        self._enforce = enforce
        self._sign = sign
        self._append = append
        self._send = send
        self._clock = clock
        self._log_key = log_key

    def register(self, outbox: inbound.Outbox) -> None:
        """Take the message kinds of charter decisions."""
        outbox.register("charter.propose", self.propose)
        outbox.register("charter.vote", self.vote)

    def propose(self, conn: Connection, org: str, message: Message) -> None:
        """Open a proposal: every member is told.

        Raises:
            ComityError: `CONFLICT` if the same charter is open already; `DEADLINE_PASSED`; `BUSY`; what `read_proposal`
                and `model.check_newcomers` raise.
        """
        in_force = inbound.charter(conn, self._charter_of)
        said = inbound.statement(in_force, org, message, PROPOSAL, PROPOSAL_BYTES_MAX)
        if store.proposal(conn, said.digest) is not None:
            return
        proposal, now = read_proposal(said, in_force), self._clock()
        if proposal.deadline <= now:
            raise ComityError(ErrorCode.DEADLINE_PASSED, "the proposal came after its own deadline")
        self._check_ours(in_force, proposal.charter)
        model.check_newcomers(in_force, proposal.charter, self._enrolled(conn))
        digest, opened = proposal.charter.digest, store.in_state(conn, Outcome.OPEN, OPEN_MAX)
        if any(row.charter_digest == digest for row in opened):
            raise ComityError(ErrorCode.CONFLICT, "this very charter is being voted on", digest=digest)
        if sum(row.proposer == org for row in opened) >= OPEN_PER_PROPOSER_MAX:
            raise ComityError(ErrorCode.BUSY, "too many open charter proposals", limit=OPEN_PER_PROPOSER_MAX)
        self._append(conn, said)
        row = ProposalRow(said.digest, digest, org, Outcome.OPEN, proposal.deadline, now, said.to_bytes())
        store.add_proposal(conn, row)
        votes = [Statement.from_bytes(data).to_json() for _, _, data in store.votes_of(conn, digest)]
        self._tell(conn, in_force, PROPOSED, {"statement": said.to_json(), "votes": votes})
        self._settle(conn, in_force, row, proposal)

    def vote(self, conn: Connection, org: str, message: Message) -> None:
        """Take a member's yes or no.

        Raises:
            ComityError: `NOT_FOUND` if the charter was not proposed; `CONFLICT` if the member said the opposite before;
                `ILLEGAL_EVENT` for a yes after the end; what `read_vote` raises.
        """
        in_force = inbound.charter(conn, self._charter_of)
        said = inbound.statement(in_force, org, message, VOTE, VOTE_BYTES_MAX)
        vote = read_vote(said, in_force)
        before = {voter: (allow, data) for voter, allow, data in store.votes_of(conn, vote.charter)}.get(org)
        if before == (vote.allow, said.to_bytes()):
            return
        if before is not None and before[0] != vote.allow:
            raise ComityError(ErrorCode.CONFLICT, "this organisation said the opposite before")
        row = store.newest_of(conn, vote.charter)
        if row is None:
            raise ComityError(ErrorCode.NOT_FOUND, "no such charter was proposed", digest=vote.charter)
        proposal = _read(row)
        self._check_ours(in_force, proposal.charter)
        over = row.state != Outcome.OPEN or proposal.deadline <= self._clock()
        if before is not None or proposal.charter.previous != in_force.digest or (over and vote.allow):
            raise ComityError(ErrorCode.ILLEGAL_EVENT, "this vote was given before, or came too late", state=row.state)
        self._append(conn, said)
        store.add_vote(conn, vote.charter, org, vote.allow, said.to_bytes())
        self._tell(conn, in_force, VOTED, {"statement": said.to_json()})
        if row.state == Outcome.OPEN:
            self._settle(conn, in_force, row, proposal)

    def expire(self, conn: Connection) -> int:
        """End the proposals whose deadline has passed; returns how many there were."""
        in_force = self._charter_of(conn)
        if in_force is None:
            return 0
        now = self._clock()
        due = [row for row in store.in_state(conn, Outcome.OPEN, OPEN_MAX) if row.deadline <= now]
        for row in due:
            self._settle(conn, in_force, row, _read(row))
        return len(due)

    def newest_open(self, conn: Connection) -> tuple[CharterProposal, Ballot] | None:
        """Return the newest open proposal with its votes."""
        in_force, opened = self._charter_of(conn), store.in_state(conn, Outcome.OPEN, OPEN_MAX)
        if in_force is None or not opened:
            return None
        proposal = _read(opened[-1])
        return proposal, _ballot(conn, in_force, proposal)

    def candidate(self, conn: Connection, member: Member, sponsor: str) -> None:
        """Tell those who may vote that an organisation has enrolled and wants to be admitted."""
        in_force = self._charter_of(conn)
        if in_force is None:
            return  # the genesis draft names it
        if member.org in in_force.organisations:
            # After a change of coordinator members enrol anew: as themselves, and as nobody else.
            if in_force.member(member.org).keys != member.keys:
                raise ComityError(ErrorCode.CONFLICT, "the charter in force names other keys for this organisation")
            return
        for org in in_force.voters:
            self._send(conn, org, CANDIDATE, {"member": member.to_json(), "sponsor": sponsor})

    def in_force(self, conn: Connection, before: Charter | None, charter: Charter) -> None:
        """After a charter came into force: end what was open, tell newcomers who else waits, keep keys in step."""
        if before is not None:
            for row in store.in_state(conn, Outcome.OPEN, OPEN_MAX):
                if row.charter_digest == charter.digest:
                    store.set_state(conn, row.statement_digest, Outcome.CARRIED)
                else:
                    self._end(conn, before, row, _ballot(conn, before, _read(row)), Outcome.SUPERSEDED)
        known = {member.org: member for member in self._enrolled(conn)}
        for member in charter.members:
            if member.org in known and known[member.org] != member:
                membership_store.set_public(conn, member.org, member.title, member.owner, member.keys)
        waiting = [member for member in known.values() if member.org not in charter.organisations]
        for org in sorted(set(charter.voters) - set(before.voters if before else charter.voters)):
            for member in waiting:
                self._send(conn, org, CANDIDATE, {"member": member.to_json(), "sponsor": ""})

    def _settle(self, conn: Connection, in_force: Charter, row: ProposalRow, proposal: CharterProposal) -> None:
        ballot = _ballot(conn, in_force, proposal)
        outcome = ballot.judge(self._clock())
        if outcome is Outcome.CARRIED:
            yes = [(org, Statement.from_bytes(data)) for org, allow, data in _votes(conn, proposal) if allow]
            self._enforce(conn, in_force, proposal.charter, yes)
        elif outcome is not Outcome.OPEN:
            self._end(conn, in_force, row, ballot, outcome)

    def _end(self, conn: Connection, charter: Charter, row: ProposalRow, ballot: Ballot, outcome: Outcome) -> None:
        ended = CharterEnded(
            charter=row.charter_digest,
            proposal=row.statement_digest,
            state=str(outcome),
            allowed=ballot.allowed,
            denied=ballot.denied,
            missing=ballot.awaited,
        )
        store.set_state(conn, row.statement_digest, outcome)
        if not self._names_us(inbound.charter(conn, self._charter_of)):
            return  # our word does not count yet; every node computes the end itself
        said = self._sign(ENDED, ended.to_json())
        self._append(conn, said, charter.organisations)
        self._tell(conn, charter, OVER, {"statement": said.to_json()})

    def _check_ours(self, in_force: Charter, following: Charter) -> None:
        """Before the members have named this coordinator, it takes their word on that and on nothing else."""
        if not self._names_us(in_force) and not self._names_us(following):
            raise ComityError(ErrorCode.CHARTER_INVALID, "the members have to decide on their coordinator first")

    def _names_us(self, charter: Charter) -> bool:
        return not self._log_key or charter.log_public_key == self._log_key

    def _tell(self, conn: Connection, charter: Charter, kind: str, body: dict[str, Any]) -> None:
        for org in charter.organisations:
            self._send(conn, org, kind, body)

    def _enrolled(self, conn: Connection) -> list[Member]:
        rows = membership_store.all_members(conn)
        return [Member(row.org, row.title, row.owner, row.keys) for row in rows if row.revoked_at is None]


def _votes(conn: Connection, proposal: CharterProposal) -> Sequence[tuple[str, bool, bytes]]:
    return store.votes_of(conn, proposal.charter.digest)


def _ballot(conn: Connection, previous: Charter, proposal: CharterProposal) -> Ballot:
    return Ballot(previous, proposal, {org: allow for org, allow, _ in _votes(conn, proposal)})


def _read(row: ProposalRow) -> CharterProposal:
    return CharterProposal.from_json(Statement.from_bytes(row.statement).body)
