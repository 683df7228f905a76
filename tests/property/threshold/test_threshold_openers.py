"""Several openers of one sum: who is named opens it by itself, whoever is not gets nothing, and all see one sum.

The networks are those of `conftest`: every order, loss, repetition and forgery is in the hands of the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.messages import Abort
from comity_crypto.secagg.lead_key.messages import Ready
from comity_crypto.secagg.threshold import compared, keyholder, messages, opener
from comity_crypto.secagg.threshold import events as threshold_events

LEAD, ADDER = "(lead)", "(adder)"
TWO = {"openers": ("org-00", "org-01")}
THREE = {"openers": ("org-00", "org-01", "org-02")}
OTHER = "f" * 64
SHAPES = [(3, 3), (3, 2), (4, 3), (5, 4)]
LOST = (
    "secagg.roster",
    "secagg.commitments-signature",
    "secagg.aggregate",
    "secagg.quorum-call",
    "secagg.share-ready",
    "secagg.opened",
    "secagg.sum-seen",
)
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
Make = Callable[..., Any]


def others(network: Any) -> list[str]:
    return [f"{org}/opener" for org in network.offer.openers[1:]]


def kept(network: Any, name: str) -> bool:
    return network.count(name, threshold_events.KeepSum) == 1


def ended_well(network: Any, name: str) -> bool:
    return network.count(name, events.Finished) == 1 and network.failure(name) is None


@QUIET
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(SHAPES))
def test_every_opener_has_the_sum_in_whatever_order_things_come(
    make_round: Make, seed: int, shape: tuple[int, int]
) -> None:
    chance = random.Random(seed)
    network = make_round(*shape, offer=THREE).start().run(chance.randrange, lambda: chance.random() < 0.2)
    assert ended_well(network, LEAD)
    call = network.states[LEAD].first.call
    for name in others(network):
        assert ended_well(network, name)
        assert kept(network, name)
        assert {(said.call, said.sum) for said in network.messages(name, messages.SumSeen)} == {
            (call, network.states[LEAD].first.sum)
        }
    # One share of each holder, for all openers alike: no second product under other noise.
    assert all(network.count(f"{org}/key", threshold_events.StartShare) <= 1 for org in network.offer.parties)


@QUIET
@given(kind=st.sampled_from(LOST), target=st.sampled_from(["org-01/opener", "org-02/opener"]), seed=st.integers(0, 99))
def test_what_one_opener_misses_is_its_own_loss(make_round: Make, kind: str, target: str, seed: int) -> None:
    network = make_round(4, 3, offer=THREE)
    network.lost = lambda to, of, message: to == target and getattr(message, "KIND", "") == kind
    network.start().run(random.Random(seed).randrange)
    assert ended_well(network, LEAD), "nobody waits for another opener"
    network.settle()
    for name in others(network):
        if name != target or kind in ("secagg.opened", "secagg.sum-seen"):
            assert ended_well(network, name), (name, kind)
            assert kept(network, name)
        else:
            failed = network.failure(name)
            assert failed is not None
            assert failed.error.code is ErrorCode.TIMEOUT
            assert not kept(network, name)
            assert not network.messages(name, Abort), "it ends nobody else's session"


def test_a_lead_that_gives_up_once_it_has_shares_takes_the_sum_from_nobody(make_round: Make) -> None:
    network = make_round(3, 3, offer=TWO)
    network.lost = lambda to, of, message: of == LEAD and isinstance(message, messages.Opened)
    network.start()
    while not network.count("org-01/opener", threshold_events.StartFuse):
        target, event = network.queue.pop(0)
        network.deliver(target, event)
    gone = events.abort_of(network.offer.digest, ComityError(ErrorCode.UNAVAILABLE)).message
    network.deliver("org-01/opener", events.Received("org-00", gone))
    network.run().settle()
    assert kept(network, "org-01/opener")
    assert ended_well(network, "org-01/opener")


def test_a_share_that_does_not_fit_is_left_for_the_next_call(make_round: Make) -> None:
    network = make_round(4, 3, offer=TWO, liars=lambda org, members, number: org == "org-01").start().run()
    assert ended_well(network, LEAD)
    assert kept(network, "org-01/opener")
    network = make_round(4, 3, offer=TWO, garbled=frozenset({"org-02"})).start().run()
    assert ended_well(network, LEAD)
    assert kept(network, "org-01/opener")


def test_where_all_are_needed_a_wrong_share_opens_nothing_to_anybody(make_round: Make) -> None:
    network = make_round(3, 3, offer=TWO, liars=lambda org, members, number: org == "org-02").start().run().settle()
    assert network.failure(LEAD).error.code is ErrorCode.BAD_SHARE
    assert not kept(network, "org-01/opener")
    assert network.failure("org-01/opener") is not None


@pytest.mark.parametrize("liar", ["org-00", "org-01"])
def test_two_openers_that_saw_different_sums_are_named(make_round: Make, liar: str) -> None:
    network = make_round(3, 3, offer=TWO, sees=lambda org, call: OTHER if org == liar else "e" * 64).start().run()
    failed = network.failure("org-01/opener")
    assert failed.error.code is ErrorCode.SUMS_DIFFER
    assert failed.error.facts["organisations"] == "org-00,org-01"
    assert kept(network, "org-01/opener"), "what it saw is evidence"
    seen = compared.Compared(network.offer.openers)
    word = network.messages(LEAD, messages.Opened)[0]
    seen = seen.with_word("org-00", word.call, word.sum)
    assert seen.differing == ()
    for said in network.messages("org-01/opener", messages.SumSeen):
        seen = seen.with_word("org-01", said.call, said.sum)
    assert seen.differing == ("org-00", "org-01")


def test_a_lead_that_claims_to_have_opened_what_does_not_open_is_named(make_round: Make) -> None:
    network = make_round(3, 3, offer=TWO)
    network.lost = lambda to, of, message: of == LEAD and isinstance(message, messages.Opened)
    fused = network.fused
    network.fused = lambda me, job: fused(me, job) if me == LEAD else threshold_events.QuorumFailed(job.call)
    network.start().run()
    state = network.states["org-01/opener"]
    word = messages.Opened(network.offer.digest, state.seen.notice.digest, (), state.calls[0].digest, OTHER)
    network.deliver("org-01/opener", events.Received("org-00", word))
    assert network.failure("org-01/opener").error.code is ErrorCode.SUMS_DIFFER


# -- who is not named


def test_shares_are_sealed_to_the_openers_and_to_nobody_else(make_round: Make) -> None:
    network = make_round(4, 3, offer=TWO).start().run()
    seen = network.states["org-03/key"].seen
    wanted = (("org-00", network.offer.box_key), ("org-01", seen.get(Ready, "org-01").box_key))
    jobs = [job for org in network.offer.parties for job in network.found(f"{org}/key", threshold_events.StartShare)]
    assert len(jobs) == 3
    assert {job.receivers for job in jobs} == {wanted}
    alone = make_round(4, 3).start().run()
    jobs = [job for org in alone.offer.parties for job in alone.found(f"{org}/key", threshold_events.StartShare)]
    assert {job.receivers for job in jobs} == {(("org-00", alone.offer.box_key),)}


def test_a_lead_that_names_more_openers_to_one_holder_gets_no_share_of_anybody(make_round: Make) -> None:
    """Openers are in the session's name: two offers for one place are seen by all, before anything is sent."""
    network = make_round(3, 3).start()
    wider = replace(network.offer, openers=("org-00", "org-02"))
    assert wider.digest != network.offer.digest
    assert wider.place == network.offer.place
    ready = network.messages("org-02", Ready)[0]
    network.lost = lambda to, of, message: of == "org-02"
    network.queue.clear()
    for org in ("org-00", "org-01"):
        network.deliver(org, events.Received("org-02", replace(ready, session=wider.digest)))
        assert network.failure(org).error.code is ErrorCode.ROSTER_MISMATCH
    assert not any(network.count(f"{org}/key", threshold_events.StartShare) for org in network.offer.parties)


