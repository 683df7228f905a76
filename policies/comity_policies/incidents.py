"""What a node saw of the ledger that cannot be: a signed statement that everybody can judge (ledger.md section 2).

Rules:
1. an incident names its kind, one sentence, and as evidence the signed notes that contradict each other;
2. whoever reads one judges the evidence alone: two notes that the log signed, of one size and with different roots,
   prove a fork to anybody; everything else is the word of the member that saw it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError
from comity_crypto.notes import verify_note
from comity_policies.document import Part, choice_of, instant_of, items_of, line_of
from comity_policies.term_rows import malformed, text_of

INCIDENT = "incident"
KINDS = ("fork", "rewrite", "rollback", "altered", "forged", "proof", "withheld", "back-dated", "stale")
# What a coordinator that makes no mistake never shows. The others are told, and work goes on as far as it may.
GRAVE = frozenset(KINDS) - {"back-dated", "stale"}
EVIDENCE_MAX = 4
NOTE_CHARS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Incident(Part):
    """One incident. `evidence` are signed notes, or digests of statements."""

    kind: str
    detail: str
    seen_at: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choice_of(self.kind, KINDS)
        line_of(self.detail, 400)
        instant_of(self.seen_at)
        given = [text_of(each, NOTE_CHARS_MAX) for each in items_of(self.evidence, EVIDENCE_MAX)]
        self._fix(evidence=tuple(given))

    @classmethod
    def _read(cls, value: Any) -> Incident:
        if not isinstance(value, dict) or not isinstance(value.get("evidence"), list):
            raise malformed("an incident has its evidence in a list")
        return super(Incident, cls)._read(value)


def proves_fork(incident: Incident, log_name: str, log_key: bytes) -> bool:
    """Tell whether the evidence alone proves that the log showed two histories (rule 2)."""
    roots: dict[int, bytes] = {}
    for note in incident.evidence:
        try:
            found = verify_note(note, log_name, log_key)
        except ComityError:
            continue
        if roots.setdefault(found.size, found.root) != found.root:
            return True
    return False
