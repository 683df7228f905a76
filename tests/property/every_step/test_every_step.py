"""Every step of every profile, with a party that falls silent there or says something wrong: what the round comes to.

`TABLE` has a row for each profile and step (secure-aggregation.md section 4) and a column for each fault. A cell says
which of four ends the round has to have, for the parties' numbers at the head of the row:

    ALL      the exact sum of everybody, that party among them
    REST     the exact sum of the others
    NAMED    no sum, and the party's name
    UNNAMED  no sum and no name: at this step nobody can tell the party's lie from another's

The victim is neither the lead nor the first or last of the roster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from comity_crypto.secagg.frame import events

VICTIM, OTHER = "org-01", "e" * 64
ALL, REST, NAMED, UNNAMED = "ALL", "REST", "NAMED", "UNNAMED"
UPLOAD = "upload"

# (profile, n, threshold): {step: (its party falls silent from there on, its party says it wrong)}
TABLE: dict[tuple[str, int, int], dict[str, tuple[str, str]]] = {
    ("lead-key", 4, 0): {
        "secagg.ready": (REST, NAMED),
        "secagg.roster-signature": (NAMED, NAMED),
        "secagg.mask-seed": (NAMED, NAMED),
        "secagg.commitment": (NAMED, NAMED),
        "secagg.commitments-signature": (NAMED, NAMED),
        UPLOAD: (NAMED, NAMED),
        "secagg.linear-digest": (NAMED, UNNAMED),
    },
    ("threshold", 4, 3): {
        "secagg.ready": (REST, NAMED),
        "secagg.roster-signature": (NAMED, NAMED),
        "secagg.mask-seed": (NAMED, NAMED),
        "secagg.commitment": (NAMED, NAMED),
        "secagg.commitments-signature": (NAMED, NAMED),
        UPLOAD: (NAMED, NAMED),
        "secagg.linear-digest": (NAMED, UNNAMED),
        "secagg.checked": (ALL, ALL),
        "secagg.share-ready": (ALL, ALL),
    },
    ("threshold", 4, 4): {
        "secagg.checked": (NAMED, NAMED),
        "secagg.share-ready": (NAMED, UNNAMED),
    },
    ("masked", 4, 0): {
        "secagg.masked.ready": (REST, NAMED),
        "secagg.roster-signature": (NAMED, NAMED),
        "secagg.masked.keys": (NAMED, NAMED),
        "secagg.commitment": (NAMED, NAMED),
        "secagg.commitments-signature": (NAMED, NAMED),
        UPLOAD: (REST, REST),
        "secagg.masked.notice-signature": (ALL, ALL),
        "secagg.masked.reveal": (ALL, ALL),
    },
    ("masked", 3, 0): {
        "secagg.masked.ready": (NAMED, NAMED),
        UPLOAD: (NAMED, NAMED),
        "secagg.masked.notice-signature": (NAMED, NAMED),
        "secagg.masked.reveal": (NAMED, NAMED),
    },
}
CELLS = [
    pytest.param(*row, step, fault, ends[place], id=f"{row[0]}-{row[1]}-{step.removeprefix('secagg.')}-{fault}")
    for row, steps in TABLE.items()
    for step, ends in steps.items()
    for place, fault in enumerate(("silent", "wrong"))
]


def kind_of(message: Any) -> str:
    return UPLOAD if isinstance(message, events.StartUpload) else str(message.KIND)


def by(source: str) -> str:
    return source.removesuffix("/key")


def silent_from(step: str) -> Callable[[str, str, Any], bool]:
    """Lose what the victim says at a step, and all that it says afterwards."""
    over: list[bool] = []

    def lost(target: str, source: str, message: Any) -> bool:
        mine = by(source) == VICTIM
        over.extend([True] * (mine and kind_of(message) == step))
        return mine and bool(over)

    return lost


def wrong_at(step: str) -> Callable[[str, str, Any], Any]:
    """Change what the victim says at a step, for everybody alike."""

    def forge(target: str, source: str, message: Any) -> Any:
        return changed(message) if by(source) == VICTIM and kind_of(message) == step else message

    return forge


def changed(message: Any) -> Any:
    """Return a message of the right form with other content: the last field that it has beside the session."""
    name = [each.name for each in fields(message) if each.name not in ("session", "roster", "place")][-1:]
    field = {"secagg.masked.ready": "order_digest", "secagg.ready": "order_digest"}.get(
        message.KIND, *name or ["roster"]
    )
    value = getattr(message, field)
    if isinstance(value, str):
        value = OTHER
    elif isinstance(value, bytes):
        value = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, int):
        value += 1
    elif isinstance(value[0], int):
        value = (value[0] ^ 1, *value[1:])
    else:
        value = tuple((org, OTHER if isinstance(each, str) else bytes(len(each))) for org, each in value)
    return replace(message, **{field: value})


def wrong_upload(network: Any) -> None:
    """Have the victim's file arrive with other bytes than it committed to; it is the only one that it sends."""
    perform, name = network.perform, hashlib.sha256(b"other bytes").hexdigest()

    def other(me: str, out: list[Any]) -> None:
        for each in out:
            swap = me == VICTIM and isinstance(each, events.StartUpload)
            perform(me, [replace(each, digest=name)] if swap else [each])

    network.perform = other


def end_of(network: Any, profile: str) -> str:
    lead = "(lead)" if profile == "threshold" else "(boss)"
    state, failure = network.states[lead], network.failure(lead)
    if state.phase == "done":
        members = getattr(state.seen, "survivors", state.seen.members)
        if profile == "masked":
            assert np.array_equal(network.opened, network.sum_of(members)), "the sum of exactly those"
        assert set(members) >= set(network.offer.parties) - {VICTIM}
        return ALL if VICTIM in members else REST
    assert failure is not None
    named = told(failure)
    assert named <= {VICTIM}, failure.error
    return NAMED if named else UNNAMED


def told(failure: events.Failed) -> set[str]:
    """Return whom a failure names, to whoever reads no more than its error."""
    error = failure.error
    accused = "" if error.detail == "a party gave up" else error.facts.get("org", "")
    return set(str(error.facts.get("missing", accused)).split(", ")) - {""}


@pytest.mark.parametrize(("profile", "n", "threshold", "step", "fault", "end"), CELLS)
def test_a_round_comes_to_what_the_table_says(
    make_sum: Callable[..., Any], profile: str, n: int, threshold: int, step: str, fault: str, end: str
) -> None:
    hooks: dict[str, Any] = {"lost": silent_from(step)} if fault == "silent" else {"forge": wrong_at(step)}
    if fault == "wrong" and step == "secagg.share-ready":
        hooks = {"wrong": VICTIM}
    if fault == "wrong" and step == UPLOAD:
        hooks = {"tampered": wrong_upload}
    assert end_of(make_sum(profile, n, threshold, **hooks), profile) == end


def test_the_table_has_every_step() -> None:
    """Every message of a party is a row of its profile, where the most can be lost: no step is left out."""
    from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript
    from comity_crypto.secagg.masked.transcript import MaskedTranscript

    for profile, spoken in (
        ("lead-key", EncryptedTranscript.PARTY_KINDS),
        ("threshold", EncryptedTranscript.PARTY_KINDS),
        ("masked", MaskedTranscript.PARTY_KINDS),
    ):
        kinds = {each.KIND for each in spoken} - {"secagg.abort"}
        rows = {step for row, steps in TABLE.items() if row[0] == profile for step in steps}
        assert kinds | {UPLOAD} <= rows
