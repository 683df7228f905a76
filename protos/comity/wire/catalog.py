"""The error catalogue: what each code means at every edge, and whose move it is.

`tests/unit/wire/test_catalog.py` proves that every code has a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from comity.wire.errors import ErrorCode as E


class Move(StrEnum):
    """Who can do something about it."""

    CALLER = "the caller"
    ORG_ADMIN = "the organisation's admin"
    OTHER_ORG = "the other organisation"
    OPERATOR = "the coordinator's operator"
    PROPOSER = "the proposer"
    NOBODY = "nobody: it heals by itself"


@dataclass(frozen=True, slots=True)
class Row:
    """One catalogue row; `grpc` is the name of a `grpc.StatusCode`."""

    grpc: str
    http: int
    sentence: str
    retry: bool
    move: Move


_BAD, _DENY, _PRE, _GONE = "INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "UNAVAILABLE"

CATALOG: dict[E, Row] = {
    E.MALFORMED: Row(_BAD, 400, "The message is not in the agreed form.", False, Move.CALLER),
    E.TOO_LARGE: Row("RESOURCE_EXHAUSTED", 413, "The message is larger than the limit.", False, Move.CALLER),
    E.UNSUPPORTED: Row("UNIMPLEMENTED", 501, "This is not supported.", False, Move.CALLER),
    E.UNAUTHENTICATED: Row("UNAUTHENTICATED", 401, "No valid credentials were presented.", False, Move.CALLER),
    E.FORBIDDEN: Row(_DENY, 403, "These credentials do not permit this.", False, Move.CALLER),
    E.TOKEN_INVALID: Row(_DENY, 403, "The join token is not valid.", False, Move.OTHER_ORG),
    E.TOKEN_EXPIRED: Row(
        _DENY, 403, "The join token has expired; ask the sponsor for a new one.", False, Move.OTHER_ORG
    ),
    E.TOKEN_USED: Row(
        _DENY, 403, "The join token was used already; ask the sponsor for a new one.", False, Move.OTHER_ORG
    ),
    E.NOT_A_MEMBER: Row(_DENY, 403, "The organisation is not a member under the charter in force.", False, Move.CALLER),
    E.ALREADY_A_MEMBER: Row("ALREADY_EXISTS", 409, "The organisation has joined already.", False, Move.CALLER),
    E.REVOKED: Row(_DENY, 403, "The organisation's transport was revoked.", False, Move.OPERATOR),
    E.SUSPENDED: Row(_DENY, 403, "The members have suspended this organisation.", False, Move.OTHER_ORG),
    E.CERTIFICATE_INVALID: Row("UNAUTHENTICATED", 401, "The certificate does not hold.", False, Move.ORG_ADMIN),
    E.SIGNATURE_INVALID: Row(_DENY, 403, "The signature does not hold.", False, Move.CALLER),
    E.POSSESSION_UNPROVEN: Row(_DENY, 403, "The proof of possession of a key does not hold.", False, Move.CALLER),
    E.GENESIS_MISMATCH: Row(_PRE, 409, "The genesis digest is not the one given by hand.", False, Move.ORG_ADMIN),
    E.CHARTER_INVALID: Row(_PRE, 409, "The charter does not follow from the one in force.", False, Move.OPERATOR),
    E.QUORUM_MISSING: Row(_PRE, 409, "The quorum certificate does not hold.", False, Move.OTHER_ORG),
    E.KEY_UNREADABLE: Row(_PRE, 500, "A key of this organisation cannot be read.", False, Move.ORG_ADMIN),
    E.NOT_FOUND: Row("NOT_FOUND", 404, "There is no such thing.", False, Move.CALLER),
    E.ILLEGAL_EVENT: Row(_PRE, 409, "This is not possible in the present state.", False, Move.CALLER),
    E.TERMS_CONFLICT: Row(_PRE, 409, "The parties' terms contradict each other.", False, Move.PROPOSER),
    E.TERMS_TOO_WEAK: Row(_PRE, 409, "The terms are weaker than the organisation's own.", False, Move.PROPOSER),
    E.DEADLINE_PASSED: Row("DEADLINE_EXCEEDED", 409, "The deadline has passed.", False, Move.PROPOSER),
    E.AGREEMENT_UNKNOWN: Row("NOT_FOUND", 404, "This organisation holds no such agreement.", False, Move.CALLER),
    E.AGREEMENT_INVALID: Row(_PRE, 409, "The agreement does not hold.", False, Move.CALLER),
    E.WITHDRAWN: Row(_PRE, 409, "A party has withdrawn from the agreement.", False, Move.PROPOSER),
    E.SUPERSEDED: Row(_PRE, 409, "A newer revision has taken the proposal's place.", False, Move.PROPOSER),
    E.POLICY_DENIED: Row(_DENY, 403, "The organisation's policy denies this.", False, Move.PROPOSER),
    E.POLICY_UNDEFINED: Row(_DENY, 403, "The policy gives no answer, which counts as a denial.", False, Move.ORG_ADMIN),
    E.POLICY_ERROR: Row(_DENY, 403, "The policy failed, which counts as a denial.", False, Move.ORG_ADMIN),
    E.POLICY_UNAVAILABLE: Row(
        _DENY, 503, "The policy engine is out of reach, which counts as a denial.", True, Move.ORG_ADMIN
    ),
    E.POLICY_TIMEOUT: Row(
        _DENY, 503, "The policy engine was too slow, which counts as a denial.", True, Move.ORG_ADMIN
    ),
    E.BUNDLE_INVALID: Row(_PRE, 409, "The policy bundle cannot be used.", False, Move.ORG_ADMIN),
    E.BUNDLE_STALE: Row(
        _PRE, 409, "The organisation does not hold the policy bundle that the charter names.", True, Move.ORG_ADMIN
    ),
    E.REVIEW_NEEDED: Row(_PRE, 409, "A person of the organisation has to decide.", True, Move.OTHER_ORG),
    E.REVIEW_DENIED: Row(_DENY, 403, "A person of the organisation decided against this.", False, Move.PROPOSER),
    E.ORDER_NOT_LEAD: Row(
        _DENY, 403, "The order does not come from the lead that the agreement names.", False, Move.CALLER
    ),
    E.ORDER_MISMATCH: Row(_DENY, 403, "The order does not conform to the agreement.", False, Move.CALLER),
    E.ORDER_REPLAYED: Row("ALREADY_EXISTS", 409, "Another order was given under this number.", False, Move.CALLER),
    E.GRANT_EXHAUSTED: Row(
        "RESOURCE_EXHAUSTED", 403, "Nothing is left of what the agreement grants.", False, Move.PROPOSER
    ),
    E.GRANT_EXPIRED: Row(_PRE, 403, "The agreement has expired.", False, Move.PROPOSER),
    E.COORDINATOR_CHANGED: Row(
        _PRE, 409, "The coordinator was changed, and what was under way there has ended.", False, Move.PROPOSER
    ),
    E.JOURNAL_BEHIND: Row(
        _PRE,
        409,
        "The node's journal is older than its own receipts; run `comity node recover`.",
        False,
        Move.ORG_ADMIN,
    ),
    E.JOURNAL_UNWRITABLE: Row(_GONE, 503, "The node cannot write its journal.", True, Move.ORG_ADMIN),
    E.CHECKPOINT_STALE: Row(_PRE, 409, "The newest checkpoint is older than the charter allows.", True, Move.OPERATOR),
    E.NOT_FINAL: Row(_PRE, 409, "Not enough witnesses have cosigned this yet.", True, Move.OTHER_ORG),
    E.PAYLOAD_MISSING: Row("NOT_FOUND", 404, "The payload is not here.", True, Move.NOBODY),
    E.PAYLOAD_DIGEST: Row("DATA_LOSS", 409, "The payload does not match its digest.", True, Move.OTHER_ORG),
    E.PAYLOAD_TRUNCATED: Row("DATA_LOSS", 409, "The payload is incomplete.", True, Move.OTHER_ORG),
    E.SEAL_BROKEN: Row("DATA_LOSS", 409, "The sealed payload cannot be opened.", False, Move.OTHER_ORG),
    E.SPOOL_FULL: Row("RESOURCE_EXHAUSTED", 507, "The store for payloads is full.", True, Move.OPERATOR),
    E.APP_INVALID: Row(_BAD, 422, "The app cannot be used.", False, Move.PROPOSER),
    E.APP_FAILED: Row(
        "ABORTED", 500, "The app raised an error; its text stays at the organisation.", False, Move.PROPOSER
    ),
    E.APP_SILENT: Row("ABORTED", 500, "The app returned nothing.", False, Move.PROPOSER),
    E.DATASET_MISSING: Row(_PRE, 404, "The organisation has no such dataset.", False, Move.ORG_ADMIN),
    E.DATASET_COLUMNS: Row(_PRE, 409, "The dataset lacks columns that the agreement names.", False, Move.ORG_ADMIN),
    E.ISOLATION_TOO_WEAK: Row(
        _PRE, 409, "This node cannot isolate the app as strongly as the terms ask.", False, Move.ORG_ADMIN
    ),
    E.WORKER_DIED: Row("ABORTED", 500, "The worker process ended unexpectedly.", True, Move.NOBODY),
    E.WORKER_TIMEOUT: Row("DEADLINE_EXCEEDED", 504, "The worker took longer than the limit.", False, Move.PROPOSER),
    E.REPLY_SHAPE: Row(_BAD, 422, "The reply does not have the shape of the order.", False, Move.PROPOSER),
    E.REPLY_TOO_LARGE: Row("RESOURCE_EXHAUSTED", 413, "The reply is larger than the limit.", False, Move.PROPOSER),
    E.EGRESS_DENIED: Row(_DENY, 403, "The organisation's egress policy keeps the result inside.", False, Move.PROPOSER),
    E.RUN_DIVERGED: Row("ABORTED", 409, "The restarted app asked other questions than before.", False, Move.PROPOSER),
    E.RUN_FAILED: Row("ABORTED", 500, "The run failed.", False, Move.PROPOSER),
    E.RUN_CANCELLED: Row("CANCELLED", 409, "The run was cancelled.", False, Move.PROPOSER),
    E.PARTICIPANTS_TOO_FEW: Row(
        _PRE, 409, "Fewer organisations answered than the terms ask for.", False, Move.OTHER_ORG
    ),
    E.STRATEGY_REFUSED: Row(
        _PRE, 422, "This strategy must see single updates, which the terms forbid.", False, Move.PROPOSER
    ),
    E.ROSTER_MISMATCH: Row(
        "ABORTED", 409, "The parties of the secure sum do not agree on the roster.", True, Move.NOBODY
    ),
    E.CIPHERTEXT_INVALID: Row(_BAD, 422, "The ciphertext is not well formed.", False, Move.OTHER_ORG),
    E.SUM_MISMATCH: Row("DATA_LOSS", 409, "The encrypted sum does not match its parts.", False, Move.OPERATOR),
    E.BAD_SHARE: Row(_BAD, 422, "A share of a key does not fit.", False, Move.OTHER_ORG),
    E.SUMS_DIFFER: Row("DATA_LOSS", 409, "Openers of one sum saw different sums.", False, Move.OTHER_ORG),
    E.PROOF_INVALID: Row("DATA_LOSS", 409, "The Merkle proof does not hold.", False, Move.OPERATOR),
    E.LEDGER_INVALID: Row("DATA_LOSS", 409, "The ledger does not hold.", False, Move.OPERATOR),
    E.BACKUP_INVALID: Row("DATA_LOSS", 409, "The backup is damaged, or is none.", False, Move.OPERATOR),
    E.CLAIM_UNPROVEN: Row(_BAD, 422, "The zero-knowledge proof does not hold.", False, Move.OTHER_ORG),
    E.ATTESTATION_INVALID: Row(_DENY, 403, "The attestation evidence does not hold.", False, Move.OTHER_ORG),
    E.ATTESTATION_MISSING: Row(_DENY, 403, "A party shows no attestation evidence.", False, Move.OTHER_ORG),
    E.ATTESTATION_STALE: Row(
        _PRE, 409, "The attestation evidence is too old; newer evidence was asked for.", True, Move.OTHER_ORG
    ),
    E.UNAVAILABLE: Row(_GONE, 503, "The service is out of reach.", True, Move.CALLER),
    E.BUSY: Row("RESOURCE_EXHAUSTED", 429, "Too much is under way; try again later.", True, Move.NOBODY),
    E.TIMEOUT: Row("DEADLINE_EXCEEDED", 504, "The answer did not come in time.", True, Move.NOBODY),
    E.CONFLICT: Row("ALREADY_EXISTS", 409, "Something else stands under this name.", False, Move.CALLER),
    E.INTERNAL: Row("INTERNAL", 500, "Something failed inside.", True, Move.OPERATOR),
}


def row(code: E) -> Row:
    """Return the catalogue row of `code`."""
    return CATALOG[code]
