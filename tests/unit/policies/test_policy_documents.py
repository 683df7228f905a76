"""Signed documents: one spelling, strict reading, no document that breaks a rule."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.documents import Agreement, OrderHeader, Proposal, Receipt, ReplyHeader
from comity_policies.terms import Terms


def _at(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    place: Any = changed
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return changed


def test_documents_come_back_the_same(world: Any) -> None:
    proposal = world.proposal()
    agreement = world.agreement(proposal)
    receipt = Receipt.from_json(world.receipt("hospital-a", agreement).body)
    for document in (proposal, agreement, receipt):
        again = type(document).from_json(document.to_json())
        assert again == document
        assert again.digest == document.digest
    with pytest.raises(FrozenInstanceError):
        proposal.title = "other"


def test_order_of_sets_does_not_matter(world: Any) -> None:
    assert world.proposal(required=("hospital-b", "hospital-a")).digest == world.proposal().digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unknown", 1),
        ("revision", 0),
        ("revision", True),
        ("revision", "1"),
        ("consortium", "Hospitals"),
        ("purpose", "spam"),
        ("title", "two\nlines"),
        ("title", "x" * 201),
        ("steps", []),
        ("steps", {}),
        ("steps/0/lead", "hospital-c"),
        ("steps/0/lead", "coordinator"),
        ("steps/0/kind", "shell"),
        ("steps/0/rounds", 0),
        ("steps/0/run_config", {"lr": 0.1}),
        ("steps/0/run_config", {"lr": ["x"]}),
        ("steps/0/run_config", {f"k{i}": 1 for i in range(129)}),
        ("steps/0/opened_by", []),
        ("steps/0/opened_by", None),
        ("steps/0/opened_by", ["hospital-a"]),  # the lead, which opens anyway
        ("steps/0/opened_by", ["hospital-c"]),  # an optional one, which could stay out
        ("steps/0/opened_by", ["hospital-x"]),
        ("steps/0/app/digest", "5F" * 32),
        ("steps/0/app/size_bytes", 1 << 40),
        ("required", []),
        ("required", ["hospital-b", "hospital-a"]),
        ("required", ["hospital-a", "hospital-a"]),
        ("optional", ["hospital-b", "hospital-c"]),
        ("minimum", 4),
        ("minimum", 0),
        ("datasets/0/org", "hospital-x"),
        ("datasets/0/columns", ["b", "a"]),
        ("datasets/0/columns", ["a", "a"]),
        ("datasets/0/columns", []),
        ("terms", {"clip_norm": "1"}),
        ("terms", {"nonsense": 1}),
        ("deadline", "tomorrow"),
        ("uses", 0),
        ("start", "never"),
        ("proposal_id", "../x"),
        ("proposer", None),
    ],
)
def test_odd_proposals_are_refused(world: Any, path: str, value: Any) -> None:
    with pytest.raises(ComityError) as caught:
        Proposal.from_json(_at(world.proposal().to_json(), path, value))
    assert caught.value.code == ErrorCode.MALFORMED


def test_who_opens_sums_is_named_beside_the_lead_or_not_at_all(world: Any) -> None:
    alone = world.proposal()
    assert "opened_by" not in alone.steps[0].to_json(), "older proposals keep their bytes"
    assert alone.steps[0].openers == ("hospital-a",)
    both = Proposal.from_json(_at(alone.to_json(), "steps/0/opened_by", ["hospital-b"]))
    assert both.steps[0].openers == ("hospital-a", "hospital-b")
    assert both.digest != alone.digest


def test_missing_fields_are_refused(world: Any) -> None:
    whole = world.proposal().to_json()
    for name in whole:
        with pytest.raises(ComityError):
            Proposal.from_json({key: value for key, value in whole.items() if key != name})


@pytest.mark.parametrize("value", [None, [], "x", 1, {}])
def test_other_types_are_refused(value: Any) -> None:
    for cls in (Proposal, Agreement, OrderHeader, ReplyHeader, Receipt):
        with pytest.raises(ComityError) as caught:
            cls.from_json(value)
        assert caught.value.code == ErrorCode.MALFORMED


@pytest.mark.parametrize(
    "changes",
    [
        {"parties": ("hospital-a",)},
        {"parties": ("hospital-a", "hospital-b", "hospital-d")},
        {"consortium": "others"},
        {"terms": Terms.parse({"rounds": 2})},
        {"terms": Terms.parse({"rounds": 3, "aggregation": "lead-key"})},
    ],
)
def test_unsound_agreements_are_refused(world: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ComityError) as caught:
        replace(world.agreement(world.proposal()), **changes)
    assert caught.value.code == ErrorCode.AGREEMENT_INVALID


def test_agreement_needs_the_minimum(world: Any) -> None:
    agreement = world.agreement(world.proposal(minimum=3))
    with pytest.raises(ComityError, match="minimum"):
        replace(agreement, parties=("hospital-a", "hospital-b"))


def _order() -> OrderHeader:
    return OrderHeader(
        agreement="0a" * 32,
        run="run-1",
        step="fit",
        round=1,
        seq=1,
        message_type="train",
        lead="hospital-a",
        receivers=("hospital-b",),
        payload={"digest": "0b" * 32, "size": 10, "boxes": {}},
        content_digest="0c" * 32,
        reply_by="2030-01-01T00:00:00Z",
    )


def test_orders(world: Any) -> None:
    order = _order()
    assert OrderHeader.from_json(order.to_json()) == order
    for changes in ({"receivers": ()}, {"round": -1}, {"content_digest": "x"}, {"payload": {"x": "y" * 300_000}}):
        with pytest.raises(ComityError):
            replace(order, **changes)


def test_replies_are_results_or_errors() -> None:
    base = {"agreement": "0a" * 32, "run": "run-1", "step": "fit", "order": "0b" * 32, "seq": 1}
    error = {"code": "POLICY_DENIED", "detail": "no", "facts": {}}
    refused = ReplyHeader(**base, outcome="refused", error=error, payload=None, content_digest=None)
    assert ReplyHeader.from_json(refused.to_json()) == refused
    done = ReplyHeader(**base, outcome="result", error=None, payload={"digest": "x"}, content_digest="0c" * 32)
    assert ReplyHeader.from_json(done.to_json()) == done
    for changes in (
        {"payload": None},
        {"error": error},
        {"outcome": "refused"},
        {"content_digest": None},
        {"outcome": "fine"},
    ):
        with pytest.raises(ComityError):
            replace(done, **changes)
    stranger = replace(refused, error={"code": "ROOT_SHELL", "detail": "x" * 9000})
    assert stranger.error is not None
    assert stranger.error["code"] == "INTERNAL"
    assert len(stranger.error["detail"]) == 500


def test_receipts_state_no_measured_numbers(world: Any) -> None:
    receipt = Receipt.from_json(world.receipt("hospital-a", world.agreement(world.proposal())).body)
    changed: list[dict[str, Any]] = [
        {"predicates": {"cohort": 180}},
        {"grants": {"rounds": -1}},
        {"result": None},
        {"outcome": "refused"},
        {"egress_bytes": -1},
        {"predicates": {f"p{i}": True for i in range(65)}},
    ]
    for changes in changed:
        with pytest.raises(ComityError):
            replace(receipt, **changes)
    refused = replace(receipt, outcome="refused", result=None, code="POLICY_DENIED")
    assert Receipt.from_json(refused.to_json()) == refused
