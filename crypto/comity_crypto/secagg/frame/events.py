"""What goes into the machines of every profile, and what comes out; profiles add their own.

1. Events are facts: a verified statement, a coordinator's word, the end of a job, the clock. Outputs are orders to the
   shell: send, run a job, journal, stop. The machines do no I/O and read no clock.
2. `step(state, event, now)` raises `ComityError` if the event itself is refused: the state stays as it was. A session
   that cannot go on comes back as the phase `FAILED` with the output `Failed`.
3. Nothing secret is shown by repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from comity.wire.errors import ComityError
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.messages import Abort, Notice, Roster

# The slowest link that is waited for: 8 Mbit/s.
UPLOAD_BYTES_PER_S = 1_000_000


@dataclass(frozen=True)
class Event:
    """What goes into a machine."""


@dataclass(frozen=True)
class Output:
    """What comes out of a machine."""


# ---- events


@dataclass(frozen=True)
class Received(Event):
    """A statement whose signature the caller has verified as `issuer`'s, with its parsed body."""

    issuer: str
    message: Body


@dataclass(frozen=True)
class RosterProposed(Event):
    """The coordinator closed the list of ready parties."""

    roster: Roster


@dataclass(frozen=True)
class AggregatePublished(Event):
    """The coordinator has added."""

    notice: Notice


@dataclass(frozen=True)
class ValuesReady(Event):
    """This party's slots are encoded; `values_digest` is the SHA-256 of the slots' bytes and stays at home."""

    values_digest: str = field(repr=False)


@dataclass(frozen=True)
class BlobReady(Event):
    """A blob is written and synced: the encrypted upload (contributor) or the aggregate (aggregator)."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class UploadStored(Event):
    """The aggregator's spool holds an organisation's upload; the spool has computed digest and size itself."""

    org: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class SumDecoded(Event):
    """The holder's shell has decrypted and decoded the sum."""


@dataclass(frozen=True)
class WorkFailed(Event):
    """A job that a machine ordered failed."""

    error: ComityError


@dataclass(frozen=True)
class Tick(Event):
    """Time has passed; send one at `state.deadline`."""


# ---- outputs


class Audience(StrEnum):
    """Who gets a message. ALL is every party's contributor, the lead's holder and the coordinator's aggregator.

    OPENERS are the lead, and under `threshold` those whom the offer names beside it.
    """

    ALL = "all"
    LEAD = "lead"
    OPENERS = "openers"


@dataclass(frozen=True)
class Send(Output):
    """Sign (unless the sender is the coordinator) and send."""

    to: Audience
    message: Body


@dataclass(frozen=True)
class Release:
    """What the journal keeps about a contribution that has left (at most one per agreement and order)."""

    order_digest: str
    parties: tuple[str, ...]
    values_digest: str = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            "order_digest": self.order_digest,
            "parties": list(self.parties),
            "values_digest": self.values_digest,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Release:
        """Read what this node has journalled."""
        return cls(value["order_digest"], tuple(value["parties"]), value["values_digest"])


@dataclass(frozen=True)
class RecordRelease(Output):
    """Journal this, synced, before the upload that follows it in the outputs."""

    release: Release


@dataclass(frozen=True)
class StartUpload(Output):
    """Send the encrypted file to the coordinator, byte for byte, as often as needed."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class StartAdd(Output):
    """Add the stored uploads of these organisations into a new blob; answer `BlobReady`."""

    orgs: tuple[str, ...]


@dataclass(frozen=True)
class EraseKey(Output):
    """Drop the round's secret key now."""


@dataclass(frozen=True)
class Finished(Output):
    """This machine has nothing more to do; `members` took part."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class Failed(Output):
    """The session is over. `missing` are those who were awaited; another attempt needs a fresh key."""

    error: ComityError
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """How long a machine waits, in seconds.

    Args:
        ready_s: for parties to be ready. values_s: for their values (training). step_s: for a single step.
        upload_s: for uploads once all have signed the set, beside the time that `UPLOAD_BYTES_PER_S` takes.
        share_s: for a holder's share where another holder can be asked, beside that time again.
    """

    ready_s: float = 60.0
    values_s: float = 3600.0
    step_s: float = 120.0
    upload_s: float = 120.0
    share_s: float = 20.0

    def uploads_s(self, size_bytes: int) -> float:
        """Return how long uploads of this size are waited for."""
        return self.upload_s + size_bytes / UPLOAD_BYTES_PER_S

    def shares_s(self, size_bytes: int) -> float:
        """Return how long shares of this size are waited for, where others can be asked instead."""
        return min(self.step_s, self.share_s + size_bytes / UPLOAD_BYTES_PER_S)


def abort_of(session: str, error: ComityError, blame: str = "") -> Send:
    """Return the message that gives a session up."""
    return Send(Audience.ALL, Abort(session=session, code=str(error.code), blame=blame))
