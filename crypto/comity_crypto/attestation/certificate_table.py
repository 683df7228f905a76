"""The certificates that an SEV-SNP host hands to its guest beside a report.

A table of entries of 24 bytes (GUID in the order of its digits, offset, length: little-endian 32 bits), ended by an
entry of zeros, then the certificates. It comes from the host, which is not trusted: every place is checked, and what it
says is only a proposal for `snp.verify_chain`. Source: SEV-ES Guest-Hypervisor Communication Block (document 56421),
section 4.1.8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from comity_crypto.attestation.evidence import refused
from comity_crypto.attestation.snp import CERTIFICATE_BYTES_MAX

ENTRY_BYTES = 24
ENTRIES_MAX = 16
NAMES: Mapping[bytes, str] = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: "vcek",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: "ask",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes: "ark",
}


def read(data: bytes) -> dict[str, bytes]:
    """Return the certificates called `vcek`, `ask` and `ark` that are there; an empty table has none.

    Raises:
        ComityError: `ATTESTATION_INVALID` with the obligation 1 if an entry leaves the table or stands there twice.
    """
    found: dict[str, bytes] = {}
    for at in range(0, min(len(data), ENTRIES_MAX * ENTRY_BYTES), ENTRY_BYTES):
        entry = data[at : at + ENTRY_BYTES]
        if not any(entry):
            return found
        offset, size = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if len(entry) < ENTRY_BYTES or offset + size > len(data):
            raise refused(1, "the host's table of certificates is cut short")
        name = NAMES.get(entry[:16])
        if name is None:
            continue  # provider keys, revocation lists: nothing here reads them
        if name in found or not 0 < size <= CERTIFICATE_BYTES_MAX:
            raise refused(1, "the host's table of certificates is not well formed")
        found[name] = data[offset : offset + size]
    if data:
        raise refused(1, "the host's table of certificates has no end")
    return found
