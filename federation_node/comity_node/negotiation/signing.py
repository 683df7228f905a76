"""How this organisation signs agreements: what holds, and what its people approved where the terms ask for them.

Rules:
1. An agreement that holds is signed; one that does not ends in a withdrawal with the reason, so that nobody waits for
   this organisation. Three exceptions say nothing: an agreement on a superseded revision and one under a former
   charter, because the coordinator asks anew by itself; one whose other parties showed no evidence in time, because the
   coordinator names them.
2. An agreement under a charter that has not come here yet waits for it (`pending.py`).
3. Under the term `human_review: agreement` people approve the very agreement first; no word in time is a withdrawal.
4. At most one agreement of a proposal becomes final here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_crypto.quorum import message_for
from comity_crypto.statements import Statement
from comity_node.abilities import Abilities
from comity_node.attestation.service import hold_back
from comity_node.negotiation import model, store
from comity_node.negotiation.answering import Sign
from comity_node.negotiation.pending import PendingItems
from comity_node.negotiation.ports import STAGE_AGREEMENT, STAGE_PROPOSAL, Reviews, Verdict
from comity_node.negotiation.store import Pending
from comity_node.policy.recorded import missing_bundle
from comity_node.reviews.model import ReviewAsk
from comity_policies.decisions import ReviewNeed
from comity_policies.documents import Agreement, Answer, Reason

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext

AGREEMENT = "agreement"
ANSWERS_MAX = 64

log = structlog.get_logger(__name__)


class Withdraw(Protocol):
    """Tell the coordinator that this organisation takes no part in one revision of a proposal."""

    def __call__(self, proposal_id: str, reason: str, proposal_digest: str) -> Awaitable[None]:
        """Withdraw; `reason` is read by everyone."""


class Signing:
    """This organisation's signatures. Part of `NegotiationService`."""

    def __init__(
        self, node: NodeContext, reviews: Reviews, pending: PendingItems, sign: Sign, withdraw: Withdraw
    ) -> None:
        self._node = node
        self._reviews = reviews
        self._pending = pending
        self._sign = sign
        self._withdraw = withdraw

    async def agreement(self, agreement: Agreement, answers: Sequence[Statement], *, last: bool = False) -> None:
        """Sign an agreement that holds, ask people about it, or withdraw with the reason."""
        try:
            done = await self._node.journal.run(lambda conn: self._judge(conn, agreement, answers, last=last))
        except ComityError as error:
            if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                raise
            log.warning("agreement.refused", agreement=agreement.digest, code=str(error.code), detail=error.detail)
            await self._node.journal.run(lambda conn: store.drop_pending(conn, subject=agreement.digest))
            if not self._asked_anew(agreement, error):
                await self._refuse(agreement, f"{error.code}: {error.detail}")
            return
        log.info(f"agreement.{done}", agreement=agreement.digest)

    async def _refuse(self, agreement: Agreement, reason: str) -> None:
        """Withdraw from the proposal of this name that this organisation knows, whatever the agreement says it is."""
        proposal_id = agreement.proposal.proposal_id

        def known(conn: Connection) -> str:
            newest = store.newest_revision(conn, proposal_id)
            return store.find_revision(conn, proposal_id, newest) or ""

        await self._withdraw(proposal_id, reason, await self._node.journal.run(known))

    async def agreement_again(self, item: Pending, last: bool) -> None:
        """Judge a pending agreement."""
        agreement, answers = read(canonical.parse(item.body))
        await self.agreement(agreement, answers, last=last)

    async def on_verdict(self, subject: str, verdict: Verdict) -> None:
        """Go on with an agreement that people have decided on."""
        await self._pending.try_again(subject)

    def _asked_anew(self, agreement: Agreement, error: ComityError) -> bool:
        former = agreement.charter_digest != self._node.charters.in_force().digest
        return error.code is ErrorCode.SUPERSEDED or (former and self._knows(agreement.charter_digest))

    def _knows(self, charter_digest: str) -> bool:
        return self._node.charters.at(charter_digest) is not None

    def _judge(self, conn: Connection, agreement: Agreement, answers: Sequence[Statement], *, last: bool) -> str:
        """Return what was done: `signed`, or `later`. Raises what makes it wrong to sign."""
        node, proposal = self._node, agreement.proposal
        charter = node.charters.in_force()
        if not last and agreement.charter_digest != charter.digest and not self._knows(agreement.charter_digest):
            self._wait(conn, agreement, answers, "made under a charter that has not come here yet")
            return "later"
        if (stale := missing_bundle(node.policy)) is not None:
            if last:
                raise stale
            self._wait(conn, agreement, answers, stale.detail)
            return "later"
        node.ledger.check(conn)
        if (final := store.final_of(conn, proposal.digest)) not in (None, agreement.digest):  # F2: it could not be kept
            raise ComityError(ErrorCode.AGREEMENT_INVALID, f"agreement {final} of this proposal is final here")
        said = store.find_answer_statement(conn, proposal.digest)
        if said is None:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "this organisation did not answer that proposal")
        node.ledger.check_new(conn, said)
        model.check_agreement(
            agreement,
            answers,
            charter=charter,
            me=node.settings.org,
            mine=Answer.from_json(said.body),
            signed_before=store.signed_for(conn, proposal.digest),
            now=self._now(),
            accepted=self._accepted(conn, agreement),
            newest_revision=store.newest_revision(conn, proposal.proposal_id),
        )
        model.check_promises(proposal, agreement.terms, agreement.parties, charter, node.services.get(Abilities))
        if not self._approved(conn, agreement, answers, last=last):
            return "shown"
        if (why := hold_back(node, conn, agreement, answers)) is not None:
            if last:
                store.drop_pending(conn, subject=agreement.digest)
                return "given up"
            self._wait(conn, agreement, answers, why)
            return "later"
        store.drop_pending(conn, proposal_digest=proposal.digest)
        store.add_agreement(conn, agreement, self._now())
        voice = node.keys.bls_sign(message_for("agreement", agreement.digest))
        body = {"agreement": agreement.digest, "bls": to_base64(voice)}
        node.link.send(conn, "agreement.signature", self._sign("agreement-signature", body))
        return "signed"

    def _accepted(self, conn: Connection, agreement: Agreement) -> list[str]:
        """Return digests of the counter-offers to our own proposal that we accepted."""
        found = store.list_counters(conn, agreement.proposal.digest)
        return [each.statement.digest for each in found if each.accepted_at is not None]

    def _approved(self, conn: Connection, agreement: Agreement, answers: Sequence[Statement], *, last: bool) -> bool:
        """Tell whether people approved, if they have to; ask them if they were not asked. Raises `POLICY_DENIED`."""
        if "agreement" not in agreement.terms.get("human_review", ()):
            return True
        item = self._item(agreement, self._need(conn, agreement))
        verdict = self._reviews.verdict(conn, STAGE_AGREEMENT, agreement.digest)
        if verdict is None or verdict.document != item.document_digest:  # who has to look may have changed since
            if last:
                raise ComityError(ErrorCode.POLICY_DENIED, "nobody decided in time")
            for other in store.pending_of(conn, agreement.proposal.digest):
                self._reviews.obsolete(conn, STAGE_AGREEMENT, other, "another agreement took its place")
            store.drop_pending(conn, proposal_digest=agreement.proposal.digest)
            self._reviews.ask(conn, item)
            self._wait(conn, agreement, answers, "a person has to approve it", until=item.until)
            return False
        if not verdict.allowed:
            raise ComityError(ErrorCode.POLICY_DENIED, f"people here denied it: {verdict.reason}")
        return True

    def _need(self, conn: Connection, agreement: Agreement) -> ReviewNeed:
        """Return who looks: whom the settings name, and no fewer than our policy put before the proposal itself."""
        need = self._reviews.need()
        before = self._reviews.asked(conn, STAGE_PROPOSAL, agreement.proposal.digest)
        return need if before is None else before.stricter(need)

    def _item(self, agreement: Agreement, need: ReviewNeed) -> ReviewAsk:
        proposal = agreement.proposal
        shown = {
            "kind": "agreement",
            "agreement": agreement.to_json(),
            "digest": agreement.digest,
            "review": need.to_json(),
        }
        return ReviewAsk(
            stage=STAGE_AGREEMENT,
            subject=agreement.digest,
            title=proposal.title,
            document=shown,
            reasons=(Reason("terms.human_review", "HUMAN_REVIEW", "the terms ask for a person"),),
            role=need.role,
            approvals=need.approvals,
            until=model.people_end(proposal.deadline, self._now()),
            proposal=proposal.digest,
        )

    def _wait(
        self,
        conn: Connection,
        agreement: Agreement,
        answers: Sequence[Statement],
        why: str,
        *,
        until: str | None = None,
    ) -> None:
        body = canonical.canonical({"agreement": agreement.to_json(), "answers": [each.to_json() for each in answers]})
        digest, proposal = agreement.digest, agreement.proposal
        before = store.find_pending(conn, digest)
        tries = 0 if before is None else before.tries
        end = until or model.people_end(proposal.deadline, self._now())
        item = Pending(digest, AGREEMENT, proposal.digest, body, end, tries)
        self._pending.put(conn, item, why, asleep=until is not None)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def read(body: dict[str, Any]) -> tuple[Agreement, list[Statement]]:
    """Read what the coordinator asks to sign: an agreement and the answers it rests on. Raises `MALFORMED`."""
    answers = body.get("answers")
    if not isinstance(answers, list) or len(answers) > ANSWERS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a short list expected")
    return model.read_agreement(body.get("agreement")), [Statement.from_json(each) for each in answers]
