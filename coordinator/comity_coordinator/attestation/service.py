"""Evidence between parties: taken, judged by what the charter trusts, passed on, entered into the ledger.

Rules, in this order:
1. evidence counts for a draft that is being signed, once for each party, or as the answer to a question of another
   party about a final agreement; whoever sends anything else is refused;
2. it is judged here as an auditor will judge it (`evidence.check_on_record`), so that no party can spoil the record;
   the judgement that binds is each party's own;
3. evidence for a draft goes to the other parties at once, and onto the ledger right after the agreement; an answer to
   a question goes to the asker and onto the ledger in one transaction, as does the question;
4. one party asks another at most once in `ASK_PAUSE_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import inbound
from comity_coordinator.attestation import store
from comity_coordinator.inbound import CharterOf, Outbox
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.negotiation.service import Agreements
from comity_coordinator.negotiation.states import Event, Evidenced, Negotiation
from comity_coordinator.transport.model import Message
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.documents import Agreement
from comity_policies.evidence import (
    ASK,
    EVIDENCE,
    EVIDENCE_BYTES_MAX,
    EvidenceAsk,
    EvidenceGiven,
    asked_nonce,
    check_on_record,
    required,
    signing_nonce,
)

ASK_BYTES_MAX = 8 << 10
ASK_PAUSE_S = 5


class Negotiations(Protocol):
    """The part of the negotiation's service that evidence moves."""

    def apply(self, conn: Connection, record: negotiation_store.Record, event: Event, charter: Charter) -> Negotiation:
        """Step the negotiation; write and tell what changed."""


