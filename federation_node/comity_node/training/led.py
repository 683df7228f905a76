"""A run that this organisation leads: the values that its parts share, and pure rules on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import node_number
from comity_node.training.tables import AnswerRow, QuestionRow
from comity_policies.documents import ROUND_WORDS, Agreement, Step

# Beyond this many rounds a manifest names only rounds that differ from the one before: a statement is at most 1 MiB.
MANIFEST_ROUNDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class LedRun:
    """A run, its agreement (stored under `digest`) and its step. `node_ids` maps Flower node ids to organisations."""

    run: str
    agreement: Agreement
    step: Step
    me: str
    digest: str
    node_ids: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        ids = {node_number(self.digest, org): org for org in self.agreement.parties}
        object.__setattr__(self, "node_ids", ids)

    @property
    def results_min(self) -> int:
        """The fewest results that an aggregate may rest on."""
        return max(1, int(self.agreement.terms.get("min_participants", 1)))

    def node_id(self, org: str) -> int:
        """Return an organisation's Flower node id."""
        return node_number(self.digest, org)


class RoundCounter:
    """Numbers rounds from the questions alone: a new one begins when somebody is asked for a round again.

    The same questions give the same numbers, so a replay needs no record of them.
    """

    def __init__(self) -> None:
        self.current = 0
        self._asked: set[str] = set()

    def next(self, word: str, receivers: Iterable[str]) -> int:
        """Return the round of the next question; `word` as in `ROUND_WORDS`, `evaluate` or `query`."""
        if word in ROUND_WORDS:
            asked = set(receivers)
            if self.current == 0 or asked & self._asked:
                self.current, self._asked = self.current + 1, asked
            else:
                self._asked |= asked
        return self.current


def manifest(questions: Iterable[QuestionRow], answers: Iterable[AnswerRow]) -> list[dict[str, Any]]:
    """Return who took part in which round and who was dropped, why (training.md section 3)."""
    round_of = {question.seq: question.round for question in questions}
    rounds: dict[int, dict[str, Any]] = {}
    for answer in answers:
        if answer.seq not in round_of:
            continue
        number = round_of[answer.seq]
        row = rounds.setdefault(number, {"round": number, "took": set(), "lost": {}})
        if answer.outcome == "result":
            row["took"].add(answer.org)
        else:
            row["lost"][answer.org] = code_of(answer)
    rows = [
        {
            "round": row["round"],
            "participants": sorted(row["took"] - set(row["lost"])),
            "dropped": [{"org": org, "code": code} for org, code in sorted(row["lost"].items())],
        }
        for _, row in sorted(rounds.items())
    ]
    if len(rows) <= MANIFEST_ROUNDS_MAX:
        return rows
    kept = [
        row
        for row, before in zip(rows, [None, *rows], strict=False)
        if before is None or {**row, "round": 0} != {**before, "round": 0}
    ]
    return kept[:MANIFEST_ROUNDS_MAX]


def orders_sent(questions: Iterable[QuestionRow]) -> dict[str, int]:
    """Return how many orders each party was sent: how many receipts it owes."""
    return dict(Counter(org for question in questions for org in json.loads(question.receivers)))


def code_of(answer: AnswerRow) -> str:
    """Return the catalogue code of an answer that is not a result."""
    return str(error_of(answer).code)


def error_of(answer: AnswerRow) -> ComityError:
    """Return the error of an answer that is not a result."""
    return ComityError.from_json(json.loads(answer.error) if answer.error else None)


def verdict_on(results: int, needed: int, errors: dict[str, ComityError]) -> ComityError | None:
    """Return why a question with so few results ends the run, or None if it does not."""
    if results >= needed:
        return None
    codes = {error.code for error in errors.values()}
    detail = ", ".join(f"{org}: {error.code}" for org, error in sorted(errors.items()))
    code = codes.pop() if len(codes) == 1 and not results else ErrorCode.PARTICIPANTS_TOO_FEW
    return ComityError(code, detail or "nobody was asked", results=results, needed=needed)
