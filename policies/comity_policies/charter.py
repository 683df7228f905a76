"""The consortium's charter: its members, their keys, who decides what, and how one charter follows another.

Rules (negotiation.md section 6):
1. the genesis charter is signed by every member that it names; its digest is the consortium's name;
2. a successor names its predecessor's digest, and is certified by members of the predecessor under the keys that the
   predecessor pins;
3. each difference between the two is one kind of decision with its own quorum rule; the strictest of the kinds that
   occur holds, and no rule asks for half of the members or less;
4. what no kind of decision covers cannot change.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import MemberKeys
from comity_crypto.quorum import QuorumCertificate, message_for, verify_certificate
from comity_policies.document import Document, Part, choice_of, digest_of, fields_of, items_of, line_of
from comity_policies.term_rows import malformed, text_of, whole_number
from comity_policies.terms import PARTIES_MAX, Terms, org

# Kinds of decision that have a quorum rule of their own; a kind without one needs all members.
DECISION_KINDS = (
    "admit-member",
    "suspend-member",
    "rotate-key",
    "change-charter",
    "change-policy",
    "publish-agent",
    "trust-root",
    "change-coordinator",
)
CHECKPOINT_AGE_S_MAX = 24 * 3600
GENESIS_CHARS_MIN = 24  # 120 bits
GENESIS_GROUPS = (4, 4, 4, 4, 5, 5)  # 26 characters, 130 bits
_BASE32 = re.compile(r"[a-z2-7]{24,52}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class QuorumRule(Part):
    """How many members decide: `all`; `count`, `k` of them; `fraction`, `k`/`n` of them rounded up."""

    kind: str
    k: int = 0
    n: int = 0

    def __post_init__(self) -> None:
        choice_of(self.kind, ("all", "count", "fraction"))
        whole_number(self.k, 0 if self.kind == "all" else 1, 1000)
        whole_number(self.n, max(1, self.k) if self.kind == "fraction" else 0, 1000)
        if (self.kind == "all" and self.k) or (self.kind != "fraction" and self.n):
            raise malformed("k belongs to count and fraction, n to fraction alone")

    def needed(self, member_count: int) -> int:
        """Return how many of `member_count` members must sign: never half or less, never more than all."""
        asked = member_count
        if self.kind == "count":
            asked = self.k
        elif self.kind == "fraction":
            asked = -(-self.k * member_count // self.n)
        return min(member_count, max(asked, member_count // 2 + 1))


@dataclass(frozen=True, slots=True)
class Member(Part):
    """One organisation: its id, its title for people, its legal owner, its public keys."""

    org: str
    title: str
    owner: str
    keys: MemberKeys

    def __post_init__(self) -> None:
        org(self.org)
        line_of(self.title)
        line_of(self.owner)

    @classmethod
    def from_json(cls, value: Any) -> Member:
        """Read a member; its keys' lengths, points and proof of possession are checked. Raises `MALFORMED` and more."""
        given = fields_of(value, cls)
        return cls(**{**given, "keys": MemberKeys.from_json(given["keys"])})

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling."""
        return {"org": self.org, "title": self.title, "owner": self.owner, "keys": self.keys.to_json()}


@dataclass(frozen=True, slots=True)
class Charter(Document):
    """One version of the constitution. `log_key` is base64 of the log's Ed25519 public key."""

    version: int
    consortium: str
    previous: str | None
    members: tuple[Member, ...]
    log_name: str
    log_key: str
    quorum: dict[str, QuorumRule]
    max_checkpoint_age_s: int
    defaults: Terms

    def __post_init__(self) -> None:
        whole_number(self.version, 1, 1_000_000)
        org(self.consortium)
        if (self.version == 1) != (self.previous is None):
            raise malformed("the first charter, and no other, has no predecessor")
        if self.previous is not None:
            digest_of(self.previous)
        _log_name(self.log_name)
        _key_bytes(self.log_key)
        whole_number(self.max_checkpoint_age_s, 1, CHECKPOINT_AGE_S_MAX)
        members = items_of(self.members, PARTIES_MAX)
        self._fix(members=tuple(sorted(members, key=lambda member: str(member.org))), quorum=dict(self.quorum))
        if not members:
            raise malformed("a consortium has a member")
        _distinct("organisation", (member.org for member in self.members))
        for name in ("statement", "certificate", "sealing"):
            _distinct(f"{name} key", (getattr(member.keys, name) for member in self.members))
        for kind in self.quorum:
            choice_of(kind, DECISION_KINDS)

    @classmethod
    def from_json(cls, value: Any) -> Charter:
        """Read a charter strictly. Raises `MALFORMED`, and what the members' keys raise."""
        given = dict(fields_of(value, cls))
        rules = given["quorum"]
        if not isinstance(rules, dict) or len(rules) > len(DECISION_KINDS):
            raise malformed("quorum is an object by kind of decision")
        given["quorum"] = {kind: QuorumRule.from_json(rule) for kind, rule in rules.items()}
        given["members"] = tuple(Member.from_json(each) for each in items_of(given["members"], PARTIES_MAX))
        given["defaults"] = Terms.parse(given["defaults"])
        charter = cls(**given)
        if charter.to_json() != value:
            raise malformed("Charter is not in its one spelling")
        return charter

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling."""
        plain = Part.to_json(self)
        plain["quorum"] = {kind: rule.to_json() for kind, rule in self.quorum.items()}
        return plain

    def member(self, organisation: str) -> Member:
        """Return the member called `organisation`. Raises `NOT_A_MEMBER`."""
        for each in self.members:
            if each.org == organisation:
                return each
        raise ComityError(ErrorCode.NOT_A_MEMBER, "the charter in force does not name this organisation")

    @property
    def organisations(self) -> tuple[str, ...]:
        """The members' ids, sorted."""
        return tuple(member.org for member in self.members)

    @property
    def certificate_keys(self) -> dict[str, bytes]:
        """The members' BLS public keys, as `verify_certificate` wants them."""
        return {member.org: member.keys.certificate for member in self.members}

    @property
    def log_public_key(self) -> bytes:
        """The log's 32-byte Ed25519 public key."""
        return _key_bytes(self.log_key)


