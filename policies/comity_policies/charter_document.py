"""The charter as a document: who is a member under which keys, who decides what, and what the members agreed on.

Rules: those of `document.py`; besides, whatever a charter says of members (roles, suspensions, quorum rules) it says of
members that it names, so that no decision waits for a stranger. How one charter follows another: `charter.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import MemberKeys
from comity_policies.charter_quorum import DECISION_KINDS, QuorumRule
from comity_policies.charter_witnesses import WitnessRule
from comity_policies.document import (
    Document,
    Part,
    choice_of,
    digest_of,
    fields_of,
    items_of,
    line_of,
    name_of,
    org_set,
)
from comity_policies.term_rows import malformed, text_of, whole_number
from comity_policies.terms import PARTIES_MAX, Terms, org

CHECKPOINT_AGE_S_MAX = 24 * 3600
VERSIONS_MAX = 1_000_000
ATTEMPTS_MAX = 1_000
ROLES_MAX = 32
AGENTS_MAX = 256
TRUST_ROOTS_MAX = 64
LOG_SIZE_MAX = 1 << 53


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
        return cls._read(value)

    @classmethod
    def _read(cls, value: Any) -> Member:
        given = fields_of(value, cls)
        return cls(**{**given, "keys": MemberKeys.from_json(given["keys"])})

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling."""
        return {"org": self.org, "title": self.title, "owner": self.owner, "keys": self.keys.to_json()}


@dataclass(frozen=True, slots=True)
class PolicyRef(Part):
    """The consortium's policy bundle, by its digest; `name` is for people."""

    digest: str
    name: str

    def __post_init__(self) -> None:
        digest_of(self.digest)
        line_of(self.name, 128)


@dataclass(frozen=True, slots=True)
class AgentRef(Part):
    """An app or agent that the consortium has published, by the digest of its bundle."""

    digest: str
    name: str
    version: str
    publisher: str

    def __post_init__(self) -> None:
        digest_of(self.digest)
        for each in (self.name, self.version, self.publisher):
            line_of(each, 128)


@dataclass(frozen=True, slots=True)
class TrustRoot(Part):
    """A root of attestation that the consortium trusts: what it is for, its name, SHA-256 of its file."""

    kind: str
    name: str
    digest: str

    def __post_init__(self) -> None:
        name_of(self.kind)
        line_of(self.name, 128)
        digest_of(self.digest)


@dataclass(frozen=True, slots=True)
class Adopted(Part):
    """Where the log of a former coordinator ended: its origin, how many entries it had, its root (hexadecimal)."""

    origin: str
    size: int
    root: str

    def __post_init__(self) -> None:
        log_name_of(self.origin)
        whole_number(self.size, 1, LOG_SIZE_MAX)
        digest_of(self.root)


