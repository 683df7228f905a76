"""Decisions: what a policy engine is asked and what it may answer (negotiation.md section 4).

Rules:
1. only a result that has exactly the agreed form counts; anything else is a denial with a code of its own;
2. an allowed decision can only come from a parsed result: there is no other way to make one in product code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_policies.documents import DECISIONS, REASONS_MAX, Reason
from comity_policies.term_rows import malformed, text_of, whole_number
from comity_policies.terms import Terms, meet

__all__ = [
    "Decision",
    "Reason",
    "Result",
    "ReviewNeed",
    "Stage",
    "example",
    "input_digest",
    "parse_result",
    "result_example",
    "schema",
    "stricter",
    "validate_input",
    "whole",
]

NO_DIGEST = "0" * 64
APPROVALS_MAX = 5
ROLE_CHARS_MAX = 64
# The wider one first.
REVIEW_SCOPES = ("run", "order")
_NO_TERMS = Terms()
_SCHEMAS = Path(__file__).parent / "schemas"


class Stage(StrEnum):
    """When a policy is asked; also the Rego package, `comity.<stage>`."""

    MEMBERSHIP = "membership"
    PROPOSAL = "proposal"
    DISPATCH = "dispatch"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class ReviewNeed:
    """Who has to look where a decision is `review`: a role, and how many different people of it (1 to 5).

    `scope` matters before an order runs: an approval holds for the `run`'s step, or for this `order` alone.
    """

    role: str = "reviewer"
    approvals: int = 1
    scope: str = "run"

    def __post_init__(self) -> None:
        if not text_of(self.role, ROLE_CHARS_MAX) or not self.role.isprintable():
            raise malformed("a role is one line of text")
        whole_number(self.approvals, 1, APPROVALS_MAX)
        if self.scope not in REVIEW_SCOPES:
            raise malformed(f"a review's scope is one of {', '.join(REVIEW_SCOPES)}")

    @classmethod
    def from_json(cls, value: Any) -> ReviewNeed:
        """Read what a policy or a log says. Raises `MALFORMED`."""
        if not isinstance(value, dict) or set(value) - {"scope"} != {"role", "approvals"}:
            raise malformed("review has exactly role and approvals, and may have scope")
        return cls(value["role"], value["approvals"], value.get("scope", "run"))

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling: the scope stands there if it is not the run."""
        scope = {} if self.scope == "run" else {"scope": self.scope}
        return {"role": self.role, "approvals": self.approvals, **scope}

    def stricter(self, other: ReviewNeed) -> ReviewNeed:
        """Return what satisfies both: as many people as either asks for, for as little as either asks; this role."""
        scope = max(self.scope, other.scope, key=REVIEW_SCOPES.index)
        return ReviewNeed(self.role, max(self.approvals, other.approvals), scope)


class Result(NamedTuple):
    """What a rule's `result` says."""

    decision: str
    reasons: tuple[Reason, ...]
    terms: Terms
    review: ReviewNeed


