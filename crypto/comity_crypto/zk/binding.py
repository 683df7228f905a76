"""Where a proof belongs: apart from the engine, so that the independent verifier loads none of it."""

from __future__ import annotations

from dataclasses import dataclass

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode

ROUND_CHARS_MAX = 128


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a proof belongs.

    Args:
        agreement: digest of the agreement.
        round: text that names one round within it; for a receipt the digest of its order, which fixes run, step,
            round and content.
        organisation: whose proof it is.

    Raises:
        ComityError: `MALFORMED`.
    """

    agreement: str
    round: str
    organisation: str

    def __post_init__(self) -> None:
        ids.sha256_hex(self.agreement)
        ids.org_id(self.organisation)
        if not (0 < len(self.round) <= ROUND_CHARS_MAX and self.round.isascii() and self.round.isprintable()):
            raise ComityError(ErrorCode.MALFORMED, "a round's name is a short line of ASCII")