@dataclass(frozen=True, slots=True)
class Charter(Document):
    """One version of the constitution.

    `log_key` is base64 of the log's Ed25519 public key. `suspended` members have no vote and take no part in new work.
    `adopted` names the end of the former log once the coordinator was changed. `attempt` tells apart two proposals of
    the same content, of which the first was denied. `witnesses` says whose cosignatures make the ledger final; without
    it nothing waits for finality.
    """

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"witnesses"})

    version: int
    consortium: str
    previous: str | None
    members: tuple[Member, ...]
    log_name: str
    log_key: str
    quorum: dict[str, QuorumRule]
    max_checkpoint_age_s: int
    defaults: Terms
    roles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    policy: PolicyRef | None = None
    agents: tuple[AgentRef, ...] = ()
    trust_roots: tuple[TrustRoot, ...] = ()
    suspended: tuple[str, ...] = ()
    adopted: Adopted | None = None
    attempt: int = 1
    witnesses: WitnessRule | None = None

    def __post_init__(self) -> None:
        whole_number(self.version, 1, VERSIONS_MAX)
        whole_number(self.attempt, 1, ATTEMPTS_MAX)
        org(self.consortium)
        if (self.version == 1) != (self.previous is None):
            raise malformed("the first charter, and no other, has no predecessor")
        if self.previous is not None:
            digest_of(self.previous)
        log_name_of(self.log_name)
        _key_bytes(self.log_key)
        whole_number(self.max_checkpoint_age_s, 1, CHECKPOINT_AGE_S_MAX)
        self._fix(
            members=tuple(sorted(items_of(self.members, PARTIES_MAX), key=lambda member: str(member.org))),
            quorum=dict(sorted(self.quorum.items())),
            roles=_roles(self.roles),
            agents=tuple(sorted(items_of(self.agents, AGENTS_MAX), key=lambda each: (each.name, each.version))),
            trust_roots=tuple(
                sorted(items_of(self.trust_roots, TRUST_ROOTS_MAX), key=lambda each: (each.kind, each.name))
            ),
            suspended=org_set(self.suspended),
        )
        self._check_members()
        _distinct("agents share one name and version", ((each.name, each.version) for each in self.agents))
        _distinct("trust roots share one name", ((each.kind, each.name) for each in self.trust_roots))

    def _check_members(self) -> None:
        if not self.members:
            raise malformed("a consortium has a member")
        _distinct("members share one organisation", (member.org for member in self.members))
        for name in ("statement", "certificate", "sealing"):
            _distinct(f"members share one {name} key", (getattr(member.keys, name) for member in self.members))
        voters = set(self.voters)
        if not set(self.suspended) <= set(self.organisations) or 2 * len(voters) <= len(self.members):
            raise malformed("suspended organisations are members, and fewer than half of them")
        for kind, rule in self.quorum.items():
            choice_of(kind, DECISION_KINDS)
            if not rule.names <= set(self.organisations) or not rule.met(voters, self.organisations, self.suspended):
                raise malformed(f"the members that may vote cannot meet the quorum rule of {kind}")
        strangers = sorted({name for named in self.roles.values() for name in named} - set(self.organisations))
        if strangers:
            raise malformed(f"a role is held by members, and {strangers[0]} is none")
        if self.witnesses is not None and not set(self.witnesses.orgs) <= set(self.organisations):
            raise malformed("a witness is a member")
        if self.witnesses is not None and self.witness_rule is None:
            raise malformed("not every witness can be suspended: nothing would become final")

    @classmethod
    def from_json(cls, value: Any) -> Charter:
        """Read a charter strictly. Raises `MALFORMED`, and what the members' keys raise."""
        charter = cls._read(value)
        if charter.to_json() != value:
            raise malformed("Charter is not in its one spelling")
        return charter

    @classmethod
    def _read(cls, value: Any) -> Charter:
        given = dict(fields_of(value, cls))
        rules = given["quorum"]
        if not isinstance(rules, dict) or len(rules) > len(DECISION_KINDS):
            raise malformed("quorum is an object by kind of decision")
        given["quorum"] = {kind: QuorumRule.from_json(rule) for kind, rule in rules.items()}
        given["members"] = tuple(Member.from_json(each) for each in items_of(given["members"], PARTIES_MAX))
        given["defaults"] = Terms.parse(given["defaults"])
        given["policy"] = None if given["policy"] is None else PolicyRef.from_json(given["policy"])
        given["agents"] = tuple(AgentRef.from_json(each) for each in items_of(given["agents"], AGENTS_MAX))
        given["trust_roots"] = tuple(
            TrustRoot.from_json(each) for each in items_of(given["trust_roots"], TRUST_ROOTS_MAX)
        )
        given["adopted"] = None if given["adopted"] is None else Adopted.from_json(given["adopted"])
        if "witnesses" in given:
            given["witnesses"] = WitnessRule.from_json(given["witnesses"])
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling."""
        plain = Part.to_json(self)
        plain["quorum"] = {kind: rule.to_json() for kind, rule in self.quorum.items()}
        plain["roles"] = {role: list(named) for role, named in self.roles.items()}
        return plain

    def member(self, organisation: str) -> Member:
        """Return the member called `organisation`. Raises `NOT_A_MEMBER`."""
        for each in self.members:
            if each.org == organisation:
                return each
        raise ComityError(ErrorCode.NOT_A_MEMBER, "the charter in force does not name this organisation")

    def check_active(self, organisation: str) -> None:
        """Refuse an organisation that may not take part now. Raises `NOT_A_MEMBER`, `SUSPENDED`."""
        self.member(organisation)
        if organisation in self.suspended:
            raise ComityError(ErrorCode.SUSPENDED, "the members have suspended this organisation", org=organisation)

    @property
    def organisations(self) -> tuple[str, ...]:
        """The members' ids, sorted."""
        return tuple(member.org for member in self.members)

    @property
    def voters(self) -> tuple[str, ...]:
        """The members that may vote and take part: those that are not suspended, sorted."""
        return tuple(name for name in self.organisations if name not in self.suspended)

    @property
    def witness_rule(self) -> WitnessRule | None:
        """The rule that makes a checkpoint final, suspended witnesses left out; None if the charter names none."""
        return None if self.witnesses is None else self.witnesses.without(self.suspended)

    @property
    def certificate_keys(self) -> dict[str, bytes]:
        """The members' BLS public keys, as `verify_certificate` wants them."""
        return {member.org: member.keys.certificate for member in self.members}

    @property
    def log_public_key(self) -> bytes:
        """The log's 32-byte Ed25519 public key."""
        return _key_bytes(self.log_key)

    def rule(self, kind: str) -> QuorumRule:
        """Return the quorum rule of a kind of decision: all, unless the charter says otherwise."""
        return self.quorum.get(kind, QuorumRule("all"))


def log_name_of(value: Any) -> str:
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


def _roles(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or len(value) > ROLES_MAX:
        raise malformed(f"roles are an object of at most {ROLES_MAX} names")
    roles = {name_of(role): org_set(value[role]) for role in sorted(value, key=str)}
    if not all(roles.values()):
        raise malformed("a role that nobody holds is left out")
    return roles


def _distinct(what: str, values: Iterable[Any]) -> None:
    seen = list(values)
    if len(set(seen)) != len(seen):
        raise malformed(f"two {what}")
