"""The one exception that crosses organisations, and its codes.

Each code is a row of `catalog.py`: gRPC status, HTTP status, public sentence, whether a retry helps, whose move it is.
A detail names rules, fields, sizes and digests; never data, secrets or paths (architecture.md section 6).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

DETAIL_CHARS_MAX = 500
FACT_CHARS_MAX = 200


class ErrorCode(StrEnum):
    """What went wrong, grouped by what was being judged."""

    # form
    MALFORMED = "MALFORMED"
    TOO_LARGE = "TOO_LARGE"
    UNSUPPORTED = "UNSUPPORTED"
    # identity and membership
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 - an error's name
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - an error's name
    TOKEN_USED = "TOKEN_USED"  # noqa: S105 - an error's name
    NOT_A_MEMBER = "NOT_A_MEMBER"
    ALREADY_A_MEMBER = "ALREADY_A_MEMBER"
    REVOKED = "REVOKED"
    SUSPENDED = "SUSPENDED"
    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    POSSESSION_UNPROVEN = "POSSESSION_UNPROVEN"
    GENESIS_MISMATCH = "GENESIS_MISMATCH"
    CHARTER_INVALID = "CHARTER_INVALID"
    QUORUM_MISSING = "QUORUM_MISSING"
    KEY_UNREADABLE = "KEY_UNREADABLE"
    # negotiation
    NOT_FOUND = "NOT_FOUND"
    ILLEGAL_EVENT = "ILLEGAL_EVENT"
    TERMS_CONFLICT = "TERMS_CONFLICT"
    TERMS_TOO_WEAK = "TERMS_TOO_WEAK"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    AGREEMENT_UNKNOWN = "AGREEMENT_UNKNOWN"
    AGREEMENT_INVALID = "AGREEMENT_INVALID"
    WITHDRAWN = "WITHDRAWN"
    SUPERSEDED = "SUPERSEDED"
    # policy
    POLICY_DENIED = "POLICY_DENIED"
    POLICY_UNDEFINED = "POLICY_UNDEFINED"
    POLICY_ERROR = "POLICY_ERROR"
    POLICY_UNAVAILABLE = "POLICY_UNAVAILABLE"
    POLICY_TIMEOUT = "POLICY_TIMEOUT"
    BUNDLE_INVALID = "BUNDLE_INVALID"
    BUNDLE_STALE = "BUNDLE_STALE"
    REVIEW_NEEDED = "REVIEW_NEEDED"
    REVIEW_DENIED = "REVIEW_DENIED"
    # orders and grants
    ORDER_NOT_LEAD = "ORDER_NOT_LEAD"
    ORDER_MISMATCH = "ORDER_MISMATCH"
    ORDER_REPLAYED = "ORDER_REPLAYED"
    GRANT_EXHAUSTED = "GRANT_EXHAUSTED"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    JOURNAL_BEHIND = "JOURNAL_BEHIND"
    COORDINATOR_CHANGED = "COORDINATOR_CHANGED"
    JOURNAL_UNWRITABLE = "JOURNAL_UNWRITABLE"
    CHECKPOINT_STALE = "CHECKPOINT_STALE"
    NOT_FINAL = "NOT_FINAL"
    # payloads
    PAYLOAD_MISSING = "PAYLOAD_MISSING"
    PAYLOAD_DIGEST = "PAYLOAD_DIGEST"
    PAYLOAD_TRUNCATED = "PAYLOAD_TRUNCATED"
    SEAL_BROKEN = "SEAL_BROKEN"
    SPOOL_FULL = "SPOOL_FULL"
    # apps, workers and data
    APP_INVALID = "APP_INVALID"
    APP_FAILED = "APP_FAILED"
    APP_SILENT = "APP_SILENT"
    DATASET_MISSING = "DATASET_MISSING"
    DATASET_COLUMNS = "DATASET_COLUMNS"
    ISOLATION_TOO_WEAK = "ISOLATION_TOO_WEAK"
    WORKER_DIED = "WORKER_DIED"
    WORKER_TIMEOUT = "WORKER_TIMEOUT"
    REPLY_SHAPE = "REPLY_SHAPE"
    REPLY_TOO_LARGE = "REPLY_TOO_LARGE"
    EGRESS_DENIED = "EGRESS_DENIED"
    # runs and secure sums
    RUN_DIVERGED = "RUN_DIVERGED"
    RUN_FAILED = "RUN_FAILED"
    RUN_CANCELLED = "RUN_CANCELLED"
    PARTICIPANTS_TOO_FEW = "PARTICIPANTS_TOO_FEW"
    STRATEGY_REFUSED = "STRATEGY_REFUSED"
    ROSTER_MISMATCH = "ROSTER_MISMATCH"
    CIPHERTEXT_INVALID = "CIPHERTEXT_INVALID"
    SUM_MISMATCH = "SUM_MISMATCH"
    BAD_SHARE = "BAD_SHARE"
    SUMS_DIFFER = "SUMS_DIFFER"
    # ledger
    PROOF_INVALID = "PROOF_INVALID"
    LEDGER_INVALID = "LEDGER_INVALID"
    BACKUP_INVALID = "BACKUP_INVALID"
    CLAIM_UNPROVEN = "CLAIM_UNPROVEN"
    ATTESTATION_INVALID = "ATTESTATION_INVALID"
    ATTESTATION_MISSING = "ATTESTATION_MISSING"
    ATTESTATION_STALE = "ATTESTATION_STALE"
    # service
    UNAVAILABLE = "UNAVAILABLE"
    BUSY = "BUSY"
    TIMEOUT = "TIMEOUT"
    CONFLICT = "CONFLICT"
    INTERNAL = "INTERNAL"


class ComityError(Exception):
    """A refusal or failure that may cross organisations.

    Args:
        code: the catalogue row.
        detail: one public sentence more, at most 500 characters.
        facts: small public values (numbers, digests, rule names) for programs.
    """

    def __init__(self, code: ErrorCode, detail: str = "", **facts: str | int) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail[:DETAIL_CHARS_MAX]
        self.facts = facts

    def __str__(self) -> str:
        tail = f" ({', '.join(f'{key}={value}' for key, value in sorted(self.facts.items()))})" if self.facts else ""
        return f"{self.code}: {self.detail or 'see the catalogue'}{tail}"

    def to_json(self) -> dict[str, Any]:
        """Return the form that crosses the wire: code, detail, facts."""
        facts = {key: item if _fits(item) else str(item)[:FACT_CHARS_MAX] for key, item in self.facts.items()}
        return {"code": str(self.code), "detail": self.detail, "facts": facts}

    @classmethod
    def from_json(cls, value: Any) -> ComityError:
        """Rebuild an error from another organisation; anything unknown becomes `INTERNAL`, never a crash."""
        if not isinstance(value, dict):
            return cls(ErrorCode.INTERNAL, "the other side sent an unreadable error")
        try:
            code = ErrorCode(value.get("code", ""))
        except ValueError:
            code = ErrorCode.INTERNAL
        facts = value.get("facts")
        kept = {
            str(key)[:64]: item if isinstance(item, int) and _fits(item) else str(item)[:FACT_CHARS_MAX]
            for key, item in list(facts.items() if isinstance(facts, dict) else ())[:16]
            if str(key) not in {"code", "detail", "self"}
        }
        return cls(code, str(value.get("detail", "")), **kept)


def _fits(item: str | int) -> bool:
    """Tell whether a fact has a canonical form as it is (`canonical.INTEGER_MAX`, length)."""
    return len(item) <= FACT_CHARS_MAX if isinstance(item, str) else abs(item) < 2**53
