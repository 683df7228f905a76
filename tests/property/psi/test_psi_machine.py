"""The two sides of an intersection as pure functions: exact on any sets, in any order of events, against any answer."""

import asyncio
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import NORMALISATIONS, domain, normalised, own_set, scalar
from comity_crypto.psi.matching import own_rows, sorted_places
from comity_crypto.psi.messages import POINT_BYTES, Kind, Message, ascending, points_of
from comity_node.intersections import model
from comity_node.intersections.model import Compare, Compared, Double, Doubled, Fail, Finish, Lead, Lost, Masked, Phase

PLACE = domain("a" * 64, "run-1", "match")
TEXTS = st.text(alphabet="aAbB \u00e9\u0301e", max_size=3)
COLUMNS = st.lists(TEXTS, max_size=12)
NOISE = random.Random(11)


class Side:
    """One organisation with a toy cipher."""

    def __init__(self, cipher, column, secret):
        self.cipher, self.key = cipher, scalar(secret * 32)
        self.own = own_set(column, NORMALISATIONS, PLACE, secret * 32)
        masked = asyncio.run(cipher.mask(self.key, self.own.elements))
        self.order = sorted_places(masked)
        self.points = ascending(points_of(masked))
        self.masked = Message(Kind.MASKED, self.points).to_bytes()

    def again(self, points):
        return asyncio.run(self.cipher.remask(self.key, points))


def _answer(partner, order, mode):
    """The partner's whole answer to COMPARE, from its journal's knowledge on."""
    known = model.Party(masked=partner.own.count)
    plan = model.take(known, model.COMPARE_SEQ, True, order, hashlib.sha256(order).hexdigest())
    assert isinstance(plan, model.Match)
    return model.answer(mode, partner.again(plan.theirs), plan.mine).to_bytes()


def _run(lead_side, partner, mode):
    lead, none = model.step(Lead(mode), Masked(lead_side.masked, own=True))
    assert none is None
    lead, effect = model.step(lead, Masked(partner.masked, own=False))
    assert isinstance(effect, Double)
    lead, effect = model.step(lead, Doubled(ascending(points_of(lead_side.again(effect.points)))))
    assert isinstance(effect, Compare)
    lead, effect = model.step(lead, Compared(_answer(partner, effect.data, mode)))
    assert isinstance(effect, Finish)
    assert lead.phase is Phase.DONE
    return effect


@settings(max_examples=15)
@given(COLUMNS, COLUMNS)
def test_exact_on_any_sets(cipher_class, mine, theirs):
    ours, others = ({normalised(each, NORMALISATIONS) for each in column} - {""} for column in (mine, theirs))
    expected = ours & others
    side, partner = Side(cipher_class(), mine, b"1"), Side(cipher_class(), theirs, b"2")
    counted, named = (_run(side, partner, mode) for mode in (model.CARDINALITY, model.IDS))
    assert (counted.common, counted.places) == (len(expected), None)
    assert named.common == len(expected)
    rows = own_rows(named.places, side.order, side.own)
    assert rows == [row for row, each in enumerate(mine) if normalised(each, NORMALISATIONS) in expected]


@pytest.fixture(scope="module")
def story(cipher_class):
    """Every event of one run, right and wrong, and the states between them."""
    cipher = cipher_class()
    mine, theirs = Side(cipher, ["a", "b", "c"], b"1"), Side(cipher, ["b", "c", "d"], b"2")
    doubled = ascending(points_of(mine.again(theirs.points)))
    order = Message(Kind.COMPARE, mine.points, doubled).to_bytes()
    good = [
        Masked(mine.masked, own=True),
        Masked(theirs.masked, own=False),
        Doubled(doubled),
        Compared(_answer(theirs, order, model.IDS)),
    ]
    stranger = Side(cipher, ["x"], b"3")
    wrong = [
        Masked(stranger.masked, own=True),
        Masked(stranger.masked, own=False),
        Masked(b"", own=False),
        Doubled(stranger.points[:POINT_BYTES]),
        Compared(_answer(theirs, order, model.CARDINALITY)),
        Compared(Message(Kind.MATCHED, mine.points, count=2).to_bytes()),
        Compared(b"CPSI"),
        Lost(ComityError(ErrorCode.EGRESS_DENIED)),
    ]
    return good, wrong


