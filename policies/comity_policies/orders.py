"""Orders, replies and receipts: what a lead and a party sign around one piece of work.

Source: architecture.md section 4, negotiation.md section 5, ledger.md section 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from comity.wire import canonical
from comity.wire.errors import ComityError
from comity_crypto.encoding import from_base64
from comity_crypto.statements import Statement
from comity_policies.document import (
    Document,
    Part,
    choice_of,
    digest_of,
    instant_of,
    items_of,
    line_of,
    name_of,
    org_set,
)
from comity_policies.term_rows import malformed, whole_number
from comity_policies.terms import PARTIES_MAX, org

ROUNDS_MAX = 100_000
PAYLOAD_JSON_BYTES_MAX = 256 << 10
MAP_ITEMS_MAX = 64
OUTCOMES = ("result", "refused", "failed")
# An opener's receipt beside the one of its own part: it opened the sum that the order's results went into.
OPENED = "opened"
_RECEIPT_OUTCOMES = (*OUTCOMES, OPENED)
# What a lead may ask for; Flower's `train.<name>` variants share the first word.
MESSAGE_TYPES = ("train", "evaluate", "query", "aggregate")
# Orders of these words are rounds: each has the next number, and the grant pays it.
ROUND_WORDS = frozenset({"train", "aggregate"})
COMMITMENT_BYTES, COHORT_PROOF_BYTES, SAME_PROOF_BYTES, OPENING_PROOF_BYTES = 48, 832, 80, 112


def sealed_json(value: Any) -> dict[str, Any]:
    """Return a sealed payload's reference after a look at its size; `SealedRef.from_json` checks the rest."""
    if not isinstance(value, dict) or len(canonical.canonical(value)) > PAYLOAD_JSON_BYTES_MAX:
        raise malformed("a payload reference is a small object")
    return dict(value)


@dataclass(frozen=True, slots=True)
class OrderHeader(Document):
    """A lead's order: what it signs beside the sealed payload."""

    agreement: str
    run: str
    step: str
    round: int
    seq: int
    message_type: str
    lead: str
    receivers: tuple[str, ...]
    payload: dict[str, Any]
    content_digest: str
    reply_by: str

    def __post_init__(self) -> None:
        for each in (self.agreement, self.run, self.step, self.message_type):
            name_of(each)
        whole_number(self.round, 0, ROUNDS_MAX)
        whole_number(self.seq, 0, canonical.INTEGER_MAX)
        org(self.lead)
        digest_of(self.content_digest)
        self._fix(
            receivers=org_set(self.receivers), payload=sealed_json(self.payload), reply_by=instant_of(self.reply_by)
        )
        if not self.receivers:
            raise malformed("an order has a receiver")


@dataclass(frozen=True, slots=True)
class ReplyHeader(Document):
    """A party's reply to one order: a sealed result, or an error that names a catalogue code."""

    agreement: str
    run: str
    step: str
    order: str
    seq: int
    outcome: str
    error: dict[str, Any] | None
    payload: dict[str, Any] | None
    content_digest: str | None

    def __post_init__(self) -> None:
        for each in (self.agreement, self.run, self.step):
            name_of(each)
        digest_of(self.order)
        whole_number(self.seq, 0, canonical.INTEGER_MAX)
        choice_of(self.outcome, OUTCOMES)
        if self.outcome == "result":
            if self.payload is None or self.content_digest is None or self.error is not None:
                raise malformed("a result has a payload and its digest, and no error")
            digest_of(self.content_digest)
            self._fix(payload=sealed_json(self.payload))
        else:
            if self.payload is not None or self.content_digest is not None or not isinstance(self.error, dict):
                raise malformed("a refusal or failure has an error and no payload")
            # Re-read so that only catalogue codes and bounded text travel on.
            self._fix(error=ComityError.from_json(self.error).to_json())


@dataclass(frozen=True, slots=True)
class CohortProof(Part):
    """A commitment to the records behind a result and the proof that they are enough, as base64 (`cohorts`).

    `before` is an earlier order of the same run, `same` the proof that as many records stand behind both results.
    """

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"before", "same"})

    commitment: str
    proof: str
    before: str | None = None
    same: str | None = None

    def __post_init__(self) -> None:
        if (self.before is None) != (self.same is None):
            raise malformed("an earlier order is named together with the proof about it")
        if self.before is not None:
            digest_of(self.before)
            from_base64(self.same, what="same", size_bytes=SAME_PROOF_BYTES)
        from_base64(self.commitment, what="commitment", size_bytes=COMMITMENT_BYTES)
        from_base64(self.proof, what="proof", size_bytes=COHORT_PROOF_BYTES)


