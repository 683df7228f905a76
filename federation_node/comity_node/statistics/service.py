"""Steps of kind `aggregate`: the node counts its own records, the lead asks, combines and answers. No process runs.

Rules:
1. A party's vector is made once for each order of a process; a repeated call gives the same integers, so that two draws
   of noise never lie on one number.
2. The lead asks everyone in every round and needs as many results as the terms say. Under `plain` it adds the vectors
   itself; under the other profiles every result is the same sum, and nobody sees a single vector.
3. What the lead computes it computes again from the journal's answers after a restart.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content
from comity_agents.flower.events import Ask, Event, Failed, Finished, Reply
from comity_node.statistics import party, vectors
from comity_node.statistics.combining import Combiner
from comity_node.statistics.party import Counted
from comity_node.statistics.questions import QUESTION_BYTES_MAX, Question, length_of
from comity_node.training.datasets import Copy
from comity_policies.documents import AggregateStep, Agreement
from comity_policies.steps import AGGREGATE, Step

COUNTED_MAX = 16
STATISTIC = "statistic"


class Led(Protocol):
    """What a lead knows of its run (`training.led.LedRun`)."""

    @property
    def agreement(self) -> Agreement: ...
    @property
    def step(self) -> Step: ...
    @property
    def node_ids(self) -> dict[int, str]: ...
    @property
    def results_min(self) -> int: ...


class StatisticKind:
    """The kind of step `aggregate` (`training/kinds.py`)."""

    name = AGGREGATE
    profile = None

    def __init__(self, me: str) -> None:
        self._me = me

    def party(self, run: str, agreement: Agreement, step: Step, copies: Sequence[Copy]) -> PartyCount:
        """Return a run's counting at this party. Raises `DATASET_MISSING`, `ORDER_MISMATCH`."""
        if not isinstance(step, AggregateStep):
            raise ComityError(ErrorCode.ORDER_MISMATCH, "the step is no statistic", field="kind")
        if len(copies) != 1:
            raise ComityError(ErrorCode.DATASET_MISSING, "a statistic is of one dataset of each party")
        return PartyCount(agreement, step, copies[0], self._me)

    def lead(self, led: Led, copies: Sequence[Copy]) -> LeadCount:
        """Return the asking side of a run. Raises `ORDER_MISMATCH`."""
        return LeadCount(led)


class PartyCount:
    """One run at one party."""

    def __init__(self, agreement: Agreement, step: AggregateStep, copy: Copy, me: str) -> None:
        self._agreement = agreement
        self._step = step
        self._copy = copy
        self._me = me
        self._counted: OrderedDict[str, Counted] = OrderedDict()

    async def start(self) -> None:
        """Nothing runs."""

    async def call(
        self, header: Mapping[str, Any], blob_fd: int, size: int, deadline_s: float, reply_bytes_max: int
    ) -> Reply:
        """Answer one order. Raises what `party.count` raises, `TIMEOUT`, `REPLY_TOO_LARGE`."""
        order = str(header["id"])
        counted = self._counted.get(order)
        if counted is None:
            asked = _bytes_of(blob_fd, size)
            async with asyncio.timeout(deadline_s):
                counted = await asyncio.to_thread(party.count, self._agreement, self._step, asked, self._copy, self._me)
            self._counted[order] = counted
            while len(self._counted) > COUNTED_MAX:
                self._counted.popitem(last=False)
        if len(counted.content) > reply_bytes_max:
            raise ComityError(ErrorCode.REPLY_TOO_LARGE, limit_bytes=reply_bytes_max)
        return Reply({"id": order}, *memory.write_parts([counted.content]))

    def facts(self, order_digest: str) -> dict[str, Any] | None:
        """Return what policies see of a result that was counted here."""
        counted = self._counted.get(order_digest)
        if counted is None:
            return None
        return {
            "kind": STATISTIC,
            "metrics": [self._step.query.measure],
            "cohort": counted.cohort,
            "size_bytes": len(counted.content),
            "noise": counted.noise,
        }

    async def close(self) -> None:
        """Forget what was counted."""
        self._counted.clear()


