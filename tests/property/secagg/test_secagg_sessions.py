"""Sessions under any order, repetition, loss and forgery: an exact sum of all, or nothing at all."""

from __future__ import annotations

import hashlib
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
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.lead_key import contributor, holder, messages
from comity_crypto.secagg.lead_key import events as encrypted

ADDER, BOSS = "(adder)", "(boss)"
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
OTHER = "f" * 64
KINDS = (
    "secagg.ready",
    "secagg.roster",
    "secagg.roster-signature",
    "secagg.mask-seed",
    "secagg.commitment",
    "secagg.commitments-signature",
    "upload",
    "secagg.aggregate",
    "secagg.linear-digest",
)
Make = Callable[..., Any]


def decrypted(network: Any) -> int:
    return int(network.count(BOSS, encrypted.StartDecrypt))


def kind_of(message: Any) -> str:
    return "upload" if isinstance(message, events.StartUpload) else str(message.KIND)


@QUIET
@given(seed=st.integers(0, 2**32), n=st.integers(3, 6))
def test_order_and_repetition_do_not_matter(make_network: Make, seed: int, n: int) -> None:
    chance = random.Random(seed)
    network = make_network(n).start().run(chance.randrange, lambda: chance.random() < 0.2)
    assert decrypted(network) == 1
    assert network.count(BOSS, events.EraseKey) == 1
    for org in network.offer.parties:
        assert network.states[org].phase == "done"
        assert network.count(org, events.RecordRelease) == 1
        for kind in ("ready", "roster-signature", "commitment", "commitments-signature", "linear-digest"):
            assert network.sent(org, f"secagg.{kind}") == 1
        assert network.sent(org, "secagg.mask-seed") == int(org != network.offer.parties[-1])


def test_the_pairs_seeds_agree_and_cover_every_pair(make_network: Make) -> None:
    network = make_network(5).start().run()
    seeds: dict[bytes, int] = {}
    for org in network.offer.parties:
        (order,) = [item for item in network.outputs[org] if isinstance(item, encrypted.StartEncrypt)]
        assert len(order.pairs) == 4
        assert order.pairs[0].seed.hex() not in repr(order)
        for pair in order.pairs:
            seeds[pair.seed] = seeds.get(pair.seed, 0) + (1 if pair.adds else -1)
    assert set(seeds.values()) == {0}


