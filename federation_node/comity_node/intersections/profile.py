"""How answers of an intersection leave a node: sealed to the lead like those of `plain`, measured by their own rules.

What the egress policy judges: before `MASKED` leaves, how many different identifiers stand behind it; before `COUNT` or
`MATCHED`, how many records are common. Kind `statistic`, and `record` for `MATCHED`, which tells of single records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comity_crypto.psi.messages import Kind, message_of
from comity_node.context import NodeContext
from comity_node.intersections.carried import carried
from comity_node.training.profiles.base import Measured, Outgoing
from comity_node.training.profiles.plain import PlainProfile
from comity_policies.documents import Agreement

STATISTIC, RECORD = "statistic", "record"


class IntersectProfile(PlainProfile):
    """See the head of this module. `distinct` gives the own set's size in a run that this node works on."""

    name = "intersect"
    checks_content = True

    def __init__(self, node: NodeContext, distinct: Callable[[str], int]) -> None:
        super().__init__(node)
        self._distinct = distinct

    def refuse_question(self, agreement: Agreement, receivers: tuple[str, ...]) -> None:
        """Nothing: the parties themselves refuse what is out of place."""

    async def measure(self, outgoing: Outgoing) -> Measured:
        """Say what stands behind a message, which this node made. Raises `REPLY_SHAPE`, `MALFORMED`."""
        data = carried(outgoing.result.fd, outgoing.result.size)
        message = message_of(data, Kind.MASKED, Kind.COUNT, Kind.MATCHED)
        cohort = self._distinct(outgoing.order.run) if message.kind is Kind.MASKED else message.count
        facts: dict[str, Any] = {
            "kind": RECORD if message.kind is Kind.MATCHED else STATISTIC,
            "metrics": [],
            "cohort": cohort,
            "size_bytes": outgoing.result.size,
        }
        return Measured(facts=facts)
