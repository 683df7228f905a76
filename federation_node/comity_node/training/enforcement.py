"""Before a node runs anything for an order: the checks of negotiation.md section 5, in that order, with those numbers.

(0) the lead that the agreement names signed the order; lead and parties are members under the charter in force, and
    the ledger that says so was not caught contradicting itself
(1) the agreement is in this organisation's own store, signed by it, final, and nobody has withdrawn
(2) the agreement's certificate holds (cached by agreement and charter)
(3) the order conforms: run, step, type, round, receivers, deadline; own dataset and columns; every term is one that
    this node can enforce; the other parties' evidence is fresh enough, where the terms ask for it
(4) the grant has what the order needs (read only; `charge` reads it again in the transaction that starts the order)
(5) the organisation's own `dispatch` policy allows it, or wants a person to look
(6) a person, where the policy or the terms ask for one (`people.py`: it takes the journal)

The first that fails ends the matter. After the run, before a byte leaves: `check_egress` over measured facts, and again
a person where one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import message_for, verify_certificate
from comity_crypto.statements import Statement, verify_statement
from comity_node.abilities import Abilities, check_company, check_purpose, check_sight
from comity_node.training import grants
from comity_node.training.needs import ONE_REVIEWER, Need, need_of
from comity_node.training.ports import FINAL, WITHDRAWN, Stored
from comity_policies.charter import Charter
from comity_policies.charter_facts import app_digests, facts_of
from comity_policies.decisions import Decision, ReviewNeed, Stage
from comity_policies.documents import MESSAGE_TYPES, ROUND_WORDS, Agreement, DatasetAsk, OrderHeader, Step, run_id
from comity_policies.steps import AGGREGATE, INTERSECT

Decide = Callable[[Stage, dict[str, Any]], Decision]

# Beyond `train`, an app may evaluate or query a few times a round; more is not what a round means.
ORDERS_PER_ROUND_MAX = 8
VERDICTS_MAX = 1_000
# What an order may be called in receipts, one predicate for each check.
PREDICATES = ("signed_by_lead", "agreement_held", "certificate_holds", "conforms", "grant_left", "dispatch_allowed")


@dataclass(frozen=True, slots=True)
class History:
    """What the journal knows around an order, read in one transaction.

    Args:
        spent: of the grant, by field.
        first_of_run: whether no order of the run was started before.
        round_before: largest round of the same word started under a smaller number, 0 if none.
        round_after: smallest such round under a larger number, or None.
        in_round: orders of the same word started in the same round.
    """

    spent: Mapping[str, int]
    first_of_run: bool
    round_before: int
    round_after: int | None
    in_round: int


@dataclass(frozen=True, slots=True)
class Case:
    """One order before its judge.

    `started` if this very order was, `number_taken` if another one under its number; `ledger` is why this node does
    not trust the ledger or its own journal any more; `attested` is what keeps it from relying on the other parties'
    machines (`attestation`). `made_under` is the charter of the agreement, if this node's chain
    has it.
    """

    order: OrderHeader
    statement: Statement
    stored: Stored | None
    charter: Charter | None
    history: History
    me: str
    now: str
    abilities: Abilities
    catalogue: Mapping[str, Mapping[str, Any]]
    started: bool
    number_taken: bool = False
    ledger: ComityError | None = None
    looks: ReviewNeed = ONE_REVIEWER
    made_under: Charter | None = None
    attested: ComityError | None = None


@dataclass(slots=True)
class Verdict:
    """How far an order came: predicates for the receipt, the error that ended the matter, who has yet to look."""

    predicates: dict[str, bool] = field(default_factory=dict)
    error: ComityError | None = None
    need: Need | None = None
    # Digests of the other parties' evidence, where the terms ask for it.
    evidence: tuple[str, ...] | None = None


class Certificates:
    """Verdicts on certificates, by agreement and charter: a BLS check costs milliseconds, an order should not."""

    def __init__(self) -> None:
        self._good: dict[tuple[str, str], None] = {}
        self._charter: tuple[Charter, str] | None = None

    def verify(self, digest: str, stored: Stored, charter: Charter) -> None:
        """Check the certificate of the agreement that is stored under `digest`.

        Raises:
            ComityError: `AGREEMENT_INVALID`, `QUORUM_MISSING`, `NOT_A_MEMBER`.
        """
        agreement, certificate = stored.agreement, stored.certificate
        if certificate is None or certificate.digest != digest or set(certificate.signers) != set(agreement.parties):
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "it has no certificate of all its parties")
        key = (digest, self._digest_of(charter))
        if key in self._good:
            return
        if agreement.digest != digest:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "it was stored under another digest")
        keys = {org: charter.member(org).keys.certificate for org in agreement.parties}
        verify_certificate(certificate, message_for("agreement", digest), keys)
        if len(self._good) >= VERDICTS_MAX:
            self._good.pop(next(iter(self._good)))
        self._good[key] = None

    def _digest_of(self, charter: Charter) -> str:
        """A charter's digest costs its whole JSON: computed once for each object."""
        known = self._charter
        if known is None or known[0] is not charter:
            known = self._charter = (charter, charter.digest)
        return known[1]