def test_a_coordinator_that_changes_an_openers_key_gets_no_share(make_round: Make) -> None:
    """The roster names each announcement by its digest and all sign it: another key is another roster."""
    swapped = BoxKey().public

    def forge(target: str, source: str, message: Any) -> Any:
        if source == "org-01" and isinstance(message, Ready) and target.startswith("org-02"):
            return replace(message, box_key=swapped)
        return message

    network = make_round(3, 3, offer=TWO, forge=forge).start().run().settle()
    assert not network.count(LEAD, events.Finished)
    assert not any(network.count(f"{org}/key", threshold_events.StartShare) for org in network.offer.parties)


@pytest.mark.parametrize(
    ("openers", "agreed", "org"),
    [
        (("org-00", "org-01"), (), "org-01"),  # one too many
        (("org-00", "org-01", "org-02"), ("org-01",), "org-02"),
        (("org-00",), ("org-01",), "org-01"),  # one left out
        (("org-00", "org-02"), ("org-01",), "org-01"),  # one for another
    ],
)
def test_an_offer_with_other_openers_than_agreed_is_refused(
    make_round: Make, openers: tuple[str, ...], agreed: tuple[str, ...], org: str
) -> None:
    offer = make_round(4, 3, offer={"openers": openers}).offer
    with pytest.raises(ComityError) as caught:
        offer.check_openers(agreed)
    assert caught.value.code is ErrorCode.ROSTER_MISMATCH
    assert (caught.value.facts["field"], caught.value.facts["org"]) == ("openers", org)


