"""What a receipt shows about the records behind a result: at least as many as the terms ask for, and not how many.

Rules:
1. The minimum is the agreement's, never the receipt's: the largest `min_cohort` among the datasets asked of the party.
2. A proof is bound to the agreement, the order and the party: the order's digest fixes run, step, round and content.
   Copied into another receipt it does not hold.
3. Only a result under a minimum carries one. One that does not hold would spoil the ledger, so it never
   gets in.
4. A receipt without one is still a receipt: releases before this wrote none. Verifiers count those.
5. Within a run it also shows that as many records stand behind this result as behind an earlier one, if so: nobody is
   singled out by a cohort that shrinks by one. The number stays unsaid; that it changed shows by the missing proof.

Source: secure-aggregation.md section 7, ledger.md section 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import from_base64, to_base64
from comity_crypto.zk import claims, schnorr
from comity_crypto.zk.binding import Binding
from comity_crypto.zk.pedersen import Opening
from comity_policies.documents import Agreement
from comity_policies.orders import CohortProof, Receipt

_VERIFIED_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Claim:
    """What a party will show of one result: the records behind it (its secret) and the minimum that they reach."""

    minimum: int
    cohort: int = field(repr=False)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a party showed of an earlier result: the order, the commitment, and its opening, which stays secret."""

    order: str
    commitment: bytes
    opening: Opening = field(repr=False)


def minimum_of(agreement: Agreement, org: str) -> int:
    """Return how many records must stand behind a result of `org`; 0 if the terms ask for none."""
    asked = agreement.terms.get("min_cohort", {})
    return max((int(asked.get(ask.key, 0)) for ask in agreement.proposal.datasets if ask.org == org), default=0)


def claim_of(agreement: Agreement, org: str, cohort: int) -> Claim | None:
    """Return what `org` can show of a result behind which `cohort` records stand; None if no minimum was agreed."""
    minimum = minimum_of(agreement, org)
    return Claim(minimum, cohort) if 0 < minimum <= cohort else None


def prove(receipt: Receipt, org: str, claim: Claim) -> Receipt:
    """Return the receipt with a commitment to the cohort and the proof (832 bytes, about 25 ms)."""
    return prove_after(receipt, org, claim, None)[0]


def prove_after(receipt: Receipt, org: str, claim: Claim, before: Earlier | None) -> tuple[Receipt, Earlier]:
    """As `prove`, and that the cohort is that of an earlier result of the same run, if it is (80 bytes, 0.3 ms).

    Returns:
        The receipt, and what the next one can be compared with.
    """
    binding = binding_of(receipt, org)
    proven = claims.prove_at_least(claim.cohort, claim.minimum, binding)
    order = same = None
    if before is not None and before.opening.values == proven.opening.values:
        shown = schnorr.prove_same(before.commitment, proven.commitment, before.opening, proven.opening, binding)
        order, same = before.order, to_base64(shown)
    cohort = CohortProof(to_base64(proven.commitment), to_base64(proven.proof), order, same)
    return replace(receipt, cohort=cohort), Earlier(receipt.order, proven.commitment, proven.opening)


def binding_of(receipt: Receipt, org: str) -> Binding:
    """Return where the proof in a receipt of `org` belongs."""
    return Binding(receipt.agreement, receipt.order, org)


def verify(receipt: Receipt, org: str, minimum: int) -> None:
    """Check the proof in a receipt of `org`, if there is one (about 4 ms). Raises `CLAIM_UNPROVEN`."""
    if receipt.cohort is not None:
        _check_place(minimum)
        commitment, proof = _bytes_of(receipt.cohort)
        _holds(commitment, minimum, proof, binding_of(receipt, org))


def verify_same(receipt: Receipt, org: str, before: str | None) -> None:
    """Check the proof that as many records stand behind an earlier result, if there is one (about 0.6 ms).

    Args:
        before: the commitment (base64) in the receipt of `org` for the earlier order of the same run; None if there is
            none.

    Raises:
        ComityError: `CLAIM_UNPROVEN`.
    """
    if receipt.cohort is not None and receipt.cohort.same is not None:
        first, second, proof = _bytes_of_same(receipt.cohort, before)
        schnorr.verify_same(first, second, proof, binding_of(receipt, org))


def verify_independently(receipt: Receipt, org: str, minimum: int, before: str | None = None) -> int:
    """As `verify` and `verify_same`, with py_ecc only (0.3 s); return how many proofs held. Raises `CLAIM_UNPROVEN`."""
    # Imported here: 35 MB that only an auditor pays for.
    from comity_crypto.zk import independent

    if receipt.cohort is None:
        return 0
    _check_place(minimum)
    commitment, proof = _bytes_of(receipt.cohort)
    independent.verify_at_least(commitment, minimum, proof, binding_of(receipt, org))
    if receipt.cohort.same is None:
        return 1
    independent.verify_same(*_bytes_of_same(receipt.cohort, before), binding_of(receipt, org))
    return 2


# A database transaction may be repeated: what was found true once is not computed again.
@lru_cache(maxsize=_VERIFIED_MAX)
def _holds(commitment: bytes, minimum: int, proof: bytes, binding: Binding) -> None:
    claims.verify_at_least(commitment, minimum, proof, binding)


def _check_place(minimum: int) -> None:
    if minimum < 1:
        raise ComityError(ErrorCode.CLAIM_UNPROVEN, "a proof where the terms ask for no minimum")


def _bytes_of(shown: CohortProof) -> tuple[bytes, bytes]:
    return from_base64(shown.commitment, what="commitment"), from_base64(shown.proof, what="proof")


def _bytes_of_same(shown: CohortProof, before: str | None) -> tuple[bytes, bytes, bytes]:
    if before is None:
        raise ComityError(ErrorCode.CLAIM_UNPROVEN, "no earlier result of this run shows its cohort")
    first, second = (from_base64(each, what="commitment") for each in (before, shown.commitment))
    return first, second, from_base64(shown.same, what="same")
