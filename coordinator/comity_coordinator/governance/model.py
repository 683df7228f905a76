"""The genesis charter as it follows from who has enrolled, and what a later one may name: no clock, no I/O.

Rules (negotiation.md section 6)
1. Before genesis the draft is version 1 and names every enrolled organisation; all of them sign it, and there are two
   at least: nobody founds a consortium alone.
2. Every later charter is a member's proposal (`ballots.py`); the coordinator drafts none.
3. `verify_genesis` and `verify_successor` have the last word; this module only decides when to ask them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.charter import Charter, Member, QuorumRule, WitnessRule
from comity_policies.charter_witnesses import WITNESSES_MAX
from comity_policies.terms import Terms

FOUNDERS_MIN = 2
MAX_CHECKPOINT_AGE_S = 600

# What is ordinary needs two thirds; what is not named here needs all.
DEFAULT_QUORUM = {
    "admit-member": QuorumRule("fraction", 2, 3),
    "suspend-member": QuorumRule("fraction", 2, 3),
    "rotate-key": QuorumRule("fraction", 2, 3),
}


def genesis_draft(members: Iterable[Member], *, consortium: str, log_name: str, log_key: bytes) -> Charter | None:
    """Return the genesis charter of those who have enrolled, None while nobody has."""
    named = tuple(members)
    if not named:
        return None
    return Charter(
        version=1,
        consortium=consortium,
        previous=None,
        members=named,
        log_name=log_name,
        log_key=base64.b64encode(log_key).decode(),
        quorum=DEFAULT_QUORUM,
        max_checkpoint_age_s=MAX_CHECKPOINT_AGE_S,
        defaults=Terms(),
        # Founders watch each other's coordinator: the first ones by name, because any sixteen are as good as others.
        witnesses=WitnessRule.of(sorted(member.org for member in named)[:WITNESSES_MAX]),
    )


def check_founders(draft: Charter) -> None:
    """Raises `ILLEGAL_EVENT` for too few founders."""
    if len(draft.members) < FOUNDERS_MIN:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "a consortium has two founders at least")


def check_newcomers(in_force: Charter, following: Charter, enrolled: Iterable[Member]) -> None:
    """Refuse to admit who has not enrolled under these keys: its node could neither sign nor connect.

    Raises:
        ComityError: `NOT_FOUND`, `CONFLICT`.
    """
    known = {member.org: member for member in enrolled}
    for member in following.members:
        if member.org in in_force.organisations:
            continue
        if member.org not in known:
            raise ComityError(ErrorCode.NOT_FOUND, "this organisation has not enrolled", org=member.org)
        if known[member.org].keys != member.keys:
            raise ComityError(ErrorCode.CONFLICT, "it has enrolled with other keys", org=member.org)
