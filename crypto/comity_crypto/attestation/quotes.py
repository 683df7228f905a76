"""Intel SGX and TDX quotes, verified offline through dcap-qvl with collateral from a file.

Numbered obligations, the same numbers in code, refusals and tests:

1. form: a quote and a collateral document (JSON as Intel's services and dcap-qvl write it) of legal sizes;
2. evidence: dcap-qvl verifies the quote's signature, its certificates up to Intel's root (or one that the verifier
   names by its digest), revocation lists, TCB information and the quoting enclave's identity, all valid now;
3. kind: the quote is of the kind that the verifier expects;
4. status: the platform's TCB status is an accepted one, and no advisory is a refused one;
5. attributes: no debugging; a TDX module signed by Intel, without attributes of its own;
6. measurements: each register that the policy names holds an accepted value;
7. binding: report_data is the digest of the node's statement key and of the verifier's nonce (`evidence`).

The library is optional (`pip install comity[attestation]`): without it every quote is refused, by name. Registers are
those of the SGX enclave report (`mr_enclave`, `mr_signer`) and of the TD report (`mr_td`, `rt_mr0` to `rt_mr3`, …).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation.evidence import REPORT_DATA_BYTES, check_binding, refused

QUOTE_BYTES_MAX = 64 << 10
COLLATERAL_BYTES_MAX = 1 << 20
ACCEPTED = frozenset({"UpToDate"})
# What a policy must name, so that an empty one does not accept every workload.
REQUIRED = {"sgx": ("mr_enclave",), "tdx": ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2")}

_KINDS = {"SgxEnclave": "sgx", "TD10": "tdx", "TD15": "tdx", "TD15Ex": "tdx"}
_SGX_DEBUG_BIT, _TDX_DEBUG_BYTE = 1 << 1, 0xFF


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier asks of a quote.

    Args:
        kind: `sgx` or `tdx`.
        registers: accepted values (lower-case hexadecimal) by register; `REQUIRED` ones must be named.
        statuses: accepted TCB statuses, as Intel spells them.
        refused_advisories: Intel's advisories, such as `INTEL-SA-00615`, that must not apply.
    """

    kind: str
    registers: Mapping[str, frozenset[str]]
    statuses: frozenset[str] = ACCEPTED
    refused_advisories: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.kind not in REQUIRED or any(not self.registers.get(each) for each in REQUIRED[self.kind]):
            raise ComityError(ErrorCode.MALFORMED, "a policy names its kind and what tells workloads apart")


@dataclass(frozen=True, slots=True)
class Quote:
    """What a verified quote says: the TCB status, the advisories that apply, the registers in hexadecimal."""

    kind: str
    status: str
    advisories: tuple[str, ...]
    registers: Mapping[str, str]


def verify(
    quote: bytes, collateral: bytes, policy: Policy, *, statement_key: bytes, nonce: bytes, now: datetime
) -> Quote:
    """Verify a quote against all seven obligations.

    Args:
        quote: as the enclave or guest handed it over.
        collateral: certificates, revocation lists, TCB information and identities, JSON.
        policy: what is asked of it.
        statement_key: the node's Ed25519 public key, 32 bytes.
        nonce: drawn by the verifier, 32 bytes.
        now: an instant with its time zone.

    Raises:
        ComityError: `ATTESTATION_INVALID` with the fact `obligation`; `UNSUPPORTED` without the library; `MALFORMED`
            for a key or nonce of another size.
    """
    found = verify_evidence(quote, collateral, now)
    check(found, policy, statement_key=statement_key, nonce=nonce)
    return found


def check(found: Quote, policy: Policy, *, statement_key: bytes, nonce: bytes) -> None:
    """Obligations 3 to 7 on a quote whose evidence holds. Raises as `verify`."""
    if found.kind != policy.kind:
        raise refused(3, f"a quote of the kind {found.kind}")
    if found.status not in policy.statuses or policy.refused_advisories & set(found.advisories):
        raise refused(4, f"the platform's status is {found.status}")
    _check_attributes(found)
    for name, accepted in policy.registers.items():
        if found.registers.get(name) not in accepted:
            raise refused(6, f"{name} is none of those expected")
    check_binding(_bytes(found.registers.get("report_data", "")), statement_key, nonce, 7)


