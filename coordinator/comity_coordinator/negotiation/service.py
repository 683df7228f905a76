"""Negotiations as they happen: messages of nodes in, offers, agreements and updates out (negotiation.md section 2).

Rules, in this order:
1. a message is judged whole (form, membership, signature, state) before anything is written;
2. state, ledger entry and messages to others commit together, in the transaction that takes the message;
3. the agreement that everybody signs is made here from the answers, and every node checks it against its own;
4. a charter that changed since the draft costs a new draft: signatures count under one charter only;
5. a newer revision of a proposal ends the older one in the transaction that opens it; a final agreement is not revised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Protocol

from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import inbound
from comity_coordinator.db import after_commit
from comity_coordinator.feed import Feed
from comity_coordinator.governance.policy import Gate, no_gate
from comity_coordinator.inbound import CharterOf, Outbox, Signer
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation import model, store, subjects, view
from comity_coordinator.negotiation.states import Event, LegState, Negotiation, Phase
from comity_coordinator.transport.model import Message
from comity_coordinator.workflows.engine import WorkflowEngine
from comity_crypto.encoding import from_base64
from comity_crypto.quorum import bls_verify, make_certificate, message_for, verify_certificate
from comity_crypto.sealing import SealedRef
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.documents import Agreement, Answer, CounterAcceptance, Proposal

PROPOSAL_BYTES_MAX = 192 << 10
# All answers together travel with the agreement, which is one statement of at most 1 MiB.
ANSWERS_BYTES_MAX = 256 << 10
ANSWER_BYTES_MAX = 64 << 10
SMALL_BYTES_MAX = 16 << 10
DEADLINE_DAYS_MAX = 90
OPEN_PER_PROPOSER_MAX = 256
REASON_CHARS_MAX = 400
BLS_BYTES = 96


class Agreements(Protocol):
    """What happens with agreements: the training service."""

    def agreement_final(self, conn: Connection, agreement: Agreement) -> None:
        """Every party signed and the ledger has it."""

    def agreement_withdrawn(self, conn: Connection, agreement: str, org: str, reason: str) -> None:
        """`org` withdrew: nothing of this agreement may go on."""


class NegotiationService:
    """The use cases of negotiation; `register` puts them on the hub."""

    def __init__(
        self,
        *,
        consortium: str,
        charter_of: CharterOf,
        ledger: Ledger,
        outbox: Outbox,
        sign: Signer,
        engine: WorkflowEngine,
        agreements: Agreements,
        feed: Feed,
        clock: Callable[[], str] = instants.now_text,
        gate: Gate = no_gate,
    ) -> None:
        """`gate` is the consortium's policy bundle, which refuses early what no node could accept."""
        self._gate = gate
        self._consortium = consortium
        self._charter_of = charter_of
        self._ledger = ledger
        self._outbox = outbox
        self._sign = sign
        self._engine = engine
        self._agreements = agreements
        self._feed = feed
        self._clock = clock
        self._news: Callable[[], None] | None = None

    def on_news(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, after a commit that left something to tell (`news.py`)."""
        self._news = wake

    def news_for(self, conn: Connection, limit: int) -> int:
        """Return how many organisations would be told now, of at most `limit` negotiations."""
        return sum(len(view.concerned(negotiation)) for negotiation in store.untold(conn, limit))

    def tell_news(self, conn: Connection, limit: int) -> int:
        """Send at most `limit` states that were not sent yet; return how many."""
        untold = store.untold(conn, limit)
        for negotiation in untold:
            self._send(conn, negotiation)
        return len(untold)

    def register(self) -> None:
        """Take the message kinds of negotiation."""
        self._outbox.register("proposal.submit", self.submit)
        self._outbox.register("proposal.answer", self.answer)
        self._outbox.register("counter.accept", self.accept_counter)
        self._outbox.register("agreement.signature", self.signature)
        self._outbox.register("withdrawal", self.withdrawal)

    def submit(self, conn: Connection, org: str, message: Message) -> None:
        """Open a negotiation: offers go to everyone who is asked. A newer revision ends the one before.

        Raises:
            ComityError: `CONFLICT` if the id names another proposal; `ILLEGAL_EVENT` if the revision before led to an
                agreement; `NOT_A_MEMBER` if it asks strangers; `UNSUPPORTED` for several leads; `DEADLINE_PASSED`;
                `BUSY`; what `inbound.statement` raises.
        """
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "proposal", PROPOSAL_BYTES_MAX)
        body = dict(said.body)
        payload = body.pop("app_payload", None)
        proposal = Proposal.from_json(body)
        now = self._clock()
        if store.by_proposal_digest(conn, proposal.digest) is not None:
            return
        before = store.by_id(conn, proposal.proposal_id)
        if before is not None:
            self._supersede(conn, before, org, proposal)
        self._check_proposal(conn, charter, org, proposal, now)
        self._gate(charter, proposal, now)
        if payload is not None:
            _check_receivers(SealedRef.from_json(payload), proposal)
        negotiation = model.open_negotiation(
            proposal_id=proposal.proposal_id,
            revision=proposal.revision,
            proposer=org,
            required=proposal.required,
            optional=proposal.optional,
            minimum=proposal.minimum,
            deadline=proposal.deadline,
            terms=proposal.terms,
            now=now,
            accepts=proposal.accepts,
            bounds=proposal.bounds,
        )
        self._ledger.append(conn, said, patient=True)
        store.create(conn, store.Record(negotiation, proposal.digest, said.digest, now))
        offer = {"proposal": said.to_json(), "app_payload": payload}
        self._outbox.enqueue_all(conn, proposal.asked, "offer", offer)
        self._tell(conn, negotiation)
        after_commit(conn, partial(self._engine.negotiation_opened, subjects.of(negotiation), negotiation.until))

    def answer(self, conn: Connection, org: str, message: Message) -> None:
        """Take an organisation's signed answer.

        Raises:
            ComityError: `NOT_FOUND` for an unknown proposal; what the model and `inbound` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        charter.check_active(org)
        said = inbound.statement(charter, org, message, "answer", ANSWER_BYTES_MAX)
        answer = Answer.from_json(said.body)
        record = store.by_proposal_digest(conn, answer.proposal_digest)
        if record is None:
            raise ComityError(ErrorCode.NOT_FOUND, "no such proposal is being negotiated")
        limit = min(ANSWER_BYTES_MAX, ANSWERS_BYTES_MAX // len(record.negotiation.legs))
        if len(message.body) > limit:
            raise ComityError(ErrorCode.TOO_LARGE, size_bytes=len(message.body), limit_bytes=limit)
        event = model.Answered(org, answer.decision, answer.terms, answer.reasons, said.digest)
        after = self.apply(conn, record, event, charter, said)
        if after is not record.negotiation and after.legs[org].state is LegState.OFFERED:
            # The proposer decides on what was signed, not on what we say of it.
            self._outbox.enqueue(conn, after.proposer, "counter.offer", {"answer": said.to_json()})

    def accept_counter(self, conn: Connection, org: str, message: Message) -> None:
        """Take the proposer's word that it takes an organisation's stricter terms.

        Raises:
            ComityError: `NOT_FOUND`; `FORBIDDEN` if it is not the proposer's; what the model and `inbound` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "counter-acceptance", SMALL_BYTES_MAX)
        taken = CounterAcceptance.from_json(said.body)
        record = store.by_proposal_digest(conn, taken.proposal)
        if record is None or record.negotiation.proposal_id != taken.proposal_id:
            raise ComityError(ErrorCode.NOT_FOUND, "no such proposal is being negotiated")
        if record.negotiation.proposer != org:
            raise ComityError(ErrorCode.FORBIDDEN, "only the proposer accepts a counter-offer")
        self.apply(conn, record, model.CounterAccepted(taken.org, taken.answer), charter, said)

    def signature(self, conn: Connection, org: str, message: Message) -> None:
        """Take a party's signature over the agreement; with the last one it becomes final.

        Raises:
            ComityError: `AGREEMENT_UNKNOWN`; `SIGNATURE_INVALID` if the BLS signature does not hold; what `model.step`
                and `inbound.statement` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        charter.check_active(org)
        said = inbound.statement(charter, org, message, "agreement-signature", SMALL_BYTES_MAX)
        body = inbound.body_of(said, "agreement", "bls")
        digest = inbound.text(body["agreement"], 64, "an agreement's digest")
        row = store.agreement(conn, digest)
        if row is None:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "no such agreement is being signed")
        record = self._record(conn, row.proposal_id)
        bls = from_base64(body["bls"], what="signature", size_bytes=BLS_BYTES)
        if not bls_verify(charter.member(org).keys.certificate, message_for("agreement", digest), bls):
            raise ComityError(ErrorCode.SIGNATURE_INVALID, "the signature over the agreement does not hold")
        # Of the draft being signed only: a stale one must not cost everybody's signatures.
        newest = record.negotiation.phase is Phase.SIGNING and record.negotiation.agreement == digest
        if newest and store.read_agreement(row.document).charter_digest != charter.digest:
            self.apply(conn, record, model.CharterChanged(), charter)
            return
        after = model.step(record.negotiation, model.Signed(org, digest), self._clock())
        if after is record.negotiation:
            return
        store.put_signature(conn, digest, org, bls)
        if after.phase is Phase.VERIFIED:
            after = self._finalize(conn, after, store.read_agreement(row.document), charter)
        store.save(conn, replace(record, negotiation=after))
        self._tell(conn, after)

    def withdrawal(self, conn: Connection, org: str, message: Message) -> None:
        """Let a party go at any time, and the proposer before the agreement is final.

        Raises:
            ComityError: `NOT_FOUND`; `NOT_A_MEMBER` if it takes no part; what the model and `inbound` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "withdrawal", SMALL_BYTES_MAX)
        body = inbound.body_of(said, "agreement", "proposal_id", "reason", optional=("proposal",))
        reason = inbound.text(body["reason"], REASON_CHARS_MAX, "a reason")
        record = self._record(conn, inbound.text(body["proposal_id"], 128, "a proposal's id"))
        negotiation = record.negotiation
        if body.get("proposal", record.proposal_digest) != record.proposal_digest:
            raise ComityError(ErrorCode.SUPERSEDED, "a newer revision is being negotiated")
        if body["agreement"] not in (None, negotiation.agreement):
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "the proposal led to another agreement, or to none")
        if negotiation.phase is not Phase.FINALIZED:
            # The ledger knows no drafts: an auditor could not tell what such an entry is about.
            about_draft = body["agreement"] is not None
            self.apply(conn, record, model.Withdrew(org, reason), charter, None if about_draft else said)
            return
        if org not in negotiation.parties:
            raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is no party of this agreement")
        if not self._ledger.append(conn, said, negotiation.parties):
            return
        row = store.agreement(conn, negotiation.agreement)
        if row is not None and row.state == store.FINAL:
            now = self._clock()
            ended = model.Ended(ErrorCode.WITHDRAWN, f"{org} withdrew: {reason}", org, now)
            store.set_agreement(conn, row.digest, store.WITHDRAWN, now, withdrawal=view.ended_text(ended))
            self._agreements.agreement_withdrawn(conn, row.digest, org, reason)
            self._tell(conn, negotiation, ended)

    def charter_changed(self, conn: Connection) -> None:
        """Draft anew what is being signed: parties refuse to sign under a former charter."""
        for record in store.in_phase(conn, Phase.SIGNING):
            self.apply(conn, record, model.CharterChanged(), inbound.charter(conn, self._charter_of))

    # What a workflow engine calls (`workflows.engine.Supervised`).

    def on_deadline(self, conn: Connection, subject_id: str) -> str | None:
        """Judge the deadline of a proposal; return the next one."""
        record = subjects.find(conn, subject_id)
        if record is None or record.negotiation.phase not in model.OPEN:
            return None
        self.apply(conn, record, model.DeadlinePassed(), inbound.charter(conn, self._charter_of))
        return self.deadline_of(conn, subject_id)

    def deadline_of(self, conn: Connection, subject_id: str) -> str | None:
        """Return until when answers or signatures are awaited."""
        record = subjects.find(conn, subject_id)
        return record.negotiation.until if record and record.negotiation.phase in model.OPEN else None

    def open_deadlines(self, conn: Connection) -> list[tuple[str, str]]:
        """Return (subject, deadline) of all open negotiations."""
        return [(subjects.named(proposal, revision), until) for proposal, revision, until in store.open_until(conn)]

    # Inside.

    def _record(self, conn: Connection, proposal_id: str) -> store.Record:
        record = store.by_id(conn, proposal_id)
        if record is None:
            raise ComityError(ErrorCode.NOT_FOUND, "no such proposal is being negotiated")
        return record

    def _supersede(self, conn: Connection, before: store.Record, org: str, proposal: Proposal) -> None:
        old = before.negotiation
        if old.proposer != org or proposal.revision <= old.revision:
            raise ComityError(
                ErrorCode.CONFLICT, "another proposal has this id, or this revision", revision=old.revision
            )
        now = self._clock()
        after = model.step(old, model.Superseded(proposal.revision), now)
        store.supersede(conn, replace(before, negotiation=after))
        store.void_drafts(conn, old.proposal_id, now)
        if after is not old:
            self._send(conn, after)
            after_commit(conn, partial(self._engine.negotiation_ended, subjects.of(old)))

    def _check_proposal(self, conn: Connection, charter: Charter, org: str, proposal: Proposal, now: str) -> None:
        if proposal.proposer != org or proposal.consortium != self._consortium:
            raise ComityError(ErrorCode.FORBIDDEN, "the proposal names another proposer or consortium")
        for asked in (org, *proposal.asked):
            charter.check_active(asked)
        if len({step.lead for step in proposal.steps}) != 1:
            raise ComityError(ErrorCode.UNSUPPORTED, "all steps of a proposal have one lead")
        latest = instants.to_text(instants.parse(now) + timedelta(days=DEADLINE_DAYS_MAX))
        if proposal.deadline > latest:
            raise ComityError(ErrorCode.MALFORMED, f"a deadline is at most {DEADLINE_DAYS_MAX} days away")
        if store.open_count(conn, org, OPEN_PER_PROPOSER_MAX) >= OPEN_PER_PROPOSER_MAX:
            raise ComityError(ErrorCode.BUSY, "too many open proposals", limit=OPEN_PER_PROPOSER_MAX)

    def apply(
        self, conn: Connection, record: store.Record, event: Event, charter: Charter, said: Statement | None = None
    ) -> Negotiation:
        """Step the model; write and tell what changed. A join brings a draft to everyone's desk."""
        before = record.negotiation
        after = model.step(before, event, self._clock())
        if after is before:
            return before
        if said is not None:
            # What is still under way is entered together with the agreement, if that comes soon.
            self._ledger.append(conn, said, patient=after.phase in model.OPEN)
        if after.phase is Phase.SIGNING and not after.agreement:
            after = self._draft(conn, record, after, charter)
        store.save(conn, replace(record, negotiation=after))
        self._tell(conn, after)
        if after.phase is Phase.TERMINATED:
            after_commit(conn, partial(self._engine.negotiation_ended, subjects.of(after)))
        return after

    def _draft(self, conn: Connection, record: store.Record, after: Negotiation, charter: Charter) -> Negotiation:
        said = self._ledger.statement(conn, record.statement)
        body = {key: value for key, value in said.body.items() if key != "app_payload"}
        seed = canonical.digest({"proposal": record.proposal_digest, "attempt": after.attempt})
        agreement = Agreement(
            agreement_id=f"agr-{seed[:26]}",
            consortium=self._consortium,
            charter_digest=charter.digest,
            proposal=Proposal.from_json(body),
            parties=after.parties,
            terms=after.meet,
        )
        now = self._clock()
        document = agreement.to_json()
        after = model.step(after, model.Drafted(after.attempt, agreement.digest), now)
        store.put_agreement(conn, agreement.digest, after.proposal_id, canonical.canonical(document).decode(), now)
        answers = [each.to_json() for each in self._answers(conn, after)]
        self._outbox.enqueue_all(conn, after.parties, "agreement.sign", {"agreement": document, "answers": answers})
        return after

    def _finalize(self, conn: Connection, verified: Negotiation, agreement: Agreement, charter: Charter) -> Negotiation:
        digest = agreement.digest
        certificate = make_certificate(digest, store.signatures_of(conn, digest))
        if set(certificate.signers) != set(agreement.parties):
            raise ComityError(ErrorCode.QUORUM_MISSING, "the signatures are not those of the parties")
        verify_certificate(certificate, message_for("agreement", digest), charter.certificate_keys)
        body = {
            "agreement": agreement.to_json(),
            "certificate": certificate.to_json(),
            "answers": [each.to_json() for each in self._answers(conn, verified)],
        }
        said = self._sign("agreement", body)
        now = self._clock()
        self._ledger.append(conn, said, agreement.parties)
        store.set_agreement(conn, digest, store.FINAL, now, statement=said.digest)
        self._outbox.enqueue_all(conn, agreement.parties, "agreement.final", {"statement": said.to_json()})
        self._agreements.agreement_final(conn, agreement)
        after_commit(conn, partial(self._engine.negotiation_ended, subjects.of(verified)))
        return model.step(verified, model.Finalized(), now)

    def _answers(self, conn: Connection, negotiation: Negotiation) -> list[Statement]:
        return [self._ledger.statement(conn, negotiation.legs[org].answer) for org in negotiation.parties]

    def _tell(self, conn: Connection, negotiation: Negotiation, ended: model.Ended | None = None) -> None:
        """Tell everybody concerned: an end at once, anything else in a moment, as it stands then."""
        if ended is not None or negotiation.phase not in model.OPEN:
            self._send(conn, negotiation, ended)
        elif self._news is not None:
            after_commit(conn, self._news)
        event = {"kind": "negotiation", "id": negotiation.proposal_id, "state": view.state(negotiation, ended)}
        after_commit(conn, partial(self._feed.publish, event))

    def _send(self, conn: Connection, negotiation: Negotiation, ended: model.Ended | None = None) -> None:
        news = view.update(negotiation, ended)
        self._outbox.enqueue_all(conn, view.concerned(negotiation), "negotiation.update", news)
        store.set_told(conn, negotiation.proposal_id, negotiation.revision)


def _check_receivers(payload: SealedRef, proposal: Proposal) -> None:
    """Everyone who decides must be able to open the app, and nobody else needs to."""
    if set(payload.boxes) != {*proposal.asked, proposal.proposer}:
        raise ComityError(ErrorCode.MALFORMED, "the app is sealed to the proposer and everyone who is asked")
