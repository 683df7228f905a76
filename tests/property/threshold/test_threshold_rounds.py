"""Rounds of `threshold` under loss, reordering, dropouts and wrong shares: the exact sum of all, or a named failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.lead_key import contributor
from comity_crypto.secagg.threshold import events as threshold_events
from comity_crypto.secagg.threshold import keyholder
from comity_crypto.secagg.threshold import lead as threshold_lead
from comity_crypto.secagg.threshold import messages as threshold_messages
from comity_crypto.secagg.threshold.blame import Trials, narrowing_quorum, next_quorum

ADDER, LEAD = "(adder)", "(lead)"
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
OTHER = "f" * 64
SHAPES = [(3, 3), (3, 2), (4, 3), (5, 4), (6, 4)]
ROUND_KINDS = (
    "secagg.ready",
    "secagg.roster",
    "secagg.roster-signature",
    "secagg.mask-seed",
    "secagg.commitment",
    "secagg.commitments-signature",
    "upload",
    "secagg.aggregate",
    "secagg.linear-digest",
    "secagg.checked",
    "secagg.quorum-call",
    "secagg.share-ready",
    "secagg.opened",
)
Make = Callable[..., Any]


def opened(network: Any) -> bool:
    return network.count(LEAD, events.Finished) == 1


def suspects(network: Any) -> tuple[str, ...]:
    found = network.found(LEAD, threshold_events.Suspected)
    return found[0].orgs if found else ()


def kind_of(message: Any) -> str:
    return "upload" if isinstance(message, events.StartUpload) else str(message.KIND)


def settle(network: Any) -> Any:
    return network.settle()


def keys_are_gone(network: Any) -> bool:
    return all(network.count(f"{org}/key", events.EraseKey) == 1 for org in network.offer.parties)


@QUIET
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(SHAPES))
def test_order_and_repetition_do_not_matter(make_round: Make, seed: int, shape: tuple[int, int]) -> None:
    chance = random.Random(seed)
    network = make_round(*shape).start().run(chance.randrange, lambda: chance.random() < 0.2)
    assert opened(network)
    assert keys_are_gone(network)
    assert len(network.messages(LEAD, threshold_messages.QuorumCall)) == 1
    shared = [org for org in network.offer.parties if network.count(f"{org}/key", threshold_events.StartShare)]
    assert len(shared) == shape[1]
    assert all(network.count(f"{org}/key", threshold_events.StartShare) <= 1 for org in network.offer.parties)
    assert suspects(network) == ()


@QUIET
@given(
    kind=st.sampled_from(ROUND_KINDS), source=st.integers(0, 3), target=st.integers(0, 9), seed=st.integers(0, 2**32)
)
def test_a_lost_message_never_lets_a_sum_out_wrongly(
    make_round: Make, kind: str, source: int, target: int, seed: int
) -> None:
    network = make_round(4, 3)
    names = [*network.offer.parties, *(f"{org}/key" for org in network.offer.parties), LEAD, ADDER]
    senders = {"secagg.roster": ADDER, "secagg.aggregate": ADDER, "secagg.quorum-call": LEAD, "secagg.opened": LEAD}
    by = senders.get(kind, names[source] + ("/key" if kind in ("secagg.checked", "secagg.share-ready") else ""))
    network.lost = lambda to, of, message: (
        kind_of(message) == kind and of == by and (to == names[target] or kind == "upload")
    )
    chance = random.Random(seed)
    settle(network.start().run(chance.randrange))
    assert keys_are_gone(network)
    assert opened(network) or network.failure(LEAD) is not None
    if opened(network):
        for org in network.offer.parties:
            assert network.count(org, events.RecordRelease) == 1
    calls = network.messages(LEAD, threshold_messages.QuorumCall)
    assert len(calls) <= threshold_messages.ANSWERS_MAX
    if not opened(network):
        assert not calls or network.failure(LEAD).missing


@pytest.mark.parametrize("kind", ROUND_KINDS[:-2])
@pytest.mark.parametrize(("n", "threshold"), [(4, 4), (4, 3)])
def test_an_organisation_that_vanishes_at_any_step(make_round: Make, kind: str, n: int, threshold: int) -> None:
    """Everything from that message on is lost, of its machines alike; the lead is not the one that goes."""
    if kind in ("secagg.roster", "secagg.aggregate", "secagg.quorum-call"):
        return  # not a message of this organisation
    gone = "org-03"
    spoken: list[bool] = []

    def lost(to: str, of: str, message: Any) -> bool:
        mine = of.removesuffix("/key") == gone
        spoken.append(mine and kind_of(message) == kind)
        return mine and any(spoken)

    network = make_round(n, threshold, lost=lost, offer={"minimum": 4}).start().run()
    settle(network)
    # After its linear digest it is one holder of several; before that, or where all are needed, the round ends by name.
    late = kind == "secagg.checked"
    if (late or kind == "secagg.mask-seed") and threshold < n:  # the last of the roster has no seeds to seal
        assert opened(network)
        assert network.states[LEAD].seen.members == network.offer.parties
    elif kind == "secagg.mask-seed":
        assert opened(network)
    else:
        assert not opened(network)
        failure = network.failure(LEAD)
        assert gone in failure.missing or kind == "upload", "of uploads only the coordinator knows, and tells"
    assert network.count(f"{gone}/key", events.EraseKey) <= 1


@pytest.mark.parametrize(("n", "threshold"), SHAPES)
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_holder_that_never_shares_is_replaced_or_named(make_round: Make, n: int, threshold: int, place: int) -> None:
    gone = f"org-{place % n:02d}"
    network = make_round(n, threshold, silent=frozenset({gone})).start().run()
    settle(network)
    if threshold < n:
        assert opened(network)
        assert suspects(network) == ()
        assert len(network.messages(LEAD, threshold_messages.QuorumCall)) <= 2
    else:
        assert network.failure(LEAD).missing == (gone,)
        assert network.failure(LEAD).error.code is ErrorCode.TIMEOUT
    assert keys_are_gone(network)


def test_others_are_asked_soon_where_a_holder_is_silent(make_round: Make) -> None:
    limits = events.Limits()
    network = make_round(4, 3, silent=frozenset({"org-01"})).start().run()
    wait_s = network.states[LEAD].deadline - network.now
    assert limits.share_s <= wait_s <= limits.share_s + 1 < limits.step_s / 4
    network.tick(network.now + wait_s).run()
    assert opened(network)
    assert network.messages(LEAD, threshold_messages.QuorumCall)[1].members == ("org-00", "org-02", "org-03")
    alone = make_round(4, 4, silent=frozenset({"org-01"})).start().run()
    assert alone.states[LEAD].deadline - alone.now == limits.step_s, "nobody else can be asked"
    large = make_round(4, 3, offer={"chunks": 4_000}, silent=frozenset({"org-01"})).start().run()
    assert large.states[LEAD].deadline - large.now == limits.step_s, "a large share takes its time"


def test_a_slow_holder_is_asked_again_when_nobody_else_is_left(make_round: Make) -> None:
    network = make_round(4, 3, silent=frozenset({"org-01"})).start().run()
    network.silent = frozenset({"org-03"})
    network.tick(network.states[LEAD].deadline).run()
    wait_s = network.states[LEAD].deadline - network.now
    assert wait_s == pytest.approx(events.Limits().step_s), "there is no third quorum but with the slow one"
    network.tick(network.states[LEAD].deadline).run()
    assert opened(network)
    called = [call.members for call in network.messages(LEAD, threshold_messages.QuorumCall)]
    assert called == [("org-00", "org-01", "org-02"), ("org-00", "org-02", "org-03"), ("org-00", "org-01", "org-02")]
    assert suspects(network) == ()


def test_a_slow_holder_is_asked_again_when_another_never_checks(make_round: Make) -> None:
    lost = lambda to, of, message: of == "org-03/key" and kind_of(message) == "secagg.checked"  # noqa: E731
    network = make_round(4, 3, silent=frozenset({"org-01"}), lost=lost).start().run()
    network.silent = frozenset()
    settle(network)
    assert opened(network)
    assert len(network.messages(LEAD, threshold_messages.QuorumCall)) == 2


@pytest.mark.parametrize(("n", "threshold"), [*SHAPES, (10, 7)])
def test_a_wrong_share_is_named_where_another_quorum_can_tell(make_round: Make, n: int, threshold: int) -> None:
    for place in range(n):
        liar = f"org-{place:02d}"
        network = make_round(n, threshold, liars=lambda org, members, number, liar=liar: org == liar).start().run()
        called = [call.members for call in network.messages(LEAD, threshold_messages.QuorumCall)]
        if threshold == n:
            failure = network.failure(LEAD)
            assert (failure.error.code, failure.missing) == (ErrorCode.BAD_SHARE, ())
            assert "org" not in failure.error.facts
        else:
            assert opened(network)
            assert suspects(network) == ((liar,) if liar in called[0] else ())
            told = network.messages(LEAD, threshold_messages.Opened)
            assert told[0].suspects == suspects(network)
        assert len(called) <= threshold_messages.ANSWERS_MAX
        assert len(set(called)) == len(called)
        settle(network)
        assert keys_are_gone(network)


@settings(max_examples=60)
@given(n=st.integers(4, 50), data=st.data())
@example(n=50, data=None)
def test_one_wrong_holder_is_always_told_apart_within_the_calls(n: int, data: Any) -> None:
    threshold = threshold_messages.default_threshold(n)
    orgs = [f"org-{index:02d}" for index in range(n)]
    liar = orgs[n - 1] if data is None else data.draw(st.sampled_from(orgs))
    first = orgs[-threshold:] if data is None else data.draw(st.permutations(orgs))[:threshold]
    order = [*first, *(org for org in orgs if org not in first)]
    trials, calls, is_open = Trials(), 0, False
    for _ in range(20):
        choose = narrowing_quorum if is_open else next_quorum
        quorum = choose(trials, order, threshold)
        if quorum is None:
            break
        assert len(quorum) == threshold
        calls += 1
        if liar in quorum:
            trials = trials.with_failure(quorum)
        else:
            trials, is_open = trials.with_success(quorum), True
            if len(trials.common) <= 1:
                break
    assert is_open
    assert calls <= threshold_messages.ANSWERS_MAX
    assert trials.suspects == ((liar,) if liar in order[:threshold] else ())


def test_bytes_that_are_no_share_name_their_holder_at_once(make_round: Make) -> None:
    network = make_round(4, 3, garbled=frozenset({"org-00"})).start().run()
    assert opened(network)
    assert suspects(network) == ("org-00",)
    assert len(network.messages(LEAD, threshold_messages.QuorumCall)) == 2
    network = make_round(3, 3, garbled=frozenset({"org-01"})).start().run()
    failure = network.failure(LEAD)
    assert (failure.error.code, failure.missing) == (ErrorCode.BAD_SHARE, ("org-01",))
    assert failure.error.facts["org"] == "org-01"


def test_two_wrong_holders_end_the_round_or_are_left_out(make_round: Make) -> None:
    for threshold in (4, 5, 6):
        network = make_round(6, threshold, liars=lambda org, members, number: org in ("org-01", "org-04")).start().run()
        settle(network)
        assert keys_are_gone(network)
        if not opened(network):
            assert network.failure(LEAD).error.code is ErrorCode.BAD_SHARE
        assert len(network.messages(LEAD, threshold_messages.QuorumCall)) <= threshold_messages.ANSWERS_MAX


def test_an_aggregate_of_other_uploads_is_not_shared(make_round: Make) -> None:
    network = make_round(4, 3, honest_sum=False).start().run()
    settle(network)
    assert not opened(network)
    assert not any(network.count(f"{org}/key", threshold_events.StartShare) for org in network.offer.parties)
    failure = network.failure("org-01/key")
    assert failure.error.code is ErrorCode.SUM_MISMATCH
    assert keys_are_gone(network)


def test_a_coordinator_that_shows_two_aggregates_gets_no_share(make_round: Make) -> None:
    def forge(to: str, of: str, message: Any) -> Any:
        if message.KIND == "secagg.aggregate" and to.startswith("org-02"):
            return replace(message, aggregate=OTHER)
        return message

    network = settle(make_round(4, 3, forge=forge).start().run())
    assert not opened(network)
    assert not any(network.count(f"{org}/key", threshold_events.StartShare) for org in network.offer.parties)


def test_holders_that_checked_another_aggregate_are_not_called(make_round: Make) -> None:
    def forge(to: str, of: str, message: Any) -> Any:
        if message.KIND == "secagg.checked" and of == "org-01/key":
            return replace(message, notice=OTHER)
        return message

    network = make_round(4, 3, forge=forge).start().run()
    assert opened(network)
    assert all("org-01" not in call.members for call in network.messages(LEAD, threshold_messages.QuorumCall))
    network = settle(make_round(3, 3, forge=forge).start().run())
    assert network.failure(LEAD).missing == ("org-01",)


def holder_at_calls(make_round: Make, n: int = 4, threshold: int = 3) -> Any:
    network = make_round(n, threshold, lost=lambda to, of, message: kind_of(message) == "secagg.quorum-call")
    network.start().run()
    assert network.states["org-01/key"].phase == "calls"
    return network


def test_a_call_is_answered_once_and_only_if_it_fits(make_round: Make) -> None:
    network = holder_at_calls(make_round)
    state, offer = network.states["org-01/key"], network.offer
    call = network.messages(LEAD, threshold_messages.QuorumCall)[0]
    call = replace(call, members=("org-00", "org-01", "org-02"))
    for issuer, message, code in (
        ("org-02", call, ErrorCode.FORBIDDEN),
        (offer.lead, replace(call, session=OTHER), ErrorCode.ROSTER_MISMATCH),
        (offer.lead, replace(call, members=("org-00", "org-01")), ErrorCode.ROSTER_MISMATCH),
        (offer.lead, replace(call, members=("org-01", "org-02", "org-09")), ErrorCode.ROSTER_MISMATCH),
        (offer.lead, replace(call, notice=OTHER), ErrorCode.SUM_MISMATCH),
    ):
        with pytest.raises(ComityError) as caught:
            keyholder.step(state, events.Received(issuer, message), 1.0)
        assert caught.value.code is code
    with pytest.raises(ComityError):
        threshold_messages.QuorumCall.from_json({**call.to_json(), "number": threshold_messages.ANSWERS_MAX})
    state, out = keyholder.step(state, events.Received(offer.lead, call), 1.0)
    assert [type(item) for item in out] == [threshold_events.StartShare]
    state, out = keyholder.step(state, events.Received(offer.lead, call), 1.0)
    assert out == [], "the share is under way"
    state, out = keyholder.step(state, threshold_events.ShareMade(call.digest, OTHER), 1.0)
    first = [item.message for item in out if isinstance(item, events.Send)]
    state, out = keyholder.step(state, events.Received(offer.lead, call), 1.0)
    assert [item.message for item in out if isinstance(item, events.Send)] == first, "the same share, said again"
    with pytest.raises(ComityError) as caught:
        keyholder.step(state, events.Received(offer.lead, replace(call, members=("org-01", "org-02", "org-03"))), 1.0)
    assert caught.value.code is ErrorCode.CONFLICT
    absent = replace(call, number=1, members=("org-00", "org-02", "org-03"))
    assert keyholder.step(state, events.Received(offer.lead, absent), 1.0)[1] == []


def test_a_call_before_the_check_is_not_answered(make_round: Make) -> None:
    network = make_round(3, 3, lost=lambda to, of, message: kind_of(message) == "secagg.linear-digest").start().run()
    state, offer = network.states["org-01/key"], network.offer
    assert state.phase == "check"
    call = threshold_messages.QuorumCall(offer.digest, state.seen.notice.digest, 0, offer.parties)
    with pytest.raises(ComityError) as caught:
        keyholder.step(state, events.Received(offer.lead, call), 1.0)
    assert caught.value.code is ErrorCode.BUSY


def test_only_the_lead_says_that_the_sum_is_open(make_round: Make) -> None:
    network = holder_at_calls(make_round)
    state, offer = network.states["org-01/key"], network.offer
    word = threshold_messages.Opened(offer.digest, state.seen.notice.digest, (), OTHER, OTHER)
    with pytest.raises(ComityError):
        keyholder.step(state, events.Received("org-02", word), 1.0)
    with pytest.raises(ComityError):
        keyholder.step(state, events.Received(offer.lead, replace(word, session=OTHER)), 1.0)
    state, out = keyholder.step(state, events.Received(offer.lead, word), 1.0)
    assert isinstance(out[0], events.EraseKey)
    assert state.phase == "done"


def test_a_share_nobody_waits_for_is_refused(make_round: Make) -> None:
    network = make_round(4, 3, silent=frozenset({"org-01"})).start().run()
    state, offer = network.states[LEAD], network.offer
    assert state.phase == "shares"
    missing = next(org for org in state.call.members if org not in state.shares)
    outside = next(org for org in offer.parties if org not in state.call.members)
    share = threshold_messages.ShareReady(offer.digest, state.call.digest, OTHER)
    for issuer, message in (
        (outside, share),
        ("org-09", share),
        (missing, replace(share, call=OTHER)),
        (missing, replace(share, session=OTHER)),
        (next(iter(state.shares)), share),
    ):
        with pytest.raises(ComityError):
            threshold_lead.step(state, events.Received(issuer, message), 1.0)


def test_after_its_digest_a_party_that_gives_up_is_one_holder_less(make_round: Make) -> None:
    for threshold in (3, 4):
        network = make_round(4, threshold, lost=lambda to, of, message: kind_of(message) == "secagg.checked")
        network.start().run()
        network.lost = lambda to, of, message: False
        network.deliver("org-03/key", events.WorkFailed(ComityError(ErrorCode.WORKER_DIED)))
        network.run()
        for org in ("org-00", "org-01", "org-02"):
            notice = network.states[LEAD].seen.notice.digest
            checked = threshold_messages.Checked(network.offer.digest, notice)
            network.deliver(LEAD, events.Received(org, checked))
        network.run()
        if threshold == 3:
            assert opened(network)
        else:
            settle(network)
            assert not opened(network)
            assert "org-03" in network.failure(LEAD).missing


def test_an_offer_of_a_key_that_its_parties_cannot_open_is_refused(make_round: Make) -> None:
    offer = make_round(4, 3).offer
    assert threshold_messages.ThresholdOffer.from_json(offer.to_json()) == offer
    for change in (
        {"parties": ["org-00", "org-01", "org-02", "org-09"]},
        {"threshold": 5},
        {"parties": ["org-00", "org-01"], "minimum": 3},
        {"holders": ["org-00", "org-01", "org-02"]},
        {"transcript": ""},
        {"ceremony": "x"},
    ):
        with pytest.raises(ComityError):
            threshold_messages.ThresholdOffer.from_json({**offer.to_json(), **change})
    fewer = {"parties": ["org-00", "org-01", "org-02"], "threshold": 4}
    with pytest.raises(ComityError) as caught:
        threshold_messages.ThresholdOffer.from_json({**offer.to_json(), **fewer})
    assert caught.value.code is ErrorCode.PARTICIPANTS_TOO_FEW
    with pytest.raises(ComityError):
        keyholder.start("org-09", offer, now=0.0)
    with pytest.raises(ComityError) as caught:
        contributor.start(
            "org-01",
            offer,
            order_digest=offer.order_digest,
            chunks=offer.chunks,
            box_key=BoxKey(),
            entropy=bytes,
            now=0.0,
            used_keys={offer.key_id},
        )
    assert caught.value.code is ErrorCode.ORDER_REPLAYED


@QUIET
@given(noise=st.binary(max_size=80), kind=st.sampled_from(sorted(threshold_messages.THRESHOLD_BODIES)))
def test_strangers_bodies_are_refused_by_name(noise: bytes, kind: str) -> None:
    names = threshold_messages.THRESHOLD_BODIES[kind].__dataclass_fields__
    for value in (noise.hex(), [len(noise)], {}, {noise.hex(): [1]}, None, True, 1 << 70):
        with pytest.raises(ComityError):
            threshold_messages.parse_threshold_message(kind, dict.fromkeys(names, value))
    for body in (None, [], noise.hex(), {"session": OTHER}):
        with pytest.raises(ComityError):
            threshold_messages.parse_threshold_message(kind, body)
    with pytest.raises(ComityError) as caught:
        threshold_messages.parse_threshold_message("secagg.unheard", {})
    assert caught.value.code is ErrorCode.UNSUPPORTED
