"""How one charter follows another: the genesis charter by name, every later one by the quorum of the one before.

Rules (negotiation.md section 6):
1. the genesis charter is signed by every member that it names; its digest is the consortium's name;
2. a successor names its predecessor's digest, and is certified by members of the predecessor under the keys that the
   predecessor pins; members that the predecessor has suspended have no vote;
3. each difference between the two is one kind of decision with its own quorum rule; every kind that occurs must have
   its quorum, and no rule asks for half of the members or less (`charter_quorum.py`);
4. what no kind of decision covers cannot change;
5. a successor that names another log says where the former one ended.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Collection
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate, message_for, verify_certificate
from comity_policies.charter_document import (
    CHECKPOINT_AGE_S_MAX,
    Adopted,
    AgentRef,
    Charter,
    Member,
    PolicyRef,
    TrustRoot,
)
from comity_policies.charter_quorum import DECISION_KINDS, QuorumRule
from comity_policies.charter_witnesses import WitnessRule

__all__ = [
    "CHECKPOINT_AGE_S_MAX",
    "DECISION_KINDS",
    "Adopted",
    "AgentRef",
    "Charter",
    "Member",
    "PolicyRef",
    "QuorumRule",
    "TrustRoot",
    "WitnessRule",
    "changes",
    "check_follows",
    "enough",
    "genesis_name",
    "matches_genesis",
    "reachable",
    "verify_genesis",
    "verify_successor",
]

GENESIS_CHARS_MIN = 24  # 120 bits
GENESIS_GROUPS = (4, 4, 4, 4, 5, 5)  # 26 characters, 130 bits
_BASE32 = re.compile(r"[a-z2-7]{24,52}")
_HEX = re.compile(r"[0-9a-f]{64}")


def genesis_name(charter: Charter) -> str:
    """Return a charter's name for people: 26 base32 characters (130 bits of its digest) in groups.

    The genesis charter's is the consortium's name.
    """
    text, groups = _base32(charter), []
    for size in GENESIS_GROUPS:
        groups.append(text[:size])
        text = text[size:]
    return "-".join(groups)


def matches_genesis(charter: Charter, typed: str) -> bool:
    """Tell, in constant time, whether `typed` names this charter.

    `typed` is the name (at least 24 base32 characters; hyphens, spaces and case do not matter) or the full hexadecimal
    digest. Anything shorter or odd is False.
    """
    plain = re.sub(r"[\s-]", "", typed[:200]).lower()
    if _HEX.fullmatch(plain):
        return hmac.compare_digest(plain, charter.digest)
    if not _BASE32.fullmatch(plain) or len(plain) < GENESIS_CHARS_MIN:
        return False
    return hmac.compare_digest(plain, _base32(charter)[: len(plain)])


def verify_genesis(charter: Charter, certificate: QuorumCertificate) -> None:
    """Check rule 1.

    Raises:
        ComityError: `CHARTER_INVALID` if it is no first charter; `QUORUM_MISSING` if not every member signed it.
    """
    if charter.version != 1 or charter.suspended or charter.adopted is not None:
        raise ComityError(ErrorCode.CHARTER_INVALID, "a genesis charter is version 1, without a past")
    whole = set(certificate.signers) == set(charter.organisations)
    _verify_signers(charter, charter, certificate, whole)


def verify_successor(previous: Charter, successor: Charter, certificate: QuorumCertificate) -> None:
    """Check rules 2 to 5.

    Raises:
        ComityError: `CHARTER_INVALID` if `successor` does not follow from `previous`; `QUORUM_MISSING` if too few
            members of `previous` signed it.
    """
    check_follows(previous, successor)
    _verify_signers(previous, successor, certificate, enough(previous, successor, certificate.signers))


def check_follows(previous: Charter, successor: Charter) -> tuple[str, ...]:
    """Check that `successor` may be put to the vote after `previous`; return its kinds. Raises `CHARTER_INVALID`."""
    if successor.version != previous.version + 1 or successor.previous != previous.digest:
        raise ComityError(ErrorCode.CHARTER_INVALID, "it does not name the charter in force as its predecessor")
    return changes(previous, successor)


def enough(previous: Charter, successor: Charter, signers: Collection[str]) -> bool:
    """Tell whether `signers` meet every quorum rule that leads to `successor`. Raises `CHARTER_INVALID`."""
    kinds = changes(previous, successor)
    return all(previous.rule(kind).met(signers, previous.organisations, previous.suspended) for kind in kinds)


def reachable(previous: Charter, successor: Charter, denied: Collection[str]) -> bool:
    """Tell whether the members that did not deny `successor` can still bring it into force."""
    return enough(previous, successor, [name for name in previous.voters if name not in set(denied)])


def changes(previous: Charter, successor: Charter) -> tuple[str, ...]:
    """Return the kinds of decision that lead from one charter to the other. Raises `CHARTER_INVALID` on rules 4, 5."""
    if successor.consortium != previous.consortium:
        raise ComityError(ErrorCode.CHARTER_INVALID, "a charter cannot rename the consortium")
    before = {member.org: member for member in previous.members}
    after = {member.org: member for member in successor.members}
    both = before.keys() & after.keys()
    barred, bars = set(previous.suspended), set(successor.suspended)
    found: dict[str, Any] = {
        "admit-member": (after.keys() - before.keys()) | ((barred - bars) & after.keys()),
        "suspend-member": (before.keys() - after.keys()) | (bars - barred),
        "rotate-key": {name for name in both if before[name].keys != after[name].keys},
        "change-charter": {
            name for name in both if (before[name].title, before[name].owner) != (after[name].title, after[name].owner)
        }
        or _constitution(previous) != _constitution(successor)
        or successor.witnesses != _left_witnesses(previous, before.keys() - after.keys()),
        "change-policy": previous.policy != successor.policy,
        "publish-agent": previous.agents != successor.agents,
        "trust-root": previous.trust_roots != successor.trust_roots,
        "change-coordinator": _changes_log(previous, successor),
    }
    kinds = tuple(kind for kind, happened in found.items() if happened)
    if not kinds:
        raise ComityError(ErrorCode.CHARTER_INVALID, "it changes nothing")
    return kinds


def _constitution(charter: Charter) -> tuple[Any, ...]:
    return charter.quorum, charter.max_checkpoint_age_s, charter.defaults, charter.roles


def _left_witnesses(previous: Charter, gone: Collection[str]) -> WitnessRule | None:
    """Whoever is removed witnesses no more; what is left of the rule needs no vote of its own."""
    left = None if previous.witnesses is None else previous.witnesses.without(gone)
    return previous.witnesses if left is None else left


def _changes_log(previous: Charter, successor: Charter) -> bool:
    """Rule 5: the end of the former log is named when the log changes, and never afterwards rewritten."""
    moved = (previous.log_name, previous.log_key) != (successor.log_name, successor.log_key)
    if not moved:
        if previous.adopted != successor.adopted:
            raise ComityError(ErrorCode.CHARTER_INVALID, "where a former log ended is told when the log changes")
        return False
    if successor.adopted is None or successor.adopted.origin != previous.log_name:
        raise ComityError(ErrorCode.CHARTER_INVALID, "a charter that names another log says where the former ended")
    return True


def _verify_signers(judges: Charter, charter: Charter, certificate: QuorumCertificate, quorum: bool) -> None:
    keys = judges.certificate_keys
    signers = set(certificate.signers)
    if certificate.digest != charter.digest:
        raise ComityError(ErrorCode.QUORUM_MISSING, "the certificate is about another document")
    if len(signers) != len(certificate.signers) or not signers <= keys.keys() or not quorum:
        raise ComityError(ErrorCode.QUORUM_MISSING, "too few members signed, or strangers did", signers=len(signers))
    verify_certificate(certificate, message_for("charter", charter.digest), keys)


def _base32(charter: Charter) -> str:
    return base64.b32encode(bytes.fromhex(charter.digest)).decode("ascii").rstrip("=").lower()
