"""Deciding on the next charter at a node: propose, vote, and keep what the others say, verified.

Rules (negotiation.md section 6):
1. a proposal or vote of another member enters the journal only after its signatures, and what it is about, were checked
   against the charter that it would replace, which this node has verified from genesis on;
2. a person votes, by the digest or name that they typed; the organisation's own `membership` policy is asked about each
   newcomer before: what it denies takes a reason in the person's own words;
3. a yes signs at most one charter of a version (`store.py`, rule 2); who denied a charter never signs it;
4. whether a proposal is carried, denied or over is computed here, whatever the coordinator says;
5. this node proposes by itself only to admit an organisation that it has invited and that has enrolled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement, key_id, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.governance import ballot_store as store
from comity_node.governance.echoes import Echoes
from comity_node.governance.own_keys import OwnKeys
from comity_node.governance.proposing import Wish, attempt_of, next_charter
from comity_node.governance.view import describe
from comity_node.transport.model import Message
from comity_policies.charter import Adopted, Charter, Member, check_follows, matches_genesis, reachable
from comity_policies.charter_facts import facts_of
from comity_policies.charter_votes import (
    ENDED,
    PROPOSAL,
    VOTE,
    Ballot,
    CharterEnded,
    CharterProposal,
    CharterVote,
    Outcome,
    read_proposal,
    read_vote,
)
from comity_policies.decisions import Stage

VOTES_AT_ONCE_MAX = 64
DEADLINE_S_DEFAULT = 7 * 86_400
NOT_TAKEN_YET = "the coordinator has not taken it yet: it is sent as soon as the stream is open"
SPONSORED = "invited by this organisation and enrolled since"
log = structlog.get_logger("comity.node.charter")


class CharterDecisions:
    """Proposals and votes of this organisation and of the others."""

    def __init__(self, node: NodeContext, own_keys: OwnKeys) -> None:
        self._node = node
        self._own_keys = own_keys
        self._echoes = Echoes(node.link)
        node.link.register("charter.proposed", self._proposed)
        node.link.register("charter.voted", self._voted)
        node.link.register("charter.ended", self._ended)
        node.link.register("charter.candidate", self._candidate)
        node.link.on_refused("charter.vote", self._vote_refused)
        node.link.on_refused("charter.propose", node.ledger.forget)

    async def propose(self, wish: Wish, reason: str, deadline_s: int = DEADLINE_S_DEFAULT) -> dict[str, Any]:
        """Put the charter that follows from `wish` to the vote; returns its view.

        Raises:
            ComityError: what `next_charter` raises; `SUSPENDED`; and the coordinator's refusal, if it comes at once.
        """
        current = self._node.charters.in_force()
        current.check_active(self._node.settings.org)
        candidates = {each.member.org: each.member for each in await self._node.journal.run(store.candidates)}
        following = next_charter(current, wish, self._node.charters.former_members() | candidates)
        said, message_id = await self._submit(current, following, reason, deadline_s)
        await self._echoes.wait(said.digest, message_id)
        proposal = CharterProposal.from_json(said.body)
        if await self._node.journal.run(lambda conn: store.proposals_of(conn, proposal.charter.digest)):
            return await self.show(proposal.charter.digest)
        sent = store.Known(said, proposal, said.issued_at, None)
        return {**describe(sent, self._node.charters, {}, {}, self._now()), "then": NOT_TAKEN_YET}

    async def vote(self, typed: str, *, deny: str = "", reason: str = "", instead_of: str = "") -> dict[str, Any]:
        """Say yes to the open proposal with the digest or name `typed`, or deny it with the reason `deny`.

        Args:
            typed: at least 24 characters of the name, or the digest.
            deny: why not; empty for a yes.
            reason: in the person's own words, where the organisation's policy denies a newcomer.
            instead_of: digest of another charter of this version that this node signed: the person has made sure that
                nobody signs that one any more.

        Raises:
            ComityError: `NOT_FOUND`; `CONFLICT` if this node signed or said otherwise; `POLICY_DENIED`;
                `DEADLINE_PASSED`, `ILLEGAL_EVENT`; `CHARTER_INVALID`; and the coordinator's refusal.
        """
        current = self._node.charters.in_force()
        current.check_active(self._node.settings.org)
        known = await self._open(typed, late=bool(deny))
        charter = known.charter
        if not deny:
            await self._check(current, charter)
            await self._ask_policy(known, reason)
        said = self._vote_statement(charter, deny, reason)

        def write(conn: Connection) -> str:
            if not deny:
                released = self._released(conn, current) | ({instead_of} if instead_of else set())
                self._node.charters.sign_once(conn, charter, released)
            if not store.add_vote(conn, self._node.settings.org, CharterVote.from_json(said.body), said):
                return ""
            return self._node.link.send(conn, "charter.vote", said)

        message_id = await self._node.journal.run(write)
        if message_id:
            await self._echoes.wait(said.digest, message_id)
        if instead_of:
            log.warning("charter.signed_instead", signed=charter.digest, instead_of=instead_of)
        return await self._settled(charter)

    async def show(self, typed: str) -> dict[str, Any]:
        """Return the newest proposal with this digest or name, with all that a voter has to see. Raises `NOT_FOUND`."""
        found = [
            known for known in await self._node.journal.run(store.proposals) if matches_genesis(known.charter, typed)
        ]
        if not found:
            raise ComityError(ErrorCode.NOT_FOUND, "no charter with this digest or name was proposed")
        return await self._describe(found[-1])

    async def listed(self) -> list[dict[str, Any]]:
        """Return every proposal that this node knows, newest first, without the charters themselves."""
        every = reversed(await self._node.journal.run(store.proposals))
        views = [await self._describe(known) for known in every]
        return [{name: value for name, value in view.items() if name != "charter"} for view in views]

    async def open(self) -> list[dict[str, Any]]:
        """Return what is being voted on now, oldest first."""
        views = [await self._describe(known) for known in await self._of_next_version()]
        return [view for view in views if view["state"] in (Outcome.OPEN, Outcome.CARRIED)]

    async def awaited(self) -> list[dict[str, Any]]:
        """Return, in short, whose vote is awaited on what, until when, and what happens then."""
        names = ("name", "digest", "kinds", "proposer", "proposed_at", "deadline", "state", "awaited", "then")
        return [{name: view[name] for name in names} for view in await self.open()]

    async def newest_open(self) -> store.Known | None:
        """Return the newest proposal that votes count for."""
        now, current = self._now(), self._node.charters.current()
        for known in reversed(await self._of_next_version()):
            votes = await self.votes(known.charter)
            if current is not None and Ballot(current, known.proposal, votes).judge(now) is Outcome.OPEN:
                return known
        return None

    async def votes(self, charter: Charter) -> Mapping[str, bool]:
        """Return who said yes or no to a charter."""
        return await self._node.journal.run(lambda conn: store.votes(conn, charter.digest))

    async def in_force(self) -> None:
        """After a charter came into force: propose again whom this organisation sponsors and nobody has decided on."""
        await self._sponsor()

    # -- what comes from the coordinator

    async def _proposed(self, message: Message) -> None:
        body = message.document()
        said = Statement.from_json(body.get("statement"))
        previous = self._replaced(said)
        proposal = read_proposal(said, previous)
        given = body.get("votes")
        if not isinstance(given, list) or len(given) > VOTES_AT_ONCE_MAX:
            raise ComityError(ErrorCode.MALFORMED, "votes are a short list")
        statements = [Statement.from_json(each) for each in given]
        votes = [(each, read_vote(each, previous)) for each in statements]
        if any(vote.charter != proposal.charter.digest for _, vote in votes):
            raise ComityError(ErrorCode.MALFORMED, "a vote is about another charter than the proposal")

        def write(conn: Connection) -> None:
            store.add_proposal(conn, said, proposal)
            for statement, vote in votes:
                store.add_vote(conn, statement.issuer, vote, statement)

        await self._node.journal.run(write)
        self._echoes.heard(said.digest)
        log.info("charter.proposed", kinds=list(proposal.kinds), by=said.issuer, digest=proposal.charter.digest)

    async def _voted(self, message: Message) -> None:
        said = Statement.from_json(message.document().get("statement"))
        digest = said.body.get("charter")
        found = await self._node.journal.run(lambda conn: store.proposals_of(conn, str(digest)))
        if not found:
            raise ComityError(ErrorCode.NOT_FOUND, "a vote on a charter that nobody proposed")
        vote = read_vote(said, self._replaced(found[-1].statement))
        await self._node.journal.run(lambda conn: store.add_vote(conn, said.issuer, vote, said))
        self._echoes.heard(said.digest)
        log.info("charter.voted", by=said.issuer, allow=vote.allow, digest=vote.charter)

    async def _ended(self, message: Message) -> None:
        """Keep the coordinator's word; what this node believes it computes itself (rule 4)."""
        said = Statement.from_json(message.document().get("statement"))
        ended = CharterEnded.from_json(said.body)
        found = await self._node.journal.run(lambda conn: store.proposals_of(conn, ended.charter))
        if all(known.statement.digest != ended.proposal for known in found):
            raise ComityError(ErrorCode.NOT_FOUND, "the end of what nobody proposed")
        # The log of now, or the one before, if this was said before the coordinator was changed.
        keys = {self._node.charters.in_force().log_public_key, self._replaced(found[-1].statement).log_public_key}
        log_key = next((key for key in keys if key_id(key) == said.key_id), min(keys))
        verify_statement(said, log_key, kind=ENDED, consortium=self._node.settings.consortium)

        def write(conn: Connection) -> None:
            store.set_ended(conn, ended.proposal, said)
            self._node.ledger.expect(conn, said)

        await self._node.journal.run(write)
        log.info("charter.ended", state=ended.state, missing=list(ended.missing), digest=ended.charter)

    async def _candidate(self, message: Message) -> None:
        body = message.document()
        candidate = store.Candidate(Member.from_json(body.get("member")), str(body.get("sponsor"))[:63])
        await self._node.journal.run(lambda conn: store.add_candidate(conn, candidate))
        log.info("charter.candidate", org=candidate.member.org, sponsor=candidate.sponsor)
        await self._sponsor()

    def _vote_refused(self, conn: Connection, body: bytes) -> None:
        """The coordinator did not take our vote: it does not count. What was signed stays noted as signed."""
        self._node.ledger.forget(conn, body)
        said = Statement.from_bytes(body)
        store.forget_vote(conn, str(said.body.get("charter")), said.issuer)

    # -- inside

    async def _sponsor(self) -> None:
        """Propose to admit whoever this organisation invited (rule 5), once; again only if it was overtaken."""
        me, current = self._node.settings.org, self._node.charters.current()
        if current is None or me not in current.voters:
            return
        known = await self._node.journal.run(store.proposals)
        for candidate in await self._node.journal.run(store.candidates):
            org, member = candidate.member.org, candidate.member
            if candidate.sponsor != me or org in current.organisations:
                continue
            asked = [each for each in known if org in each.charter.organisations]
            if any(each.charter.previous == current.digest or _ended_as(each) != Outcome.SUPERSEDED for each in asked):
                continue
            decision = await self._decide(member, me)
            if decision.decision == "deny":
                log.warning("charter.not_sponsored", org=org, reasons=[each.code for each in decision.reasons])
                continue
            following = next_charter(current, Wish(admit=(org,)), {org: member})
            await self._submit(current, following, SPONSORED, DEADLINE_S_DEFAULT)

    async def _submit(
        self, current: Charter, following: Charter, reason: str, deadline_s: int
    ) -> tuple[Statement, str]:
        """Sign and send a proposal; returns it and the message's id."""
        deadline = instants.to_text(self._node.clock() + timedelta(seconds=deadline_s))
        kinds = tuple(sorted(check_follows(current, following)))

        def write(conn: Connection) -> tuple[Statement, str]:
            charter = attempt_of(following, lambda digest: not all(store.votes(conn, digest).values()))
            said = self._sign(PROPOSAL, CharterProposal(charter, kinds, reason, deadline).to_json())
            return said, self._node.link.send(conn, "charter.propose", said)

        return await self._node.journal.run(write)

    async def _open(self, typed: str, *, late: bool) -> store.Known:
        """Return the proposal that a person votes on; denials also count after the deadline."""
        found = [known for known in await self._of_next_version() if matches_genesis(known.charter, typed)]
        if not found:
            raise ComityError(ErrorCode.NOT_FOUND, "no open proposal has this digest or name; compare again")
        if found[-1].proposal.deadline <= self._now() and not late:
            raise ComityError(ErrorCode.DEADLINE_PASSED, "votes counted until the deadline; it can be proposed again")
        return found[-1]

    async def _of_next_version(self) -> list[store.Known]:
        version = self._node.charters.next_version()
        return await self._node.journal.run(lambda conn: store.proposals(conn, version))

    async def _ask_policy(self, known: store.Known, reason: str) -> None:
        current = self._node.charters.in_force()
        for member in known.charter.members:
            if member.org in current.organisations:
                continue
            decision = await self._decide(member, known.statement.issuer)
            if decision.decision == "deny" and not reason:
                raise decision.to_error()
            if decision.decision == "deny":
                log.warning("charter.policy_overridden", org=member.org, reason=reason)

    async def _decide(self, member: Member, sponsor: str) -> Any:
        charter = self._node.charters.in_force()
        document = {
            "me": self._node.settings.org,
            "now": self._now(),
            "sponsor": sponsor,
            "charter": facts_of(charter, charter.organisations),
            "candidate": {
                "org": member.org,
                "title": member.title,
                "owner": member.owner,
                "fingerprint": member.keys.fingerprint(),
            },
        }
        return await asyncio.to_thread(self._node.policy.decide, Stage.MEMBERSHIP, document)

    async def _check_adopted(self, end: Adopted) -> None:
        """Refuse a successor that takes over less than this node has seen: what is left out would be rewritten.

        Raises:
            ComityError: `LEDGER_INVALID`.
        """
        seen = await self._node.journal.run(self._node.ledger.newest)
        if seen is not None and (seen.size > end.size or (seen.size == end.size and seen.root.hex() != end.root)):
            raise ComityError(ErrorCode.LEDGER_INVALID, "the successor took over less than was seen", seen=seen.size)

    async def _check(self, current: Charter, charter: Charter) -> None:
        """What this node would never sign: a charter that does not follow, or one with strange keys for itself."""
        if "change-coordinator" in check_follows(current, charter) and charter.adopted is not None:
            await self._check_adopted(charter.adopted)
        me = self._node.settings.org
        if me in charter.organisations and not self._own_keys.are_ours(charter.member(me).keys):
            raise ComityError(ErrorCode.CHARTER_INVALID, "it names other keys for this organisation")

    def _released(self, conn: Connection, current: Charter) -> set[str]:
        """Return charters of the next version that so many have denied that no certificate is possible."""
        found = set()
        for known in store.proposals(conn, current.version + 1):
            said = store.votes(conn, known.charter.digest)
            denied = [org for org, allow in said.items() if not allow]
            if known.charter.previous == current.digest and not reachable(current, known.charter, denied):
                found.add(known.charter.digest)
        return found

    def _vote_statement(self, charter: Charter, deny: str, reason: str) -> Statement:
        bls = None if deny else to_base64(self._node.keys.bls_sign(message_for("charter", charter.digest)))
        return self._sign(VOTE, CharterVote(charter.digest, not deny, bls, deny or reason).to_json())

    def _sign(self, kind: str, body: dict[str, Any]) -> Statement:
        settings = self._node.settings
        return sign_statement(
            self._node.keys, kind=kind, consortium=settings.consortium, issuer=settings.org, body=body
        )

    def _replaced(self, said: Statement) -> Charter:
        """Return the charter that a proposal would replace, which this node has verified. Raises `CHARTER_INVALID`."""
        charter = said.body.get("charter")
        previous = charter.get("previous") if isinstance(charter, dict) else None
        found = self._node.charters.at(str(previous))
        if found is None:
            raise ComityError(ErrorCode.CHARTER_INVALID, "it follows from a charter that is not in this chain")
        return found

    async def _settled(self, charter: Charter) -> dict[str, Any]:
        """Return the proposal's view; if the votes suffice, first wait a little for the charter itself."""
        view = await self.show(charter.digest)
        if view["state"] == Outcome.CARRIED and not view["in_force"]:
            await self._echoes.wait(charter.digest, "")
            view = await self.show(charter.digest)
        return view

    async def _describe(self, known: store.Known) -> dict[str, Any]:
        digest = known.charter.digest

        def read(conn: Connection) -> tuple[dict[str, bool], dict[str, str]]:
            return store.votes(conn, digest), store.reasons(conn, digest)

        votes, reasons = await self._node.journal.run(read)
        return describe(known, self._node.charters, votes, reasons, self._now())

    def accepted(self, digest: str) -> None:
        """A charter came into force here: whoever waited for it goes on."""
        self._echoes.heard(digest)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def _ended_as(known: store.Known) -> str:
    return "" if known.ended is None else str(known.ended.body["state"])
