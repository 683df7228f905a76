"""Orders wait for fresh evidence of the other parties' machines; results name what they rested on."""

from __future__ import annotations

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.attestation.service import NOTHING, OrderEvidence
from comity_node.training import participant, questions

EVIDENCE = tuple(sorted("0123456789abcdef"[at] * 64 for at in (3, 9)))


async def test_a_result_waits_for_fresh_evidence_and_names_it(rig, dummy, monkeypatch):
    asked = []

    async def of_order(node, agreement, digest):
        asked.append(node.settings.org)
        if asked.count("hospital-b") == 1 and node.settings.org == "hospital-b":
            return OrderEvidence(ComityError(ErrorCode.ATTESTATION_STALE, org="hospital-c"))
        return OrderEvidence(None, EVIDENCE) if node.settings.org == "hospital-b" else NOTHING

    monkeypatch.setattr(participant, "of_order", of_order)
    monkeypatch.setattr(questions, "RESEND_S", 0.3)
    agreement = rig.agree(dummy, rounds=1, config={"params": 100, "num-server-rounds": 1})
    assert (await rig.finish(rig.board.prepare(agreement)))["state"] == "COMPLETED"
    await rig.until(lambda: all(rig.receipts(org) for org in rig.nodes))
    await rig.until(lambda: {body["outcome"] for body in rig.receipts("hospital-b")} == {"refused", "result"})
    by_outcome = {body["outcome"]: body for body in rig.receipts("hospital-b")}
    assert by_outcome["refused"]["code"] == "ATTESTATION_STALE"
    assert by_outcome["result"]["evidence"] == list(EVIDENCE)
    assert all("evidence" not in body for org in ("hospital-a", "hospital-c") for body in rig.receipts(org))


@pytest.mark.slow
async def test_evidence_that_does_not_hold_ends_the_order(rig, dummy, monkeypatch):
    async def of_order(node, agreement, digest):
        bad = ComityError(ErrorCode.ATTESTATION_INVALID, "the evidence of hospital-c: obligation 7", org="hospital-c")
        return OrderEvidence(bad) if node.settings.org == "hospital-b" else NOTHING

    monkeypatch.setattr(participant, "of_order", of_order)
    agreement = rig.agree(
        dummy, rounds=1, config={"params": 100, "num-server-rounds": 1}, terms={"min_participants": 3}
    )
    ending = await rig.finish(rig.board.prepare(agreement))
    assert ending["state"] == "FAILED"
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 1)
    assert rig.receipts("hospital-b")[0]["code"] == "ATTESTATION_INVALID"
