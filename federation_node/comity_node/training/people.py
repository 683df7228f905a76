"""Check (6) of negotiation.md section 5: a person, where the policy or a term asks for one.

Rules:
1. Before an order: nothing runs while a person is awaited. The order is refused for now and comes again; once people
   have decided, it is taken up at once. An approval holds for the run's step, or for one order if the policy says so.
2. Before a result leaves: it is held in memory and its order stays started, until people have decided or the reply is
   due. What they see names the result's digest: another result is another question.
3. A denial, and nobody's word in time, are final. Everything that decides is in the document, who has to look included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.context import NodeContext
from comity_node.reviews.model import Review, ReviewAsk, ReviewState, Verdict
from comity_node.training import enforcement
from comity_node.training.intake import Received
from comity_node.training.needs import PERSON_AGREED, Need
from comity_node.training.ports import People
from comity_policies.decisions import ReviewNeed, Stage
from comity_policies.document import TITLE_CHARS_MAX
from comity_policies.documents import REASONS_MAX, Agreement, OrderHeader, TrainStep

DISPATCH, EGRESS = str(Stage.DISPATCH), str(Stage.EGRESS)
# People get at most this long for the step of a run; the agreement may end earlier.
REVIEW_S_MAX = 7 * 24 * 3600
HELD_MAX = 64
TAKEN_TRIED_MAX, TAKEN_AGAIN_S = 20, 0.05


class OrderReviews:
    """Asks people about orders and results of this party."""

    def __init__(self, node: NodeContext, people: People, take: Callable[[Received], bool]) -> None:
        """`take` serves an order again once people have decided on it; False while it is still being refused."""
        self._node = node
        self._people = people
        self._take = take
        self._held: dict[str, tuple[str, Received]] = {}
        people.on_decided(DISPATCH, self._decided)

    def looks(self) -> ReviewNeed:
        """Return who has to look where a term alone says that somebody has to."""
        return self._people.need()

    async def check_order(self, order: Received, agreement: Agreement, verdict: enforcement.Verdict) -> None:
        """Run check (6) on an order that passed the others; what it comes to is written into `verdict`."""
        if verdict.need is None:
            return
        item = ask_for_order(
            order, agreement, verdict.need, self._node.settings.org, instants.to_text(self._node.clock())
        )
        try:
            check_6_person(await self._node.journal.run(lambda conn: self._people.consult(conn, item)))
        except ComityError as error:
            verdict.predicates[PERSON_AGREED] = False
            verdict.error = error
            if error.code is ErrorCode.REVIEW_NEEDED and order.blob is None:
                self._hold(item.subject, order)
            return
        verdict.predicates[PERSON_AGREED] = True

    async def ask_egress(
        self, agreement: Agreement, order: OrderHeader, order_digest: str, facts: Mapping[str, Any], need: Need
    ) -> ComityError | None:
        """Put a result before people, in place of any other of its order; returns who is awaited, None if it may leave.

        Raises:
            ComityError: `EGRESS_DENIED`, `BUSY`, `DEADLINE_PASSED`.
        """
        item = ask_for_result(agreement, order, order_digest, facts, need, self._node.settings.org)
        review = await self._node.journal.run(lambda conn: self._people.consult(conn, item, alone=True))
        try:
            check_6_person(review)
        except ComityError as error:
            if error.code is not ErrorCode.REVIEW_NEEDED:
                raise _kept(error) from error
            return error
        return None

    async def wait_egress(self, order: OrderHeader, order_digest: str) -> None:
        """Hold until people have decided on the result of an order. Raises `EGRESS_DENIED`."""
        try:
            verdict = await self._people.wait(EGRESS, order_digest, order.reply_by)
        except ComityError as error:
            if error.code is not ErrorCode.DEADLINE_PASSED:
                raise
            raise _kept(error) from error
        if not verdict.allowed:
            raise _kept(ComityError(ErrorCode.REVIEW_DENIED, verdict.reason, review=verdict.id))

    def end_of_run(self, conn: Connection, run: str) -> None:
        """A run ended: nothing of it is asked any more."""
        self._people.end_of_run(conn, run, "the run has ended")

    def _hold(self, subject: str, order: Received) -> None:
        """Keep an order to take it up once people have decided; it comes again anyway."""
        self._held[order.digest] = (subject, order)
        while len(self._held) > HELD_MAX:
            self._held.pop(next(iter(self._held)))

    async def _decided(self, subject: str, verdict: Verdict) -> None:
        for digest in [digest for digest, (of_subject, _) in self._held.items() if of_subject == subject]:
            _, order = self._held.pop(digest)
            for _ in range(TAKEN_TRIED_MAX):
                if self._take(order):
                    break
                await asyncio.sleep(TAKEN_AGAIN_S)


def check_6_person(review: Review) -> None:
    """Return if people approved.

    Raises:
        ComityError: `REVIEW_NEEDED` with who is awaited since when until when, `REVIEW_DENIED` with their reason,
            `DEADLINE_PASSED` if nobody decided.
    """
    ask = review.ask
    if review.state is ReviewState.APPROVED:
        return
    if review.state is ReviewState.OPEN:
        raise ComityError(
            ErrorCode.REVIEW_NEEDED,
            f"{review.missing} of the role {ask.role} awaited until {ask.until}",
            stage=ask.stage,
            role=ask.role,
            missing=review.missing,
            since=review.asked_at,
            until=ask.until,
            review=ask.id,
        )
    if review.state is ReviewState.EXPIRED:
        raise ComityError(ErrorCode.DEADLINE_PASSED, f"nobody of the role {ask.role} decided in time", review=ask.id)
    raise ComityError(ErrorCode.REVIEW_DENIED, review.why, review=ask.id)


def ask_for_order(order: Received, agreement: Agreement, need: Need, me: str, now: str) -> ReviewAsk:
    """Return what people are asked before an order runs: about the run's step, or about this order alone."""
    header, alone = order.header, need.review.scope == "order"
    week = instants.to_text(instants.parse(now) + timedelta(seconds=REVIEW_S_MAX))
    until = header.reply_by if alone else min(week, str(agreement.terms.get("not_after", week)))
    step = enforcement.step_of(agreement, header)
    document = {
        **_about(agreement, header, need, me),
        "asks": f"may {me} run {'this order' if alone else 'every order of this step in this run'}?",
        "step": step.to_json(),
        "datasets": [ask.to_json() for ask in enforcement.own_datasets(agreement, me)],
    }
    if alone:
        facts = enforcement.order_facts(header, step)
        document["order"] = {**facts, "digest": order.digest, "reply_by": header.reply_by}
    subject = order.digest if alone else canonical.digest({"run": header.run, "step": header.step})
    named = step.app.name if isinstance(step, TrainStep) else step.kind
    what = f"{named} in {header.run}" + (f", round {header.round}" if alone else "")
    return _ask(DISPATCH, subject, f"run {what}", document, need, until, header, agreement)