def verify_evidence(quote: bytes, collateral: bytes, now: datetime, *, roots: frozenset[str] | None = None) -> Quote:
    """Obligations 1 and 2: what the quote says, whoever it is for.

    Args:
        roots: SHA-256 (hexadecimal) of trusted root certificates (DER), of which the collateral has to carry one; None
            trusts the root of Intel's that the library brings.

    Raises:
        ComityError: `ATTESTATION_INVALID`, `UNSUPPORTED`.
    """
    library = _library()
    if not 0 < len(quote) <= QUOTE_BYTES_MAX or not 0 < len(collateral) <= COLLATERAL_BYTES_MAX:
        raise refused(1, "a quote or its collateral has no legal size")
    try:
        given = library.QuoteCollateralV3.from_json(collateral.decode("utf-8"))
    except (ValueError, TypeError) as error:
        raise refused(1, "the collateral is not well formed") from error
    try:
        if roots is None:
            verified = library.verify(quote, given, int(now.timestamp()))
        else:
            verified = library.verify_with_root_ca(quote, given, _root(given, roots), int(now.timestamp()))
        document = json.loads(verified.to_json())
    except (ValueError, TypeError) as error:
        raise refused(2, "the quote or its collateral does not hold") from error
    except BaseException as error:  # a panic of the library's Rust is no Exception; anything else goes on
        if type(error).__name__ != "PanicException":
            raise
        raise refused(2, "the library gave up on the quote") from error
    return _read(document)


def _root(collateral: Any, roots: frozenset[str]) -> bytes:
    """Return the last certificate of the collateral's chain (DER) if it is a trusted one."""
    try:
        chain = x509.load_pem_x509_certificates(collateral.tcb_info_issuer_chain.encode("ascii"))
        root = chain[-1].public_bytes(Encoding.DER)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise refused(1, "the collateral's certificates are not well formed") from error
    if hashlib.sha256(root).hexdigest() not in roots:
        raise refused(2, "the root is not a trusted one")
    return root


def _library() -> ModuleType:
    try:
        return importlib.import_module("dcap_qvl")
    except ImportError as error:
        raise ComityError(ErrorCode.UNSUPPORTED, "quotes need comity[attestation]", field="attestation") from error


def _read(document: Any) -> Quote:
    """Read what the library says of a quote that it verified."""
    try:
        ((name, fields),) = document["report"].items()
        registers = {key: value for key, value in fields.items() if isinstance(value, str)}
        if name.startswith("TD") and isinstance(fields.get("base"), dict):
            # Later TD reports wrap the first one.
            registers |= {key: value for key, value in fields["base"].items() if isinstance(value, str)}
        kind = _KINDS[name]
        advisories = tuple(str(each) for each in document["advisory_ids"])
        return Quote(kind, str(document["status"]), advisories, registers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refused(2, "the library knows a kind of quote that this release does not") from error


def _check_attributes(found: Quote) -> None:
    if found.kind == "sgx":
        attributes = _bytes(found.registers.get("attributes", ""))
        if len(attributes) != 16 or attributes[0] & _SGX_DEBUG_BIT:
            raise refused(5, "the enclave may be debugged: it hides nothing from its host")
        return
    attributes = _bytes(found.registers.get("td_attributes", ""))
    # The first byte of a guest's attributes is kept for what makes it untrusted; debugging is its lowest bit.
    if len(attributes) != 8 or attributes[0] & _TDX_DEBUG_BYTE:
        raise refused(5, "the guest may be debugged: it hides nothing from its host")
    for name, size_bytes in (("mr_signer_seam", 48), ("seam_attributes", 8)):
        if _bytes(found.registers.get(name, "")) != bytes(size_bytes):
            raise refused(5, "the TDX module is not Intel's own")


def _bytes(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise refused(2, "a register is not hexadecimal") from error
    if len(data) > REPORT_DATA_BYTES:
        raise refused(2, "a register is too long")
    return data
