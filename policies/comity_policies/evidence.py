"""Evidence of confidential hardware as signed documents, and the nonces that bind it to one agreement.

Rules:
1. Evidence is bound to its organisation's statement key and to a nonce that nobody could know beforehand.
2. For an agreement, the nonce is a digest of the agreement and of every party's signed answer to its proposal: an
   answer's digest covers a signature, so each verifier's own answer makes the nonce new to that verifier.
3. Later a verifier asks with 32 fresh bytes of its own, in a statement; the nonce covers agreement, asker and bytes.
4. What may be trusted stands in the charter: roots `sev-snp`, `sgx`, `tdx` by the digest of their certificate, and
   workloads `sev-snp-measurement`, … by the digest of their measurement.

Source: secure-aggregation.md; negotiation.md section 3 (`attestation`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation.judging import (
    ENDORSEMENTS,
    KINDS,
    MEASUREMENT_SUFFIX,
    REPORT_BYTES_MAX,
    Evidence,
    Trust,
    judge,
)
from comity_crypto.attestation.snp import Tcb
from comity_crypto.encoding import from_base64, to_base64
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.document import Document, Part, choice_of, digest_of
from comity_policies.term_rows import malformed
from comity_policies.terms import Terms, org

TERM, REQUIRED = "attestation", "required"
EVIDENCE, ASK = "evidence", "evidence-ask"
EVIDENCE_BYTES_MAX = 160 << 10
CHALLENGE_BYTES = 32
_ANY_FIRMWARE, _VMPL_MAX = Tcb(0, 0, 0, 0), 3

_SIGNING, _ASKED = b"comity/attestation/agreement/v1\x00", b"comity/attestation/asked/v1\x00"


@dataclass(frozen=True, slots=True)
class EvidenceBody(Part):
    """The evidence proper; `report` and every endorsement are base64."""

    kind: str
    report: str
    endorsements: dict[str, str]

    def __post_init__(self) -> None:
        choice_of(self.kind, KINDS)
        if not isinstance(self.endorsements, dict) or self.endorsements.keys() != ENDORSEMENTS[self.kind].keys():
            raise malformed(f"{self.kind} evidence comes with {', '.join(ENDORSEMENTS[self.kind])}")
        self.evidence()

    @classmethod
    def of(cls, evidence: Evidence) -> EvidenceBody:
        """Write evidence down."""
        endorsements = {name: to_base64(data) for name, data in sorted(evidence.endorsements.items())}
        return cls(evidence.kind, to_base64(evidence.report), endorsements)

    def evidence(self) -> Evidence:
        """Return what was written down. Raises `MALFORMED`, `ATTESTATION_INVALID`."""
        sizes = ENDORSEMENTS[self.kind]
        report = from_base64(self.report, what="report", max_bytes=REPORT_BYTES_MAX[self.kind])
        endorsements = {
            name: from_base64(data, what=name, max_bytes=sizes[name]) for name, data in self.endorsements.items()
        }
        return Evidence(self.kind, report, endorsements)


@dataclass(frozen=True, slots=True)
class EvidenceGiven(Document):
    """One party's evidence for one agreement; `asker` and `ask` (a statement's digest) where another asked for it."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"evidence": (EvidenceBody, None)}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"asker", "ask"})

    agreement: str
    evidence: EvidenceBody
    asker: str | None = None
    ask: str | None = None

    def __post_init__(self) -> None:
        digest_of(self.agreement)
        if (self.asker is None) != (self.ask is None):
            raise malformed("who asks is named together with the question")
        if self.asker is not None:
            org(self.asker)
            digest_of(self.ask)


@dataclass(frozen=True, slots=True)
class EvidenceAsk(Document):
    """One party's wish to see another's evidence anew: whose, and 32 fresh bytes (base64)."""

    agreement: str
    org: str
    challenge: str

    def __post_init__(self) -> None:
        digest_of(self.agreement)
        org(self.org)
        from_base64(self.challenge, what="challenge", size_bytes=CHALLENGE_BYTES)


def required(terms: Terms) -> bool:
    """Tell whether terms ask every party for evidence."""
    return bool(terms.get(TERM, "none") == REQUIRED)


def signing_nonce(agreement: str, answers: Iterable[str]) -> bytes:
    """Return the nonce of the evidence under which an agreement is signed: 32 bytes.

    Args:
        agreement: the agreement's digest.
        answers: digests of all parties' signed answers, each statement as it stands in the agreement's entry.
    """
    listed = sorted(digest_of(each) for each in answers)
    return _hash(_SIGNING, digest_of(agreement), *listed)


def asked_nonce(agreement: str, ask: str) -> bytes:
    """Return the nonce of evidence that another party asked for: 32 bytes. `ask` is its statement's digest."""
    return _hash(_ASKED, digest_of(agreement), digest_of(ask))


def charter_trust(charter: Charter) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Return the roots and the workloads that a charter trusts, by kind of evidence."""

    def named(kind: str) -> frozenset[str]:
        return frozenset(root.digest for root in charter.trust_roots if root.kind == kind)

    return {kind: named(kind) for kind in KINDS}, {kind: named(kind + MEASUREMENT_SUFFIX) for kind in KINDS}


def check_on_record(given: EvidenceGiven, said: Statement, charter: Charter, nonce: bytes) -> None:
    """Check evidence by what the whole consortium trusts, as the ledger's keeper and every auditor do.

    Firmware versions and TCB statuses are each node's own matter: a charter does not name them.

    Args:
        given: the body of `said`, whose signature holds.
        charter: its roots, workloads and keys count.
        nonce: what the evidence has to be bound to, beside the statement key.

    Raises:
        ComityError: `ATTESTATION_INVALID`; `UNSUPPORTED` for a quote without dcap-qvl; `NOT_A_MEMBER`.
    """
    roots, measurements = charter_trust(charter)
    trust = Trust(roots, measurements, floor=_ANY_FIRMWARE, vmpl_max=_VMPL_MAX, statuses=None)
    key, at = charter.member(said.issuer).keys.statement, instants.parse(said.issued_at)
    judge(given.evidence.evidence(), trust, statement_key=key, nonce=nonce, now=at)


def check_attestable(terms: Terms, charter: Charter) -> None:
    """Refuse to ask for evidence where the charter trusts no machine. Raises `UNSUPPORTED`, naming the term."""
    if required(terms):
        roots, measurements = charter_trust(charter)
        if not any(roots[kind] and measurements[kind] for kind in KINDS):
            detail = "the charter trusts no root and measurement of attestation"
            raise ComityError(ErrorCode.UNSUPPORTED, detail, field=TERM)


def _hash(domain: bytes, *digests: str) -> bytes:
    return hashlib.sha256(domain + b"".join(bytes.fromhex(each) for each in digests)).digest()
