"""What-if: recorded decisions under another bundle, and what sets two bundles apart (negotiation.md section 4).

Rules:
1. a replay asks the question that was asked, with the time that was asked about: inputs carry `now`, and no rule has a
   clock of its own;
2. what the consortium's bundle said is kept: only the organisation's own word is asked anew;
3. a change is another decision, other reasons, other terms or another need for review; durations and digests are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comity_policies.bundle import Bundle
from comity_policies.decisions import Decision, Reason, ReviewNeed, Stage, stricter
from comity_policies.documents import REASONS_MAX
from comity_policies.engine import PolicyEngine
from comity_policies.term_rows import malformed
from comity_policies.terms import Terms

__all__ = ["Change", "Difference", "Place", "Recorded", "difference", "places", "replay"]

_RULE_ID = re.compile(r'"rule":\s*"([^"\n]{1,128})"')
_TITLE = re.compile(r"^# title: (.{1,200})$")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One decision of the log: the question, the answer, and each bundle's word in it."""

    id: str
    at: str
    stage: Stage
    subject: str
    document: dict[str, Any]
    decision: Decision
    consortium: Decision | None

    @classmethod
    def from_json(cls, value: Any) -> Recorded:
        """Read what the node's API shows. Raises `MALFORMED`."""
        try:
            result = value["result"]
            second = result.get("layers", {}).get("consortium")
            return cls(
                id=str(value["id"]),
                at=str(value["at"]),
                stage=Stage(value["stage"]),
                subject=str(value["subject"]),
                document=dict(value["input"]),
                decision=_decision(result),
                consortium=None if second is None else _decision(second),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise malformed("a recorded decision is not in the agreed form") from error


@dataclass(frozen=True, slots=True)
class Change:
    """A recorded decision that would be another one."""

    recorded: Recorded
    now: Decision

    def to_json(self) -> dict[str, Any]:
        """Return both sides, for programs."""
        then = self.recorded
        return {
            "id": then.id,
            "at": then.at,
            "stage": str(then.stage),
            "subject": then.subject,
            "before": _said(then.decision),
            "after": _said(self.now),
        }


def replay(recorded: Iterable[Recorded], engine: PolicyEngine) -> Iterator[tuple[Recorded, Change | None]]:
    """Yield each recorded decision with the change that `engine` would make of it, if any."""
    for each in recorded:
        now = engine.decide(each.stage, each.document)
        if each.consortium is not None:
            now = stricter(now, each.consortium)
        yield each, Change(each, now) if _said(now) != _said(each.decision) else None


@dataclass(frozen=True, slots=True)
class Difference:
    """What sets bundle `b` apart from bundle `a`: settings by key, modules by name, rules by their `rule` id."""

    settings: dict[str, tuple[Any, Any]]
    modules: dict[str, str]
    rules: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        settings = {key: {"before": a, "after": b} for key, (a, b) in self.settings.items()}
        return {"settings": settings, "modules": self.modules, "rules": self.rules}


def difference(a: Bundle, b: Bundle) -> Difference:
    """Compare two bundles: settings, modules, and the rules that decide."""
    settings = {
        key: (a.settings.get(key), b.settings.get(key))
        for key in sorted({*a.settings, *b.settings})
        if a.settings.get(key) != b.settings.get(key)
    }
    return Difference(settings, _fates(a.modules, b.modules), _fates(_rules(a.modules), _rules(b.modules)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle says what: file, line, and the title in the metadata above."""

    file: str
    line: int
    title: str


def places(modules: Mapping[str, str], rule: str) -> list[Place]:
    """Return where a `rule` of a reason stands in a bundle."""
    found = []
    for file, text in sorted(modules.items()):
        title = ""
        for number, line in enumerate(text.splitlines(), 1):
            titled = _TITLE.match(line)
            if titled is not None:
                title = titled[1]
            named = _RULE_ID.search(line)
            if named is not None and named[1] == rule:
                found.append(Place(file, number, title))
    return found


def _decision(value: Any) -> Decision:
    reasons = value["reasons"]
    if not isinstance(reasons, list) or len(reasons) > REASONS_MAX:
        raise ValueError("reasons")
    return Decision(
        decision=str(value["decision"]),
        reasons=tuple(Reason.from_json(each) for each in reasons),
        terms=Terms.parse(value["terms"]),
        bundle_digest=str(value["bundle_digest"]),
        input_digest=str(value["input_digest"]),
        engine=str(value["engine"]),
        duration_us=int(value["duration_us"]),
        review=ReviewNeed.from_json(value["review"]),
    )


def _said(decision: Decision) -> dict[str, Any]:
    """Return what counts as the same: without digests, engine and duration."""
    said = {
        "decision": decision.decision,
        "reasons": sorted((each.to_json() for each in decision.reasons), key=str),
        "terms": decision.terms.to_json(),
    }
    return {**said, "review": decision.review.to_json()} if decision.decision == "review" else said


def _fates(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    fates = {name: "added" if name not in a else "removed" for name in {*a} ^ {*b}}
    fates |= {name: "changed" for name in {*a} & {*b} if a[name] != b[name]}
    return dict(sorted(fates.items()))


def _rules(modules: Mapping[str, str]) -> dict[str, str]:
    """Return rule id -> the text of the rules that give it: whole paragraphs, as `opa fmt` separates rules."""
    found: dict[str, str] = {}
    for text in (modules[name] for name in sorted(modules)):
        for paragraph in re.split(r"\n\s*\n", text):
            code = "\n".join(line for line in paragraph.splitlines() if not line.lstrip().startswith("#"))
            for rule in _RULE_ID.findall(code):
                found[rule] = f"{found.get(rule, '')}\n{code}"
    return found