class EvidenceDesk:
    """Takes evidence and questions, and stands between negotiation and training when an agreement is final."""

    def __init__(
        self,
        *,
        charter_of: CharterOf,
        ledger: Ledger,
        outbox: Outbox,
        agreements: Agreements,
        clock: Callable[[], str] = instants.now_text,
    ) -> None:
        self._charter_of = charter_of
        self._ledger = ledger
        self._outbox = outbox
        self._agreements = agreements
        self._clock = clock
        self._negotiations: Negotiations | None = None

    def register(self, negotiations: Negotiations) -> None:
        """Take the message kinds of attestation."""
        self._negotiations = negotiations
        self._outbox.register("evidence.give", self.give)
        self._outbox.register("evidence.ask", self.ask)

    def give(self, conn: Connection, org: str, message: Message) -> None:
        """Take a party's evidence.

        Raises:
            ComityError: `AGREEMENT_UNKNOWN`, `NOT_A_MEMBER`, `FORBIDDEN` if nobody asked for it, `ATTESTATION_INVALID`,
                `UNSUPPORTED` for a quote without dcap-qvl here; what `model.step` and `inbound.statement` raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        charter.check_active(org)
        said = inbound.statement(charter, org, message, EVIDENCE, EVIDENCE_BYTES_MAX)
        given = EvidenceGiven.from_json(said.body)
        if store.known(conn, said.digest):
            return
        state, agreement = self._agreement(conn, given.agreement, org)
        if given.ask is None:
            self._for_draft(conn, charter, said, given, agreement)
            return
        if state != negotiation_store.FINAL or store.find_ask(conn, given.ask) != (given.agreement, given.asker, org):
            raise ComityError(ErrorCode.FORBIDDEN, "nobody asked for this evidence")
        check_on_record(given, said, charter, asked_nonce(given.agreement, given.ask))
        store.put(conn, said.digest, given.agreement, org, agreement.proposal.proposal_id, None)
        self._ledger.append(conn, said)
        self._outbox.enqueue(conn, str(given.asker), "evidence.given", {"statement": said.to_json()})

    def ask(self, conn: Connection, org: str, message: Message) -> None:
        """Pass a party's question on to the party that is asked.

        Raises:
            ComityError: `AGREEMENT_UNKNOWN`, `NOT_A_MEMBER`; `BUSY` within `ASK_PAUSE_S`; what `inbound` raises.
        """
        charter = inbound.charter(conn, self._charter_of)
        charter.check_active(org)
        said = inbound.statement(charter, org, message, ASK, ASK_BYTES_MAX)
        ask, now = EvidenceAsk.from_json(said.body), self._clock()
        if store.find_ask(conn, said.digest) is not None:
            return
        state, agreement = self._agreement(conn, ask.agreement, org)
        if state != negotiation_store.FINAL or ask.org == org or ask.org not in agreement.parties:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "no such agreement with that party is in force")
        since = instants.to_text(instants.parse(now) - timedelta(seconds=ASK_PAUSE_S))
        if store.asked_since(conn, ask.agreement, org, ask.org, since):
            raise ComityError(ErrorCode.BUSY, "evidence was asked for a moment ago", pause_s=ASK_PAUSE_S)
        store.put_ask(conn, said.digest, ask.agreement, org, ask.org, now)
        self._ledger.append(conn, said, patient=True)
        self._outbox.enqueue(conn, ask.org, "evidence.asked", {"statement": said.to_json()})

    # What happens with agreements (`negotiation.service.Agreements`).

    def agreement_final(self, conn: Connection, agreement: Agreement) -> None:
        """Enter the evidence that it rests on, then let training have it. Raises `ATTESTATION_MISSING`."""
        if required(agreement.terms):
            shown = store.take_contents(conn, agreement.digest)
            if {org for org, _ in shown} != set(agreement.parties):
                raise ComityError(ErrorCode.ATTESTATION_MISSING, "not every party of the agreement showed evidence")
            for _, content in shown:
                self._ledger.append(conn, Statement.from_bytes(content))
        self._agreements.agreement_final(conn, agreement)

    def agreement_withdrawn(self, conn: Connection, agreement: str, org: str, reason: str) -> None:
        """Pass it on."""
        self._agreements.agreement_withdrawn(conn, agreement, org, reason)

    # Inside.

    def _for_draft(
        self, conn: Connection, charter: Charter, said: Statement, given: EvidenceGiven, agreement: Agreement
    ) -> None:
        assert self._negotiations is not None, "register comes first"
        proposal_id, org = agreement.proposal.proposal_id, said.issuer
        record = negotiation_store.by_id(conn, proposal_id)
        if record is None or record.negotiation.agreement != given.agreement:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "no such agreement is being signed")
        legs = record.negotiation.legs
        nonce = signing_nonce(given.agreement, (legs[party].answer for party in agreement.parties))
        check_on_record(given, said, charter, nonce)
        self._negotiations.apply(conn, record, Evidenced(org, given.agreement, said.digest), charter)
        store.drop_drafts(conn, proposal_id, given.agreement)
        store.put(conn, said.digest, given.agreement, org, proposal_id, said.to_bytes())
        others = [party for party in agreement.parties if party != org]
        self._outbox.enqueue_all(conn, others, "evidence.given", {"statement": said.to_json()})

    def _agreement(self, conn: Connection, digest: str, org: str) -> tuple[str, Agreement]:
        row = negotiation_store.agreement(conn, digest)
        if row is None or row.state not in (negotiation_store.DRAFT, negotiation_store.FINAL):
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "no such agreement is being signed or in force")
        agreement = negotiation_store.read_agreement(row.document)
        if org not in agreement.parties:
            raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is no party of this agreement")
        if not required(agreement.terms):
            raise ComityError(ErrorCode.FORBIDDEN, "this agreement asks for no evidence")
        return row.state, agreement


def check_receipt(conn: Connection, agreement: str, org: str, named: tuple[str, ...] | None, *, result: bool) -> None:
    """Check what evidence a receipt of `org` names: one of each other party for a result (obligation 10, rule 4).

    Raises:
        ComityError: `ATTESTATION_MISSING`.
    """
    parties = store.shown_by(conn, agreement)
    if not parties and named is None:
        return
    if not parties or (result and sorted(store.owners(conn, agreement, named or ())) != sorted(parties - {org})):
        raise ComityError(ErrorCode.ATTESTATION_MISSING, "the result names no evidence of every other party", org=org)
