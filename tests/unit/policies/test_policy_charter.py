"""The charter: genesis by name, succession by quorum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.charter import (
    Adopted,
    Charter,
    QuorumRule,
    changes,
    genesis_name,
    matches_genesis,
    verify_genesis,
    verify_successor,
)

ALL = ("hospital-a", "hospital-b", "hospital-c")
END = Adopted("coordinator.example/hospitals", 7, "0e" * 32)


def _next(world: Any, **values: Any) -> Charter:
    return replace(world.charter, version=2, previous=world.charter.digest, **values)


def test_charter_comes_back_the_same(world: Any) -> None:
    again = Charter.from_json(world.charter.to_json())
    assert again == world.charter
    assert again.digest == world.charter.digest
    assert again.organisations == ALL


def test_genesis_name(world: Any) -> None:
    name = genesis_name(world.charter)
    assert [len(group) for group in name.split("-")] == [4, 4, 4, 4, 5, 5]
    assert matches_genesis(world.charter, name)
    assert matches_genesis(world.charter, name.upper().replace("-", " "))
    assert matches_genesis(world.charter, world.charter.digest)
    assert matches_genesis(world.charter, name.replace("-", "")[:24])
    plain = name.replace("-", "")
    wrong = ("b" if plain[0] == "a" else "a") + plain[1:]
    for typed in ("", plain[:23], wrong, "0" * 64, plain + "1", "é" * 26):
        assert not matches_genesis(world.charter, typed), typed


def test_genesis_is_signed_by_every_founder(world: Any) -> None:
    digest = world.charter.digest
    verify_genesis(world.charter, world.certificate("charter", digest))
    for bad in (
        world.certificate("charter", digest, ALL[:2]),
        world.certificate("agreement", digest),
        world.certificate("charter", "00" * 32),
        replace(world.certificate("charter", digest, ALL[:2]), signers=ALL),
        world.certificate("charter", digest, (*ALL, "hospital-d")),
    ):
        with pytest.raises(ComityError) as caught:
            verify_genesis(world.charter, bad)
        assert caught.value.code == ErrorCode.QUORUM_MISSING


def test_two_of_three_admit_a_member(world: Any) -> None:
    successor = _next(world, members=(*world.charter.members, world.member("hospital-d")))
    assert changes(world.charter, successor) == ("admit-member",)
    verify_successor(world.charter, successor, world.certificate("charter", successor.digest, ALL[:2]))
    for signers in (ALL[:1], ("hospital-a", "hospital-d")):
        with pytest.raises(ComityError, match="QUORUM"):
            verify_successor(world.charter, successor, world.certificate("charter", successor.digest, signers))


def test_what_has_no_rule_needs_everyone(world: Any) -> None:
    successor = _next(world, members=world.charter.members[:2])
    assert changes(world.charter, successor) == ("suspend-member",)
    with pytest.raises(ComityError, match="QUORUM"):
        verify_successor(world.charter, successor, world.certificate("charter", successor.digest, ALL[:2]))
    verify_successor(world.charter, successor, world.certificate("charter", successor.digest))


def test_the_strictest_kind_holds(world: Any) -> None:
    """Admitting may not smuggle in a change of the constitution."""
    successor = _next(
        world,
        members=(*world.charter.members, world.member("hospital-d")),
        quorum={"suspend-member": QuorumRule("count", 1)},
    )
    assert set(changes(world.charter, successor)) == {"admit-member", "change-charter"}
    with pytest.raises(ComityError, match="QUORUM"):
        verify_successor(world.charter, successor, world.certificate("charter", successor.digest, ALL[:2]))


def test_kinds_of_change(world: Any) -> None:
    rotated = replace(world.charter.members[0], keys=world.keys["hospital-d"].public)
    renamed = replace(world.charter.members[0], owner="somebody else")
    assert changes(world.charter, _next(world, members=(rotated, *world.charter.members[1:]))) == ("rotate-key",)
    assert changes(world.charter, _next(world, members=(renamed, *world.charter.members[1:]))) == ("change-charter",)
    assert changes(world.charter, _next(world, log_name="other.example/log", adopted=END)) == ("change-coordinator",)


@pytest.mark.parametrize(
    "values", [{}, {"consortium": "others"}, {"version": 3}, {"previous": "00" * 32, "log_name": "other.example"}]
)
def test_illegal_successors(world: Any, values: dict[str, Any]) -> None:
    successor = replace(_next(world), **values)
    with pytest.raises(ComityError) as caught:
        verify_successor(world.charter, successor, world.certificate("charter", successor.digest))
    assert caught.value.code == ErrorCode.CHARTER_INVALID


@pytest.mark.parametrize(
    ("rule", "members", "needed"),
    [
        (QuorumRule("all"), 5, 5),
        (QuorumRule("count", 1), 5, 3),
        (QuorumRule("count", 9), 5, 5),
        (QuorumRule("fraction", 2, 3), 5, 4),
        (QuorumRule("fraction", 1, 2), 4, 3),
        (QuorumRule("fraction", 1, 100), 1, 1),
    ],
)
def test_never_half_or_less(rule: QuorumRule, members: int, needed: int) -> None:
    assert rule.needed(members) == needed
    assert rule.needed(members) > members / 2


def test_members_share_no_key(world: Any) -> None:
    twin = replace(world.member("hospital-d"), keys=world.keys["hospital-a"].public)
    for bad in (
        {"members": (*world.charter.members, twin)},
        {"members": ()},
        {"log_key": "AAAA"},
        {"quorum": {"anything": QuorumRule("all")}},
        {"max_checkpoint_age_s": 0},
        {"previous": "00" * 32},
        {"log_name": "two words"},
    ):
        with pytest.raises(ComityError):
            replace(world.charter, **bad)
    for odd in (("most", 0, 0), ("all", 1, 0), ("fraction", 3, 2), ("fraction", 0, 2), ("count", 0, 0)):
        with pytest.raises(ComityError):
            QuorumRule(*odd)