_ONE_REVIEWER = ReviewNeed()


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision, with what is needed to find it again: digests of bundle and input, engine, microseconds taken."""

    decision: str
    reasons: tuple[Reason, ...] = ()
    terms: Terms = _NO_TERMS
    bundle_digest: str = NO_DIGEST
    input_digest: str = NO_DIGEST
    engine: str = ""
    duration_us: int = 0
    review: ReviewNeed = _ONE_REVIEWER

    @property
    def allowed(self) -> bool:
        """Whether the engine said `allow`; `review` is not enough."""
        return self.decision == "allow"

    @classmethod
    def denied(
        cls,
        code: str,
        message: str,
        *,
        rule: str = "engine",
        bundle_digest: str = NO_DIGEST,
        input_digest: str = NO_DIGEST,
        engine: str = "",
        duration_us: int = 0,
    ) -> Decision:
        """Return a denial with one reason."""
        reason = Reason(rule, str(code), message[:500])
        return cls("deny", (reason,), Terms(), bundle_digest, input_digest, engine, duration_us)

    def to_error(self, code: ErrorCode = ErrorCode.POLICY_DENIED) -> ComityError:
        """Return the refusal to send when the decision is not `allow`: it names the deciding rule, never data."""
        if self.decision == "review":
            code = ErrorCode.REVIEW_NEEDED
        if not self.reasons:
            return ComityError(code)
        first = self.reasons[0]
        if first.rule == "engine" and first.code in ErrorCode.__members__:
            code = ErrorCode(first.code)
        return ComityError(code, first.message, rule=first.rule, reason=first.code)

    def to_json(self) -> dict[str, Any]:
        """Return the form of the decision log."""
        return {
            "decision": self.decision,
            "reasons": [each.to_json() for each in self.reasons],
            "terms": self.terms.to_json(),
            "bundle_digest": self.bundle_digest,
            "input_digest": self.input_digest,
            "engine": self.engine,
            "duration_us": self.duration_us,
            "review": self.review.to_json(),
        }


def parse_result(value: Any) -> Result:
    """Return what a rule's `result` says; without `review`, one reviewer. Raises `MALFORMED` for any other form."""
    if not isinstance(value, dict) or set(value) - {"review"} != {"decision", "reasons", "terms"}:
        raise malformed("a result has exactly decision, reasons and terms, and may have review")
    if value["decision"] not in DECISIONS:
        raise malformed("a decision is allow, deny or review")
    reasons = value["reasons"]
    if not isinstance(reasons, list) or len(reasons) > REASONS_MAX:
        raise malformed(f"reasons are a list of at most {REASONS_MAX}")
    if value["decision"] != "allow" and not reasons:
        raise malformed("a denial or a review gives a reason")
    return Result(
        value["decision"],
        tuple(Reason.from_json(each) for each in reasons),
        Terms.parse(whole(value["terms"])),
        ReviewNeed.from_json(whole(value["review"])) if "review" in value else _ONE_REVIEWER,
    )


def stricter(a: Decision, b: Decision) -> Decision:
    """Return the stricter of two decisions about one question: deny before review before allow.

    Terms meet, reasons of the deciding kind are joined (`a` first), a review needs as many people as either asks for.
    Digests and engine stay those of `a`; durations add up.
    """
    order = ("allow", "review", "deny")
    decision = max(a.decision, b.decision, key=order.index)
    reasons = tuple(dict.fromkeys(reason for each in (a, b) if each.decision == decision for reason in each.reasons))
    review = a.review
    if b.decision == "review":
        review = a.review.stricter(b.review) if a.decision == "review" else b.review
    return replace(
        a,
        decision=decision,
        reasons=reasons[:REASONS_MAX],
        terms=Terms() if decision == "deny" else meet(a.terms, b.terms),
        duration_us=a.duration_us + b.duration_us,
        review=review,
    )


def whole(value: Any) -> Any:
    """Turn 1.0 into 1: the engines spell whole numbers differently, and terms hold no floats."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def input_digest(stage: Stage, document: dict[str, Any]) -> str:
    """Return the digest of one question. Raises `MALFORMED` if it has no canonical bytes."""
    return canonical.digest({"stage": str(stage), "input": document})


@cache
def schema(stage: Stage | str) -> dict[str, Any]:
    """Return the published JSON Schema (2020-12) of a stage's input, or of the `result`."""
    loaded: dict[str, Any] = json.loads((_SCHEMAS / f"{stage}.json").read_text(encoding="utf-8"))
    return loaded


def example(stage: Stage) -> dict[str, Any]:
    """Return the published example of a stage's input, fresh each time."""
    loaded: dict[str, Any] = json.loads((_SCHEMAS / f"{stage}.example.json").read_text(encoding="utf-8"))
    return loaded


def result_example(stage: Stage) -> dict[str, Any]:
    """Return the published example of a stage's result, fresh each time."""
    loaded: dict[str, Any] = json.loads((_SCHEMAS / f"{stage}.result.example.json").read_text(encoding="utf-8"))
    return loaded


def validate_input(stage: Stage, document: Any) -> None:
    """Check a question against the published schema.

    Raises:
        ComityError: `MALFORMED`, naming the place.
    """
    # Imported here: a node that trusts the bundle's own completeness rules need not hold the validator in memory.
    from jsonschema import Draft202012Validator

    found = next(iter(Draft202012Validator(schema(stage)).iter_errors(document)), None)
    if found is not None:
        place = "/".join(str(each) for each in found.absolute_path) or "the document"
        raise malformed(f"{stage} input: {place[:100]} breaks the rule {found.validator!s}")
