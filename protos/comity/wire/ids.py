"""Identifiers: who an organisation is, and names that sort by time.

An organisation's id is a DNS label, so that it fits into SPIFFE ids, file names and URLs without escaping.
SPIFFE ids: `spiffe://<consortium>/org/<org>` for members, `/join/<id>` for a join token, `/coordinator` for the server.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import NewType

from comity.wire.errors import ComityError, ErrorCode

OrgId = NewType("OrgId", str)

COORDINATOR = "coordinator"
_RAND_B = (1 << 62) - 1
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPIFFE = re.compile(r"spiffe://([a-z0-9-]{1,63})/(org|join|coordinator)(?:/([a-z0-9-]{1,63}))?")


def org_id(text: str) -> OrgId:
    """Return `text` as an organisation id; `coordinator` is reserved. Raises `MALFORMED`."""
    if not _LABEL.fullmatch(text) or text == COORDINATOR:
        raise ComityError(ErrorCode.MALFORMED, "an organisation id is 1 to 63 of a-z 0-9 and inner hyphens")
    return OrgId(text)


def name(text: str) -> str:
    """Return `text` as a dataset, step or purpose name (1 to 128 of letters, digits, `. _ -`). Raises `MALFORMED`."""
    if not _NAME.fullmatch(text):
        raise ComityError(ErrorCode.MALFORMED, "a name is 1 to 128 letters, digits, dots, underscores or hyphens")
    return text


def sha256_hex(text: str) -> str:
    """Return `text` if it is a lower-case hexadecimal SHA-256. Raises `MALFORMED`."""
    if not _DIGEST.fullmatch(text):
        raise ComityError(ErrorCode.MALFORMED, "not a SHA-256 in lower-case hexadecimal")
    return text


def new_id(prefix: str) -> str:
    """Return `<prefix>-<32 hex>`: a UUIDv7 (RFC 9562 section 5.7) without its hyphens, so that ids sort by time.

    48 bits of milliseconds since 1970, then 74 random bits around the version (7) and the variant (binary 10). Within a
    millisecond the order is chance. Shorter ids of earlier versions begin with the same 48 bits and sort among them.
    """
    milliseconds, chance = time.time_ns() // 1_000_000, secrets.randbits(74)
    return f"{prefix}-{milliseconds:012x}7{chance >> 62:03x}{1 << 63 | chance & _RAND_B:016x}"


def spiffe_org(consortium: str, org: str) -> str:
    """Return the SPIFFE id of a member's node."""
    return f"spiffe://{consortium}/org/{org}"


def spiffe_join(consortium: str, token_id: str) -> str:
    """Return the SPIFFE id of a join token's one-use certificate."""
    return f"spiffe://{consortium}/join/{token_id}"


def spiffe_coordinator(consortium: str) -> str:
    """Return the SPIFFE id of the coordinator's server certificate."""
    return f"spiffe://{consortium}/coordinator"


def spiffe_replica(consortium: str, replica: str) -> str:
    """Return the SPIFFE id of a coordinator's replica where it calls another one."""
    return f"spiffe://{consortium}/coordinator/{replica}"


def parse_spiffe(uri: str) -> tuple[str, str, str]:
    """Split a SPIFFE id into (consortium, role, name); role is `org`, `join` or `coordinator`. Raises `FORBIDDEN`.

    The coordinator's server has no name; a replica of it that calls another one has.
    """
    match = _SPIFFE.fullmatch(uri)
    if not match or (match[2] != COORDINATOR and match[3] is None):
        raise ComityError(ErrorCode.FORBIDDEN, "the certificate carries no identity of this consortium")
    return match[1], match[2], match[3] or ""
