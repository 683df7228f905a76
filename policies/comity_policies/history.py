"""Verify a ledger export offline, with nothing but the genesis name given by hand (ledger.md section 2).

Numbered obligations, the same numbers in code, reports and errors:

1. form: the export is whole, in order, bounded, and every entry is one canonical statement of this consortium;
2. genesis: the first entry is a charter signed by every founder, and its name is the one given by hand;
3. succession: every later charter follows from the one in force, certified by that one's quorum; what members proposed
   and voted on the way, and how proposals ended without a charter, holds (`history_charters.py`);
4. signatures: every statement is signed by its issuer under the charter in force at its place; the coordinator signs
   charters, the ends of proposals, agreements and run endings, and nothing else;
5. agreements: every party signed; each party's own signed answer allows the very proposal; the terms are at least as
   strict as each answer's and the proposal's; what goes beyond the proposer's bounds rests on the proposer's word;
6. receipts: each belongs to a known agreement, run and step, comes from a party, exceeds no grant, and no party
   executed one order twice or wrote two receipts under one number; a proof that enough records stand behind a result
   holds for the agreement's minimum, one that they are as many as behind an earlier one for both (`cohorts.py`);
7. runs: whoever is ready, finishes or withdraws may; a run's ending rests on the lead's own statement and on as many
   receipts as it counts;
8. log: the root over all entries is that of the checkpoint, which the log key of the last charter signed;
9. (if asked) whatever rests on BLS12-381 holds under a second, independent implementation of it
   (`history_independent.py`);
10. evidence: under `attestation: required` every party showed evidence that its machine is one that the charter trusts,
   bound to its key and to the answers, before anything was done; every result names the evidence of the other parties
   (`history_evidence.py`);
11. sums: what a result says of its weight in a secure sum is a commitment; a lead's statement on a sum names every
   contributor that committed, and it knows what opens the sum of their commitments (`history_sums.py`);
12. witnesses: the export's final note is about its very entries, cosigned by the last charter's witness rule
   (`history_witnesses.py`); every incident has its form.
"""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.notes import verify_note
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.signatures import Signatures, processes_for
from comity_crypto.statements import Statement, check_named
from comity_policies import sums
from comity_policies.charter import (
    Charter,
    changes,
    genesis_name,
    matches_genesis,
    verify_genesis,
    verify_successor,
)
from comity_policies.evidence import ASK, EVIDENCE
from comity_policies.history_charters import KINDS as CHARTER_KINDS
from comity_policies.history_charters import CharterBook, Decided
from comity_policies.history_evidence import EvidenceBook
from comity_policies.history_form import Obligation, lines, read_header, read_line
from comity_policies.history_independent import SecondLook
from comity_policies.history_runs import RunBook
from comity_policies.history_sums import SumBook
from comity_policies.history_witnesses import FinalBook
from comity_policies.incidents import INCIDENT, Incident
from comity_policies.proofs import verify_agreement

__all__ = ["Check", "Report", "verify_export"]

# Below this many entries starting processes costs more than they save.
_SHARED_MIN = 4_000
_ENTRY = frozenset({"index", "statement"})
COORDINATOR_KINDS = frozenset({"charter", "charter-ended", "agreement", "run-closed"})

OBLIGATIONS = {
    1: "every entry is whole and in order",
    2: "the genesis charter is signed by every founder and has the name given by hand",
    3: "every later charter follows by quorum from the one before; proposals and votes hold",
    4: "every statement is signed by its issuer under the charter in force",
    5: "every agreement is signed by every party, on terms as strict as each asked",
    6: "every receipt belongs to an agreement and exceeds no grant; every proof of a cohort holds",
    7: "every run's ending rests on its lead's statement and its receipts",
    8: "the root over all entries is the signed checkpoint's",
    9: "every certificate, key and proof holds under an independent implementation",
    10: "every evidence is bound to its party's key and agreement, and chains to what the charter trusts",
    11: "every proof of a sum is its lead's and holds for the commitments of every contributor",
    12: "what is called final was cosigned by the charter's witness rule",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One obligation that held, over `count` things; `note` says what was left out."""

    number: int
    title: str
    count: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verified export contains. A report exists only if every obligation held."""

    consortium: str
    genesis: str
    size: int
    root: str
    counts: dict[str, int]
    checks: tuple[Check, ...]
    charters: tuple[Decided, ...] = ()

    @property
    def ok(self) -> bool:
        """Always true: a failed obligation raises instead of reporting."""
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "ok": True,
            "consortium": self.consortium,
            "genesis": self.genesis,
            "size": self.size,
            "root": self.root,
            "counts": dict(self.counts),
            "checks": [
                {"number": each.number, "title": each.title, "count": each.count, "note": each.note}
                for each in self.checks
            ],
        }


