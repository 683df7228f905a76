"""Who has to say yes: the kinds of decision, and the quorum rule of one kind.

Rules (negotiation.md section 6):
1. nothing is decided by half of the members or less, nor by half of the weight or less where members have weights:
   suspended members count in this, so that suspending never turns a minority into a majority;
2. a rule that names members needs every one of them, and rule 1 besides;
3. only members that may vote (members that are not suspended) can say yes; what nobody can reach is never decided.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from comity_policies.document import Part, choice_of, fields_of, org_set
from comity_policies.term_rows import malformed, whole_number
from comity_policies.terms import PARTIES_MAX, org

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
RULE_KINDS = ("all", "count", "fraction", "named", "weighted")
NUMBER_MAX = 1000
RULE_CHARS_MAX = 8_192
_FRACTION = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class QuorumRule(Part):
    """How many members decide.

    `all`; `count`, `k` of them; `fraction`, `k`/`n` of them rounded up; `named`, every one of `members` and more than
    half of all; `weighted`, members whose `weights` sum up to `k` or more.
    """

    kind: str
    k: int = 0
    n: int = 0
    members: tuple[str, ...] = ()
    weights: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice_of(self.kind, RULE_KINDS)
        counted = self.kind in ("count", "fraction", "weighted")
        whole_number(self.k, 1 if counted else 0, NUMBER_MAX * PARTIES_MAX if self.kind == "weighted" else NUMBER_MAX)
        whole_number(self.n, max(1, self.k) if self.kind == "fraction" else 0, NUMBER_MAX)
        self._fix(members=org_set(self.members), weights=_weights(self.weights))
        if (not counted and self.k) or (self.kind != "fraction" and self.n):
            raise malformed("k belongs to count, fraction and weighted, n to fraction alone")
        if (self.kind == "named") != bool(self.members) or (self.kind == "weighted") != bool(self.weights):
            raise malformed("members belong to named, and weights to weighted")
        if self.k > sum(self.weights.values()) and self.kind == "weighted":
            raise malformed("the weights do not sum up to k")

    def __hash__(self) -> int:
        return hash((self.kind, self.k, self.n, self.members, tuple(self.weights.items())))

    @classmethod
    def from_json(cls, value: Any) -> QuorumRule:
        """Read a rule strictly. Raises `MALFORMED`."""
        given = dict(fields_of(value, cls))
        rule = cls(**given)
        if rule.to_json() != value:
            raise malformed("QuorumRule is not in its one spelling")
        return rule

    @classmethod
    def from_text(cls, text: str) -> QuorumRule:
        """Read a rule as people write it: `all`, `3`, `2/3`, `named:a,b`, `weighted:5:a=3,b=2`. Raises `MALFORMED`."""
        if len(text) > RULE_CHARS_MAX:
            raise malformed(f"a quorum rule has at most {RULE_CHARS_MAX} characters")
        if text == "all":
            return cls("all")
        if text.isdecimal() and text.isascii() and len(text) <= 4:
            return cls("count", int(text))
        if fraction := _FRACTION.fullmatch(text):
            return cls("fraction", int(fraction[1]), int(fraction[2]))
        kind, _, rest = text.partition(":")
        if kind == "named":
            return cls("named", members=tuple(rest.split(",")))
        needed, _, weights = rest.partition(":")
        pairs = [each.partition("=") for each in weights.split(",")]
        if kind != "weighted" or not all(number.isdecimal() for number in (needed, *(pair[2] for pair in pairs))):
            raise malformed("a quorum rule reads all, 3, 2/3, named:ORG,ORG or weighted:K:ORG=W,ORG=W")
        return cls("weighted", int(needed), weights={name: int(number) for name, _, number in pairs})

    def __str__(self) -> str:
        """The rule as people write it."""
        if self.kind == "named":
            return f"named:{','.join(self.members)}"
        if self.kind == "weighted":
            return f"weighted:{self.k}:{','.join(f'{name}={weight}' for name, weight in self.weights.items())}"
        return {"all": "all", "count": f"{self.k}", "fraction": f"{self.k}/{self.n}"}[self.kind]

    @property
    def names(self) -> frozenset[str]:
        """Every organisation that the rule names."""
        return frozenset(self.members) | frozenset(self.weights)

    def needed(self, member_count: int) -> int:
        """Return the least number of `member_count` members that can decide: never half or less, never more than all.

        Under `named` and `weighted` this many may be too few; `met` judges.
        """
        asked = member_count
        if self.kind == "count":
            asked = self.k
        elif self.kind == "fraction":
            asked = -(-self.k * member_count // self.n)
        elif self.kind == "named":
            asked = len(self.members)
        elif self.kind == "weighted":
            asked = 1
            while sum(sorted(self.weights.values())[-asked:]) < self._weight_needed() and asked < member_count:
                asked += 1
            return min(member_count, asked)
        return min(member_count, max(asked, member_count // 2 + 1))

    def met(self, signers: Collection[str], members: Collection[str], suspended: Collection[str] = ()) -> bool:
        """Tell whether `signers` decide among `members`, of whom the `suspended` have no vote (rules 1 to 3)."""
        said = set(signers)
        voters = set(members) - set(suspended)
        if not said <= voters:
            return False
        if self.kind == "weighted":
            return sum(self.weights.get(name, 0) for name in said) >= self._weight_needed()
        if self.kind == "named" and not said.issuperset(self.members):
            return False
        # Nobody waits for the votes of suspended members, and yet no minority decides.
        return len(said) >= min(self.needed(len(members)), len(voters)) and 2 * len(said) > len(members)

    def _weight_needed(self) -> int:
        return max(self.k, sum(self.weights.values()) // 2 + 1)


def _weights(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping) or len(value) > PARTIES_MAX:
        raise malformed(f"weights are an object of at most {PARTIES_MAX} organisations")
    return {org(name): whole_number(value[name], 1, NUMBER_MAX) for name in sorted(value, key=str)}
