"""Reviews in the journal: asked once, decided once, told at least once, bounded, signed."""

from __future__ import annotations

import asyncio

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, verify_statement
from comity_node.access.model import Principal
from comity_node.reviews import service as module
from comity_node.reviews import store
from comity_node.reviews.model import ReviewState


def person(user, roles="reviewer"):
    return Principal(user, frozenset(roles.split()), "token")


async def until(condition, timeout_s=5):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def refusal(work):
    with pytest.raises(ComityError) as caught:
        await work
    return caught.value.code


async def stand(clinic, item):
    return await clinic.journal.run(lambda conn: store.find(conn, item.id))


async def test_asking_again_is_harmless_and_what_was_asked_last_counts(clinic):
    item = await clinic.put()
    assert await clinic.put() == item
    other = await clinic.put(document={"purpose": "marketing"})
    await clinic.vote(other, "anna")

    async def allowed():
        verdict = await clinic.journal.run(lambda conn: clinic.reviews.verdict(conn, "proposal", item.subject))
        return None if verdict is None else verdict.allowed

    assert await allowed() is True
    assert await clinic.put() == item
    assert await allowed() is None, "an approval of another document does not count"
    await clinic.put(document={"purpose": "marketing"})
    assert await allowed() is True


async def test_what_stands_alone_makes_the_others_obsolete(clinic):
    item, other = await clinic.put(), clinic.ask(document={"purpose": "marketing"})
    await clinic.journal.run(lambda conn: clinic.reviews.consult(conn, other, alone=True))
    assert (await stand(clinic, item)).state is ReviewState.OBSOLETE
    assert (await stand(clinic, other)).state is ReviewState.OPEN
    assert await refusal(clinic.vote(item, "anna")) is ErrorCode.ILLEGAL_EVENT


async def test_the_same_document_is_not_put_before_fewer_people(clinic):
    item = await clinic.put(approvals=2)
    assert await refusal(clinic.put(approvals=1)) is ErrorCode.CONFLICT
    assert await refusal(clinic.put(role="admin")) is ErrorCode.CONFLICT
    assert (await stand(clinic, item)).ask.approvals == 2


async def test_a_verdict_is_told_once_it_is_on_disk_with_signed_votes(clinic):
    heard = []

    async def decided(subject, verdict):
        kept = await stand(clinic, item)
        heard.append((subject, verdict.allowed, verdict.reason, verdict.document, kept.state))

    clinic.reviews.on_decided("proposal", decided)
    await clinic.reviews.start()
    item = await clinic.put(approvals=2)
    await clinic.vote(item, "anna", reason="fine")
    assert heard == []
    await clinic.vote(item, "bert")
    await until(lambda: heard)
    assert heard == [(item.subject, True, "fine", item.document_digest, ReviewState.APPROVED)]
    statements = await clinic.journal.run(lambda conn: store.statements_of(conn, item.id))
    for data, user in zip(statements, ("anna", "bert"), strict=True):
        statement = Statement.from_bytes(data)
        verify_statement(statement, clinic.node.keys.public.statement, kind="review-vote", consortium="demo")
        said = statement.body
        assert (said["user"], said["decision"], said["document"]) == (user, "approve", item.document_digest)
        assert (said["review"], said["via"]) == (item.id, "token")


async def test_a_vote_names_the_document_that_was_shown(clinic):
    item = await clinic.put()
    vote = clinic.reviews.vote(item.id, person("anna"), decision="approve", reason="", document="0" * 64)
    assert await refusal(vote) is ErrorCode.CONFLICT
    assert (await stand(clinic, item)).votes == ()


async def test_a_vote_takes_the_role(clinic):
    item = await clinic.put()
    assert await refusal(clinic.vote(item, "anna", roles="admin proposer auditor")) is ErrorCode.FORBIDDEN
    assert await refusal(clinic.reviews.vote("rev-0", person("a"), decision="deny", reason="x", document="0" * 64)) \
        is ErrorCode.NOT_FOUND  # fmt: skip
    assert (await clinic.vote(item, "local")).state is ReviewState.APPROVED


