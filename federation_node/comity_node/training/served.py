"""How the serving of an order ends, and what of an order is judged before anybody looks inside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode
from comity_node.training import enforcement
from comity_node.training.blobs import Blob
from comity_node.training.intake import Received
from comity_node.training.profiles.base import Protected
from comity_policies.documents import Agreement


@dataclass(frozen=True, slots=True)
class Performed:
    """How an order to oneself ended: `protected` with its `blob` (the taker closes it), or an error."""

    outcome: str
    error: ComityError | None
    protected: Protected | None
    blob: Blob | None


class Final(Exception):  # noqa: N818 - not an error: an order that ended otherwise than with a result
    """An order ended without a result, and everybody who should know does."""

    def __init__(self, outcome: str, error: ComityError) -> None:
        super().__init__(str(error))
        self.outcome = outcome
        self.error = error


# The payload is late, the spool or the journal is in trouble: nothing is wrong with the order itself.
WAITING = frozenset(
    {
        ErrorCode.PAYLOAD_MISSING,
        ErrorCode.PAYLOAD_TRUNCATED,
        ErrorCode.PAYLOAD_DIGEST,
        ErrorCode.UNAVAILABLE,
        ErrorCode.TIMEOUT,
        ErrorCode.JOURNAL_UNWRITABLE,
        ErrorCode.SPOOL_FULL,
        ErrorCode.BUSY,
    }
)


def is_work(order: Received, agreement: Agreement | None) -> bool:
    """Tell whether an order is a party's, for a run and a step of an agreement that this organisation signed."""
    header = order.header
    return (
        agreement is not None
        and order.statement.issuer in agreement.parties
        and any(step.id == header.step for step in agreement.proposal.steps)
        and header.run in enforcement.run_ids(agreement, header.agreement)
    )


async def discard(fetching: asyncio.Task[Blob]) -> None:
    """End a fetch whose content nobody will use."""
    fetching.cancel()
    done = await asyncio.gather(fetching, return_exceptions=True)
    for each in done:
        if isinstance(each, Blob):
            each.close()
