"""Masked sums under any order, repetition, loss, death and forgery: the exact sum of a stated set, or nothing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events as common
from comity_crypto.secagg.masked import events, messages

ADDER, BOSS = "(adder)", "(boss)"
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
Make = Callable[..., Any]
BEFORE = (
    "secagg.masked.ready",
    "secagg.roster-signature",
    "secagg.masked.keys",
    "StartMask",
    "secagg.commitment",
    "secagg.commitments-signature",
)
AFTER = (
    "RecordRelease",
    "StartUpload",
    "RecordStand",
    "secagg.masked.notice-signature",
    "StartSettle",
    "secagg.masked.reveal",
)
KINDS = (
    *(kind for kind in (*BEFORE, *AFTER) if kind.startswith("secagg")),
    "secagg.roster",
    "secagg.masked.round",
    "secagg.masked.notice",
)


def check_exact(network: Any, survivors: tuple[str, ...]) -> None:
    assert network.states[BOSS].phase == "done", network.failure(BOSS)
    assert network.states[BOSS].seen.survivors == survivors
    assert np.array_equal(network.opened, network.sum_of(survivors))


@QUIET
@given(seed=st.integers(0, 2**32), n=st.integers(3, 6))
def test_order_and_repetition_do_not_matter(make_network: Make, seed: int, n: int) -> None:
    chance = random.Random(seed)
    network = make_network(n).start().run(chance.randrange, lambda: chance.random() < 0.15)
    check_exact(network, network.offer.parties)
    for org in network.offer.parties:
        assert network.states[org].phase == "done"
        assert network.count(org, events.RecordStand) == network.count(org, common.RecordRelease) == 1
        assert len(network.sent(org, "secagg.masked.reveal")) == 1


@pytest.mark.parametrize(("n", "spare"), [(4, 1), (5, 1), (7, 2)])
def test_every_dropout_set_that_the_rule_permits_gives_the_exact_sum(make_network: Make, n: int, spare: int) -> None:
    parties = make_network(n).offer.parties
    sets = [lost for size in range(spare + 1) for lost in itertools.combinations(parties[1:], size)]
    for number, lost in enumerate(random.Random(n).sample(sets, min(len(sets), 8))):
        network = make_network(n, offer={"spare": spare}, dies=dict.fromkeys(lost, AFTER[number % 2])).start().finish()
        check_exact(network, tuple(org for org in parties if org not in lost))


def test_one_dropout_too_many_opens_nothing(make_network: Make) -> None:
    for n, spare, lost in ((3, 1, 1), (4, 1, 2), (7, 1, 2), (7, 5, 3)):
        dies = {f"org-{index:02d}": "StartUpload" for index in range(1, lost + 1)}
        network = make_network(n, offer={"spare": spare}, dies=dies).start().finish()
        assert network.opened is None
        assert network.states[BOSS].phase == "failed"
        assert not any(network.sent(org, "secagg.masked.reveal") for org in network.offer.parties)


@pytest.mark.parametrize("moment", AFTER)
def test_a_party_may_vanish_at_any_step_after_the_commitments(make_network: Make, moment: str) -> None:
    network = make_network(5, dies={"org-02": moment}).start().finish()
    uploaded = AFTER.index(moment) > AFTER.index("StartUpload")
    check_exact(network, tuple(org for org in network.offer.parties if uploaded or org != "org-02"))


@pytest.mark.parametrize("moment", BEFORE[1:])
def test_a_party_that_vanishes_before_ends_the_session_by_name_and_the_rest_begin_anew(
    make_network: Make, moment: str
) -> None:
    network = make_network(4, dies={"org-02": moment}).start().finish()
    failure = network.failure(BOSS)
    assert failure is not None
    assert network.opened is None
    # Whose deadline comes first tells everybody whom it waited for.
    said = [abort for org in network.offer.parties for abort in network.sent(org, "secagg.abort")]
    assert {abort.blame for abort in said} | set(failure.missing) >= {"org-02"}
    assert not any(network.count(org, common.StartUpload) for org in network.offer.parties)
    again = make_network(4, offer={"parties": ("org-00", "org-01", "org-03"), "attempt": 1}).start().finish()
    check_exact(again, ("org-00", "org-01", "org-03"))


def test_one_that_is_never_ready_is_left_out_of_the_roster(make_network: Make) -> None:
    network = make_network(4, dies={"org-03": "secagg.masked.ready"}).start().finish()
    check_exact(network, ("org-00", "org-01", "org-02"))


@QUIET
@given(kind=st.sampled_from([*KINDS, "upload"]), source=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_a_lost_message_never_lets_a_wrong_sum_out(make_network: Make, kind: str, source: int, seed: int) -> None:
    names = ["org-00", "org-01", "org-02", "org-03", BOSS, ADDER]
    chance = random.Random(seed)
    target = chance.choice(names)

    def lost(to: str, by: str, message: Any) -> bool:
        if isinstance(message, common.StartUpload):
            return kind == "upload" and by == names[source]
        sender = {"secagg.roster": ADDER, "secagg.masked.notice": ADDER, "secagg.masked.round": BOSS}.get(
            kind, names[source]
        )
        return kind == message.KIND and by == sender and to == target

    network = make_network(4, lost=lost).start().finish(pick=chance.randrange)
    if network.opened is not None:
        assert np.array_equal(network.opened, network.sum_of(network.states[BOSS].seen.survivors))
    else:
        assert network.states[BOSS].phase == "failed"
    for org in network.offer.parties:
        if network.count(org, common.StartUpload):
            # nothing leaves before the whole roster has signed the set of commitments
            assert all(network.sent(peer, "secagg.commitments-signature") for peer in network.offer.parties)


@QUIET
@given(
    kind=st.sampled_from(KINDS),
    source=st.integers(0, 3),
    some=st.sets(st.integers(0, 5), min_size=1),
    place=st.integers(0, 99),
)
def test_a_forged_field_never_changes_a_sum(
    make_network: Make, kind: str, source: int, some: set[int], place: int
) -> None:
    names = ["org-00", "org-01", "org-02", "org-03", BOSS, ADDER]

    def forge(to: str, by: str, message: Any) -> Any:
        if kind != message.KIND or to not in {names[index] for index in some}:
            return message
        if by != names[source] and by not in (ADDER, BOSS):
            return message
        body = message.to_json()
        name = sorted(body)[place % len(body)]
        body[name] = changed(body[name])
        try:
            return type(message).from_json(body)
        except ComityError:
            return message

    network = make_network(4, forge=forge).start().finish()
    if network.opened is not None:
        assert np.array_equal(network.opened, network.sum_of(network.states[BOSS].seen.survivors))


def changed(value: Any) -> Any:
    if isinstance(value, str):
        return (
            ("B" if value[0] == "A" else "A") + value[1:]
            if value.endswith("=") or len(value) > 64
            else (("e" if value[0] != "e" else "d") + value[1:])
        )
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return [*value[1:]] if value else ["org-01"]
    first = min(value)
    return {**value, first: changed(value[first])}


def test_nothing_secret_is_shown(make_network: Make) -> None:
    network = make_network(4, dies={"org-03": "StartUpload"}).start()
    secrets = {
        secret.hex()
        for org in network.offer.parties
        for secret in (network.states[org].secrets.root, network.states[org].secrets.seed)
    } | {network.secret.secret.hex()}
    network.finish()
    shown = repr(network.states) + repr(network.outputs)
    found = [value for value in secrets if value in shown or repr(bytes.fromhex(value))[2:-1] in shown]
    assert not found
    for org in ("org-00", "org-01", "org-02"):
        assert network.states[org].secrets.seed == b""
        assert not network.states[org].opened.deals
    assert network.states[BOSS].secret is None


# ---- either/or


def test_nobody_stands_on_two_lists(make_network: Make) -> None:
    """An equivocating coordinator tells some parties that the victim dropped out, others that it did not."""

    def forge(to: str, by: str, message: Any) -> Any:
        if message.KIND == "secagg.masked.notice" and to in ("org-01", "org-02"):
            return replace(message, dropped=("org-03",))
        return message

    network = make_network(4, forge=forge).start().run()
    assert network.opened is None
    assert not any(network.sent(org, "secagg.masked.reveal") for org in network.offer.parties)
    for org in ("org-00", "org-01", "org-02", "org-03"):
        told = network.states[org].seen.notice
        other = replace(told, dropped=() if told.dropped else ("org-03",))
        before = len(network.refused)
        network.deliver(org, common.AggregatePublished(other))
        assert network.refused[before].code is ErrorCode.SUM_MISMATCH
    network.finish()
    assert not any(network.sent(org, "secagg.masked.reveal") for org in network.offer.parties)


def test_a_list_is_signed_by_more_than_two_thirds_before_anyone_reveals(make_network: Make) -> None:
    for n in range(3, 13):
        for spare in range(17):
            assert 3 * messages.needed(n, spare) > 2 * n

    def lost(to: str, by: str, message: Any) -> bool:
        return message.KIND == "secagg.masked.notice-signature" and by in ("org-02", "org-03") and to == "org-01"

    network = make_network(4, lost=lambda to, by, message: hasattr(message, "KIND") and lost(to, by, message))
    network.start().run()
    assert not network.sent("org-01", "secagg.masked.reveal")
    assert network.sent("org-00", "secagg.masked.reveal")
    check_exact(network, network.offer.parties)  # three of four are enough


def test_nobody_signs_the_list_that_it_is_on(make_network: Make) -> None:
    def forge(to: str, by: str, message: Any) -> Any:
        return replace(message, dropped=("org-02",)) if message.KIND == "secagg.masked.notice" else message

    network = make_network(4, forge=forge).start().run()
    assert not network.sent("org-02", "secagg.masked.notice-signature")
    assert not network.sent("org-02", "secagg.masked.reveal")
    assert network.opened is None, "the aggregate has the dropped one's upload in it: it cannot be opened"


@pytest.mark.parametrize("dropped", [("org-09",), ("org-01", "org-02"), ("org-00", "org-01", "org-02", "org-03")])
def test_a_list_that_the_rule_forbids_is_not_signed(make_network: Make, dropped: tuple[str, ...]) -> None:
    def forge(to: str, by: str, message: Any) -> Any:
        return replace(message, dropped=dropped) if message.KIND == "secagg.masked.notice" else message

    network = make_network(4, forge=forge).start().run()
    assert not any(network.sent(org, "secagg.masked.notice-signature") for org in network.offer.parties)


# ---- the same order again


def release_of(network: Any, org: str) -> common.Release:
    (found,) = [item.release for item in network.outputs[org] if isinstance(item, common.RecordRelease)]
    return common.Release.from_json(found.to_json())


def stand_of(network: Any, org: str) -> events.Stand:
    (found,) = [item.stand for item in network.outputs[org] if isinstance(item, events.RecordStand)]
    return events.Stand.from_json(found.to_json())


def again(make_network: Make, before: Any, **settings: Any) -> Any:
    orgs = [org for org in before.offer.parties if before.count(org, events.RecordStand)]
    settings.setdefault("offer", {"attempt": 1})
    return make_network(
        4,
        releases={org: release_of(before, org) for org in orgs},
        stands={org: stand_of(before, org) for org in orgs},
        **settings,
    ).start()


def test_an_order_is_summed_again_for_the_same_survivors_only(make_network: Make) -> None:
    before = make_network(4, dies={"org-03": "StartUpload"}).start().finish()
    check_exact(before, ("org-00", "org-01", "org-02"))
    same = again(make_network, before, offer={"attempt": 1, "parties": ("org-00", "org-01", "org-02")}).finish()
    check_exact(same, ("org-00", "org-01", "org-02"))
    back = again(make_network, before).finish()  # now with the one that had dropped out: their difference is its update
    assert back.opened is None
    assert not any(back.sent(org, "secagg.masked.reveal") for org in ("org-00", "org-01", "org-02"))
    fewer = make_network(4).start().finish()
    check_exact(fewer, fewer.offer.parties)
    assert again(make_network, fewer, dies={"org-03": "StartUpload"}).finish().opened is None
    gone = again(make_network, fewer, offer={"attempt": 1, "parties": ("org-00", "org-01", "org-02")}).finish()
    assert gone.opened is None
    assert not any(gone.count(org, common.StartUpload) for org in gone.offer.parties)


def test_an_order_is_answered_again_with_the_same_integers_only(make_network: Make) -> None:
    before = make_network(4).start().finish()
    network = again(make_network, before, values={"org-01": np.full(5, 7)}).finish()
    assert network.opened is None
    failure = network.failure("org-01")
    assert failure is not None
    assert failure.error.code is ErrorCode.ORDER_REPLAYED


# ---- wrong shares, wrong sums


def test_a_wrong_revelation_is_set_aside_or_named(make_network: Make) -> None:
    def bad(orgs: tuple[str, ...]) -> Any:
        def forge(to: str, by: str, message: Any) -> Any:
            if message.KIND == "secagg.masked.reveal" and by in orgs:
                return replace(message, box=message.box[:-1] + bytes([message.box[-1] ^ 1]))
            return message

        return forge

    check_exact(make_network(4, forge=bad(("org-01",))).start().finish(), tuple(f"org-{i:02d}" for i in range(4)))
    network = make_network(4, forge=bad(("org-01", "org-02"))).start().finish()
    failure = network.failure(BOSS)
    assert failure is not None
    assert failure.error.code is ErrorCode.BAD_SHARE
    assert failure.missing == ("org-01", "org-02")
    assert network.opened is None


def test_a_bad_deal_is_named_before_anything_leaves(make_network: Make) -> None:
    def forge(to: str, by: str, message: Any) -> Any:
        if message.KIND == "secagg.masked.keys" and by == "org-02":
            digests = tuple((org, "0" * 64 if org == "org-01" else value) for org, value in message.seed_digests)
            return replace(message, seed_digests=digests)
        return message

    network = make_network(4, forge=forge).start().finish()
    failure = network.failure("org-01")
    assert failure is not None
    assert (failure.error.code, failure.missing) == (ErrorCode.BAD_SHARE, ("org-02",))
    assert {abort.blame for abort in network.sent("org-01", "secagg.abort")} == {"org-02"}
    assert not any(network.count(org, common.StartUpload) for org in network.offer.parties)


@QUIET
@given(word=st.integers(0, 20), change=st.integers(1, 2**32 - 1))
def test_a_sum_that_the_coordinator_changed_is_refused(make_network: Make, word: int, change: int) -> None:
    def add(parts: list[np.ndarray]) -> np.ndarray:
        total = np.sum(parts, axis=0, dtype=np.uint32)
        total[word : word + 1] += np.uint32(change)
        return total

    network = make_network(3, add=add).start().finish()
    if network.opened is not None:  # the tag's top limbs count modulo 2^4: that changes neither tag nor sum
        assert word in (11, 15)
        assert change % 16 == 0
        check_exact(network, network.offer.parties)
        return
    failure = network.failure(BOSS)
    assert failure is not None
    assert failure.error.code is ErrorCode.SUM_MISMATCH


def test_an_upload_left_out_or_added_twice_is_refused(make_network: Make) -> None:
    for weights in ((1, 1, 0), (2, 1, 1), (1, 1, 2)):

        def add(parts: list[np.ndarray], weights: tuple[int, ...] = weights) -> np.ndarray:
            total = np.zeros_like(parts[0])
            for part, weight in zip(parts, weights, strict=True):
                total += part * np.uint32(weight)
            return total

        network = make_network(3, add=add).start().finish()
        assert network.opened is None
        assert network.failure(BOSS).error.code is ErrorCode.SUM_MISMATCH


def test_a_lead_that_seals_another_secret_is_seen(make_network: Make) -> None:
    network = make_network(3)
    network.start()
    network.states[BOSS].secret.secret = bytes(32)
    network.run()
    failure = network.failure("org-01")
    assert failure is not None
    assert failure.error.code is ErrorCode.ROSTER_MISMATCH
    assert not any(network.count(org, events.StartMask) for org in network.offer.parties)


@pytest.mark.parametrize("field", ["key_id", "order_digest"])
def test_a_lead_that_gives_parties_different_orders_is_seen(make_network: Make, field: str) -> None:
    network = make_network(3)
    network.start()
    ready = network.states["org-02"].seen.said(messages.MaskedReady, "org-02")
    other = replace(network.offer, **{field: "f" * 64})
    network.queue = [item for item in network.queue if getattr(item[1], "issuer", "") != "org-02"]
    for target in ("org-00", "org-01", BOSS, ADDER):
        said = replace(ready, session=other.digest, **{field: "f" * 64})
        network.queue.append((target, common.Received("org-02", said)))
    network.run()
    for target in ("org-00", BOSS, ADDER):
        failure = network.failure(target)
        assert failure is not None
        assert failure.error.code is ErrorCode.ROSTER_MISMATCH
    assert network.opened is None
