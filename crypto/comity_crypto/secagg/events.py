"""What goes into the three state machines, and what comes out.

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
from comity_crypto.secagg.digests import Digest
from comity_crypto.secagg.masked_events import MaskedEvent, MaskedOutput
from comity_crypto.secagg.masks import PairSeed
from comity_crypto.secagg.messages import Abort, AggregateNotice, Body, Roster
from comity_crypto.secagg.threshold_events import KeyEvent, KeyOutput

# ---- events


@dataclass(frozen=True)
class Received:
    """A statement whose signature the caller has verified as `issuer`'s, with its parsed body."""

    issuer: str
    message: Body


@dataclass(frozen=True)
class RosterProposed:
    """The coordinator closed the list of ready parties."""

    roster: Roster


@dataclass(frozen=True)
class AggregatePublished:
    """The coordinator has added."""

    notice: AggregateNotice


@dataclass(frozen=True)
class ValuesReady:
    """This party's slots are encoded; `values_digest` is the SHA-256 of the slots' bytes and stays at home."""

    values_digest: str = field(repr=False)


@dataclass(frozen=True)
class BlobReady:
    """A blob is written and synced: the encrypted upload (contributor) or the aggregate (aggregator)."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class UploadStored:
    """The aggregator's spool holds an organisation's upload; the spool has computed digest and size itself."""

    org: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class DigestReady:
    """A linear digest is computed: of the own upload (contributor) or of the downloaded aggregate (holder)."""

    values: Digest


@dataclass(frozen=True)
class SumDecoded:
    """The holder's shell has decrypted and decoded the sum."""


@dataclass(frozen=True)
class WorkFailed:
    """A job that a machine ordered failed."""

    error: ComityError


@dataclass(frozen=True)
class Tick:
    """Time has passed; send one at `state.deadline`."""


Event = (
    Received
    | RosterProposed
    | AggregatePublished
    | ValuesReady
    | BlobReady
    | UploadStored
    | DigestReady
    | SumDecoded
    | WorkFailed
    | Tick
    | KeyEvent
    | MaskedEvent
)

# ---- outputs


class Audience(StrEnum):
    """Who gets a message. ALL is every party's contributor, the lead's holder and the coordinator's aggregator."""

    ALL = "all"
    LEAD = "lead"


@dataclass(frozen=True)
class Send:
    """Sign (unless the sender is the coordinator) and send."""

    to: Audience
    message: Body


@dataclass(frozen=True)
class StartEncrypt:
    """Mask and encrypt the slots into a new file, sync it, answer `BlobReady`."""

    pairs: tuple[PairSeed, ...] = field(repr=False)


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
class RecordRelease:
    """Journal this, synced, before the upload that follows it in the outputs."""

    release: Release


@dataclass(frozen=True)
class StartUpload:
    """Send the encrypted file to the coordinator, byte for byte, as often as needed."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class StartDigest:
    """Compute the linear digest of the own upload (contributor) or of the downloaded aggregate (holder).

    The holder first downloads the aggregate and compares its SHA-256 with `digest`; `DigestReady` answers.
    """

    challenge: bytes
    digest: str


@dataclass(frozen=True)
class StartAdd:
    """Add the stored uploads of these organisations into a new blob; answer `BlobReady`."""

    orgs: tuple[str, ...]


@dataclass(frozen=True)
class StartDecrypt:
    """Decrypt the aggregate and decode it for this many contributors; answer `SumDecoded` or `WorkFailed`."""

    contributors: int


@dataclass(frozen=True)
class EraseKey:
    """Drop the round's secret key now."""


@dataclass(frozen=True)
class Finished:
    """This machine has nothing more to do; `members` took part."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """The session is over. `missing` are those who were awaited; a retry needs a fresh key (`holder.next_offer`)."""

    error: ComityError
    missing: tuple[str, ...] = ()


Output = (
    Send
    | StartEncrypt
    | RecordRelease
    | StartUpload
    | StartDigest
    | StartAdd
    | StartDecrypt
    | EraseKey
    | Finished
    | Failed
    | KeyOutput
    | MaskedOutput
)


@dataclass(frozen=True)
class Limits:
    """How long a machine waits, in seconds: for parties to be ready, for their values (training), for a single step."""

    ready_s: float = 60.0
    values_s: float = 3600.0
    step_s: float = 120.0


def abort_of(session: str, error: ComityError, blame: str = "") -> Send:
    """Return the message that gives a session up."""
    return Send(Audience.ALL, Abort(session=session, code=str(error.code), blame=blame))
