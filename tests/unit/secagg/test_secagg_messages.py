"""Messages of a secure sum: strict reading of strangers' bodies, and boxes that open in one place only."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.canonical import canonical, parse
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.frame import boxes
from comity_crypto.secagg.frame import messages as common
from comity_crypto.secagg.lead_key import messages

H = "a" * 64
OFFER = messages.Offer(
    "agr", "run", "step", 1, 0, "org-a", ("org-a", "org-b", "org-c"), 3, H, H, AGG_Q16.name, AGG_Q16.digest, 7
)
SAMPLES: list[messages.Body] = [
    OFFER,
    messages.Ready(H, H, H, H, bytes(boxes.BOX_KEY_BYTES)),
    common.Roster(H, (("org-a", H), ("org-b", H), ("org-c", H))),
    common.RosterSignature(H, H),
    messages.MaskSeed(H, H, (("org-b", bytes(boxes.SEED_BOX_BYTES)),)),
    common.Commitment(H, H, H, 100),
    common.CommitmentsSignature(H, H, H),
    messages.AggregateNotice(H, H, H, H, 100),
    messages.LinearDigest(H, H, tuple(range(DIGEST_VALUES))),
    common.Abort(H, "TIMEOUT", ""),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda item: item.KIND)
def test_a_message_survives_the_wire_and_nothing_else_does(sample: messages.Body) -> None:
    body = parse(canonical(sample.to_json()))
    assert messages.parse_message(sample.KIND, body) == sample
    assert messages.parse_message(sample.KIND, body).digest == sample.digest
    bad: list[Any] = [None, [], {}, {**body, "more": 1}]
    letters = "A" * (129 if sample is OFFER else 64)
    values = [None, 1.5, True, -1, 1 << 60, [], {}, "../x", letters, ["b", "a"]]
    for field in body:
        bad += [{key: value for key, value in body.items() if key != field}]
        bad += [{**body, field: value} for value in values]
    for value in bad:
        with pytest.raises(ComityError) as caught:
            messages.parse_message(sample.KIND, value)
        assert caught.value.code in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED, ErrorCode.PARTICIPANTS_TOO_FEW)


def test_kinds_are_known_and_digests_differ_by_kind() -> None:
    with pytest.raises(ComityError):
        messages.parse_message("secagg.other", {})
    assert common.RosterSignature(H, H).digest != common.CommitmentsSignature(H, H, H).digest
    assert len({sample.digest for sample in SAMPLES}) == len(SAMPLES)


@pytest.mark.parametrize(
    "changes", [{"parties": ("org-a", "org-b")}, {"minimum": 2}, {"parties": ("org-b", "org-a", "org-c")}]
)
def test_an_offer_is_for_three_sorted_parties_or_more(changes: dict[str, Any]) -> None:
    with pytest.raises(ComityError):
        messages.Offer.from_json({**OFFER.to_json(), **changes})


def test_the_challenge_depends_on_everything_in_the_notice() -> None:
    notice = messages.AggregateNotice(H, H, H, H, 100)
    others = [replace(notice, **{field: "b" * 64}) for field in ("session", "roster", "commitments", "aggregate")]
    assert len({notice.challenge, *(item.challenge for item in others)}) == 5


def test_a_box_opens_only_in_its_place() -> None:
    key, seed = boxes.BoxKey(), os.urandom(32)
    info = OFFER.seed_info(H, "org-a", "org-b")
    box = boxes.seal(key.public, seed, info)
    assert len(key.public) == boxes.BOX_KEY_BYTES
    assert len(box) == boxes.SEED_BOX_BYTES
    assert key.open(box, info) == seed
    places = [
        OFFER.seed_info("b" * 64, "org-a", "org-b"),
        OFFER.seed_info(H, "org-b", "org-a"),
        replace(OFFER, attempt=1).seed_info(H, "org-a", "org-b"),
    ]
    attempts = [(key, box, place) for place in places]
    attempts += [(boxes.BoxKey(), box, info), (key, box[:-1], info), (key, box[:-1] + bytes([box[-1] ^ 1]), info)]
    for opener, data, place in attempts:
        with pytest.raises(ComityError) as caught:
            opener.open(data, place)
        assert caught.value.code is ErrorCode.SEAL_BROKEN
    with pytest.raises(ComityError):
        boxes.seal(key.public[:-1], seed, info)
