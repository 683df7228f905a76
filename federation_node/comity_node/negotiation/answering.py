"""How this organisation answers offers: by its own policy, or by its people where the policy says so.

Rules:
1. An offer is answered once, finally; only `review` is followed by another answer, which a person or the policy gives.
2. What cannot be judged at all is denied in the node's own name; what cannot be judged *yet* (catalogue: a retry helps)
   is judged again until shortly before the deadline (`pending.py`). A policy engine that is slow or out of reach gets
   `ENGINE_TRIES_MAX` tries, then its denial is the answer.
3. What people are shown is canonical, and its digest is kept beside what is answered once they approve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from comity.wire import canonical, catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, key_id
from comity_node.abilities import Abilities
from comity_node.negotiation import model, store
from comity_node.negotiation.apps import AppStore
from comity_node.negotiation.model import Offer
from comity_node.negotiation.pending import PendingItems
from comity_node.negotiation.ports import STAGE_PROPOSAL, Reviews, Verdict
from comity_node.negotiation.store import Pending
from comity_node.negotiation.vouchers import Vouchers
from comity_node.reviews.model import ReviewAsk
from comity_policies.charter_facts import facts_for, published_by
from comity_policies.decisions import Decision, Stage
from comity_policies.documents import REASONS_MAX, Answer, Proposal, Reason
from comity_policies.terms import Terms, difference, meet

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext
    from comity_node.training.datasets import DatasetCatalogue

OFFER = "offer"
BY_PERSON = "review.person"
REASON_CHARS_MAX = 500
RECEIVE_FIRST_S, RECEIVE_S_MAX = 20, 1_200
# After 1, 2 and 4 seconds: longer than a restart or a busy moment, short enough to say what is wrong.
ENGINE_TRIES_MAX = 3

Sign = Callable[[str, dict[str, Any]], Statement]
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the policy decided, and what people are shown if it says `review`."""

    decision: Decision
    document: dict[str, Any]