def judge(case: Case, certificates: Certificates, decide: Decide) -> Verdict:
    """Run checks (0) to (5) and stop at the first that fails; `need` is left to check (6).

    Never raises a `ComityError`; CPU-bound, thread-safe.
    """
    verdict = Verdict()

    def policy() -> None:
        verdict.need = check_5_policy(case, decide)

    checks: tuple[Callable[[], None], ...] = (
        lambda: check_0_signed_by_lead(case),
        lambda: check_1_agreement_held(case),
        lambda: check_2_certificate(case, certificates),
        lambda: check_3_conforms(case),
        lambda: check_4_grant(case),
        policy,
    )
    for name, check in zip(PREDICATES, checks, strict=True):
        try:
            check()
        except ComityError as error:
            verdict.predicates[name] = False
            verdict.error = error
            return verdict
        verdict.predicates[name] = True
    return verdict


def check_0_signed_by_lead(case: Case) -> None:
    """Raises `NOT_A_MEMBER`, `SUSPENDED`, `SIGNATURE_INVALID`, `ORDER_NOT_LEAD`, `LEDGER_INVALID`, `JOURNAL_BEHIND`."""
    if case.charter is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
    key = case.charter.member(case.statement.issuer).keys.statement
    verify_statement(case.statement, key, kind="order", consortium=case.charter.consortium)
    if case.order.lead != case.statement.issuer:
        raise ComityError(ErrorCode.ORDER_NOT_LEAD, "the order names another lead than its signer")
    if case.ledger is not None:
        raise case.ledger
    if case.stored is None:
        return  # check (1) has the word
    agreement = case.stored.agreement
    if all(step.lead != case.order.lead for step in agreement.proposal.steps):
        raise ComityError(ErrorCode.ORDER_NOT_LEAD, lead=case.order.lead)
    for org in agreement.parties:
        case.charter.check_active(org)


def check_1_agreement_held(case: Case) -> None:
    """Raises `AGREEMENT_UNKNOWN`, `WITHDRAWN`, `AGREEMENT_INVALID`."""
    if case.stored is None:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, agreement=case.order.agreement)
    if case.stored.state == WITHDRAWN:
        raise ComityError(ErrorCode.WITHDRAWN, agreement=case.order.agreement)
    agreement = case.stored.agreement
    if case.stored.state != FINAL or case.me not in agreement.parties:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, "it is not in force here")


def check_2_certificate(case: Case, certificates: Certificates) -> None:
    """Raises `AGREEMENT_INVALID`, `QUORUM_MISSING`, `NOT_A_MEMBER`."""
    assert case.stored is not None
    assert case.charter is not None
    # Keys may have been rotated since; what was signed under a charter of our chain is judged by that charter's keys.
    certificates.verify(case.order.agreement, case.stored, case.made_under or case.charter)


