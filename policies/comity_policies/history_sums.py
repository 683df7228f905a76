"""Obligation 11 of `history.py`: the lead of a secure sum opened the sum of what its contributors committed to."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity_crypto.statements import Statement
from comity_policies import sums
from comity_policies.documents import Receipt
from comity_policies.history_runs import RunBook
from comity_policies.orders import SumProof, receipt_of

Place = tuple[str, str]


@dataclass(slots=True)
class SumBook:
    """Results of secure sums that no lead has proved yet, by run and order; `seen` counts all that are in one."""

    waiting: dict[Place, dict[str, Receipt]] = field(default_factory=dict)
    proved: set[Place] = field(default_factory=set)
    newest: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    silent: int = 0

    def receipt(self, statement: Statement, runs: RunBook) -> None:
        """Note a receipt that obligation 6 has passed. Raises `CLAIM_UNPROVEN` for a commitment that is none."""
        receipt = receipt_of(statement)
        agreement, place = runs.agreements[receipt.agreement], (receipt.run, receipt.order)
        sums.check_weight(receipt, agreement)
        if receipt.outcome != "result" or not sums.is_summed(agreement, receipt.step):
            return
        self.seen += 1
        self.silent += receipt.weight is None
        if receipt.weight is not None and place not in self.proved:
            self.waiting.setdefault(place, {})[statement.issuer] = receipt

    def enter(self, statement: Statement, runs: RunBook) -> tuple[SumProof, tuple[str, ...]]:
        """Check a lead's statement.

        Returns:
            What it says, and the commitments (base64) that it is about.

        Raises:
            ComityError: what `sums.check` raises, `AGREEMENT_UNKNOWN`, `ORDER_REPLAYED`.
        """
        said, lead = SumProof.from_json(statement.body), statement.issuer
        agreement, place = runs.agreement_of(said.agreement, said.run, lead), (said.run, said.order)
        sums.check_next(said, self.newest.get(said.run, sums.NONE))
        commitments = sums.check(said, lead, agreement, self.waiting.get(place, {}))
        self.newest[said.run] = said.seq
        self.proved.add(place)
        self.waiting.pop(place, None)
        return said, commitments

    def note(self) -> str:
        """Return what an auditor should know of sums that nobody proved."""
        said = []
        if self.waiting:
            said.append(f"{len(self.waiting)} sums of committed weights that no lead proved")
        if self.silent:
            said.append(f"{self.silent} results in sums committed to no weight")
        return "; ".join(said)