class Answering:
    """This organisation's answers. Part of `NegotiationService`."""

    def __init__(
        self,
        node: NodeContext,
        catalogue: DatasetCatalogue,
        apps: AppStore,
        reviews: Reviews,
        pending: PendingItems,
        sign: Sign,
    ) -> None:
        self._node = node
        self._catalogue = catalogue
        self._apps = apps
        self._reviews = reviews
        self._pending = pending
        self._sign = sign
        self._vouchers = Vouchers(node.settings.home)

    async def offer(self, offer: Offer, inline: bytes) -> None:
        """Answer an offer; one that was answered comes from another coordinator, which hears the same answer."""
        if not await self._node.journal.run(lambda conn: self._repeat(conn, offer.proposal.digest)):
            await self._consider(offer, inline, last=False)

    def _repeat(self, conn: Connection, digest: str) -> bool:
        """Send what was answered once more, as it was signed, unless our key is another one by now."""
        said = store.find_answer_statement(conn, digest)
        if said is None:
            return False
        if said.key_id != key_id(self._node.keys.public.statement):
            self._give(conn, Answer.from_json(said.body))
        else:
            self._node.link.send(conn, "proposal.answer", said)
        return True

    async def offer_again(self, item: Pending, last: bool) -> None:
        """Judge a pending offer. Raises what makes it no offer any more."""
        offer = model.read_offer(Statement.from_bytes(item.body), self._node.charters.in_force())
        await self._consider(offer, b"", last=last, tries=item.tries)

    async def reconsider(self, proposal_digest: str) -> None:
        """Ask the policy again about a proposal that waits for a person; anything else is left as it is.

        Raises:
            ComityError: `NOT_FOUND` if this node knows no such proposal; what keeps it from being judged now.
        """
        found, answer = await self._node.journal.run(lambda conn: self._known(conn, proposal_digest))
        if answer is None or answer.decision != "review" or found.proposal.deadline <= self._now():
            return
        offer = model.read_offer(found.statement, self._node.charters.in_force())
        # What cannot be judged just now goes on waiting for the person.
        judged = await self._judge(offer.proposal)
        await self._node.journal.run(lambda conn: self._settle(conn, offer, judged))
        if judged.decision.decision == "deny":
            await self._discard(offer.proposal)
        log.info("offer.reconsidered", proposal=proposal_digest, decision=judged.decision.decision)

    async def by_person(self, proposal_digest: str, allow: bool, reason: str, *, document: str = "") -> None:
        """Answer as people decided; again is harmless.

        Raises:
            ComityError: `NOT_FOUND`; `ILLEGAL_EVENT` if no person is asked; `CONFLICT` if `document` is not the digest
                of what was shown last; `DEADLINE_PASSED`.
        """

        def write(conn: Connection) -> Proposal | None:
            found, last = self._known(conn, proposal_digest)
            proposal = found.proposal
            if last is not None and any(each.rule == BY_PERSON for each in last.reasons):
                return None
            ready = store.find_prepared(conn, proposal_digest)
            if last is None or last.decision != "review" or ready is None:
                raise ComityError(ErrorCode.ILLEGAL_EVENT, "this proposal waits for no person")
            if document not in ("", ready.document):
                raise ComityError(ErrorCode.CONFLICT, "another document was shown since", document=ready.document)
            if proposal.deadline <= self._now():
                raise ComityError(ErrorCode.DEADLINE_PASSED, deadline=proposal.deadline)
            answer = self._word(conn, found, ready.answer, allow, reason)
            self._give(conn, answer)
            self._reviews.obsolete(conn, STAGE_PROPOSAL, proposal_digest, "it was answered")
            log.info("offer.decided", proposal=proposal_digest, decision=answer.decision)
            return proposal if answer.decision == "deny" else None

        denied_one = await self._node.journal.run(write)
        if denied_one is not None:
            await self._discard(denied_one)

    async def on_verdict(self, subject: str, verdict: Verdict) -> None:
        """Take what people decided about a proposal."""
        await self.by_person(subject, verdict.allowed, verdict.reason, document=verdict.document)

    def _word(self, conn: Connection, found: store.StoredProposal, ready: Answer, allow: bool, reason: str) -> Answer:
        """Return people's word as an answer; an approval of what cannot be promised any more is a denial."""
        code, plain = ("APPROVED_BY_PERSON", "a person approved it") if allow else ("DENIED_BY_PERSON", "denied")
        said = Reason(BY_PERSON, code, (reason.strip() or plain)[:REASON_CHARS_MAX])
        if not allow:
            return replace(ready, decision="deny", terms=Terms(), reasons=(said,))
        try:
            self._node.ledger.check_new(conn, found.statement)
            self._promise(found.proposal, ready.terms)
        except ComityError as error:
            return _answer(found.proposal, denied(error))
        return replace(ready, reasons=(said, *ready.reasons)[:REASONS_MAX])

    async def _consider(self, offer: Offer, inline: bytes, *, last: bool, tries: int = 0) -> None:
        proposal = offer.proposal
        app = proposal.app
        held = app is None or self._apps.holds(app.digest)
        try:
            await self._node.journal.run(lambda conn: self._node.ledger.check_new(conn, offer.statement))
            await self._receive(offer, inline, tries)
            judged = await self._judge(proposal)
            if tries < ENGINE_TRIES_MAX and not last:
                _check_engine(judged.decision)
        except ComityError as error:
            if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                raise
            if catalog.row(error.code).retry and not last:
                await self._later(offer, error, tries)
                return
            judged = Judgement(denied(error), {})
        try:
            await self._node.journal.run(lambda conn: self._settle(conn, offer, judged))
        except ComityError as error:
            # People cannot be asked (too many open reviews, no time left): nobody to ask is a denial.
            if judged.decision.decision != "review" or error.code is ErrorCode.JOURNAL_UNWRITABLE:
                raise
            judged = Judgement(denied(error), {})
            await self._node.journal.run(lambda conn: self._settle(conn, offer, judged))
        if judged.decision.decision == "deny" and not held:
            await self._discard(proposal)
        log.info("offer.answered", proposal=proposal.proposal_id, decision=judged.decision.decision)

    async def _receive(self, offer: Offer, inline: bytes, tries: int) -> None:
        """Fetch the app; whoever waits behind this offer does not wait long at first. Raises `TIMEOUT` and others."""
        timeout_s = min(RECEIVE_FIRST_S * 2 ** min(tries, 10), RECEIVE_S_MAX)
        try:
            async with asyncio.timeout(timeout_s):
                await self._apps.receive(offer.proposal, offer.app_payload, inline)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the app does not come", waited_s=timeout_s) from error

    async def _later(self, offer: Offer, error: ComityError, tries: int) -> None:
        proposal = offer.proposal
        until = model.before(proposal.deadline)
        item = Pending(proposal.digest, OFFER, proposal.digest, offer.statement.to_bytes(), until, tries)

        def write(conn: Connection) -> None:
            store.add_proposal(conn, proposal, offer.statement, "asked", self._now())
            self._pending.put(conn, item, str(error))

        await self._node.journal.run(write)
        log.info("offer.later", proposal=proposal.proposal_id, error=str(error), tries=tries)

    async def _judge(self, proposal: Proposal) -> Judgement:
        me = self._node.settings.org
        names = [ask.dataset for ask in proposal.datasets if ask.org == me]
        datasets = self._catalogue.describe(names)
        app = self._app_of(proposal)
        document: dict[str, Any] = {
            "proposal": proposal.to_json(),
            "me": me,
            "proposer": proposal.proposer,
            "now": self._now(),
            "datasets": datasets,
            "app": app,
            "charter": facts_for(self._node.charters.in_force(), proposal),
        }
        decision = await asyncio.to_thread(self._node.policy.decide, Stage.PROPOSAL, document)
        if decision.decision == "deny":
            return Judgement(decision, {})
        self._promise(proposal, decision.terms)
        shown = {
            "kind": "proposal",
            "proposal": proposal.to_json(),
            "app": app,
            "datasets": datasets,
            "terms": decision.terms.to_json(),
            "difference": difference(proposal.terms, decision.terms),
            "review": decision.review.to_json(),
        }
        return Judgement(decision, shown)

    def _app_of(self, proposal: Proposal) -> dict[str, Any] | None:
        """Return what a policy sees of the proposal's app, None if it brings none. Raises `APP_INVALID`."""
        if proposal.app is None:
            return None
        digest = proposal.app.digest
        signed = [*published_by(self._node.charters.in_force(), digest), *self._vouchers.signers(digest)]
        return {**self._apps.describe(digest), "signed_by": signed}

    def _settle(self, conn: Connection, offer: Offer, judged: Judgement) -> None:
        """Write an answer down, unless there is a final one; put a review before people."""
        proposal, decision = offer.proposal, judged.decision
        store.add_proposal(conn, proposal, offer.statement, "asked", self._now())
        store.drop_pending(conn, subject=proposal.digest)
        last = store.find_answer(conn, proposal.digest)
        if last is not None and last.decision != "review":
            return
        if decision.decision == "review":
            self._put_before_people(conn, proposal, judged)
            if last is not None:
                return  # the coordinator knows that people are asked
        elif last is not None:
            self._reviews.obsolete(conn, STAGE_PROPOSAL, proposal.digest, "the policy decides it by now")
        self._give(conn, _answer(proposal, decision))

    def _put_before_people(self, conn: Connection, proposal: Proposal, judged: Judgement) -> None:
        """Ask people; if they are asked already and the document is another one now, they decide on that one."""
        before = store.find_prepared(conn, proposal.digest)
        number = before.round if before is not None else 1
        shown = {**judged.document, "round": number}
        if before is not None and canonical.digest(shown) != before.document:
            self._reviews.obsolete(conn, STAGE_PROPOSAL, proposal.digest, "it is shown anew: something has changed")
            number += 1
            shown["round"] = number
        ready = replace(_answer(proposal, judged.decision), decision="allow", terms=judged.decision.terms)
        store.prepare(conn, store.Prepared(ready, canonical.digest(shown), number), self._now())
        self._reviews.ask(conn, _ask(proposal, judged.decision, shown))

    def _give(self, conn: Connection, answer: Answer) -> None:
        statement = self._sign("answer", answer.to_json())
        store.add_answer(conn, statement, self._now())
        self._node.link.send(conn, "proposal.answer", statement)

    def _promise(self, proposal: Proposal, terms: Terms) -> None:
        charter, abilities = self._node.charters.in_force(), self._node.services.get(Abilities)
        model.check_promises(proposal, meet(proposal.terms, terms), proposal.asked, charter, abilities)

    async def _discard(self, proposal: Proposal) -> None:
        """Let go of an app that came with a denied proposal, unless another proposal speaks of it."""
        if proposal.app is None:
            return
        app = proposal.app.digest
        if not await self._node.journal.run(lambda conn: store.names_app(conn, app, proposal.digest)):
            await asyncio.to_thread(self._apps.discard, app)

    def _known(self, conn: Connection, digest: str) -> tuple[store.StoredProposal, Answer | None]:
        return store.find_proposal(conn, digest), store.find_answer(conn, digest)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def denied(error: ComityError) -> Decision:
    """An offer that cannot even be judged is denied in the node's own name, with the catalogue's code."""
    return Decision.denied(str(error.code), error.detail or str(error.code), rule="node.offer", engine="node")


def _check_engine(decision: Decision) -> None:
    """Raise `POLICY_TIMEOUT` or `POLICY_UNAVAILABLE` if the engine gave no answer this time."""
    if decision.decision == "deny" and decision.reasons[0].rule == "engine":
        error = decision.to_error()
        if catalog.row(error.code).retry:
            raise error


def _answer(proposal: Proposal, decision: Decision) -> Answer:
    return Answer(
        proposal_digest=proposal.digest,
        decision=decision.decision,
        reasons=decision.reasons,
        terms=decision.terms if decision.decision == "allow" else Terms(),
        bundle_digest=decision.bundle_digest,
        input_digest=decision.input_digest,
        engine=decision.engine,
    )


def _ask(proposal: Proposal, decision: Decision, shown: dict[str, Any]) -> ReviewAsk:
    return ReviewAsk(
        stage=STAGE_PROPOSAL,
        subject=proposal.digest,
        title=proposal.title,
        document=shown,
        reasons=decision.reasons,
        role=decision.review.role,
        approvals=decision.review.approvals,
        until=model.before(proposal.deadline),
        proposal=proposal.digest,
    )