async def test_nobody_passes_as_the_organisations_own_account(clinic):
    item = await clinic.put()
    fake = Principal("local", frozenset({"reviewer"}), "token")
    vote = clinic.reviews.vote(item.id, fake, decision="approve", reason="", document=item.document_digest)
    assert await refusal(vote) is ErrorCode.FORBIDDEN


async def test_who_proposed_does_not_decide(clinic):
    await clinic.journal.run(lambda conn: clinic.reviews.note_asker(conn, "ab" * 32, "anna"))
    proposal = await clinic.put()
    order = await clinic.put(stage="dispatch", subject="cd" * 32, proposal="ab" * 32, document={"run": "run-1"})
    for item in (proposal, order):
        assert await refusal(clinic.vote(item, "anna")) is ErrorCode.FORBIDDEN
        assert (await clinic.vote(item, "bert")).state is ReviewState.APPROVED


async def test_a_delegation_lets_another_decide_until_it_ends(clinic):
    clinic.later(hours=1)
    made = await clinic.reviews.delegate(
        person("anna"), receiver="carla", role="reviewer", until="2026-01-05T00:00:00Z"
    )
    item = await clinic.put()
    done = await clinic.vote(item, "carla", roles="")
    assert [(vote.user, vote.voice) for vote in done.votes] == [("carla", "anna")]
    await clinic.reviews.end_delegation(person("anna"), made.id)
    other = await clinic.put(subject="cd" * 32)
    assert await refusal(clinic.vote(other, "carla", roles="")) is ErrorCode.FORBIDDEN


async def test_a_delegation_runs_out_and_is_not_delegated_on(clinic):
    await clinic.reviews.delegate(person("anna"), receiver="carla", role="reviewer", until="2026-01-02T00:00:00Z")
    work = clinic.reviews.delegate(person("carla", "proposer"), receiver="dora", role="reviewer",
                                   until="2026-01-02T00:00:00Z")  # fmt: skip
    assert await refusal(work) is ErrorCode.FORBIDDEN
    item = await clinic.put()
    clinic.later(days=2)
    assert await refusal(clinic.vote(item, "carla", roles="")) is ErrorCode.FORBIDDEN


async def test_only_an_admin_delegates_for_another_and_never_to_oneself(clinic):
    named = {"role": "reviewer", "until": "2026-01-02T00:00:00Z", "giver": "anna"}
    delegate = clinic.reviews.delegate
    assert await refusal(delegate(person("bert"), receiver="carla", **named)) is ErrorCode.FORBIDDEN
    assert await refusal(delegate(person("root", "admin"), receiver="root", **named)) is ErrorCode.FORBIDDEN
    made = await delegate(person("root", "admin"), receiver="carla", **named)
    assert (made.giver, made.entered_by) == ("anna", "root")
    assert await refusal(clinic.reviews.end_delegation(person("bert"), made.id)) is ErrorCode.FORBIDDEN
    assert (await clinic.reviews.end_delegation(person("root", "admin"), made.id)).ended_at


async def test_an_item_expires_and_that_is_a_denial(clinic):
    heard = []

    async def decided(subject, verdict):
        heard.append((verdict.state, verdict.allowed))

    clinic.reviews.on_decided("proposal", decided)
    item = await clinic.put()
    clinic.later(days=20)
    await clinic.reviews.start()
    await until(lambda: heard)
    assert heard == [(ReviewState.EXPIRED, False)]
    assert (await stand(clinic, item)).why == "nobody decided in time"