@QUIET
@given(kind=st.sampled_from(KINDS), source=st.integers(0, 2), target=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_a_lost_message_never_lets_a_sum_out_wrongly(
    make_network: Make, kind: str, source: int, target: int, seed: int
) -> None:
    names = ["org-00", "org-01", "org-02", BOSS, ADDER]

    def lost(to: str, by: str, message: Any) -> bool:
        sender = ADDER if kind in ("secagg.roster", "secagg.aggregate") else names[source]
        return kind_of(message) == kind and by == sender and (to == names[target] or kind == "upload")

    chance = random.Random(seed)
    network = make_network(3, lost=lost).start().run(chance.randrange)
    network.tick()
    network.run()
    assert decrypted(network) <= 1
    if not decrypted(network):
        assert network.states[BOSS].phase == "failed"
        assert network.count(BOSS, events.EraseKey) == 1
    for org in network.offer.parties:
        assert network.states[org].phase in ("done", "failed")
        if network.count(org, events.StartUpload):
            # nothing leaves before the whole roster has signed the set of commitments
            assert all(network.sent(peer, "secagg.commitments-signature") for peer in network.offer.parties)


@QUIET
@given(
    kind=st.sampled_from([item for item in KINDS if item != "upload"]),
    source=st.integers(0, 2),
    some=st.sets(st.integers(0, 4), min_size=1),
    place=st.integers(0, 10),
)
def test_a_forged_field_never_reaches_the_key(
    make_network: Make, kind: str, source: int, some: set[int], place: int
) -> None:
    names = ["org-00", "org-01", "org-02", BOSS, ADDER]
    sender = ADDER if kind in ("secagg.roster", "secagg.aggregate") else names[source]
    touched = []

    def forge(to: str, by: str, message: Any) -> Any:
        if kind != message.KIND or by != sender or to not in {names[index] for index in some}:
            return message
        body = message.to_json()
        field = sorted(body)[place % len(body)]
        value = body[field]
        if isinstance(value, str):
            body[field] = (
                value[:-2] + ("0=" if value[-2:] != "0=" else "1=") if value.endswith("=") else "e" + value[1:]
            )
            body[field] = body[field] if body[field] != value else "d" + value[1:]
        elif isinstance(value, int):
            body[field] = value + 1
        elif isinstance(value, list):
            body[field] = [value[0] ^ 1, *value[1:]]
        else:
            first = min(value)
            body[field] = {**value, first: value[first][1:2] + value[first][:1] + value[first][2:]}
            if body[field] == value:
                return message
        try:
            forged = type(message).from_json(body)
        except ComityError:
            return message
        touched.append((to, field))
        return forged

    network = make_network(3, forge=forge).start().run()
    network.tick()
    network.run()
    assert decrypted(network) == int(not any(matters(kind, sender, to, field) for to, field in touched))
    assert network.states[BOSS].phase == ("done" if decrypted(network) else "failed")


def matters(kind: str, source: str, to: str, field: str) -> bool:
    """Whether a forged copy must end the session: seeds are read by later parties, and each reads its own box only."""
    if kind != "secagg.mask-seed":
        return to != source
    receivers = [org for org in ("org-00", "org-01", "org-02") if org > source]
    return to == receivers[0] if field == "boxes" else to in receivers


@pytest.mark.parametrize("field", ["key_id", "order_digest"])
def test_a_lead_that_gives_parties_different_orders_is_seen(make_network: Make, field: str) -> None:
    network = make_network(3)
    network.start()
    other = replace(network.offer, **{field: OTHER})
    state, out = contributor.start(
        "org-02",
        other,
        order_digest=other.order_digest,
        chunks=2,
        box_key=BoxKey(),
        entropy=bytes,
        now=0.0,
    )
    network.states["org-02"] = state
    network.queue = [item for item in network.queue if getattr(item[1], "issuer", "") != "org-02"]
    network.perform("org-02", out)
    network.run()
    network.tick()
    assert decrypted(network) == 0
    failure = network.failure("org-00")
    assert failure is not None
    assert failure.error.code is ErrorCode.ROSTER_MISMATCH
    assert not any(network.count(org, events.StartUpload) for org in network.offer.parties)


def test_a_coordinator_with_two_rosters_is_seen_before_anything_leaves(make_network: Make) -> None:
    def forge(to: str, by: str, message: Any) -> Any:
        if message.KIND == "secagg.roster" and to == "org-03":
            return replace(message, members=message.members[1:])
        return message

    network = make_network(4, forge=forge).start().run()
    network.tick()
    network.run()
    assert decrypted(network) == 0
    assert not any(network.count(org, events.StartUpload) for org in network.offer.parties)


def test_a_copied_commitment_is_refused_before_upload(make_network: Make) -> None:
    def forge(to: str, by: str, message: Any) -> Any:
        if message.KIND == "secagg.commitment" and by == "org-02":
            from_first = common.Commitment.from_json(message.to_json())
            return replace(from_first, upload=hashlib.sha256(b"upload org-00").hexdigest())
        return message

    network = make_network(3, forge=forge).start().run()
    failure = network.failure("org-00")
    assert failure is not None
    assert failure.error.code is ErrorCode.CIPHERTEXT_INVALID
    assert not any(network.count(org, events.StartUpload) for org in network.offer.parties)


def test_an_aggregate_of_other_uploads_is_not_decrypted(make_network: Make) -> None:
    network = make_network(3, honest_sum=False).start().run()
    failure = network.failure(BOSS)
    assert failure is not None
    assert failure.error.code is ErrorCode.SUM_MISMATCH
    assert decrypted(network) == 0
    assert network.count(BOSS, events.EraseKey) == 1


def test_a_second_aggregate_is_not_answered(make_network: Make) -> None:
    network = make_network(3).start().run()
    notice = network.states[ADDER].seen.notice
    fresh = make_network(3, lost=lambda to, by, message: kind_of(message) == "secagg.aggregate").start().run()
    state = fresh.states["org-01"]
    assert state.phase == "aggregate"
    first = replace(notice, commitments=state.seen.commitments_digest, roster=state.seen.roster.digest)
    state, out = contributor.step(state, events.AggregatePublished(first), 1.0)
    assert [type(item) for item in out] == [encrypted.StartDigest]
    with pytest.raises(ComityError) as caught:
        contributor.step(state, events.AggregatePublished(replace(first, aggregate=OTHER)), 1.0)
    assert caught.value.code is ErrorCode.SUM_MISMATCH


def test_a_party_that_never_gets_ready_is_left_out(make_network: Make) -> None:
    network = make_network(4, lost=lambda to, by, message: by == "org-03").start()
    network.run()
    network.deliver(ADDER, events.Tick(), 61.0)
    network.run()
    assert decrypted(network) == 1
    assert network.states[BOSS].seen.members == ("org-00", "org-01", "org-02")
    failure = network.failure("org-03")
    assert failure is None or failure.error.code is ErrorCode.TIMEOUT
    assert network.count("org-03", events.StartUpload) == 0


def test_a_party_missing_later_restarts_the_round_under_a_fresh_key(make_network: Make) -> None:
    network = make_network(4, lost=lambda to, by, message: by == "org-03" and kind_of(message) == "secagg.commitment")
    network.start().run()
    network.tick(1e5)
    failure = network.failure(BOSS)
    assert failure is not None
    assert failure.missing == ("org-03",)
    retry = holder.next_offer(network.offer, OTHER, failure.missing)
    assert retry.attempt == 1
    assert retry.parties == ("org-00", "org-01", "org-02")
    again = make_network(4)
    again.offer = retry
    assert decrypted(again.start().run()) == 1
    for bad, code in ((retry.key_id, ErrorCode.INTERNAL), (sha_of("third"), ErrorCode.PARTICIPANTS_TOO_FEW)):
        with pytest.raises(ComityError) as caught:
            holder.next_offer(retry, bad, ("org-00",))
        assert caught.value.code is code


def sha_of(text: str) -> str:
    return common.canonical_digest(text)


@pytest.mark.parametrize(
    ("parties", "values", "works"),
    [
        (("org-00", "org-01", "org-02", "org-03"), "same", True),
        (("org-00", "org-01", "org-02", "org-03"), "other", False),
        (("org-00", "org-01", "org-02"), "same", False),
    ],
)
def test_a_released_update_goes_again_only_to_the_same_roster_with_the_same_integers(
    make_network: Make, parties: tuple[str, ...], values: str, works: bool
) -> None:
    first = make_network(4).start().run()
    releases = {
        org: next(item.release for item in first.outputs[org] if isinstance(item, events.RecordRelease))
        for org in first.offer.parties
    }
    again = make_network(4, previous=releases)
    again.offer = replace(first.offer, attempt=1, key_id=OTHER, parties=parties)
    if values == "other":
        again.values = {"org-01": sha_of("another update")}
    again.start().run()
    again.tick()
    assert decrypted(again) == int(works)
    forgetful = make_network(4, values=again.values)
    forgetful.offer = again.offer
    assert decrypted(forgetful.start().run()) == 1, "without the journal's record the weak variant goes along"
    if not works:
        assert again.failure("org-01").error.code is ErrorCode.ORDER_REPLAYED
        assert not any(again.count(org, events.StartUpload) for org in parties)


def test_strangers_and_other_sessions_are_refused(make_network: Make) -> None:
    network = make_network(3).start()
    state = network.states["org-00"]
    ready = state.seen.get(messages.Ready, "org-00")
    for issuer, message, code in (
        ("org-09", ready, ErrorCode.FORBIDDEN),
        ("org-01", replace(ready, session=OTHER, place=OTHER), ErrorCode.ROSTER_MISMATCH),
        ("org-00", replace(ready, box_key=bytes(1216)), ErrorCode.CONFLICT),
        ("org-01", network.offer, ErrorCode.FORBIDDEN),
    ):
        with pytest.raises(ComityError) as caught:
            contributor.step(state, events.Received(issuer, message), 1.0)
        assert caught.value.code is code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"order_digest": OTHER}, ErrorCode.ROSTER_MISMATCH),
        ({"chunks": 3}, ErrorCode.ROSTER_MISMATCH),
        ({"me": "org-09"}, ErrorCode.FORBIDDEN),
        ({"used_keys": ()}, None),
        ({"used_keys": "own"}, ErrorCode.ORDER_REPLAYED),
    ],
)
def test_an_offer_is_judged_before_it_is_taken_up(make_network: Make, change: dict[str, Any], code: Any) -> None:
    offer = make_network(3).offer
    given_: dict[str, Any] = {"order_digest": offer.order_digest, "chunks": offer.chunks, **change}
    if given_.get("used_keys") == "own":
        given_["used_keys"] = {offer.key_id}
    me = given_.pop("me", "org-01")
    if code is None:
        contributor.start(me, offer, box_key=BoxKey(), entropy=bytes, now=0.0, **given_)
        return
    with pytest.raises(ComityError) as caught:
        contributor.start(me, offer, box_key=BoxKey(), entropy=bytes, now=0.0, **given_)
    assert caught.value.code is code


def test_an_upload_that_was_not_committed_to_is_not_added(make_network: Make) -> None:
    network = make_network(3, lost=lambda to, by, message: kind_of(message) == "upload").start().run()
    size = network.offer.upload_bytes
    for upload, code in (
        (events.UploadStored("org-01", OTHER, size), ErrorCode.PAYLOAD_DIGEST),
        (events.UploadStored("org-09", OTHER, size), ErrorCode.FORBIDDEN),
    ):
        network.deliver(ADDER, upload)
        assert network.refused[-1].code is code
    assert network.count(ADDER, events.StartAdd) == 0


def test_a_failed_job_and_an_abort_end_everything(make_network: Make) -> None:
    network = make_network(3).start()
    network.deliver("org-01", events.WorkFailed(ComityError(ErrorCode.WORKER_DIED)))
    network.run()
    assert {network.states[org].phase for org in network.states} == {"failed"}
    assert network.failure(BOSS).missing == ("org-01",)
    assert network.failure("org-00").error.code is ErrorCode.WORKER_DIED
