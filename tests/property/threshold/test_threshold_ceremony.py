"""Ceremonies under any order, repetition, loss and forgery: the same keys for all, or nothing for anybody."""

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
from comity_crypto.secagg.frame import messages as common
from comity_crypto.secagg.threshold import ceremony
from comity_crypto.secagg.threshold import events as threshold_events
from comity_crypto.secagg.threshold import messages as threshold_messages

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
OTHER = "f" * 64
KINDS = [body.KIND for body in threshold_messages.CEREMONY_BODIES]
SHAPES = [(3, 3), (3, 2), (4, 3), (5, 4)]
Make = Callable[..., Any]


def stored(network: Any) -> list[threshold_events.StoreKeys]:
    return [item for org in network.plan.holders for item in network.found(org, threshold_events.StoreKeys)]


@QUIET
@given(seed=st.integers(0, 2**32), shape=st.sampled_from(SHAPES))
def test_order_and_repetition_do_not_matter(make_ceremony: Make, seed: int, shape: tuple[int, int]) -> None:
    chance = random.Random(seed)
    network = make_ceremony(*shape).start().run(chance.randrange, lambda: chance.random() < 0.2)
    kept = stored(network)
    assert len(kept) == shape[0]
    assert len({(item.keys, item.transcript) for item in kept}) == 1
    assert len(kept[0].keys) == network.plan.keys
    for org in network.plan.holders:
        assert network.states[org].phase == "done"
        assert network.count(org, events.EraseKey) == 0
        for kind in threshold_messages.CEREMONY_BODIES:
            dealt = kind in (threshold_messages.Deal, threshold_messages.DealCheck)
            assert len(network.messages(org, kind)) == int(not dealt or shape[1] < shape[0])


