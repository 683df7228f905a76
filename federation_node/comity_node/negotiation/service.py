"""Negotiation at the node: answer offers by our own policy, sign what holds, propose, revise, accept, withdraw.

Each handler is safe to run again: what was answered or signed once is only sent again, never decided again. A wait of
another organisation for this one always ends in a message: an answer, a signature, or a withdrawal with its reason.
`answering.py` and `signing.py` hold the two decisions; here are the messages and what people ask for.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from comity.observability import spans
from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, key_id, sign_statement, verify_statement
from comity_node.abilities import Abilities
from comity_node.attestation.service import AttestationService
from comity_node.ledger import pointers
from comity_node.negotiation import model, signing, store
from comity_node.negotiation.answering import OFFER, Answering
from comity_node.negotiation.apps import AppStore
from comity_node.negotiation.moved import MovedProposals
from comity_node.negotiation.pending import PendingItems
from comity_node.negotiation.ports import STAGE_AGREEMENT, STAGE_PROPOSAL, Reviews
from comity_node.negotiation.refused import RefusedProposals
from comity_node.negotiation.signing import AGREEMENT, Signing
from comity_policies.documents import CounterAcceptance, Proposal

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext
    from comity_node.training.datasets import DatasetCatalogue
    from comity_node.transport.model import Message

REASON_CHARS_MAX = 400
log = structlog.get_logger(__name__)


class NegotiationService:
    """This organisation's voice in negotiations. Built by `build`."""

    def __init__(self, node: NodeContext, catalogue: DatasetCatalogue, reviews: Reviews) -> None:
        self._node = node
        self._reviews = reviews
        self.apps = AppStore(node)
        self._pending = PendingItems(node)
        self._answering = Answering(node, catalogue, self.apps, reviews, self._pending, self._sign)
        self._signing = Signing(node, reviews, self._pending, self._sign, self._withdraw_from)
        self._pending.judge({OFFER: self._answering.offer_again, AGREEMENT: self._signing.agreement_again})

    def register(self) -> None:
        """Take this capability's messages from the link, and what people decided."""
        link = self._node.link
        link.register("offer", self.on_offer)
        link.register("counter.offer", self.on_counter)
        link.register("agreement.sign", self.on_sign)
        link.register("agreement.final", self.on_final)
        link.register("negotiation.update", self.on_update)
        RefusedProposals(self._node).register()
        MovedProposals(self._node, self._submit_again).register()
        self._node.services.get(AttestationService).on_evidence(self._pending.try_again)
        self._reviews.on_decided(STAGE_PROPOSAL, self._answering.on_verdict)
        self._reviews.on_decided(STAGE_AGREEMENT, self._signing.on_verdict)

    async def start(self) -> None:
        """Go on with what could not be judged yet; anything else is still in the coordinator's outbox."""
        await self._pending.start()

    async def stop(self) -> None:
        """What is pending stays in the journal."""
        await self._pending.stop()

    async def get(self, digest: str) -> store.StoredAgreement:
        """Return an agreement that this organisation signed. Raises `AGREEMENT_UNKNOWN`."""
        return await self._node.journal.run(lambda conn: store.find_agreement(conn, digest))

    def state(self, conn: Connection, digest: str) -> str:
        """Return an agreement's state inside a journal transaction. Raises `AGREEMENT_UNKNOWN`."""
        return store.agreement_state(conn, digest)

    async def app_file(self, digest: str) -> Path:
        """Return the checked zip of an app. Raises `APP_INVALID`."""
        return self.apps.file(digest)

    # -- for reviews and the policy

    async def reconsider(self, proposal_digest: str) -> None:
        """Ask the policy again about a proposal that waits for a person; see `Answering.reconsider`."""
        await self._answering.reconsider(proposal_digest)

    async def reconsider_all(self) -> None:
        """Ask the policy again about everything that waits for a person; one that fails does not keep the others."""
        for digest in await self._node.journal.run(store.prepared_digests):
            try:
                await self.reconsider(digest)
            except ComityError as error:
                log.warning("offer.not_reconsidered", proposal=digest, error=str(error))

    async def answer_by_person(self, proposal_digest: str, allow: bool, reason: str, *, document: str = "") -> None:
        """Answer as people decided; see `Answering.by_person`."""
        await self._answering.by_person(proposal_digest, allow, reason, document=document)

    # -- messages

    async def on_offer(self, message: Message) -> None:
        """Answer an offer by our own policy. Raises what `check_offer` raises: such an offer deserves no answer."""
        statement = Statement.from_json(_wrapper(message.body).get("proposal"))
        me, charter = self._node.settings.org, self._node.charters.in_force()
        await self._answering.offer(model.check_offer(statement, charter, me, self._now()), message.inline)

    async def on_counter(self, message: Message) -> None:
        """Keep a counter-offer to our own proposal for whoever proposed it."""
        statement = Statement.from_json(_wrapper(message.body).get("answer"))
        charter = self._node.charters.in_force()

        def write(conn: Connection) -> None:
            found = store.find_proposal(conn, str(statement.body.get("proposal_digest")))
            if found.proposal.proposer != self._node.settings.org:
                raise ComityError(ErrorCode.FORBIDDEN, "a counter-offer goes to the proposer")
            model.check_counter(statement, found.proposal, charter)
            store.add_counter(conn, found.proposal.digest, statement, self._now())
            known = store.list_counters(conn, found.proposal.digest)
            if any(each.accepted_at and each.statement.digest == statement.digest for each in known):
                self._take(conn, found.proposal, statement)  # another coordinator has not heard it yet

        await self._node.journal.run(write)
        log.info("counter.offered", org=statement.issuer)

    async def on_sign(self, message: Message) -> None:
        """Sign an agreement that holds; otherwise withdraw with the reason, so that nobody waits for us."""
        agreement, answers = signing.read(_wrapper(message.body))
        await self._signing.agreement(agreement, answers)

    async def on_final(self, message: Message) -> None:
        """Check the certificate of all parties and put the agreement in force here."""
        body = _wrapper(message.body)
        statement = Statement.from_json(body.get("statement"))
        named = statement.body.get("agreement")
        charter = self._node.charters.at(str(named.get("charter_digest"))) if isinstance(named, dict) else None
        if charter is None:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "made under a charter that is not in force here")
        agreement, certificate = model.check_final(statement, charter)

        def write(conn: Connection) -> None:
            other = store.final_of(conn, agreement.proposal.digest)
            if other not in (None, agreement.digest):  # F2
                raise ComityError(ErrorCode.AGREEMENT_INVALID, "another agreement of this proposal is final here")
            store.set_final(conn, agreement, certificate, statement, self._now())
            self._node.ledger.expect(conn, statement)

        await self._node.journal.run(write)
        log.info("agreement.final", agreement=agreement.digest, parties=list(agreement.parties))

    async def on_withdrawal(self, statement: Statement) -> None:
        """Take a withdrawal that was read in the ledger: whoever is not told of it is not kept from it.

        Raises:
            ComityError: `AGREEMENT_UNKNOWN`, `FORBIDDEN`, `SIGNATURE_INVALID`.
        """
        digest = str(statement.body.get("agreement"))

        def write(conn: Connection) -> None:
            if statement.issuer not in store.find_agreement(conn, digest).agreement.parties:
                raise ComityError(ErrorCode.FORBIDDEN, "a party withdraws, and nobody else")
            store.set_withdrawn(conn, digest)

        keys = {key_id(key): key for key in self._node.charters.statement_keys(statement.issuer)}
        if statement.key_id not in keys:
            raise ComityError(ErrorCode.SIGNATURE_INVALID, "no key of this organisation", issuer=statement.issuer)
        settings = self._node.settings
        verify_statement(statement, keys[statement.key_id], kind="withdrawal", consortium=settings.consortium)
        await self._node.journal.run(write)

    async def on_update(self, message: Message) -> None:
        """Keep the coordinator's news for people; a withdrawal by anybody ends the agreement here."""
        body = _wrapper(message.body)
        proposal_id, revision = body.get("proposal_id"), body.get("revision")
        if not isinstance(proposal_id, str) or not isinstance(revision, int):
            raise ComityError(ErrorCode.MALFORMED, "an update names its proposal")
        ended = body.get("ended")
        withdrawn = isinstance(ended, dict) and ended.get("code") == str(ErrorCode.WITHDRAWN)

        def write(conn: Connection) -> None:
            store.set_news(conn, proposal_id, revision, body)
            digest = store.find_revision(conn, proposal_id, revision)
            if digest is None:
                return
            if withdrawn:
                for agreement in store.signed_for(conn, digest):
                    store.set_withdrawn(conn, agreement.digest)
            if ended is not None or self._out(body):
                store.drop_pending(conn, proposal_digest=digest)
                self._reviews.end_of_proposal(conn, digest, "the negotiation has ended")

        await self._node.journal.run(write)

    def _out(self, news: dict[str, Any]) -> bool:
        """Tell whether this organisation's own leg has ended."""
        legs = news.get("legs")
        rows = legs if isinstance(legs, list) else []
        return any(row.get("org") == self._node.settings.org and row.get("state") == "TERMINATED" for row in rows)

    # -- what people ask for

    async def propose(self, proposal: Proposal, app: bytes | None, *, user: str = "") -> Statement:
        """Sign a proposal, seal its app to everyone asked, and hand both to the coordinator.

        Args:
            proposal: complete, with this organisation as proposer.
            app: the app's bundle; its digest must be the step's.
            user: who of this organisation asks, and therefore does not decide on it here.

        Raises:
            ComityError: `NOT_A_MEMBER`, `APP_INVALID`, `FORBIDDEN`, `JOURNAL_UNWRITABLE`, what `check_promises` raises.
        """
        charter = self._node.charters.in_force()
        if proposal.proposer != self._node.settings.org:
            raise ComityError(ErrorCode.FORBIDDEN, "a node proposes in the name of its own organisation only")
        for org in (proposal.proposer, *proposal.asked):
            charter.check_active(org)
        model.check_promises(proposal, proposal.terms, proposal.asked, charter, self._node.services.get(Abilities))
        reference = None
        if app is not None and proposal.app is not None:
            receivers = {org: charter.member(org).keys.sealing for org in (*proposal.asked, proposal.proposer)}
            reference = await self.apps.send(proposal.app.digest, app, receivers)
        statement = self._sign("proposal", {**proposal.to_json(), "app_payload": reference})

        def write(conn: Connection) -> None:
            store.add_proposal(conn, proposal, statement, "proposer", self._now())
            if user:
                self._reviews.note_asker(conn, proposal.digest, user)
            self._node.link.send(conn, "proposal.submit", statement)

        with spans.span("propose", root=True, proposal=proposal.proposal_id):
            await self._node.journal.run(write)
        return statement

    async def revise(self, proposal: Proposal, *, user: str = "") -> Statement:
        """Put a newer revision of an own proposal in the place of the one before, with the same app.

        Raises:
            ComityError: as `propose`; `CONFLICT` if a revision with this number is known here; `ILLEGAL_EVENT` if the
                proposal led to an agreement.
        """

        def look(conn: Connection) -> None:
            before = store.find_proposal(conn, proposal.proposal_id).proposal
            if before.revision >= proposal.revision:
                raise ComityError(ErrorCode.CONFLICT, "this revision exists", revision=before.revision)
            if store.final_of(conn, before.digest) is not None:
                raise ComityError(ErrorCode.ILLEGAL_EVENT, "an agreement is not revised: withdraw, and propose anew")

        await self._node.journal.run(look)
        app = None if proposal.app is None else self.apps.bundle(proposal.app.digest).data
        return await self.propose(proposal, app, user=user)

    async def accept(self, name: str, org: str) -> CounterAcceptance:
        """Take the stricter terms that `org` asked for in its answer to our own proposal, by id or digest.

        Raises:
            ComityError: `NOT_FOUND` if it is no proposal of ours or `org` made no counter-offer; `ILLEGAL_EVENT` if it
                was accepted before.
        """

        def write(conn: Connection) -> CounterAcceptance:
            proposal = store.find_proposal(conn, name).proposal
            offers = [each for each in store.list_counters(conn, proposal.digest) if each.org == org]
            if proposal.proposer != self._node.settings.org or not offers:
                raise ComityError(ErrorCode.NOT_FOUND, f"{org} made no counter-offer to a proposal of ours")
            if offers[-1].accepted_at is not None:
                raise ComityError(ErrorCode.ILLEGAL_EVENT, "this counter-offer was accepted before")
            store.accept_counter(conn, offers[-1].statement.digest, self._now())
            return self._take(conn, proposal, offers[-1].statement)

        return await self._node.journal.run(write)

    def _take(self, conn: Connection, proposal: Proposal, offer: Statement) -> CounterAcceptance:
        taken = CounterAcceptance(proposal.proposal_id, proposal.digest, offer.issuer, offer.digest)
        self._node.link.send(conn, "counter.accept", self._sign("counter-acceptance", taken.to_json()))
        return taken

    async def _submit_again(self, proposal: Proposal) -> None:
        """Put an own proposal to another coordinator, with its app sealed anew."""
        app = None if proposal.app is None else (await asyncio.to_thread(self.apps.bundle, proposal.app.digest)).data
        await self.propose(proposal, app)

    async def withdraw(self, name: str, reason: str) -> None:
        """Withdraw from a proposal or agreement, named by proposal id or agreement digest. Raises `NOT_FOUND`."""

        def look(conn: Connection) -> tuple[str, str | None]:
            try:
                found = store.find_agreement(conn, name)
            except ComityError:
                proposal = store.find_proposal(conn, name).proposal
                mine = store.signed_for(conn, proposal.digest)
                return proposal.proposal_id, mine[-1].digest if mine else None
            return found.agreement.proposal.proposal_id, name

        proposal_id, digest = await self._node.journal.run(look)
        await self._withdraw(proposal_id, digest, reason)

    async def _withdraw(self, proposal_id: str, agreement: str | None, reason: str, proposal: str = "") -> None:
        body: dict[str, Any] = {
            "agreement": agreement,
            "proposal_id": proposal_id,
            "reason": reason[:REASON_CHARS_MAX],
        }
        if proposal:
            body["proposal"] = proposal
        statement = self._sign("withdrawal", body)

        def write(conn: Connection) -> None:
            if agreement is not None:
                if store.find_agreement(conn, agreement).final_at is not None:
                    # Held back, it would let others go on: this node looks for it until it is there.
                    pointers.insist(conn, statement.digest, "the withdrawal")
                store.set_withdrawn(conn, agreement)
            self._node.link.send(conn, "withdrawal", statement)

        await self._node.journal.run(write)

    async def _withdraw_from(self, proposal_id: str, reason: str, proposal_digest: str) -> None:
        """Take no part in this one revision: a newer one is another question."""
        await self._withdraw(proposal_id, None, reason, proposal_digest)

    def _sign(self, kind: str, body: dict[str, Any]) -> Statement:
        settings = self._node.settings
        return sign_statement(
            self._node.keys, kind=kind, consortium=settings.consortium, issuer=settings.org, body=body
        )

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def _wrapper(body: bytes) -> dict[str, Any]:
    """Return the coordinator's words about documents that others signed, or that are canonical where they are kept."""
    value = canonical.read(body)
    if not isinstance(value, dict):
        raise ComityError(ErrorCode.MALFORMED, "an object expected")
    return value


def build(node: NodeContext) -> NegotiationService:
    """Build the capability and register its handlers."""
    from comity_node.reviews.service import ReviewService
    from comity_node.training.datasets import DatasetCatalogue

    service = NegotiationService(node, DatasetCatalogue(node.settings.home), node.services.get(ReviewService))
    service.register()
    node.services.add(service)
    return service