async def test_people_are_reminded_and_those_who_watch_hear_of_it(clinic):
    news = []
    clinic.reviews.on_news(lambda review, kind, body: news.append((kind, review.ask.run)))
    await clinic.reviews.start()
    item = await clinic.put(run="run-1")
    await until(lambda: news)
    for days in (6, 3):
        clinic.later(days=days)
        clinic.reviews._wake.set()
        seen = len(news)
        await until(lambda seen=seen: len(news) > seen)
    assert news == [("asked", "run-1"), ("reminded", "run-1"), ("reminded", "run-1")]
    story = await clinic.journal.run(lambda conn: store.events_of(conn, item.id))
    assert [each["kind"] for each in story] == ["asked", "reminded", "reminded"]


async def test_a_verdict_survives_the_process_that_took_it(clinic):
    item = await clinic.put()

    async def deaf(subject, verdict):
        raise AssertionError("the service was never started")

    clinic.reviews.on_decided("proposal", deaf)
    await clinic.vote(item, "anna", "deny", "no")
    await clinic.down()
    await clinic.up()
    heard = []

    async def decided(subject, verdict):
        heard.append(verdict.reason)

    clinic.reviews.on_decided("proposal", decided)
    await clinic.reviews.start()
    await until(lambda: heard)
    assert heard == ["no"]


async def test_what_whoever_asked_cannot_take_now_is_told_again(clinic, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    heard = []

    async def decided(subject, verdict):
        heard.append(subject[:2])
        if len(heard) == 1:
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "the disk is full")
        if subject.startswith("cd"):
            raise ValueError("a defect")

    clinic.reviews.on_decided("proposal", decided)
    await clinic.reviews.start()
    await clinic.vote(await clinic.put(), "anna")
    await until(lambda: len(heard) == 2)
    await clinic.vote(await clinic.put(subject="cd" * 32), "anna")
    await clinic.vote(await clinic.put(subject="ef" * 32), "anna")
    await until(lambda: len(heard) == 4)
    await asyncio.sleep(0.05)
    assert heard == ["ab", "ab", "cd", "ef"]


async def test_the_queue_is_bounded(clinic, monkeypatch):
    monkeypatch.setattr(module, "OPEN_MAX", 2)
    first = await clinic.put()
    await clinic.put(subject="01" * 32)
    assert await refusal(clinic.put(subject="02" * 32)) is ErrorCode.BUSY
    await clinic.put()
    await clinic.vote(first, "anna")
    await clinic.put(subject="02" * 32)


async def test_waiting_ends_with_the_verdict_or_the_clock(clinic):
    await clinic.reviews.start()
    item = await clinic.put(stage="egress")
    waiting = asyncio.create_task(clinic.reviews.wait("egress", item.subject, "2026-01-02T00:00:00Z"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await clinic.vote(item, "anna")
    assert (await asyncio.wait_for(waiting, 5)).allowed
    other = await clinic.put(stage="egress", subject="cd" * 32)
    late = clinic.reviews.wait("egress", other.subject, "2025-01-01T00:00:00Z")
    assert await refusal(late) is ErrorCode.DEADLINE_PASSED
    assert await refusal(clinic.reviews.wait("egress", "ef" * 32, "2026-01-02T00:00:00Z")) is ErrorCode.NOT_FOUND
    assert clinic.reviews._waiting == {}


async def test_what_ended_needs_no_decision(clinic):
    heard = []

    async def decided(subject, verdict):
        heard.append(subject)

    clinic.reviews.on_decided("dispatch", decided)
    await clinic.reviews.start()
    of_run = await clinic.put(stage="dispatch", run="run-1")
    of_proposal = await clinic.put(stage="agreement", subject="cd" * 32, proposal="ef" * 32)
    await clinic.journal.run(lambda conn: clinic.reviews.end_of_run(conn, "run-1", "the run ended"))
    await clinic.journal.run(lambda conn: clinic.reviews.end_of_proposal(conn, "ef" * 32, "withdrawn"))
    for item, why in ((of_run, "the run ended"), (of_proposal, "withdrawn")):
        review = await stand(clinic, item)
        assert (review.state, review.why) == (ReviewState.OBSOLETE, why)
    await asyncio.sleep(0.05)
    assert heard == []