def test_every_event_in_any_order_ends_right_or_not_at_all(story):
    """A thousand shuffles with repeats: what is refused changes nothing, and only the right answer finishes."""
    good, wrong = story
    finished = failed = 0
    for _ in range(1_000):
        events = [*good, *NOISE.choices(good, k=3), *NOISE.choices(wrong[:-1], k=3)]
        NOISE.shuffle(events)
        if NOISE.random() < 0.2:
            events.insert(NOISE.randrange(len(events)), wrong[-1])
        lead = Lead(model.IDS)
        for event in [*events, *good]:
            before = lead
            try:
                lead, effect = model.step(lead, event)
            except ComityError:
                assert lead is before
                continue
            if isinstance(effect, Finish):
                finished += 1
                assert (effect.common, len(effect.places)) == (2, 2)
            failed += isinstance(effect, Fail)
            if before.phase in (Phase.DONE, Phase.FAILED):
                assert effect is None
                assert lead == before
    assert finished > 200
    assert failed > 50


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Message(Kind.COUNT, count=3), ErrorCode.MALFORMED),
        (
            Message(Kind.MATCHED, ascending(b"\x02" + bytes([n]) * 32 for n in range(1, 256)) + b"\x02" + bytes(32)),
            None,
        ),
    ],
    ids=["count-for-rows", "rows-of-nobody"],
)
def test_an_answer_of_another_kind_or_of_nobody_s(story, answer, code):
    lead = _compared_next(story)
    if code is None:
        assert model.step(lead, Compared(answer.to_bytes()))[1].common == 0
        return
    with pytest.raises(ComityError) as caught:
        model.step(lead, Compared(answer.to_bytes()))
    assert caught.value.code is code


@pytest.mark.parametrize("lie", [0, 1, 3])
def test_a_count_that_the_answer_itself_refutes(story, lie):
    good, _ = story
    told = Message(Kind.MATCHED, good[3].data[-256 * POINT_BYTES :], count=lie)
    with pytest.raises(ComityError) as caught:
        model.step(_compared_next(story), Compared(told.to_bytes()))
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_more_in_common_than_there_are(story):
    good, _ = story
    lead = Lead(model.CARDINALITY)
    for event in good[:3]:
        lead, _ = model.step(lead, event)
    with pytest.raises(ComityError) as caught:
        model.step(lead, Compared(Message(Kind.COUNT, count=257).to_bytes()))
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def _compared_next(story):
    lead = Lead(model.IDS)
    for event in story[0][:3]:
        lead, _ = model.step(lead, event)
    return lead


def test_a_party_answers_each_order_once_and_in_its_place(story):
    good, _ = story
    ask = Message(Kind.ASK).to_bytes()
    compare = Message(Kind.COMPARE, *(points_of_event(event) for event in (good[0], good[1]))).to_bytes()
    digest = hashlib.sha256(compare).hexdigest()
    fresh, asked, done = model.Party(), model.Party(masked=256), model.Party(256, digest)
    for party in (fresh, asked, done):
        for partner in (False, True):
            assert model.take(party, model.ASK_SEQ, partner, ask, "") == model.Mask()
    for party in (asked, done):
        assert isinstance(model.take(party, model.COMPARE_SEQ, True, compare, digest), model.Match)
    refused = [
        (fresh, 1, True, compare, digest, ErrorCode.ORDER_MISMATCH),
        (asked, 1, False, compare, digest, ErrorCode.ORDER_MISMATCH),
        (asked, 2, True, compare, digest, ErrorCode.ORDER_MISMATCH),
        (model.Party(masked=288), 1, True, compare, digest, ErrorCode.ORDER_MISMATCH),
        (model.Party(256, "0" * 64), 1, True, compare, digest, ErrorCode.ORDER_REPLAYED),
        (asked, 1, True, ask, digest, ErrorCode.MALFORMED),
        (asked, 0, True, compare, digest, ErrorCode.MALFORMED),
    ]
    for party, seq, partner, data, name, code in refused:
        with pytest.raises(ComityError) as caught:
            model.take(party, seq, partner, data, name)
        assert caught.value.code is code


def points_of_event(event):
    return event.data[-256 * POINT_BYTES :]