def ask_for_result(
    agreement: Agreement, order: OrderHeader, order_digest: str, facts: Mapping[str, Any], need: Need, me: str
) -> ReviewAsk:
    """Return what people are asked before a result leaves; `facts` name its `sha256` besides what was measured."""
    shown = enforcement.order_facts(order, enforcement.step_of(agreement, order))
    document = {
        **_about(agreement, order, need, me),
        "asks": f"may this result leave {me}?",
        "order": {**shown, "digest": order_digest, "reply_by": order.reply_by},
        "result": dict(facts),
    }
    title = f"let out {facts['kind']} of round {order.round} in {order.run}"
    return _ask(EGRESS, order_digest, title, document, need, order.reply_by, order, agreement)


def _about(agreement: Agreement, order: OrderHeader, need: Need, me: str) -> dict[str, Any]:
    """Return what every document says: the agreement, the run, who has to look and by which rules."""
    rules = {(reason.rule, reason.code) for reason in need.reasons}
    return {
        "agreement": enforcement.agreement_facts(agreement, order.agreement),
        "title": agreement.proposal.title,
        "proposer": agreement.proposal.proposer,
        "run": order.run,
        "lead": order.lead,
        "organisation": me,
        "who": need.review.to_json(),
        # Not their sentences: these may name a round, and the next order would be another question.
        "because": [{"rule": rule, "code": code} for rule, code in sorted(rules)],
    }


def _ask(
    stage: str,
    subject: str,
    title: str,
    document: dict[str, Any],
    need: Need,
    until: str,
    order: OrderHeader,
    agreement: Agreement,
) -> ReviewAsk:
    return ReviewAsk(
        stage=stage,
        subject=subject,
        title=title[:TITLE_CHARS_MAX],
        document=document,
        reasons=need.reasons[:REASONS_MAX],
        role=need.review.role,
        approvals=need.review.approvals,
        until=until,
        run=order.run,
        proposal=agreement.proposal.digest,
    )


def _kept(error: ComityError) -> ComityError:
    """Return the refusal that keeps a result inside."""
    return ComityError(ErrorCode.EGRESS_DENIED, error.detail, reason=str(error.code), **error.facts)
