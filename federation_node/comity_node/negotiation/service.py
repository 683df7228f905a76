"""Negotiation at the node: answer offers by our own policy, sign what holds, propose, withdraw.

Each handler is safe to run again: what was answered or signed once is only sent again, never decided again. A wait of
another organisation for this one always ends in a message: an answer, a signature, or a withdrawal with its reason.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.abilities import Abilities
from comity_node.negotiation import model, store
from comity_node.negotiation.apps import AppStore
from comity_policies.decisions import Decision, Stage
from comity_policies.documents import Agreement, Answer, Proposal, Reason
from comity_policies.terms import Terms, meet

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext
    from comity_node.training.datasets import DatasetCatalogue
    from comity_node.transport.model import Message

log = structlog.get_logger(__name__)

EMPTY_DIGEST = "0" * 64


class NegotiationService:
    """This organisation's voice in negotiations. Built by `build`."""

    def __init__(self, node: NodeContext, catalogue: DatasetCatalogue) -> None:
        self._node = node
        self._catalogue = catalogue
        self.apps = AppStore(node)

    def register(self) -> None:
        """Take this capability's messages from the link."""
        link = self._node.link
        link.register("offer", self.on_offer)
        link.register("agreement.sign", self.on_sign)
        link.register("agreement.final", self.on_final)
        link.register("negotiation.update", self.on_update)

    async def start(self) -> None:
        """Nothing to resume: unanswered offers are still in the coordinator's outbox."""

    async def stop(self) -> None:
        """Nothing runs between messages."""

    async def get(self, digest: str) -> store.StoredAgreement:
        """Return an agreement that this organisation signed. Raises `AGREEMENT_UNKNOWN`."""
        return await self._node.journal.run(lambda conn: store.find_agreement(conn, digest))

    def state(self, conn: Connection, digest: str) -> str:
        """Return an agreement's state inside a journal transaction. Raises `AGREEMENT_UNKNOWN`."""
        return store.agreement_state(conn, digest)

    async def app_file(self, digest: str) -> Path:
        """Return the checked zip of an app. Raises `APP_INVALID`."""
        return self.apps.file(digest)

    async def on_offer(self, message: Message) -> None:
        """Answer an offer by our own policy. Raises what `check_offer` raises: such an offer deserves no answer."""
        body = _document(message.body)
        charter = self._charter()
        statement = Statement.from_json(body.get("proposal"))
        offer = model.check_offer(statement, charter, self._node.settings.org, self._now())
        proposal = offer.proposal
        if await self._node.journal.run(lambda conn: store.find_answer(conn, proposal.digest)) is not None:
            return
        app = proposal.steps[0].app.digest
        held = self.apps.holds(app)
        try:
            await self._node.journal.run(lambda conn: self._node.ledger.check_new(conn, statement))
            await self.apps.receive(proposal, offer.app_payload, message.inline)
            decision = await self._decide(proposal)
            if decision.decision != "deny":
                terms = meet(proposal.terms, decision.terms)
                model.check_promises(proposal, terms, proposal.asked, charter, self._abilities())
        except ComityError as error:
            decision = _denied(error)
        if decision.decision == "deny" and not held:
            await asyncio.to_thread(self.apps.discard, app)
        answer = self._answer(proposal, decision)

        def write(conn: Connection) -> None:
            store.add_proposal(conn, proposal, statement, "asked", self._now())
            if store.add_answer(conn, answer, self._now()):
                self._node.link.send(conn, "proposal.answer", answer)

        await self._node.journal.run(write)
        log.info("offer.answered", proposal=proposal.proposal_id, decision=decision.decision)

    async def on_sign(self, message: Message) -> None:
        """Sign an agreement that holds; otherwise withdraw with the reason, so that nobody waits for us."""
        body = _document(message.body)
        agreement = Agreement.from_json(body.get("agreement"))
        answers = [Statement.from_json(each) for each in _list(body.get("answers"))]

        def write(conn: Connection) -> None:
            self._node.ledger.check(conn)
            said = store.find_answer_statement(conn, agreement.proposal.digest)
            if said is None:
                raise ComityError(ErrorCode.AGREEMENT_INVALID, "this organisation did not answer that proposal")
            self._node.ledger.check_new(conn, said)
            model.check_agreement(
                agreement,
                answers,
                charter=self._charter(),
                me=self._node.settings.org,
                mine=Answer.from_json(said.body),
                signed_before=store.signed_for(conn, agreement.proposal.digest),
                now=self._now(),
            )
            charter, parties = self._charter(), agreement.parties
            model.check_promises(agreement.proposal, agreement.terms, parties, charter, self._abilities())
            store.add_agreement(conn, agreement, self._now())
            self._node.link.send(conn, "agreement.signature", self._signature(agreement))

        try:
            await self._node.journal.run(write)
        except ComityError as error:
            if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                raise
            log.warning("agreement.refused", agreement=agreement.digest, code=str(error.code), detail=error.detail)
            await self._withdraw(agreement.proposal.proposal_id, None, f"{error.code}: {error.detail}")

    async def on_final(self, message: Message) -> None:
        """Check the certificate of all parties and put the agreement in force here."""
        body = _document(message.body)
        statement = Statement.from_json(body.get("statement"))
        charter = self._node.charters.at(Agreement.from_json(statement.body.get("agreement")).charter_digest)
        if charter is None:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "made under a charter that is not in force here")
        agreement, certificate = model.check_final(statement, charter)

        def write(conn: Connection) -> None:
            store.set_final(conn, agreement, certificate, statement, self._now())
            self._node.ledger.expect(conn, statement)

        await self._node.journal.run(write)
        log.info("agreement.final", agreement=agreement.digest, parties=list(agreement.parties))

    async def on_update(self, message: Message) -> None:
        """Keep the coordinator's news for people; a withdrawal by anybody ends the agreement here."""
        body = _document(message.body)
        proposal_id, revision = body.get("proposal_id"), body.get("revision")
        if not isinstance(proposal_id, str) or not isinstance(revision, int):
            raise ComityError(ErrorCode.MALFORMED, "an update names its proposal")
        ended = body.get("ended")
        withdrawn = isinstance(ended, dict) and ended.get("code") == str(ErrorCode.WITHDRAWN)

        def write(conn: Connection) -> None:
            store.set_news(conn, proposal_id, revision, body)
            if withdrawn:
                digest = store.find_proposal(conn, proposal_id).proposal.digest
                for agreement in store.signed_for(conn, digest):
                    store.set_withdrawn(conn, agreement.digest)

        await self._node.journal.run(write)

    async def propose(self, proposal: Proposal, app: bytes | None) -> Statement:
        """Sign a proposal, seal its app to everyone asked, and hand both to the coordinator.

        Args:
            proposal: complete, with this organisation as proposer.
            app: the app's bundle; its digest must be the step's.

        Raises:
            ComityError: `NOT_A_MEMBER`, `APP_INVALID`, `FORBIDDEN`, `JOURNAL_UNWRITABLE`, what `check_promises` raises.
        """
        charter = self._charter()
        if proposal.proposer != self._node.settings.org:
            raise ComityError(ErrorCode.FORBIDDEN, "a node proposes in the name of its own organisation only")
        for org in proposal.asked:
            charter.member(org)
        model.check_promises(proposal, proposal.terms, proposal.asked, charter, self._abilities())
        reference = None
        if app is not None:
            receivers = {org: charter.member(org).keys.sealing for org in (*proposal.asked, proposal.proposer)}
            reference = await self.apps.send(proposal.steps[0].app.digest, app, receivers)
        statement = self._sign("proposal", {**proposal.to_json(), "app_payload": reference})

        def write(conn: Connection) -> None:
            store.add_proposal(conn, proposal, statement, "proposer", self._now())
            self._node.link.send(conn, "proposal.submit", statement)

        await self._node.journal.run(write)
        return statement

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

    async def _withdraw(self, proposal_id: str, agreement: str | None, reason: str) -> None:
        body = {"agreement": agreement, "proposal_id": proposal_id, "reason": reason[:500]}
        statement = self._sign("withdrawal", body)

        def write(conn: Connection) -> None:
            if agreement is not None:
                store.set_withdrawn(conn, agreement)
            self._node.link.send(conn, "withdrawal", statement)

        await self._node.journal.run(write)

    async def _decide(self, proposal: Proposal) -> Decision:
        me = self._node.settings.org
        names = [ask.dataset for ask in proposal.datasets if ask.org == me]
        document: dict[str, Any] = {
            "proposal": proposal.to_json(),
            "me": me,
            "proposer": proposal.proposer,
            "now": self._now(),
            "datasets": self._catalogue.describe(names),
            "app": self.apps.describe(proposal.steps[0].app.digest),
        }
        return await asyncio.to_thread(self._node.policy.decide, Stage.PROPOSAL, document)

    def _answer(self, proposal: Proposal, decision: Decision) -> Statement:
        answer = Answer(
            proposal_digest=proposal.digest,
            decision=decision.decision,
            reasons=decision.reasons,
            terms=decision.terms if decision.decision == "allow" else Terms(),
            bundle_digest=decision.bundle_digest,
            input_digest=decision.input_digest,
            engine=decision.engine,
        )
        return self._sign("answer", answer.to_json())

    def _signature(self, agreement: Agreement) -> Statement:
        voice = self._node.keys.bls_sign(message_for("agreement", agreement.digest))
        return self._sign("agreement-signature", {"agreement": agreement.digest, "bls": to_base64(voice)})

    def _sign(self, kind: str, body: dict[str, Any]) -> Statement:
        settings = self._node.settings
        return sign_statement(
            self._node.keys, kind=kind, consortium=settings.consortium, issuer=settings.org, body=body
        )

    def _abilities(self) -> Abilities:
        return self._node.services.get(Abilities)

    def _charter(self) -> Any:
        charter = self._node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force yet: sign the genesis first")
        return charter

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def _denied(error: ComityError) -> Decision:
    """An offer that cannot even be judged is denied in the node's own name, with the catalogue's code."""
    reason = Reason(rule="node.offer", code=str(error.code), message=error.detail or str(error.code))
    return Decision(
        decision="deny",
        reasons=(reason,),
        terms=Terms(),
        bundle_digest=EMPTY_DIGEST,
        input_digest=EMPTY_DIGEST,
        engine="node",
        duration_us=0,
    )


def _document(body: bytes) -> dict[str, Any]:
    value = canonical.parse(body)
    if not isinstance(value, dict):
        raise ComityError(ErrorCode.MALFORMED, "an object expected")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 64:
        raise ComityError(ErrorCode.MALFORMED, "a short list expected")
    return value


def build(node: NodeContext) -> NegotiationService:
    """Build the capability and register its handlers."""
    from comity_node.training.datasets import DatasetCatalogue

    service = NegotiationService(node, DatasetCatalogue(node.settings.home))
    service.register()
    node.services.add(service)
    return service
