"""Attacks on weak variants of masked sums: each works there, and fails against ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events as common
from comity_crypto.secagg.frame.replies import unshifted
from comity_crypto.secagg.masked import dealing as masked_dealing
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked import events as masked_events
from comity_crypto.secagg.masked import shamir
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.keys import drawn_seed, pair_key
from comity_crypto.secagg.masked.messages import MaskedKeys
from comity_crypto.secagg.masked.words import CONTENT_START, Mask

ADDER, BOSS = "(adder)", "(boss)"
VICTIM = "org-02"
Make = Callable[..., Any]


def levels(words: np.ndarray, contributors: int) -> np.ndarray:
    """What words without masks say; refused where nobody could have reached it."""
    return unshifted(words.astype(np.int64), contributors, masked_encoder.LEVELS)


def halted(make_network: Make) -> Any:
    """A session in which every upload is in the coordinator's hands, and nobody stands on a list yet."""
    network = make_network(4, lost=lambda to, by, message: getattr(message, "KIND", "") == "secagg.masked.notice")
    return network.start().run()


def upload_of(network: Any, org: str) -> np.ndarray:
    words: np.ndarray = network.blobs[network.states[ADDER].seen.commitments[org].upload]
    return words


def isolate(network: Any, root: bytes, seed: bytes) -> np.ndarray:
    """What coordinator and lead make of a victim's upload with both of its secrets."""
    seen = network.states[BOSS].seen
    place, key = seen.place, pair_key(root)
    masks = [
        Mask(False, masked_dealing.own_stream(place, seed, VICTIM)),
        Mask(False, masked_dealing.round_stream(place, network.secret.secret, VICTIM)),
    ]
    for org in seen.members:
        first, second = min(org, VICTIM), max(org, VICTIM)
        if org == VICTIM:
            continue
        if first == VICTIM:
            pair = drawn_seed(place, root, first, second)
        else:
            box = dict(seen.said(MaskedKeys, org).seeds)[VICTIM]
            pair = key.open(box, place.info("pair", first, second), 32)
        masks.append(Mask(first != VICTIM, masked_dealing.pair_stream(place, pair, first, second)))
    words = masked_words.apply(upload_of(network, VICTIM).copy(), masks)
    return levels(words[CONTENT_START:], 1)


def test_who_reveals_both_kinds_of_shares_gives_the_victims_update_away(make_network: Make) -> None:
    """The weak variant: holders answer two lists, one with the victim dropped and one without it."""
    network = halted(make_network)
    others = [org for org in network.offer.parties if org != VICTIM]
    points = {org: place for place, org in enumerate(network.offer.parties, 1)}
    deals = {points[org]: network.states[org].opened.deals[VICTIM] for org in others}
    needed = network.states[BOSS].seen.shares_needed
    root = shamir.combine({place: deal.root for place, deal in deals.items()}, needed)
    seed = shamir.combine({place: deal.seed for place, deal in deals.items()}, needed)
    assert np.array_equal(isolate(network, root, seed), network.values[VICTIM])


def test_against_ours_two_lists_give_one_kind_of_share_of_the_victim(make_network: Make) -> None:
    network = halted(make_network)
    network.lost = lambda to, by, message: False
    (notice,) = network.sent(ADDER, "secagg.masked.notice")
    dropped = replace(notice, dropped=(VICTIM,))
    for org in network.offer.parties:
        # Each is told both, in another order; signatures are passed on to everybody.
        told = (notice, dropped) if org in ("org-00", VICTIM) else (dropped, notice)
        for each in told:
            network.deliver(org, common.AggregatePublished(each))
    network.run()
    kinds: dict[str, int] = {"root": 0, "seed": 0}
    for org in network.offer.parties:
        if network.sent(org, "secagg.masked.reveal") and org != VICTIM:
            kinds["root" if network.states[org].seen.notice.dropped else "seed"] += 1
    needed = network.states[BOSS].seen.shares_needed
    assert min(kinds.values()) < needed
    assert 0 in kinds.values(), "one list at most finds its quorum"
    for org in network.offer.parties:
        assert network.count(org, masked_events.RecordStand) <= 1


