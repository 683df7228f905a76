"""The next charter as it follows from who has enrolled: no clock, no I/O.

Rules (negotiation.md section 6)
1. Before genesis the draft is version 1 and names every enrolled organisation; all of them sign it, and there are two
   at least: nobody founds a consortium alone.
2. Later the draft is the charter in force with the enrolled organisations as its members: newcomers come in, revoked
   ones go. Members of the charter in force sign it, under the keys that it pins.
3. `verify_genesis` and `verify_successor` have the last word; this module only decides when to ask them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.charter import Charter, Member, QuorumRule, changes
from comity_policies.terms import Terms

FOUNDERS_MIN = 2
MAX_CHECKPOINT_AGE_S = 600

# What is ordinary needs two thirds; what is not named here needs all.
DEFAULT_QUORUM = {
    "admit-member": QuorumRule("fraction", 2, 3),
    "suspend-member": QuorumRule("fraction", 2, 3),
    "rotate-key": QuorumRule("fraction", 2, 3),
}


def draft(
    in_force: Charter | None, members: Iterable[Member], *, consortium: str, log_name: str, log_key: bytes
) -> Charter | None:
    """Return the next charter, or None if nothing is to be decided."""
    named = tuple(members)
    if not named:
        return None
    if in_force is None:
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
        )
    if {member.org: member for member in named} == {member.org: member for member in in_force.members}:
        return None
    return Charter(
        version=in_force.version + 1,
        consortium=in_force.consortium,
        previous=in_force.digest,
        members=named,
        log_name=in_force.log_name,
        log_key=in_force.log_key,
        quorum=in_force.quorum,
        max_checkpoint_age_s=in_force.max_checkpoint_age_s,
        defaults=in_force.defaults,
    )


def judges(in_force: Charter | None, next_charter: Charter) -> tuple[str, ...]:
    """Return who may sign `next_charter`."""
    return (in_force or next_charter).organisations


def needed(in_force: Charter | None, next_charter: Charter) -> int:
    """Return how many of the judges must sign. Raises `ILLEGAL_EVENT` for too few founders."""
    if in_force is None:
        if len(next_charter.members) < FOUNDERS_MIN:
            raise ComityError(ErrorCode.ILLEGAL_EVENT, "a consortium has two founders at least")
        return len(next_charter.members)
    count = len(in_force.members)
    rules = [in_force.quorum.get(kind, QuorumRule("all")) for kind in changes(in_force, next_charter)]
    return max(rule.needed(count) for rule in rules)
