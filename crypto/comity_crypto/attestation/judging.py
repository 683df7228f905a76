"""One judgement over every kind of evidence, by what a verifier trusts.

Rules:
1. Sizes and names are checked before anything is parsed; what is not of a known kind is refused.
2. Trust is named by digests: of the maker's root certificate, and of the workload. An empty set trusts nothing.
3. What a verifier did not decide on (the lowest firmware) refuses: nothing fails open.
4. Debugging, migration agents, foreign TDX modules: refused whatever the verifier says (`snp`, `quotes`).

The workload of a kind, as bytes: `sev-snp` the launch measurement (48); `sgx` MRENCLAVE (32); `tdx` MRTD and RTMR 0
to 2, one after the other (192).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation import quotes, snp
from comity_crypto.attestation.evidence import refused
from comity_crypto.attestation.snp import Tcb

SEV_SNP, SGX, TDX = "sev-snp", "sgx", "tdx"
KINDS = (SEV_SNP, SGX, TDX)
# What goes with the signed report: file names and their largest sizes. The chip's certificates, or Intel's collateral.
ENDORSEMENTS: Mapping[str, Mapping[str, int]] = {
    SEV_SNP: dict.fromkeys(("vcek", "ask", "ark"), snp.CERTIFICATE_BYTES_MAX),
    SGX: {"collateral": 64 << 10},
    TDX: {"collateral": 64 << 10},
}
REPORT_BYTES_MAX = {SEV_SNP: snp.REPORT_BYTES, SGX: 16 << 10, TDX: 16 << 10}
MEASUREMENT_SUFFIX = "-measurement"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a machine showed: `report` as the hardware signed it, and what vouches for its key."""

    kind: str
    report: bytes
    endorsements: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ComityError(ErrorCode.ATTESTATION_INVALID, "a kind of evidence that this release does not know")
        sizes = ENDORSEMENTS[self.kind]
        if self.endorsements.keys() != sizes.keys() or not 0 < len(self.report) <= REPORT_BYTES_MAX[self.kind]:
            raise refused(1, f"{self.kind} evidence is a report and {', '.join(sizes)}")
        if any(not 0 < len(data) <= sizes[name] for name, data in self.endorsements.items()):
            raise refused(1, "a certificate or collateral has no legal size")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a verifier trusts, by kind of evidence.

    Args:
        roots: SHA-256 (hexadecimal) of makers' root certificates.
        measurements: SHA-256 (hexadecimal) of workloads.
        floor: lowest accepted versions of SEV-SNP firmware; None refuses every report.
        vmpl_max: highest accepted privilege level, 0 the most privileged.
        statuses: accepted TCB statuses of Intel's platforms; None accepts those that Intel does not revoke.
        refused_advisories: Intel's advisories that must not apply.
    """

    roots: Mapping[str, frozenset[str]]
    measurements: Mapping[str, frozenset[str]]
    floor: Tcb | None = None
    vmpl_max: int = 0
    statuses: frozenset[str] | None = quotes.ACCEPTED
    refused_advisories: frozenset[str] = field(default_factory=frozenset)


def judge(evidence: Evidence, trust: Trust, *, statement_key: bytes, nonce: bytes, now: datetime) -> None:
    """Check that evidence holds, for this key and nonce, under what is trusted.

    Args:
        evidence: as another organisation's node sent it.
        trust: the verifier's own.
        statement_key: the Ed25519 key that the evidence has to be bound to, 32 bytes.
        nonce: 32 bytes that could not be known before the evidence was asked for.
        now: an instant with its time zone.

    Raises:
        ComityError: `ATTESTATION_INVALID` with the obligation of `snp` or `quotes`; `UNSUPPORTED` without dcap-qvl.
    """
    if evidence.kind == SEV_SNP:
        _judge_report(evidence, trust, statement_key, nonce, now)
    else:
        _judge_quote(evidence, trust, statement_key, nonce, now)


def workload_digest(workload: bytes) -> str:
    """Return how a workload is named in settings and charters: SHA-256, hexadecimal."""
    return hashlib.sha256(workload).hexdigest()


def _judge_report(evidence: Evidence, trust: Trust, statement_key: bytes, nonce: bytes, now: datetime) -> None:
    if trust.floor is None:
        raise refused(6, "no lowest firmware versions are set here (attestation.snp_floor)")
    measured = snp.read(evidence.report).measurement
    known = workload_digest(measured) in trust.measurements.get(SEV_SNP, frozenset())
    policy = snp.Policy(
        roots=trust.roots.get(SEV_SNP, frozenset()),
        measurements=frozenset({measured}) if known else frozenset(),
        floor=trust.floor,
        vmpl_max=trust.vmpl_max,
    )
    chain = snp.Chain(**evidence.endorsements)
    snp.verify(evidence.report, chain, policy, statement_key=statement_key, nonce=nonce, now=now)


def _judge_quote(evidence: Evidence, trust: Trust, statement_key: bytes, nonce: bytes, now: datetime) -> None:
    roots = trust.roots.get(evidence.kind, frozenset())
    found = quotes.verify_evidence(evidence.report, evidence.endorsements["collateral"], now, roots=roots)
    names = quotes.REQUIRED[evidence.kind]
    workload = "".join(found.registers.get(name, "") for name in names)
    known = _hex_digest(workload) in trust.measurements.get(evidence.kind, frozenset())
    policy = quotes.Policy(
        kind=evidence.kind,
        # No register holds an empty value: such a policy accepts nothing.
        registers={name: frozenset({found.registers.get(name, "") if known else ""}) for name in names},
        statuses=frozenset({found.status}) if trust.statuses is None else trust.statuses,
        refused_advisories=trust.refused_advisories,
    )
    quotes.check(found, policy, statement_key=statement_key, nonce=nonce)


def _hex_digest(text: str) -> str:
    try:
        return workload_digest(bytes.fromhex(text))
    except ValueError as error:
        raise refused(2, "a register is not hexadecimal") from error