def check_3_conforms(case: Case) -> None:
    """Raises `ORDER_MISMATCH`, `ORDER_REPLAYED`, `DEADLINE_PASSED`, `DATASET_*`, `ATTESTATION_*`, unenforceable."""
    assert case.stored is not None
    assert case.charter is not None
    agreement, order, history = case.stored.agreement, case.order, case.history
    step = agreement.proposal.step(order.step)
    if order.lead != step.lead:
        raise ComityError(ErrorCode.ORDER_NOT_LEAD, "another organisation leads this step", lead=order.lead)
    if order.run not in run_ids(agreement, order.agreement):
        raise _mismatch("run")
    if case.number_taken:
        raise ComityError(ErrorCode.ORDER_REPLAYED, run=order.run, seq=order.seq)
    word = word_of(order.message_type)
    # A statistic's orders are of their own word, and of no other step.
    if word not in MESSAGE_TYPES or (word == AGGREGATE) != (step.kind == AGGREGATE):
        raise _mismatch("message_type")
    if case.me not in order.receivers or not set(order.receivers) <= set(agreement.parties):
        raise _mismatch("receivers")
    if order.round > step.most_rounds or (word in ROUND_WORDS and order.round < 1):
        raise _mismatch("round")
    if order.reply_by <= case.now:
        raise ComityError(ErrorCode.DEADLINE_PASSED, "the order came after its deadline", reply_by=order.reply_by)
    if not case.started:
        # Numbers and rounds rise together, so that no second order can pass as one of a round gone by.
        before_ok = order.round > history.round_before if word in ROUND_WORDS else order.round >= history.round_before
        after = history.round_after
        after_ok = after is None or (order.round < after if word in ROUND_WORDS else order.round <= after)
        if not before_ok or not after_ok or history.in_round >= ORDERS_PER_ROUND_MAX:
            raise _mismatch("round")
    _check_datasets(case, agreement)
    case.abilities.check(agreement.terms, agreement.proposal.steps)
    if case.attested is not None:
        raise case.attested
    check_purpose(agreement.terms, agreement.proposal.purpose)
    # Both parties of an intersection take part in it, also where an order goes to one of them.
    check_company(agreement.terms, agreement.parties if step.kind == INTERSECT else order.receivers, case.charter)
    check_sight(agreement.terms, (order.lead, *order.receivers, *step.openers))


def check_4_grant(case: Case) -> None:
    """Raises `GRANT_EXPIRED`, `GRANT_EXHAUSTED`; an order that was started is paid for."""
    assert case.stored is not None
    agreement, spent = case.stored.agreement, case.history.spent
    if case.started:
        grants.check_open(agreement, {}, case.now)
        return
    grants.check_open(agreement, spent, case.now)
    grants.check(agreement, spent, cost_of(case))


def check_5_policy(case: Case, decide: Decide) -> Need | None:
    """Return who has to look. Raises `POLICY_DENIED` or the engine's own code, naming the deciding rule."""
    assert case.stored is not None
    assert case.charter is not None
    agreement, remaining = case.stored.agreement, grants_left(case)
    step = step_of(agreement, case.order)
    document = {
        "agreement": agreement_facts(agreement, case.order.agreement),
        "charter": facts_of(case.charter, agreement.parties, app_digests([step])),
        "step": step.to_json(),
        "order": order_facts(case.order, step),
        "me": case.me,
        "now": case.now,
        "grants": {f"{name}_left": remaining.get(name) for name in grants.FIELDS},
    }
    decisions: list[Decision] = []
    for dataset in _granted(case, agreement):
        decision = decide(Stage.DISPATCH, {**document, "dataset": dataset})
        if decision.decision not in ("allow", "review"):
            raise decision.to_error()
        decisions.append(decision)
    return need_of(agreement.terms, Stage.DISPATCH, decisions, case.looks)