def test_an_opener_that_dropped_out_is_none_of_the_attempt(make_round: Make) -> None:
    offer = make_round(4, 3, offer={**TWO, "parties": ("org-00", "org-01", "org-03")}).offer
    offer.check_openers(("org-01", "org-02"))


def test_only_parties_open_and_the_lead_always_does(make_round: Make) -> None:
    offer = make_round(4, 3).offer
    for openers in (["org-01"], ["org-00", "org-09"], [], ["org-01", "org-00"], ["org-00", "org-00"]):
        with pytest.raises(ComityError):
            messages.ThresholdOffer.from_json({**offer.to_json(), "openers": openers})
    for org in ("org-00", "org-02"):  # the lead has its own machine; the other one is not named
        with pytest.raises(ComityError) as caught:
            opener.start(org, replace(offer, **TWO), now=0.0)
        assert caught.value.code is ErrorCode.FORBIDDEN


def test_an_opener_hears_the_lead_alone_and_each_holder_once(make_round: Make) -> None:
    network = make_round(3, 3, offer=TWO)
    network.lost = lambda to, of, message: to == "org-01/opener" and isinstance(message, messages.ShareReady)
    network.start().run()
    state, offer = network.states["org-01/opener"], network.offer
    assert state.phase == opener.Phase.SHARES
    call = state.calls[0]
    share = messages.ShareReady(offer.digest, call.digest, OTHER)
    named, _ = opener.step(state, events.Received("org-02", share), 1.0)
    for issuer, message in (
        ("org-02", call),
        ("org-00", replace(call, session=OTHER)),
        ("org-00", replace(call, members=("org-00", "org-01"))),
        ("org-00", replace(call, notice=OTHER)),
        ("org-02", messages.Opened(offer.digest, call.notice, (), call.digest, OTHER)),
        ("org-02", replace(share, share="e" * 64)),
        ("org-09", share),
        ("org-01", replace(share, session=OTHER)),
    ):
        with pytest.raises(ComityError):
            opener.step(named, events.Received(issuer, message), 1.0)
    for number in range(messages.ANSWERS_MAX):
        step = opener.step(state, events.Received("org-02", replace(share, call=f"{number:064x}")), 1.0)
        state = step[0]
    with pytest.raises(ComityError) as caught:
        opener.step(state, events.Received("org-02", replace(share, call=OTHER)), 1.0)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_a_holder_ends_and_erases_however_many_open(make_round: Make) -> None:
    network = make_round(3, 3, offer=THREE).start().run()
    assert all(network.count(f"{org}/key", events.EraseKey) == 1 for org in network.offer.parties)
    assert all(network.states[f"{org}/key"].phase == "done" for org in network.offer.parties)
    assert keyholder.Phase.CALLS == "calls"


# -- what is said of a sum


def test_what_is_said_of_a_sum_tells_nothing_without_the_shares_salts() -> None:
    salts = {"org-00": bytes(32), "org-01": bytes([1]) * 32}
    said = compared.sum_digest(OTHER, OTHER, salts, "a" * 64)
    assert said == compared.sum_digest(OTHER, OTHER, dict(reversed(salts.items())), "a" * 64)
    for changed in (
        compared.sum_digest("e" * 64, OTHER, salts, "a" * 64),
        compared.sum_digest(OTHER, "e" * 64, salts, "a" * 64),
        compared.sum_digest(OTHER, OTHER, {**salts, "org-01": bytes([2]) * 32}, "a" * 64),
        compared.sum_digest(OTHER, OTHER, salts, "b" * 64),
    ):
        assert changed != said
    with pytest.raises(ComityError):
        compared.sum_digest(OTHER, OTHER, {"org-00": b""}, "a" * 64)


@QUIET
@given(words=st.permutations([("org-00", "a", "s"), ("org-01", "a", "t"), ("org-02", "b", "u"), ("org-00", "b", "u")]))
def test_words_are_compared_in_any_order(words: list[tuple[str, str, str]]) -> None:
    seen = compared.Compared(("org-00", "org-01", "org-02"))
    for word in [*words, *words]:
        seen = seen.with_word(*word)
    assert seen.differing == ("org-00", "org-01")
    with pytest.raises(ComityError) as caught:
        seen.with_word("org-00", "a", "x")
    assert caught.value.code is ErrorCode.CONFLICT
    with pytest.raises(ComityError):
        seen.with_word("org-09", "a", "s")
    for number in range(messages.ANSWERS_MAX - 1):
        seen = seen.with_word("org-02", str(number), "s")
    with pytest.raises(ComityError):
        seen.with_word("org-02", "one too many", "s")
