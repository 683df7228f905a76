"""What goes into the machines of an encrypted sum and comes out, beyond what every round has."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity_crypto.secagg.bfv.digests import Digest
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.frame.events import Event, Output


@dataclass(frozen=True)
class DigestReady(Event):
    """A linear digest is computed: of the own upload (contributor) or of the downloaded aggregate (holder)."""

    values: Digest


@dataclass(frozen=True)
class StartEncrypt(Output):
    """Mask and encrypt the slots into a new file, sync it, answer `BlobReady`."""

    pairs: tuple[PairSeed, ...] = field(repr=False)


@dataclass(frozen=True)
class StartDigest(Output):
    """Compute the linear digest of the own upload (contributor) or of the downloaded aggregate (holder).

    The holder first downloads the aggregate and compares its SHA-256 with `digest`; `DigestReady` answers.
    """

    challenge: bytes
    digest: str


@dataclass(frozen=True)
class StartDecrypt(Output):
    """Decrypt the aggregate and decode it for this many contributors; answer `SumDecoded` or `WorkFailed`."""

    contributors: int