def check_egress(
    agreement: Agreement,
    order: OrderHeader,
    facts: Mapping[str, Any],
    me: str,
    now: str,
    decide: Decide,
    looks: ReviewNeed = ONE_REVIEWER,
) -> Need | None:
    """Judge measured facts of a result before a byte leaves: the terms, then the organisation's `egress` policy.

    Returns who has to look before it may leave, None if it may.

    Args:
        facts: kind, cohort, size_bytes, metrics (names), aggregation, clipped, noise.
        looks: who has to look where a term alone says so.

    Raises:
        ComityError: `EGRESS_DENIED` naming the rule, or the engine's own code.
    """
    terms, step = agreement.terms, step_of(agreement, order)
    if facts["kind"] not in terms.get("egress", {facts["kind"]}):
        raise ComityError(ErrorCode.EGRESS_DENIED, "the terms let no such kind out", kind=str(facts["kind"]))
    for ask in own_datasets(agreement, me):
        if int(facts["cohort"]) < terms.get("min_cohort", {}).get(ask.key, 0):
            raise ComityError(ErrorCode.EGRESS_DENIED, "fewer records than the terms ask for", dataset=ask.dataset)
    document = {
        "agreement": agreement_facts(agreement, order.agreement),
        "step": step.to_json(),
        "order": order_facts(order, step),
        "me": me,
        "now": now,
        "result": dict(facts),
    }
    decision = decide(Stage.EGRESS, document)
    if decision.decision not in ("allow", "review"):
        raise decision.to_error(ErrorCode.EGRESS_DENIED)
    return need_of(terms, Stage.EGRESS, [decision], looks)


def cost_of(case: Case) -> dict[str, int]:
    """Return what starting this order costs."""
    assert case.stored is not None
    word, agreement, history = word_of(case.order.message_type), case.stored.agreement, case.history
    return grants.cost_of_start(word, first_of_run=history.first_of_run) | grants.cost_of_noise(
        agreement, history.spent
    )


def grants_left(case: Case) -> dict[str, int]:
    """Return what is left of the limited fields, before this order."""
    assert case.stored is not None
    return grants.left(case.stored.agreement, case.history.spent)


def word_of(message_type: str) -> str:
    """Return `train`, `evaluate` or `query`, the first word of a Flower message type."""
    return message_type.partition(".")[0]


def run_ids(agreement: Agreement, digest: str) -> frozenset[str]:
    """Return the ids of all runs that an agreement, whose digest this is, allows."""
    return frozenset(run_id(digest, use) for use in range(1, agreement.limits[grants.USES] + 1))


def own_datasets(agreement: Agreement, me: str) -> tuple[DatasetAsk, ...]:
    """Return the datasets that an agreement asks of this organisation, their columns as the terms restrict them."""
    allowed = agreement.terms.get("columns", {})
    return tuple(
        DatasetAsk(ask.org, ask.dataset, tuple(each for each in ask.columns if each in allowed[ask.key]))
        if ask.key in allowed
        else ask
        for ask in agreement.proposal.datasets
        if ask.org == me
    )


def step_of(agreement: Agreement, order: OrderHeader) -> Step:
    """Return the step that an order belongs to. Raises `ORDER_MISMATCH`."""
    return agreement.proposal.step(order.step)


def agreement_facts(agreement: Agreement, digest: str) -> dict[str, Any]:
    """Return what policies see of an agreement."""
    return {
        "digest": digest,
        "purpose": agreement.proposal.purpose,
        "terms": agreement.terms.to_json(),
        "parties": list(agreement.parties),
    }


def order_facts(order: OrderHeader, step: Step) -> dict[str, Any]:
    """Return what policies see of an order: `openers` are who opens the sum that it goes into."""
    return {
        "step": order.step,
        "round": order.round,
        "message_type": order.message_type,
        "lead": order.lead,
        "receivers": list(order.receivers),
        "openers": list(step.openers),
    }


def _check_datasets(case: Case, agreement: Agreement) -> None:
    """What the agreement names is in the catalogue, with every column."""
    for ask in own_datasets(agreement, case.me):
        entry = case.catalogue.get(ask.dataset)
        if entry is None:
            raise ComityError(ErrorCode.DATASET_MISSING, dataset=ask.dataset)
        missing = sorted(set(ask.columns) - set(entry["columns"]))
        if missing:
            raise ComityError(ErrorCode.DATASET_COLUMNS, f"no column {missing[0][:64]}", dataset=ask.dataset)


def _granted(case: Case, agreement: Agreement) -> list[dict[str, Any] | None]:
    """Return what policies see of the data behind an order; `[None]` where the agreement asks for none."""
    asks = own_datasets(agreement, case.me)
    return [{**case.catalogue[ask.dataset], "columns": list(ask.columns)} for ask in asks] or [None]


def _mismatch(what: str) -> ComityError:
    return ComityError(ErrorCode.ORDER_MISMATCH, f"the order's {what} is not what was agreed", field=what)
