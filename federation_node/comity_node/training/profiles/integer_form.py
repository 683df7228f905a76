"""Exact integers of a statistic in a secure sum: beside `sum_form`, for steps of kind `aggregate`. Pure.

Rules (secure-aggregation.md section 2):
1. Ciphertexts of a statistic have the parameters `agg-i32`, those of a training `agg-q16`: both sides derive which from
   the agreement, and refuse the other.
2. A reply is a vector of integers (`statistics/vectors.py`); its limbs are what is summed, and the reply that stands
   for all is the vector of sums. Nothing is clipped, rounded or weighed.
3. The vector's length follows from the agreed query and the order's question, which every party reads for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import read_blob
from comity_crypto.secagg.bfv.encoder import Encoded, Layout
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, Parameters
from comity_crypto.secagg.frame.replies import Bounds
from comity_crypto.secagg.masked.encoder import EncodedWords
from comity_node.statistics import vectors
from comity_node.statistics.questions import Question, length_of, parts_of
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.enforcement import word_of
from comity_node.training.profiles import sum_form
from comity_node.training.profiles.sum_form import Decode, Formed, Plan, Shape
from comity_policies.documents import AggregateStep, Agreement, OrderHeader

EncodeIntegers = Callable[[NDArray[np.int64]], Encoded] | Callable[[NDArray[np.int64]], EncodedWords]
DecodeIntegers = Callable[[NDArray[Any], int, int], NDArray[np.int64]]

# The shape that stands for every vector: no names leave.
NO_NAMES = Shape((), ())


def statistic_of(agreement: Agreement) -> AggregateStep | None:
    """Return the statistic that an agreement's runs are of, None if they are no statistic."""
    first = agreement.proposal.steps[0]
    return first if isinstance(first, AggregateStep) else None


def parameters_of(agreement: Agreement) -> Parameters:
    """Return the parameters of ciphertexts under an agreement."""
    return AGG_Q16 if statistic_of(agreement) is None else AGG_I32


def plan_for(agreement: Agreement, order: OrderHeader, content: Blob) -> Plan:
    """Return what agreement and order fix for a sum of either kind. Raises `ORDER_MISMATCH`, `REPLY_SHAPE`."""
    step = statistic_of(agreement)
    if step is not None:
        return plan(agreement, step, blobs.to_bytes(content))
    asked = read_blob(memory.map_blob(content.fd, content.size))
    return sum_form.plan(asked, word_of(order.message_type), agreement.terms)


def plan(agreement: Agreement, step: AggregateStep, asked: bytes) -> Plan:
    """Return what the agreement and a question fix for a sum. Raises `ORDER_MISMATCH`."""
    question = Question.from_bytes(asked, step.query)
    length = length_of(parts_of(step.query, question, "privacy" in agreement.terms))
    return Plan(False, Bounds(1.0, 1.0), 1, Layout(0), length * vectors.LIMBS)


def reply_of(
    fixed: Plan,
    order: OrderHeader,
    content: Blob,
    sums: NDArray[Any],
    contributors: int,
    shape: Shape,
    decode: Decode,
    decode_integers: DecodeIntegers,
) -> Blob:
    """Turn an opened sum into the reply that stands for all; `content` is the order's. Raises `SUM_MISMATCH`."""
    if fixed.integers is not None:
        return blobs.from_bytes(unform(fixed, sums, contributors, decode_integers))
    word = word_of(order.message_type)
    asked = read_blob(memory.map_blob(content.fd, content.size))
    decoded = sum_form.decode(sums, contributors, asked, word, fixed, decode)
    reply = sum_form.unform(decoded, shape, asked, word, contributors, fixed.weight_max)
    return Blob(*memory.write_parts(reply.parts()))


def form(fixed: Plan, reply: bytes, key: bytes, encode: EncodeIntegers) -> Formed:
    """Encode one vector; `key` is a secret for this order. Raises `REPLY_SHAPE`, `TOO_LARGE`."""
    integers, parties = vectors.read(reply, (fixed.integers or 0) // vectors.LIMBS)
    if parties != 1:
        raise ComityError(ErrorCode.REPLY_SHAPE, "a contribution is of one party")
    return Formed(encode(vectors.to_limbs(integers, key)), NO_NAMES, 0, ())


def unform(fixed: Plan, sums: NDArray[Any], contributors: int, decode: DecodeIntegers) -> bytes:
    """Return the vector of sums. Raises `SUM_MISMATCH`."""
    limbs = decode(sums, contributors, fixed.integers or 0)
    return vectors.write(vectors.from_limbs(limbs, contributors), contributors)
