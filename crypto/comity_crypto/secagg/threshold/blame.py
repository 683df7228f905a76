"""Which quorum to ask next, and whose share did not fit (secure-aggregation.md section 4, last rule).

1. A quorum opens the sum or it does not; nothing else is seen of a share. Where T < n other quorums can open it, and a
   holder that is in those that failed, and in none that opened, is suspected.
2. Before a sum is open: leave out as many as possible of those whom every failure has in common. After that: halve the
   suspects beside holders that are clear, until one is left. With one wrong holder, 8 calls suffice up to 50 holders
   wherever two thirds are a quorum (tests/property/secagg).
3. A name is a reason to look, not a proof: a holder that answers some quorums well and others not can shift the blame
   to one that was exchanged. At T = n there is no other quorum and no name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

Orgs = frozenset[str]


@dataclass(frozen=True)
class Trials:
    """What the quorums that were asked have shown.

    Args:
        failed: quorums that did not open the sum.
        clear: members of quorums that did.
        refused: holders whose share was not one at all (size, residues, other bytes than announced).
    """

    failed: tuple[Orgs, ...] = ()
    clear: Orgs = frozenset()
    refused: Orgs = frozenset()

    def with_failure(self, members: Collection[str]) -> Trials:
        """Return the trials with a quorum that did not open the sum."""
        return replace(self, failed=(*self.failed, frozenset(members)))

    def with_success(self, members: Collection[str]) -> Trials:
        """Return the trials with a quorum that did."""
        return replace(self, clear=self.clear | frozenset(members))

    def with_refusal(self, org: str) -> Trials:
        """Return the trials with a share that was none."""
        return replace(self, refused=self.refused | {org})

    @property
    def common(self) -> Orgs:
        """Those whom all failures have in common, the clear ones aside: one of them, if one holder alone is wrong."""
        if not self.failed:
            return frozenset()
        return frozenset.intersection(*self.failed) - self.clear

    @property
    def suspects(self) -> tuple[str, ...]:
        """Whose shares did not fit; to be read when a sum is open."""
        return tuple(sorted(self.refused | self.common))


def next_quorum(trials: Trials, present: Collection[str], threshold: int) -> tuple[str, ...] | None:
    """Return the next quorum before a sum is open, or nobody if no quorum is left that could be another one.

    Args:
        present: holders that would share now, the preferred ones first.
    """
    usable = [org for org in present if org not in trials.refused]
    if trials.failed and not trials.common:
        return None  # more than one is wrong; more calls would only tell more about the key
    beside = [org for org in usable if org not in trials.common]
    quorum = (beside + [org for org in usable if org in trials.common])[:threshold]
    if len(quorum) < threshold or frozenset(quorum) in trials.failed:
        return None
    return tuple(sorted(quorum))


def narrowing_quorum(trials: Trials, present: Collection[str], threshold: int) -> tuple[str, ...] | None:
    """Return a quorum that tells half of the suspects from the rest, once a sum is open; nobody if one is left."""
    suspects = [org for org in present if org in trials.common]
    if len(trials.common) < 2 or not suspects:
        return None
    half = suspects[: min(max(1, len(suspects) // 2), threshold - 1)]
    beside = [org for org in present if org in trials.clear][: threshold - len(half)]
    if len(half) + len(beside) < threshold:
        return None
    return tuple(sorted((*half, *beside)))