@dataclass(slots=True)
class _History:
    """What the entries so far have established."""

    consortium: str
    genesis: str | None
    second: SecondLook | None
    # Each with its entry's index and its issuer.
    signatures: Signatures[tuple[int, str]]
    charter: Charter | None = None
    charters: dict[str, Charter] = field(default_factory=dict)
    decisions: CharterBook = field(default_factory=CharterBook)
    runs: RunBook = field(default_factory=RunBook)
    evidence: EvidenceBook = field(default_factory=EvidenceBook)
    sums: SumBook = field(default_factory=SumBook)
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    counts: Counter[str] = field(default_factory=Counter)
    final: FinalBook = field(default_factory=FinalBook)
    seen: set[str] = field(default_factory=set)
    held: Counter[int] = field(default_factory=Counter)
    name: str = ""


def verify_export(file: Path, genesis: str | None, *, independent: bool = False) -> Report:
    """Verify an export, one pass, one entry in memory at a time.

    Args:
        file: the export, JSON lines.
        genesis: the consortium's name or genesis digest, obtained outside the coordinator; without it obligation 2
            checks signatures only, and the report says so.
        independent: also obligation 9 (about half a second for each certificate and proof).

    Raises:
        ComityError: `LEDGER_INVALID` with the facts `obligation` and `index`; `NOT_FOUND` if there is no such file.
    """
    try:
        with file.open("rb") as stream:
            return _verify(stream, genesis, SecondLook() if independent else None)
    except OSError:
        raise ComityError(ErrorCode.NOT_FOUND, "the export cannot be read") from None


def _verify(stream: BinaryIO, genesis: str | None, second: SecondLook | None) -> Report:
    found = lines(stream)
    with Obligation(1, 0):
        consortium, size, note, final = read_header(next(found, b""))
    with Signatures(processes_for(size, _SHARED_MIN), _refuse) as signatures:
        history = _History(consortium, genesis, second, signatures)
        with Obligation(1, 0):
            history.final.begin(final)
        try:
            for index, line in enumerate(found):
                _enter(history, index, line, size)
        except ComityError:
            signatures.settle()  # one that does not hold stands before what is wrong here
            raise
        signatures.settle()
    with Obligation(1, history.tree.size):
        if history.tree.size != size or history.charter is None:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the export is cut short", size=size)
    with Obligation(8, size - 1):
        checkpoint = verify_note(note, history.charter.log_name, history.charter.log_public_key)
        if (checkpoint.size, checkpoint.root) != (size, history.tree.root()):
            raise ComityError(ErrorCode.LEDGER_INVALID, "the entries do not have the checkpoint's root")
        history.held[8] += 1
    with Obligation(12, size - 1):
        history.held[12] += history.final.check(history.charter, size)
    return _report(history, size)


def _enter(history: _History, index: int, line: bytes, size: int) -> None:
    with Obligation(1, index):
        entry = read_line(line, _ENTRY)
        if entry["index"] != index or index >= size:
            raise ComityError(ErrorCode.LEDGER_INVALID, "entries are out of order or too many")
        data = base64.b64decode(entry["statement"], validate=True)
        statement = Statement.from_bytes(data)
        if statement.consortium != history.consortium or statement.digest in history.seen:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the statement is of another consortium, or stands here twice")
        history.seen.add(statement.digest)
        if statement.kind in CHARTER_KINDS:
            history.decisions.may_have_ended(history.tree.size, history.tree.root())
        history.tree.append(merkle.leaf_hash(data))
        history.final.entered(history.tree)
        history.counts[statement.kind] += 1
        history.held[1] += 1
    if statement.kind == "charter" or history.charter is None:
        _enter_charter(history, index, statement)
        return
    _check_signature(history, index, statement, history.charter)
    if statement.kind in CHARTER_KINDS:
        with Obligation(3, index):
            history.decisions.enter(statement, history.charter)
            history.held[3] += 1
        if history.second is not None:
            with Obligation(9, index):
                history.held[9] += history.second.vote(statement, history.charter)
        return
    if statement.kind == "agreement":
        _enter_agreement(history, index, statement)
        return
    if statement.kind == sums.KIND:
        _enter_sum(history, index, statement)
        return
    if statement.kind == INCIDENT:
        with Obligation(12, index):
            Incident.from_json(statement.body)
        return
    with Obligation(10, index):
        if statement.kind in (EVIDENCE, ASK):
            history.held[10] += history.evidence.enter(statement, history.charter)
            return
        history.evidence.check_work(statement)
    _enter_work(history, index, statement)


def _enter_work(history: _History, index: int, statement: Statement) -> None:
    number = {"receipt": 6, "counter-acceptance": 5}.get(statement.kind, 7)
    with Obligation(number, index):
        history.held[number] += history.runs.enter(statement)
    if statement.kind == "receipt":
        with Obligation(11, index):
            history.sums.receipt(statement, history.runs)
    if history.second is not None:
        with Obligation(9, index):
            history.held[9] += history.second.receipt(statement, history.runs)