@dataclass(frozen=True, slots=True)
class WeightCommitment(Part):
    """A commitment (base64) to what a result weighs in a secure sum, and the digest of the set that it was made for."""

    commitment: str
    contributors: str

    def __post_init__(self) -> None:
        from_base64(self.commitment, what="commitment", size_bytes=COMMITMENT_BYTES)
        digest_of(self.contributors)


@dataclass(frozen=True, slots=True)
class SumProof(Part):
    """A lead's word that it can open what the contributors to one order's sum committed to (`sums`).

    `total` is the sum of their commitments, `proof` that the lead knows its opening, both as base64.
    """

    agreement: str
    run: str
    order: str
    seq: int
    contributors: tuple[str, ...]
    total: str
    proof: str

    def __post_init__(self) -> None:
        name_of(self.run)
        for each in (self.agreement, self.order):
            digest_of(each)
        whole_number(self.seq, 0, canonical.INTEGER_MAX)
        self._fix(contributors=org_set(self.contributors))
        from_base64(self.total, what="total", size_bytes=COMMITMENT_BYTES)
        from_base64(self.proof, what="proof", size_bytes=OPENING_PROOF_BYTES)


def receipt_of(statement: Statement) -> Receipt:
    """Return the receipt that a statement is, read once however many ask. Raises what `Receipt.from_json` raises."""
    known: Receipt | None = statement.__dict__.get("_receipt")
    if known is None:
        known = Receipt.from_checked(statement.body)
        statement.__dict__["_receipt"] = known  # as its cached properties: what it says does not change
    return known


@dataclass(frozen=True, slots=True)
class Receipt(Document):
    """What one order came to at one party: digests, predicates and use, never measured counts (ledger.md section 1)."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {
        "cohort": (CohortProof, None),
        "weight": (WeightCommitment, None),
    }
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"cohort", "evidence", "opened", "weight"})

    agreement: str
    run: str
    step: str
    order: str
    seq: int
    outcome: str
    code: str | None
    result: str | None
    predicates: dict[str, bool] = field(default_factory=dict)
    grants: dict[str, int] = field(default_factory=dict)
    egress_bytes: int = 0
    journal_seq: int = 0
    duration_s: int = 0
    cohort: CohortProof | None = None
    # Digests of the other parties' evidence that the node relied on (`evidence`), sorted.
    evidence: tuple[str, ...] | None = None
    weight: WeightCommitment | None = None
    # What the openers of a sum say of it to each other; equal digests of one order name one sum.
    opened: str | None = None

    def __post_init__(self) -> None:
        for each in (self.agreement, self.run, self.step):
            name_of(each)
        digest_of(self.order)
        choice_of(self.outcome, _RECEIPT_OUTCOMES)
        if (self.outcome == OPENED) != (self.opened is not None):
            raise malformed("a receipt names an opened sum exactly when there is one")
        if self.opened is not None:
            digest_of(self.opened)
        if self.evidence is not None:
            self._fix(evidence=tuple(sorted({digest_of(each) for each in items_of(self.evidence, PARTIES_MAX)})))
        if self.cohort is not None and self.outcome != "result":
            raise malformed("only a result shows its cohort")
        if self.weight is not None and self.outcome != "result":
            raise malformed("only a result commits to its weight")
        for number in (self.seq, self.egress_bytes, self.journal_seq, self.duration_s):
            whole_number(number, 0, canonical.INTEGER_MAX)
        if self.code is not None:
            self._fix(code=line_of(self.code, 64) or None)
        if (self.outcome == "result") != (self.result is not None):
            raise malformed("a receipt names a result exactly when there is one")
        if self.result is not None:
            digest_of(self.result)
        self._check_maps()

    def _check_maps(self) -> None:
        for named in (self.predicates, self.grants):
            if not isinstance(named, dict) or len(named) > MAP_ITEMS_MAX:
                raise malformed("a receipt's predicates and grants are small objects")
            for key in named:
                line_of(key, 64)
        if not all(isinstance(each, bool) for each in self.predicates.values()):
            raise malformed("a predicate is true or false")
        for spent in self.grants.values():
            whole_number(spent, 0, canonical.INTEGER_MAX)
