"""What a party says when it has dropped what it held of a run: that it is gone, and how much, never what it was.

Rules:
1. A party of the run states it, once a run, after the run was closed, for an agreement that names `retention_s`.
2. Counts by kind, and digests that the ledger has already; no size, name or content.
3. It is the party's word: nobody can see that a copy is gone. What an auditor sees is who has not given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_policies.documents import Agreement

DELETION = "deletion"
KINDS = ("results", "payloads", "events")
COUNT_MAX = 1_000_000_000
DIGESTS_MAX = 16
_FIELDS = frozenset({"agreement", "run", "retention_s", "ended_at", "counts", "digests"})


@dataclass(frozen=True, slots=True)
class Deletion:
    """One run of deletion.

    Args:
        agreement: digest of the agreement; its terms name `retention_s`.
        run: whose data went.
        retention_s: seconds for which it was kept at the most, as agreed.
        ended_at: the run's end by the party's clock, from which they count.
        counts: how many files and rows went, by kind.
        digests: of results that went, as they were announced.

    Raises:
        ComityError: `MALFORMED` if a field has not its form.
    """

    agreement: str
    run: str
    retention_s: int
    ended_at: str
    counts: Mapping[str, int]
    digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids.sha256_hex(self.agreement)
        ids.name(self.run)
        instants.parse(self.ended_at)
        counted = [self.retention_s, *self.counts.values()]
        if any(type(each) is not int or not 0 <= each <= COUNT_MAX for each in counted):
            raise _malformed("counts are whole numbers")
        if set(self.counts) != set(KINDS):
            raise _malformed(f"a deletion counts {', '.join(KINDS)}")
        if len(self.digests) > DIGESTS_MAX:
            raise _malformed(f"a deletion names at most {DIGESTS_MAX} digests")
        for digest in self.digests:
            ids.sha256_hex(digest)

    def to_json(self) -> dict[str, Any]:
        """Return the body of the statement."""
        return {
            "agreement": self.agreement,
            "run": self.run,
            "retention_s": self.retention_s,
            "ended_at": self.ended_at,
            "counts": dict(self.counts),
            "digests": list(self.digests),
        }

    @classmethod
    def from_json(cls, value: Any) -> Deletion:
        """Read a body. Raises `MALFORMED`."""
        if not isinstance(value, dict) or set(value) != _FIELDS:
            raise _malformed(f"a deletion has the fields {', '.join(sorted(_FIELDS))}")
        if not isinstance(value["counts"], dict) or not isinstance(value["digests"], list):
            raise _malformed("a deletion's counts are an object, its digests a list")
        if any(not isinstance(each, str) for each in (value["agreement"], value["run"], *value["digests"])):
            raise _malformed("digests and runs are text")
        if not isinstance(value["ended_at"], str):
            raise _malformed("an instant is text")
        return cls(**{**value, "digests": tuple(value["digests"])})


def check(said: Deletion, org: str, agreement: Agreement) -> None:
    """Judge a deletion by the agreement of its run.

    Raises:
        ComityError: `NOT_A_MEMBER` if `org` is no party; `AGREEMENT_UNKNOWN` for another agreement; `TERMS_CONFLICT` if
            the agreement names another time, or none.
    """
    if said.agreement != agreement.digest:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "the run belongs to another agreement")
    if org not in agreement.parties:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is no party of this run")
    if agreement.terms.get("retention_s") != said.retention_s:
        raise ComityError(ErrorCode.TERMS_CONFLICT, "the agreement names another time, or none", field="retention_s")


def _malformed(detail: str) -> ComityError:
    return ComityError(ErrorCode.MALFORMED, detail)
