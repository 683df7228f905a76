"""What a lead says about a run's end, read strictly: it goes to the ledger for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from comity.wire import ids
from comity.wire.canonical import INTEGER_MAX
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.inbound import count, text
from comity_coordinator.training.model import ENDINGS, Finished, RunState
from comity_crypto.encoding import fields
from comity_policies.orders import ROUNDS_MAX

# Train and evaluate of each round, each asked again once.
MANIFEST_ROWS_MAX = 4 * ROUNDS_MAX
_RESULT = frozenset({"digest", "size"})
_ROW = frozenset({"round", "participants", "dropped"})
_DROPPED = frozenset({"org", "code"})


def finished_event(org: str, body: dict[str, Any], parties: Sequence[str], digest: str) -> Finished:
    """Return the event of a `run-finished` statement's body; `digest` is that of the statement.

    Raises:
        ComityError: `MALFORMED` if a part has not its form or the manifest names strangers.
    """
    state = text(body["state"], 16, "a run's state")
    if state not in ENDINGS:
        raise ComityError(ErrorCode.MALFORMED, "a run ends COMPLETED, FAILED, DIVERGED or CANCELLED")
    code, detail = _error(body["error"], completed=state == RunState.COMPLETED)
    _check_result(body["result"])
    taken_part = _participants(body["manifest"], parties)
    orders = body.get("orders")
    expected = taken_part if orders is None else _orders(orders, parties)
    return Finished(
        org=org,
        state=RunState(state),
        code=code,
        detail=detail,
        rounds=count(body["rounds"], ROUNDS_MAX, "rounds"),
        digest=digest,
        expected=expected,
        exact=orders is not None,
    )


def _error(value: Any, *, completed: bool) -> tuple[str, str]:
    if completed:
        if value is not None:
            raise ComityError(ErrorCode.MALFORMED, "a completed run has no error")
        return "", ""
    if value is None:
        return str(ErrorCode.RUN_FAILED), ""
    error = ComityError.from_json(value)
    return str(error.code), error.detail


def _check_result(value: Any) -> None:
    if value is None:
        return
    fields(value, _RESULT, what="a result")
    ids.sha256_hex(text(value["digest"], 64, "a digest"))
    count(value["size"], INTEGER_MAX, "a size")


def _participants(manifest: Any, parties: Sequence[str]) -> dict[str, int]:
    """Return in how many rows of the manifest each party took part."""
    if not isinstance(manifest, list) or len(manifest) > MANIFEST_ROWS_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"a manifest is a list of at most {MANIFEST_ROWS_MAX} rows")
    seen: Counter[str] = Counter()
    for row in manifest:
        fields(row, _ROW, what="a manifest's row")
        count(row["round"], ROUNDS_MAX, "a round")
        if not isinstance(row["participants"], list) or not isinstance(row["dropped"], list):
            raise ComityError(ErrorCode.MALFORMED, "participants and dropped are lists")
        for each in row["dropped"]:
            fields(each, _DROPPED, what="who was dropped")
            text(each["code"], 64, "a code")
        named = [*row["participants"], *(each["org"] for each in row["dropped"])]
        if any(org not in parties for org in named) or len(set(named)) != len(named):
            raise ComityError(ErrorCode.MALFORMED, "a manifest names parties of the run, each once a row")
        seen.update(row["participants"])
    return dict(seen)


def _orders(value: Any, parties: Sequence[str]) -> dict[str, int]:
    if not isinstance(value, dict) or not set(value) <= set(parties):
        raise ComityError(ErrorCode.MALFORMED, "orders counts the orders to each party")
    return {org: count(each, INTEGER_MAX, "a count of orders") for org, each in sorted(value.items())}
