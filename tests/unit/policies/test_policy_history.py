"""Offline verification: the true history holds, and each lie is caught under its own number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_policies import history as history_module
from comity_policies.history import verify_export
from comity_policies.terms import Terms

Export = Callable[[list[Statement]], Path]


def _fails(path: Path, genesis: str | None, obligation: int) -> ComityError:
    with pytest.raises(ComityError) as caught:
        verify_export(path, genesis)
    assert caught.value.code == ErrorCode.LEDGER_INVALID
    assert caught.value.facts["obligation"] == obligation, caught.value
    return caught.value


def test_the_true_history_holds(world: Any, export: Export) -> None:
    report = verify_export(export(world.history()), world.genesis)
    assert report.ok
    assert (report.consortium, report.genesis, report.size) == ("hospitals", world.genesis, 14)
    assert report.counts["receipt"] == 3
    counts = {1: 14, 2: 1, 3: 0, 4: 14, 5: 1, 6: 3, 7: 9, 8: 1, 11: 0}
    assert {check.number: check.count for check in report.checks} == counts
    assert report.checks[-1].note == "3 results in sums committed to no weight"
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_an_independent_implementation_agrees(world: Any, export: Export) -> None:
    report = verify_export(export(world.history()[:1]), world.genesis, independent=True)
    assert report.checks[-1].number == 9
    assert report.checks[-1].count == 4  # the certificate, and the possession of three keys


def test_without_a_name_the_report_says_so(world: Any, export: Export) -> None:
    assert "no name" in verify_export(export(world.history()), None).checks[1].note


def test_another_genesis(world: Any, export: Export) -> None:
    error = _fails(export(world.history()), "a" * 26, 2)
    assert error.facts["cause"] == "GENESIS_MISMATCH"


def test_a_founder_who_did_not_sign(world: Any, export: Export) -> None:
    entry = world.charter_entry(world.charter, ("hospital-a", "hospital-b"))
    _fails(export([entry, *world.history()[1:]]), world.genesis, 2)


def test_processes_name_the_first_entry_that_fails(world: Any, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_SHARED_MIN", 1)
    monkeypatch.setattr("comity_crypto.signatures.BATCH_COUNT", 3)
    history = world.history()
    assert verify_export(export(history), world.genesis).size == len(history)
    forged = [
        replace(each, signature=each.signature[:40] + bytes([each.signature[40] ^ 1]) + each.signature[41:])
        for each in history
    ]
    both = [*history[:9], forged[9], *history[10:12], forged[12], *history[13:]]
    # A later entry that fails at once does not hide it, nor does an end that is cut short.
    for lie in (both, [*both, world.say("coordinator", "withdrawal", {})]):
        error = _fails(export(lie), world.genesis, 4)
        assert error.facts == {"obligation": 4, "index": 9, "cause": "SIGNATURE_INVALID"}
        assert error.detail == "obligation 4: SIGNATURE_INVALID"
    # An earlier one does.
    early = [*history[:8], world.say("coordinator", "withdrawal", {}), *both[8:]]
    assert _fails(export(early), world.genesis, 4).facts["cause"] == "LEDGER_INVALID"


def test_succession(world: Any, export: Export) -> None:
    admitted = replace(
        world.charter,
        version=2,
        previous=world.charter.digest,
        members=(*world.charter.members, world.member("hospital-d")),
    )
    good = world.charter_entry(admitted, ("hospital-a", "hospital-b"))
    assert verify_export(export([*world.history(), good]), world.genesis).checks[2].count == 1
    bad = world.charter_entry(admitted, ("hospital-a",))
    _fails(export([*world.history(), bad]), world.genesis, 3)


def test_statements_of_strangers_and_usurpers(world: Any, export: Export) -> None:
    history = world.history()
    body = {"agreement": None, "proposal_id": "prop-1", "reason": "no"}
    stranger = world.say("hospital-d", "withdrawal", body)
    _fails(export([*history, stranger]), world.genesis, 4)
    forged = replace(world.say("hospital-d", "withdrawal", body), issuer="hospital-a")
    _fails(export([*history, forged]), world.genesis, 4)
    altered = replace(world.say("hospital-a", "withdrawal", body), body={**body, "reason": "yes"})
    _fails(export([*history, altered]), world.genesis, 4)
    _fails(export([*history, world.say("coordinator", "withdrawal", body)]), world.genesis, 4)
    _fails(export([*history, world.say("hospital-a", "charter", history[0].body)]), world.genesis, 3)


def _agreement(world: Any, **parts: Any) -> Statement:
    body = world.history()[5].body
    return world.say("coordinator", "agreement", {**body, **parts})


def test_agreements_need_every_party(world: Any, export: Export) -> None:
    start = world.history()[:5]
    agreement = world.agreement(world.proposal())
    two = world.certificate("agreement", agreement.digest, ("hospital-a", "hospital-b"))
    lying = replace(two, signers=("hospital-a", "hospital-b", "hospital-c"))
    for certificate in (two, lying, world.certificate("charter", agreement.digest)):
        _fails(export([*start, _agreement(world, certificate=certificate.to_json())]), world.genesis, 5)


def test_agreements_rest_on_answers(world: Any, export: Export) -> None:
    start, proposal = world.history()[:5], world.proposal()
    mine = [world.answer(org, proposal) for org in ("hospital-a", "hospital-b")]
    other = world.proposal(title="Another")
    for third in (
        [],
        [world.answer("hospital-c", proposal, decision="review")],
        [world.answer("hospital-c", other)],
        [world.answer("hospital-c", proposal, terms=Terms.parse({"rounds": 1}))],
        [world.answer("hospital-c", proposal), world.answer("hospital-c", proposal, engine="opa-server")],
        [world.answer("hospital-b", proposal)],
    ):
        answers = [each.to_json() for each in (*mine, *third)]
        _fails(export([*start, _agreement(world, answers=answers)]), world.genesis, 5)


def test_agreements_of_a_replaced_key_do_not_count(world: Any, export: Export) -> None:
    history = world.history()
    rotated = replace(world.charter.members[2], keys=world.keys["hospital-d"].public)
    successor = replace(
        world.charter, version=2, previous=world.charter.digest, members=(*world.charter.members[:2], rotated)
    )
    _fails(export([*history[:5], world.charter_entry(successor), history[5]]), world.genesis, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"grants": {"rounds": 3}},
        {"grants": {"uses": 2}},
        {"agreement": "00" * 32},
        {"run": "run-00000000000000000000000000"},
        {"order": "0e" * 32},
        {"journal_seq": 2},
    ],
)
def test_receipts_beyond_their_agreement(world: Any, export: Export, changes: dict[str, Any]) -> None:
    """The last two repeat a journal number, and an order, of the first receipt."""
    extra = world.receipt("hospital-a", world.agreement(world.proposal()), **changes)
    _fails(export([*world.history()[:10], extra]), world.genesis, 6)


def test_a_further_receipt_holds(world: Any, export: Export) -> None:
    agreement = world.agreement(world.proposal())
    extra = world.receipt("hospital-a", agreement, order="0e" * 32, journal_seq=2, grants={"rounds": 2})
    verify_export(export([*world.history()[:10], extra]), world.genesis)


OPENED = {"outcome": "opened", "result": None, "opened": "ab" * 32, "journal_seq": 2}


@pytest.mark.parametrize("second", ["ab" * 32, "cd" * 32])
def test_sums_are_signed_for_by_openers_and_compared(
    world: Any, export: Export, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    whole, step = world.proposal, world.proposal().steps[0]
    monkeypatch.setattr(world, "proposal", lambda: whole(steps=(replace(step, opened_by=("hospital-b",)),)))
    agreement = world.agreement(world.proposal())
    said = [world.receipt("hospital-a", agreement, **OPENED)]
    said.append(world.receipt("hospital-b", agreement, **{**OPENED, "opened": second}))
    report = verify_export(export([*world.history()[:10], *said]), world.genesis)
    note = next(check.note for check in report.checks if check.number == 6)
    assert "openers signed for 1 sums" in note
    assert ("SUMS_DIFFER: hospital-a, hospital-b saw different sums" in note) == (second != "ab" * 32)
    stranger = world.receipt("hospital-c", agreement, **OPENED)
    _fails(export([*world.history()[:10], stranger]), world.genesis, 6)


def test_runs_end_as_their_lead_says(world: Any, export: Export) -> None:
    history = world.history()
    finished, closed = history[-2], history[-1]
    lies = [
        {**closed.body, "state": "FAILED"},
        {**closed.body, "finished": None},
        {**closed.body, "finished": "00" * 32},
        {**closed.body, "receipts": {"hospital-a": 2}},
        {**closed.body, "run": "run-x"},
    ]
    for body in lies:
        _fails(export([*history[:-1], world.say("coordinator", "run-closed", body)]), world.genesis, 7)
    usurped = world.say("hospital-b", "run-finished", finished.body)
    _fails(export([*history[:-2], usurped]), world.genesis, 7)


def _edit(path: Path, number: int, **changes: Any) -> Path:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    path.write_text("\n".join(lines) + "\n")
    return path


def test_entries_are_whole_and_in_order(world: Any, export: Export) -> None:
    history = world.history()
    _fails(_edit(export(history), 3, index=4), world.genesis, 1)
    _fails(_edit(export(history), 3, statement="AAAA"), world.genesis, 1)
    _fails(_edit(export(history), 3, extra=1), world.genesis, 1)
    _fails(_edit(export(history), 0, size=99), world.genesis, 1)
    _fails(_edit(export(history), 0, size=3), world.genesis, 1)
    _fails(_edit(export(history), 0, size=True), world.genesis, 1)
    _fails(_edit(export(history), 0, consortium="others"), world.genesis, 1)
    _fails(export([*history, history[3]]), world.genesis, 1)
    path = export(history)
    path.write_bytes(path.read_bytes()[:-20])
    _fails(path, world.genesis, 1)
    path.write_bytes(b"")
    _fails(path, world.genesis, 1)
    path.write_bytes(b"[" * 100_000 + b"\n")
    _fails(path, world.genesis, 1)


def test_the_root_is_the_checkpoints(world: Any, export: Export, tmp_path: Path) -> None:
    history = world.history()
    note = json.loads(export(history).read_text().splitlines()[0])["checkpoint"]
    other = world.say("hospital-a", "withdrawal", {"agreement": None, "proposal_id": "p", "reason": ""})
    _fails(_edit(export([*history[:-1], other]), 0, checkpoint=note), world.genesis, 8)
    _fails(_edit(export(history), 0, checkpoint=note.replace("hospitals", "hospitalz")), world.genesis, 8)
    _fails(_edit(export(history), 0, checkpoint="nonsense"), world.genesis, 8)