def _enter_charter(history: _History, index: int, statement: Statement) -> None:
    number = 2 if history.charter is None else 3
    with Obligation(number, index):
        if statement.kind != "charter":
            raise ComityError(ErrorCode.LEDGER_INVALID, "the first entry is not a charter")
        charter = Charter.from_json(statement.body["charter"])
        certificate = QuorumCertificate.from_json(statement.body["certificate"])
        if charter.consortium != history.consortium:
            raise ComityError(ErrorCode.CHARTER_INVALID, "the charter is of another consortium")
        if history.charter is None:
            if history.genesis is not None and not matches_genesis(charter, history.genesis):
                raise ComityError(ErrorCode.GENESIS_MISMATCH, "the genesis charter is not the one named by hand")
            verify_genesis(charter, certificate)
            history.name = genesis_name(charter)
            history.decisions.decided(charter, ("genesis",), certificate.signers)
        else:
            former, signatures = history.charter, statement.body.get("signatures")
            verify_successor(former, charter, certificate)
            history.decisions.in_force(former, charter, certificate, signatures)
            history.decisions.decided(charter, changes(former, charter), certificate.signers)
        history.held[number] += 1
    # A successor that names a new log is signed by the one that it names (negotiation.md section 6).
    _check_signature(history, index, statement, charter)
    voters = charter if history.charter is None else history.charter
    if history.second is not None:
        with Obligation(9, index):
            carried = statement.body.get("signatures")
            history.held[9] += history.second.charter(charter, certificate, voters, carried)
    history.charter = charter
    history.charters[charter.digest] = charter


def _enter_agreement(history: _History, index: int, statement: Statement) -> None:
    with Obligation(5, index):
        assert history.charter is not None
        answers = [Statement.from_json(each) for each in statement.body["answers"]]
        made_under = history.charters.get(statement.body["agreement"]["charter_digest"])
        if made_under is None:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "it is made under an unknown charter")
        agreement, certificate = verify_agreement(statement.body, answers, made_under)
        # A signature counts only if its entry precedes the rotation or suspension of its key (architecture.md 4).
        for org in agreement.parties:
            history.charter.check_active(org)
            if history.charter.member(org).keys != made_under.member(org).keys:
                raise ComityError(ErrorCode.AGREEMENT_INVALID, "a party's key was replaced before this entry", org=org)
        history.runs.check_accepted(agreement, answers)
        history.runs.add(agreement)
        history.evidence.add(agreement, answers, made_under)
        history.held[5] += 1
    if history.second is not None:
        with Obligation(9, index):
            history.held[9] += history.second.certificate(certificate, "agreement", made_under)


def _enter_sum(history: _History, index: int, statement: Statement) -> None:
    with Obligation(11, index):
        said, commitments = history.sums.enter(statement, history.runs)
        history.held[11] += 1
    if history.second is not None:
        with Obligation(9, index):
            history.held[9] += sums.verify_independently(said, statement.issuer, commitments)


def _check_signature(history: _History, index: int, statement: Statement, charter: Charter) -> None:
    with Obligation(4, index):
        by_log = statement.issuer == ids.COORDINATOR
        if by_log != (statement.kind in COORDINATOR_KINDS):
            raise ComityError(ErrorCode.LEDGER_INVALID, f"{statement.issuer} may not state a {statement.kind}")
        key = charter.log_public_key if by_log else charter.member(statement.issuer).keys.statement
        check_named(statement, key, consortium=charter.consortium)
        signed = statement.signed_bytes
    # Outside: it may refuse an earlier entry, and says so itself.
    history.signatures.add(key, statement.signature, signed, (index, statement.issuer))
    history.held[4] += 1


def _refuse(about: tuple[int, str]) -> NoReturn:
    index, issuer = about
    with Obligation(4, index):
        raise ComityError(ErrorCode.SIGNATURE_INVALID, issuer=issuer)
    raise AssertionError("an obligation passes on what is raised in it")


def _report(history: _History, size: int) -> Report:
    notes = {2: "" if history.genesis is not None else "no name was given by hand: signatures only"}
    shown, unshown = history.runs.shown, history.runs.unshown
    if shown or unshown:
        notes[6] = f"{shown} results under min_cohort prove it, {unshown} only say so"
        if history.runs.same:
            notes[6] += f"; {history.runs.same} prove that as many records stood behind an earlier result of their run"
    if history.runs.opened:
        also = f"openers signed for {len(history.runs.opened)} sums"
        named = ", ".join(history.runs.differing)
        notes[6] = "; ".join(filter(None, (notes.get(6), also, named and f"SUMS_DIFFER: {named} saw different sums")))
    notes[10] = history.evidence.note()
    notes[11], notes[12] = history.sums.note(), history.final.said
    checks = tuple(
        Check(number, title, history.held[number], notes.get(number, ""))
        for number, title in OBLIGATIONS.items()
        if (number != 9 or history.second is not None)
        and (number != 10 or history.evidence.agreements)
        and (number != 11 or history.sums.seen)
        and (number != 12 or history.final.said)
    )
    counts = dict(sorted(history.counts.items()))
    root, chain = history.tree.root().hex(), tuple(history.decisions.chain)
    return Report(history.consortium, history.name, size, root, counts, checks, chain)