def genesis_name(charter: Charter) -> str:
    """Return the consortium's name for people: 26 base32 characters (130 bits of the genesis digest) in groups."""
    text, groups = _base32(charter), []
    for size in GENESIS_GROUPS:
        groups.append(text[:size])
        text = text[size:]
    return "-".join(groups)


def matches_genesis(charter: Charter, typed: str) -> bool:
    """Tell, in constant time, whether `typed` names this genesis charter.

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
    if charter.version != 1:
        raise ComityError(ErrorCode.CHARTER_INVALID, "a genesis charter is version 1 without predecessor")
    _verify_signers(charter, charter, certificate, len(charter.members))


def verify_successor(previous: Charter, successor: Charter, certificate: QuorumCertificate) -> None:
    """Check rules 2 to 4.

    Raises:
        ComityError: `CHARTER_INVALID` if `successor` does not follow from `previous`; `QUORUM_MISSING` if too few
            members of `previous` signed it.
    """
    if successor.version != previous.version + 1 or successor.previous != previous.digest:
        raise ComityError(ErrorCode.CHARTER_INVALID, "it does not name the charter in force as its predecessor")
    kinds = changes(previous, successor)
    count = len(previous.members)
    rules = [previous.quorum.get(kind, QuorumRule("all")) for kind in kinds]
    _verify_signers(previous, successor, certificate, max(rule.needed(count) for rule in rules))


def changes(previous: Charter, successor: Charter) -> tuple[str, ...]:
    """Return the kinds of decision that lead from one charter to the other. Raises `CHARTER_INVALID` on rule 4."""
    if successor.consortium != previous.consortium:
        raise ComityError(ErrorCode.CHARTER_INVALID, "a charter cannot rename the consortium")
    before = {member.org: member for member in previous.members}
    after = {member.org: member for member in successor.members}
    both = before.keys() & after.keys()
    found = {
        "admit-member": after.keys() - before.keys(),
        "suspend-member": before.keys() - after.keys(),
        "rotate-key": {name for name in both if before[name].keys != after[name].keys},
        "change-charter": {
            name for name in both if (before[name].title, before[name].owner) != (after[name].title, after[name].owner)
        }
        or _constitution(previous) != _constitution(successor),
        "change-coordinator": (previous.log_name, previous.log_key) != (successor.log_name, successor.log_key),
    }
    kinds = tuple(kind for kind, happened in found.items() if happened)
    if not kinds:
        raise ComityError(ErrorCode.CHARTER_INVALID, "it changes nothing")
    return kinds


def _constitution(charter: Charter) -> tuple[Any, ...]:
    return charter.quorum, charter.max_checkpoint_age_s, charter.defaults


def _verify_signers(judges: Charter, charter: Charter, certificate: QuorumCertificate, needed: int) -> None:
    keys = judges.certificate_keys
    signers = set(certificate.signers)
    if certificate.digest != charter.digest:
        raise ComityError(ErrorCode.QUORUM_MISSING, "the certificate is about another document")
    if len(signers) != len(certificate.signers) or not signers <= keys.keys() or len(signers) < needed:
        raise ComityError(
            ErrorCode.QUORUM_MISSING, "too few members signed, or strangers did", signers=len(signers), needed=needed
        )
    verify_certificate(certificate, message_for("charter", charter.digest), keys)


def _base32(charter: Charter) -> str:
    return base64.b32encode(bytes.fromhex(charter.digest)).decode("ascii").rstrip("=").lower()


def _log_name(value: Any) -> str:
    """A log's origin is a line without spaces or plus signs, such as `coordinator.example/demo` (C2SP signed-note)."""
    if not line_of(value) or "+" in value or any(each.isspace() for each in value):
        raise malformed("a log's name has no spaces and no plus signs")
    return str(value)


def _key_bytes(value: Any) -> bytes:
    try:
        raw = base64.b64decode(text_of(value, 64), validate=True)
    except ValueError as error:
        raise malformed("log_key is base64") from error
    if len(raw) != 32:
        raise malformed("log_key is a 32-byte Ed25519 public key")
    return raw


def _distinct(what: str, values: Iterable[Any]) -> None:
    seen = list(values)
    if len(set(seen)) != len(seen):
        raise malformed(f"two members share one {what}")
