"""A party's part in a statistic: its own records, counted by its own node, and noise before anything is masked.

Nobody's code runs here but the node's; what leaves goes the way of every result (`training/execution.py`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.noise.discrete import Below, discrete_gaussian
from comity_node.statistics import counting, privacy, vectors
from comity_node.statistics.questions import CELLS, Question, parts_of
from comity_node.statistics.records import select
from comity_node.training.datasets import Copy
from comity_policies import cohorts
from comity_policies.documents import AggregateStep, Agreement


@dataclass(frozen=True, slots=True)
class Counted:
    """What a node counted: the vector's bytes, the records behind it, whether noise lies on it. Never shown."""

    content: bytes = field(repr=False)
    cohort: int = field(repr=False)
    noise: bool


def count(
    agreement: Agreement, step: AggregateStep, asked: bytes, copy: Copy, me: str, below: Below = secrets.randbelow
) -> Counted:
    """Answer one question of an agreed statistic from a copy of the granted columns.

    Args:
        asked: the order's content.
        copy: of this organisation's only dataset in the agreement.
        me: this organisation.
        below: uniform integers for the noise.

    Raises:
        ComityError: `ORDER_MISMATCH`, `DATASET_COLUMNS`, `EGRESS_DENIED`, `TOO_LARGE`, `UNSUPPORTED`.
    """
    query, private = step.query, "privacy" in agreement.terms
    question = Question.from_bytes(asked, query)
    if question.round > step.rounds:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "more rounds than were agreed", field="round")
    parts = parts_of(query, question, private)
    selection = select(copy, query)
    least = least_of(agreement, me)
    vector = counting.vector_of(query, question, selection, least, private)
    places = [share.variance for share in privacy.shares_of(agreement, parts) for _ in range(share.group.size)]
    if private:
        vector = [each + discrete_gaussian(variance, below) for each, variance in zip(vector, places, strict=True)]
    # Of a histogram or table, the records in cells that are shown.
    behind = sum(vector[: query.cells]) if parts[0].name == CELLS and not private else selection.count
    return Counted(vectors.write(vector), behind, private)


def least_of(agreement: Agreement, org: str) -> int:
    """Return the fewest records that may stand behind a number of `org`."""
    return max(counting.CELL_MIN, cohorts.minimum_of(agreement, org))
