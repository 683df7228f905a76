"""People of this organisation and their roles: pure, no clock and no I/O.

Rules:
1. The organisation decides who may what; the coordinator neither knows nor judges its people.
2. Whoever holds `api.token` is the organisation's own Unix user: `local`, with every role. Nobody else has that name.
3. No role follows from another one: an admin does not propose unless the policy says so too.
4. A token is 256 random bits behind its id. Only its SHA-256 is kept; it is compared in constant time.
5. A token gives the roles that are written on it and that the policy leaves to it: the fewer of both.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from comity.wire.authorisation import Principal
from comity.wire.errors import ComityError, ErrorCode

__all__ = ["ADMIN", "AUDITOR", "LOCAL", "LOCAL_USER", "PROPOSER", "REVIEWER", "ROLES", "Principal"]

ADMIN = "admin"
PROPOSER = "proposer"
REVIEWER = "reviewer"
AUDITOR = "auditor"
ROLES = frozenset({ADMIN, PROPOSER, REVIEWER, AUDITOR})

LOCAL_USER = "local"
LOCAL = Principal(LOCAL_USER, ROLES, "local")

TOKEN_MARK = "comity_"  # noqa: S105 - what every token begins with
TOKEN_S_MAX = 366 * 86_400
GROUPS_MAX = 256
_SECRET_BYTES = 32
_ID_BYTES = 8
_TOKEN = re.compile(r"comity_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
# No colon: `group:NAME` in the settings must never be somebody's name.
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+|=-]{0,127}")
_GROUP_CHARS_MAX = 256


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept; `digest` is the SHA-256 of its text, instants are RFC 3339, `revoked_at` may be empty."""

    token_id: str
    user: str
    roles: frozenset[str]
    digest: str = field(repr=False)
    issued_at: str
    issued_by: str
    expires_at: str
    revoked_at: str = ""

    def state(self, now: str) -> str:
        """Return `valid`, `expired` or `revoked`."""
        if self.revoked_at:
            return "revoked"
        return "valid" if now < self.expires_at else "expired"


def new_secret() -> tuple[str, str]:
    """Return (id, text) of a new token; the text is shown once and kept nowhere."""
    token_id = secrets.token_hex(_ID_BYTES)
    return token_id, f"{TOKEN_MARK}{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(text: str) -> str:
    """Return what is kept of a token's text: 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str:
    """Return the id in a token's text. Raises `UNAUTHENTICATED`."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise unauthenticated("the token is not in the form of a token")
    return found[1]


def check_token(token: Token | None, text: str, now: str) -> Token:
    """Return the token if `text` is its text and it still holds. Raises `UNAUTHENTICATED`."""
    if token is None or not hmac.compare_digest(token.digest, digest_of(text)):
        raise unauthenticated("this node issued no such token")
    state = token.state(now)
    if state != "valid":
        raise unauthenticated(f"the token is {state}")
    return token


def user_name(text: object) -> str:
    """Return `text` as the name of a person. Raises `MALFORMED`; `local` is taken by rule 2."""
    if not isinstance(text, str) or not _USER.fullmatch(text) or text == LOCAL_USER:
        detail = f"a user is 1 to 128 letters, digits or . _ @ + | = -, and not {LOCAL_USER}"
        raise ComityError(ErrorCode.MALFORMED, detail)
    return text


def group_names(values: object) -> tuple[str, ...]:
    """Return the names of groups, sorted. Raises `MALFORMED` for anything but a bounded list of short text."""
    if not isinstance(values, list) or len(values) > GROUPS_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"groups are a list of at most {GROUPS_MAX}")
    if not all(isinstance(each, str) and 0 < len(each) <= _GROUP_CHARS_MAX for each in values):
        raise ComityError(ErrorCode.MALFORMED, "a group is a short text")
    return tuple(sorted(set(values)))


def role_names(values: Iterable[str]) -> frozenset[str]:
    """Return roles that a token may carry. Raises `MALFORMED` for none, or one that this node does not know."""
    found = frozenset(values)
    if not found or not found <= ROLES:
        raise ComityError(ErrorCode.MALFORMED, f"roles are {', '.join(sorted(ROLES))}; one at least")
    return found


def unauthenticated(detail: str) -> ComityError:
    """Return the refusal of credentials; `detail` never repeats them."""
    return ComityError(ErrorCode.UNAUTHENTICATED, detail)
