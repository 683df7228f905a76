"""Whether a replica's nodes are better off at another one: pure.

Rules
1. A replica that has not reached the database for a lease is late: the others take it for dead by now.
2. Late, it sends its nodes away if another replica has said within half a lease that it does reach the database, or if
   no link to another one stands: then it is this one that is cut off. If the database went for all, everybody's last
   word is older than that: nodes are nowhere better off and stay. So they do at a replica without others.
3. It takes nodes again when it has reached the database, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outlook:
    """What one replica knows; all times are seconds of one monotonic clock."""

    lease_s: float
    away: bool = False
    _reached_at: float = float("-inf")
    _others: dict[str, float] = field(default_factory=dict)

    def reached(self, now: float) -> None:
        """This replica has reached the database."""
        self._reached_at, self.away = now, False

    def other_reached(self, name: str, now: float) -> None:
        """Another one says that it has."""
        self._others[name] = now

    def look(self, now: float, links: Mapping[str, bool]) -> bool:
        """Decide at `now`; return whether nodes are to be sent away from now on.

        Args:
            now: seconds.
            links: whether the link stands to each replica that lived when the database was reached last.
        """
        self._others = {name: at for name, at in self._others.items() if name in links}
        late = now - self._reached_at > self.lease_s
        better = any(now - at <= self.lease_s / 2 for at in self._others.values()) or not any(links.values())
        begins = bool(links) and late and better and not self.away
        self.away = self.away or begins
        return begins
