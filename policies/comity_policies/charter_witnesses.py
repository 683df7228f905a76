"""Who watches the ledger: the witnesses that a charter names, and when their cosignatures make a checkpoint final.

Rules (ledger.md section 2):
1. at most 16 members are witnesses; `k` cosignatures make a checkpoint final, `f` of the witnesses may be dishonest;
2. any two sets of `k` witnesses meet in an honest one: 2k - n > f. A rule that does not hold that cannot exist, so two
   different histories can never both become final while at most `f` witnesses lie;
3. suspended members do not count: the rule that is left is that of the others, with the smallest `k` that keeps rule 2;
4. the time of a final checkpoint is the oldest among the newest `k` cosignatures: at least one of them is honest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.notes import Checkpoint, cosignature_times, verify_note
from comity_policies.document import Part, org_set
from comity_policies.term_rows import malformed, whole_number

WITNESSES_MAX = 16


@dataclass(frozen=True, slots=True)
class WitnessRule(Part):
    """`k` of the witnesses `orgs` make a checkpoint final, of whom at most `f` are dishonest.

    Raises:
        ComityError: `MALFORMED` if two sets of `k` could meet in dishonest witnesses only.
    """

    orgs: tuple[str, ...]
    k: int
    f: int = 0

    def __post_init__(self) -> None:
        self._fix(orgs=org_set(self.orgs, WITNESSES_MAX))
        if not self.orgs:
            raise malformed("a witness rule names a witness")
        whole_number(self.k, 1, len(self.orgs))
        whole_number(self.f, 0, len(self.orgs) - 1)
        if 2 * self.k - len(self.orgs) <= self.f:
            raise malformed(
                f"{self.k} of {len(self.orgs)} witnesses: two such sets may meet in {self.f} dishonest ones only; "
                f"k has to be {smallest_k(len(self.orgs), self.f)} at least"
            )

    @classmethod
    def of(cls, orgs: Collection[str], k: int | None = None, f: int | None = None) -> WitnessRule:
        """Return a rule for `orgs`: one third of them may be dishonest, unless given; `k` is the smallest that holds.

        Raises:
            ComityError: `MALFORMED`.
        """
        liars = max(0, len(orgs) - 1) // 3 if f is None else f
        return cls(tuple(sorted(orgs)), smallest_k(len(orgs), liars) if k is None else k, liars)

    @classmethod
    def from_text(cls, text: str) -> WitnessRule:
        """Read a rule as people write it: `ORG,ORG,ORG`, `2:ORG,ORG,ORG` (k), `3/1:ORG,…` (k/f). Raises `MALFORMED`."""
        head, colon, named = text.rpartition(":")
        k, slash, f = head.partition("/")
        if (colon and not _number(k)) or (slash and not _number(f)) or len(text) > 8_192:
            raise malformed("witnesses read ORG,ORG or K:ORG,ORG or K/F:ORG,ORG")
        orgs, liars = tuple(named.split(",")), int(f) if f else None
        if k and liars is None:  # no more liars are tolerated than this k can bear
            liars = max(0, min((len(orgs) - 1) // 3, 2 * int(k) - len(orgs) - 1))
        return cls.of(orgs, int(k) if k else None, liars)

    def __str__(self) -> str:
        """The rule as people write it."""
        return f"{self.k}/{self.f}:{','.join(self.orgs)}"

    def without(self, gone: Collection[str]) -> WitnessRule | None:
        """Return the rule that is left when `gone` are no witnesses any more; None if nobody is left (rule 3)."""
        left = tuple(name for name in self.orgs if name not in set(gone))
        if len(left) == len(self.orgs):
            return self
        return WitnessRule.of(left, f=min(self.f, (len(left) - 1) // 3)) if left else None


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A checkpoint that the log signed, with the times (seconds since 1970) of the witnesses that cosigned it."""

    checkpoint: Checkpoint
    times: dict[str, int]
    k: int

    @property
    def final(self) -> bool:
        """Whether enough witnesses cosigned it."""
        return 0 < self.k <= len(self.times)

    @property
    def at_s(self) -> int:
        """When it became final (rule 4), 0 if it is not."""
        return sorted(self.times.values(), reverse=True)[self.k - 1] if self.final else 0


def judge(
    note: str, log_name: str, log_key: bytes, rule: WitnessRule | None, keys: Mapping[str, bytes], *, latest_s: int
) -> Witnessed:
    """Judge a note by a witness rule; cosignatures of others, and those dated after `latest_s`, do not count.

    Args:
        keys: the witnesses' Ed25519 statement keys, 32 bytes each.

    Raises:
        ComityError: `MALFORMED`, `SIGNATURE_INVALID` if the log's signature, or one in a witness's name, does not hold.
    """
    checkpoint = verify_note(note, log_name, log_key)
    if rule is None:
        return Witnessed(checkpoint, {}, 0)
    try:
        times = cosignature_times(note, {name: keys[name] for name in rule.orgs})
    except KeyError as error:
        raise ComityError(ErrorCode.NOT_A_MEMBER, "a witness without a key") from error
    return Witnessed(checkpoint, {name: at for name, at in times.items() if at <= latest_s}, rule.k)


def smallest_k(n: int, f: int) -> int:
    """Return the smallest k of n witnesses with 2k - n > f."""
    return (n + f) // 2 + 1


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 3