def test_a_dropped_partys_late_upload_stays_hidden(make_network: Make) -> None:
    """The reason for the own mask: its root is revealed, and then its upload arrives after all."""
    network = make_network(4, lost=lambda to, by, message: isinstance(message, common.StartUpload) and by == VICTIM)
    network.start().finish()
    assert np.array_equal(network.opened, network.sum_of(["org-00", "org-01", "org-03"]))
    (mask,) = [item for item in network.outputs[VICTIM] if isinstance(item, masked_events.StartMask)]
    late = masked_words.protect(masked_encoder.encode_integers(network.values[VICTIM]).words, mask.tag_key, mask.masks)
    # All but the own mask taken away: what root and round's secret give.
    bare = masked_words.apply(late.copy(), [each.inverse for each in mask.masks[1:]])
    weak = masked_words.apply(bare.copy(), [mask.masks[0].inverse])
    assert np.array_equal(levels(weak[CONTENT_START:], 1), network.values[VICTIM])
    with pytest.raises(ComityError):
        levels(bare[CONTENT_START:], 1)


def test_opening_a_partys_root_does_not_open_the_shares_that_it_was_dealt(make_network: Make) -> None:
    """The weak variant seals deals to the key that follows from the root."""
    network = make_network(4, dies={VICTIM: "StartUpload"}).start()
    root = network.states[VICTIM].secrets.root
    network.finish()
    seen = network.states[BOSS].seen
    box = dict(seen.said(MaskedKeys, "org-00").deals)[VICTIM]
    with pytest.raises(ComityError) as caught:
        pair_key(root).open(box, seen.place.info("deal", "org-00", VICTIM), 132)
    assert caught.value.code is ErrorCode.SEAL_BROKEN


def test_one_stream_for_all_parties_shows_the_lowest_bits_of_the_sum() -> None:
    """Four times one stream has two zero bits; streams that differ have none."""
    rng, size, parties = np.random.default_rng(3), 2_000, 4
    values = np.sum(rng.integers(0, 1 << 20, (parties, size)), axis=0).astype(np.uint32)
    stream = os.urandom(32)
    weak = masked_words.apply(values.copy(), [Mask(True, stream)] * parties)
    ours = masked_words.apply(values.copy(), [Mask(True, os.urandom(32)) for _ in range(parties)])
    assert float(np.mean(weak % 4 == values % 4)) == 1.0
    assert 0.2 < float(np.mean(ours % 4 == values % 4)) < 0.3


def test_the_coordinator_learns_nothing_of_the_sum_from_what_passes_it(make_network: Make) -> None:
    network = make_network(4).start().run()
    total = np.sum([upload_of(network, org) for org in network.offer.parties], axis=0, dtype=np.uint32)
    (opening,) = [item for item in network.outputs[BOSS] if isinstance(item, masked_events.StartOpen)]
    # The weak variant: own masks revealed in the open, and nothing else over the sum.
    own = [mask for mask in opening.masks if mask.key in _own_keys(network)]
    weak = masked_words.apply(total.copy(), [mask for mask in opening.masks if mask not in own])
    masked_words.apply(weak, own)
    assert np.array_equal(levels(weak[CONTENT_START:], 4), network.sum_of(network.offer.parties))
    # Ours: even with all own masks there is the round's.
    ours = masked_words.apply(total.copy(), own)
    with pytest.raises(ComityError):
        levels(ours[CONTENT_START:], 4)


def _own_keys(network: Any) -> set[bytes]:
    masks = (item for org in network.offer.parties for item in network.outputs[org])
    return {item.masks[0].key for item in masks if isinstance(item, masked_events.StartMask)}


def test_a_linear_tag_without_a_secret_lets_a_changed_sum_pass(make_network: Make) -> None:
    """The weak variant: coefficients that the coordinator knows."""
    words = masked_encoder.encode_integers(np.arange(8)).words
    known = os.urandom(32)
    before = masked_words._tags(words, known)
    coefficients = [
        [tag - base for tag, base in zip(masked_words._tags(_with(words, place), known), before, strict=True)]
        for place in (CONTENT_START, CONTENT_START + 1, CONTENT_START + 2)
    ]
    a, b, c = coefficients
    forged = words.astype(object)
    delta = [b[0] * c[1] - b[1] * c[0], c[0] * a[1] - c[1] * a[0], a[0] * b[1] - a[1] * b[0]]
    assert all(sum(d * row[column] for d, row in zip(delta, coefficients, strict=True)) == 0 for column in (0, 1))
    assert any(delta), "a change that both columns miss: known coefficients can be solved for"
    assert forged.size == words.size
    other = os.urandom(32)
    assert masked_words._tags(_with(words, CONTENT_START), other) != masked_words._tags(words, other)


def _with(words: np.ndarray, place: int) -> np.ndarray:
    changed = words.copy()
    changed[place] += np.uint32(1)
    return changed
