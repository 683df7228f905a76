"""Obligation 12: what an export calls final was cosigned by the witness rule of its own last charter.

Rules:
1. the final note is about the very entries of the export: its root is computed while they are read;
2. it counts only with the cosignatures that the rule asks for, under the keys that the charter names;
3. an export without one holds, and the report says that nothing in it is known to be final.
"""

from __future__ import annotations

from dataclasses import dataclass

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_policies.charter import Charter
from comity_policies.charter_witnesses import judge

# A time that no witness's clock shows: an auditor may read an export long after.
_LATEST_S = 1 << 62


@dataclass(slots=True)
class FinalBook:
    """The final note of an export, and the roots that it may be about."""

    note: str = ""
    size: int = 0
    root: bytes = merkle.EMPTY_ROOT
    said: str = ""

    def begin(self, note: str) -> None:
        """Take the note from the export's header; its size is read before its signatures are. Raises `MALFORMED`."""
        self.note = note
        if note:
            lines = note.split("\n", 2)
            if len(lines) < 3 or not lines[1].isdecimal() or len(lines[1]) > 16:
                raise ComityError(ErrorCode.MALFORMED, "the final checkpoint has not its form")
            self.size = int(lines[1])

    def entered(self, tree: merkle.Tree) -> None:
        """Hear of each entry once it is in the tree."""
        if tree.size == self.size:
            self.root = tree.root()

    def check(self, charter: Charter, size: int) -> int:
        """Check rules 1 and 2; return how many notes were. `said` tells people what is final.

        Raises:
            ComityError: `LEDGER_INVALID`, and what `judge` raises.
        """
        rule = charter.witness_rule
        if rule is None:
            return 0
        self.said = f"nothing of {size} entries is known to be final"
        if not self.note:
            return 0
        keys = {org: charter.member(org).keys.statement for org in rule.orgs}
        found = judge(self.note, charter.log_name, charter.log_public_key, rule, keys, latest_s=_LATEST_S)
        if found.checkpoint.size > size or found.checkpoint.root != self.root:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the final checkpoint is not of these entries")
        if not found.final:
            detail = f"{len(found.times)} witnesses cosigned, and {rule.k} make it final"
            raise ComityError(ErrorCode.LEDGER_INVALID, detail)
        at = instants.to_text(instants.from_epoch_s(found.at_s))
        self.said = (
            f"{found.checkpoint.size} of {size} entries are final since {at}, by {', '.join(sorted(found.times))}"
        )
        return 1