class LeadCount:
    """The asking side of one run."""

    def __init__(self, led: Led) -> None:
        step = led.step
        if not isinstance(step, AggregateStep):
            raise ComityError(ErrorCode.ORDER_MISMATCH, "the step is no statistic", field="kind")
        self._led = led
        self._step: AggregateStep = step
        self._alone = led.agreement.terms.get("aggregation", "plain") == "plain"
        self._combiner = Combiner(led.agreement, step)
        self._seq = 0
        self._awaited: set[int] = set()
        self._vectors: dict[int, bytes] = {}
        self._errors: dict[str, ComityError] = {}
        self._answered = asyncio.Event()
        self._answer: dict[str, Any] | None = None

    async def start(self) -> None:
        """Begin from the top."""
        self._combiner = Combiner(self._led.agreement, self._step)
        self._seq = 0

    async def events(self) -> AsyncIterator[Event]:
        """Yield one question a round, then the end."""
        try:
            while (question := self._combiner.next_question()) is not None:  # bounded by the step's rounds
                yield self._ask(question)
                await self._answered.wait()
                self._take(question)
            self._answer = self._combiner.answer()
        except ComityError as error:
            yield Failed(error)
            return
        # The answer itself is in the card, which travels inside the seal.
        fd, size = memory.write_parts(Content(()).parts())
        yield Finished(STATISTIC, self._seq, (), {}, fd, size)

    async def send_reply(
        self, seq: int, src: int, fd: int | None = None, size: int = 0, error: ComityError | None = None
    ) -> None:
        """Take one party's answer to the open question; anything else is late and ignored."""
        if seq != self._seq - 1 or src not in self._awaited:
            return
        self._awaited.discard(src)
        if fd is None or error is not None:
            self._errors[self._led.node_ids[src]] = error or ComityError(ErrorCode.APP_SILENT)
        elif size > vectors.VECTOR_BYTES_MAX:
            self._errors[self._led.node_ids[src]] = ComityError(ErrorCode.REPLY_TOO_LARGE)
        else:
            self._vectors[src] = memory_bytes(fd, size)
        if not self._awaited:
            self._answered.set()

    def card(self) -> dict[str, Any]:
        """Return what the run's card says of the answer."""
        return {} if self._answer is None else {STATISTIC: self._answer}

    async def close(self) -> None:
        """Nothing runs."""

    def _ask(self, question: Question) -> Ask:
        everyone = tuple(sorted(self._led.node_ids))
        self._awaited, self._vectors, self._errors = set(everyone), {}, {}
        self._answered.clear()
        fd, size = memory.write_parts([question.to_bytes()])
        seq, self._seq = self._seq, self._seq + 1
        timeout_s = float(self._step.reply_timeout_s)
        return Ask(seq, everyone, AGGREGATE, str(question.round), timeout_s, timeout_s, fd, size)

    def _take(self, question: Question) -> None:
        """Add what came. Raises `PARTICIPANTS_TOO_FEW`, `REPLY_SHAPE`, `SUM_MISMATCH`, `EGRESS_DENIED`."""
        if len(self._vectors) < max(1, self._led.results_min):
            names = ", ".join(f"{org}: {error.code}" for org, error in sorted(self._errors.items()))
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, names, here=len(self._vectors))
        length = length_of(self._combiner.parts(question))
        read = [vectors.read(each, length) for _, each in sorted(self._vectors.items())]
        if self._alone:
            if any(parties != 1 for _, parties in read):
                raise ComityError(ErrorCode.REPLY_SHAPE, "a contribution is of one party")
            columns = zip(*(each for each, _ in read), strict=True)
            self._combiner.take(question, [sum(column) for column in columns], len(read))
            return
        integers, parties = read[0]
        if any(each != read[0] for each in read) or parties != len(read):
            raise ComityError(ErrorCode.SUM_MISMATCH, "the parties' results are not one sum")
        self._combiner.take(question, integers, parties)


def _bytes_of(fd: int, size: int) -> bytes:
    if size > QUESTION_BYTES_MAX:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "the order's content is not a question", field="content")
    return memory_bytes(fd, size)


def memory_bytes(fd: int, size: int) -> bytes:
    """Return a blob's bytes; the caller keeps `fd`."""
    with memory.mapped(fd, size) as view:
        return bytes(view)