@QUIET
@given(kind=st.sampled_from(KINDS), source=st.integers(0, 3), target=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_a_lost_message_leaves_no_key_with_whom_it_was_lost(
    make_ceremony: Make, kind: str, source: int, target: int, seed: int
) -> None:
    by, to = f"org-{source:02d}", f"org-{target:02d}"
    chance = random.Random(seed)
    network = make_ceremony(4, 3, lost=lambda at, of, message: (at, of, message.KIND) == (to, by, kind))
    network.start().run(chance.randrange)
    network.tick()
    network.run()
    if by == to:
        assert len(stored(network)) == 4
        return
    assert network.states[to].phase == "failed"
    assert network.count(to, events.EraseKey) == 1
    assert by in network.failure(to).missing
    others = [org for org in network.plan.holders if org != to]
    # Only the very last message can be lost to one and have been heard by the others: a round then fails by its name.
    finished = [org for org in others if network.states[org].phase == "done"]
    assert not finished or kind == threshold_messages.TranscriptSignature.KIND
    for org in network.plan.holders:
        assert network.states[org].phase in ("done", "failed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [3, 4])
def test_a_holder_that_vanishes_at_any_step_is_named(make_ceremony: Make, kind: str, n: int) -> None:
    gone = f"org-{n - 1:02d}"
    spoken: list[bool] = []

    def lost(at: str, of: str, message: Any) -> bool:
        spoken.append(of == gone and kind == message.KIND)
        return of == gone and any(spoken)

    network = make_ceremony(n, n - 1, lost=lost).start().run()
    network.tick()
    network.run()
    for org in network.plan.holders[:-1]:
        assert network.states[org].phase == "failed"
        assert network.failure(org).missing == (gone,)
        assert network.count(org, events.EraseKey) == 1
    assert not [item for org in network.plan.holders[:-1] for item in network.found(org, threshold_events.StoreKeys)]


def forged(message: Any, place: int) -> Any:
    """Return the message with one field changed, or the same if that field cannot be changed alone."""
    body = message.to_json()
    name = sorted(body)[place % len(body)]
    value = body[name]
    if isinstance(value, str):
        body[name] = ("B" if value[0] != "B" else "C") + value[1:] if value.endswith("=") else "e" + value[1:]
    elif isinstance(value, list):
        body[name] = [OTHER, *value[1:]]
    else:
        first = min(value)
        item = value[first]
        body[name] = {**value, first: OTHER if isinstance(item, str) else [item[0] + 1, *item[1:]]}
    try:
        return type(message).from_json(body)
    except ComityError:
        return message


@QUIET
@given(
    kind=st.sampled_from(KINDS),
    source=st.integers(0, 3),
    some=st.sets(st.integers(0, 3), min_size=1),
    place=st.integers(0, 5),
)
def test_a_coordinator_that_changes_what_some_see_makes_no_key(
    make_ceremony: Make, kind: str, source: int, some: set[int], place: int
) -> None:
    by, told = f"org-{source:02d}", {f"org-{index:02d}" for index in some}
    touched = []

    def forge(at: str, of: str, message: Any) -> Any:
        if (of, message.KIND) != (by, kind) or at not in told:
            return message
        changed = forged(message, place)
        touched.extend([at] if changed != message else [])
        return changed

    network = make_ceremony(4, 3, forge=forge).start().run()
    network.tick()
    network.run()
    # The last step is each one's own to judge: whoever was lied to there has no key, so no quorum counts on it.
    last = kind == threshold_messages.TranscriptSignature.KIND
    for org in network.plan.holders:
        if touched and (not last or org in touched):
            assert network.count(org, threshold_events.StoreKeys) == 0
            assert network.states[org].phase == "failed"


@pytest.mark.parametrize("threshold", [2, 3])
def test_a_dealer_whose_points_do_not_fit_is_named_by_all(make_ceremony: Make, threshold: int) -> None:
    network = make_ceremony(4, threshold, spoiled=("org-02", "org-01")).start().run()
    if threshold == 3:  # points of a line but one: four points, a parabola at most through three of them
        assert network.failure("org-00").error.code is ErrorCode.BAD_SHARE
    failures = {org: network.failure(org) for org in network.plan.holders}
    assert any(item is not None and item.error.facts.get("org") == "org-02" for item in failures.values())
    assert stored(network) == []


def test_a_copied_commitment_is_refused(make_ceremony: Make) -> None:
    """Who shows the same public share as another would double that part; who copies a nonce would know it."""
    for kind, name in (
        (threshold_messages.NonceCommitment, "commitment"),
        (threshold_messages.ShareCommitment, "shares"),
    ):
        first: dict[str, Any] = {}

        def forge(at: str, of: str, message: Any, kind: Any = kind, name: str = name, first: Any = first) -> Any:
            if isinstance(message, kind) and of == "org-00":
                first[name] = getattr(message, name)
            if isinstance(message, kind) and of == "org-02" and name in first:
                return replace(message, **{name: first[name]})
            return message

        network = make_ceremony(3, 3, forge=forge).start().run()
        assert network.failure("org-01").error.code is ErrorCode.CONFLICT
        assert stored(network) == []


def test_a_nonce_that_was_not_promised_is_refused_and_nothing_is_drawn(make_ceremony: Make) -> None:
    def forge(at: str, of: str, message: Any) -> Any:
        if isinstance(message, threshold_messages.NonceReveal) and of == "org-02":
            return replace(message, nonce=bytes(range(32)))
        return message

    network = make_ceremony(3, 3, forge=forge).start().run()
    failure = network.failure("org-00")
    assert failure.error.code is ErrorCode.PAYLOAD_DIGEST
    assert failure.error.facts["org"] == "org-02"
    assert network.count("org-00", threshold_events.StartDraw) == 0


def test_nothing_is_shown_before_everybody_has_promised(make_ceremony: Make) -> None:
    network = make_ceremony(
        3, 3, lost=lambda at, of, message: of == "org-02" and isinstance(message, threshold_messages.NonceCommitment)
    )
    network.start().run()
    assert not network.messages("org-00", threshold_messages.NonceReveal)
    network = make_ceremony(
        3, 3, lost=lambda at, of, message: of == "org-02" and isinstance(message, threshold_messages.ShareCommitment)
    )
    network.start().run()
    assert not network.messages("org-00", threshold_messages.ShareReveal)
    assert network.count("org-00", threshold_events.StartShow) == 0


def test_strangers_other_ceremonies_and_second_words_are_refused(make_ceremony: Make) -> None:
    network = make_ceremony(3, 3)
    network.start()
    state = network.states["org-00"]
    mine = network.messages("org-01", threshold_messages.NonceCommitment)[0]
    dealt = threshold_messages.Deal(network.plan.digest, OTHER, (OTHER,), (("org-00", OTHER),))
    for issuer, message, code in (
        ("org-09", mine, ErrorCode.FORBIDDEN),
        ("org-01", replace(mine, session=OTHER), ErrorCode.ROSTER_MISMATCH),
        ("org-00", replace(mine, commitment=OTHER), ErrorCode.CONFLICT),
        ("org-01", network.plan, ErrorCode.FORBIDDEN),
        ("org-01", dealt, ErrorCode.FORBIDDEN),
    ):
        with pytest.raises(ComityError) as caught:
            ceremony.step(state, events.Received(issuer, message), 1.0)
        assert caught.value.code is code
    with pytest.raises(ComityError):
        ceremony.start("org-09", network.plan, box_key=bytes(1216), entropy=bytes, now=0.0)
    with pytest.raises(ComityError):
        ceremony.step(state, threshold_events.KeysCombined((OTHER,)), 1.0)


def test_a_failed_job_and_an_abort_end_the_ceremony_everywhere(make_ceremony: Make) -> None:
    network = make_ceremony(3, 3).start()
    network.deliver("org-01", events.WorkFailed(ComityError(ErrorCode.WORKER_DIED)))
    network.run()
    assert {state.phase for state in network.states.values()} == {"failed"}
    assert all(network.count(org, events.EraseKey) == 1 for org in network.plan.holders)
    assert network.failure("org-00").error.code is ErrorCode.WORKER_DIED


def test_secrets_do_not_show(make_ceremony: Make) -> None:
    state = make_ceremony(3, 3).start().states["org-01"]
    assert state.nonce.hex() not in repr(state)
    assert repr(state.nonce) not in repr(state)


@pytest.mark.parametrize(
    "change",
    [
        {"holders": ["org-00", "org-01"]},
        {"threshold": 4},
        {"threshold": 1},
        {"keys": 0},
        {"keys": 17},
        {"parameters_digest": OTHER},
        {"holders": ["org-01", "org-00", "org-02"]},
        {"number": -1},
        {"more": 1},
    ],
)
def test_a_plan_is_judged_before_it_is_taken_up(make_ceremony: Make, change: dict[str, Any]) -> None:
    plan = make_ceremony(3, 3).plan
    assert threshold_messages.KeyPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ComityError):
        threshold_messages.KeyPlan.from_json({**plan.to_json(), **change})


def test_the_usual_quorum_is_all_of_three_and_two_thirds_of_more() -> None:
    found = {n: threshold_messages.default_threshold(n) for n in (3, 4, 5, 6, 7, 10, 50)}
    assert found == {3: 3, 4: 3, 5: 4, 6: 4, 7: 5, 10: 7, 50: 34}
    assert common.ATTEMPT_MAX > 0
