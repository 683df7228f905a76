"""What the checks before an order cost a node, apart from the commit: for `bench_negotiation.py`.

The real rules (`enforcement.judge`), the shipped bundle in the embedded engine behind the node's decision log, a real
journal on disk; the agreement's certificate was verified before, as it is from the second order on.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from comity_crypto.encoding import to_base64
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import sign_statement
from comity_node.abilities import Abilities
from comity_node.journal import Journal
from comity_node.negotiation.store import StoredAgreement
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy
from comity_node.settings import DecisionLogLimits
from comity_node.training import store
from comity_node.training.enforcement import Case, Certificates, History, cost_of, judge
from comity_node.training.tables import OrderRow
from comity_policies.bundle import write_defaults
from comity_policies.charter import Charter, Member
from comity_policies.decisions import Decision, Stage
from comity_policies.documents import Agreement, AppRef, DatasetAsk, OrderHeader, Proposal, TrainStep, run_id
from comity_policies.engine import PolicySettings, open_engine
from comity_policies.terms import Terms

ORGS = ("org-00", "org-01", "org-02")
TIMES, WARM_UP = 2_000, 200
NOW, LATER = "2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z"
CATALOGUE = {"patients": {"name": "patients", "classification": "pseudonymous", "records": 200, "columns": ["x", "y"]}}


def row() -> dict[str, Any]:
    """Return the row of the checks at dispatch; times in microseconds."""
    folder = Path(tempfile.mkdtemp(prefix="comity-bench-"))
    try:
        return _measured(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(folder: Path) -> dict[str, Any]:
    write_defaults(folder / "policy", ORGS[1])
    own = open_engine(PolicySettings(folder=folder / "policy"))
    policy = RecordedPolicy(own, None, DecisionLog(folder / "decisions.db", DecisionLogLimits()))
    journal = Journal.open(folder / "journal.db")
    journal.create_all()
    try:
        case, certificates = _case(), Certificates()
        asked: list[dict[str, Any]] = []

        def decide(stage: Stage, document: dict[str, Any]) -> Decision:
            asked.append(document)
            return policy.decide(stage, document)

        verdict = judge(case, certificates, decide)
        assert verdict.error is None, verdict.error
        document = asked[0]
        checks, engine = _in_turns(
            lambda: judge(case, certificates, policy.decide), lambda: own.decide(Stage.DISPATCH, document)
        )
        commits = sorted(_took(lambda number=number: _commit(journal, case, number)) for number in range(300))
        journal_p50 = statistics.median(commits)
    finally:
        policy.close()
        journal.close()
    p50, alone = statistics.median(checks), statistics.median(engine)
    return {
        "check": "dispatch",
        "p50_us": round(p50),
        "p99_us": round(checks[int(0.99 * len(checks))]),
        "engine_alone_p50_us": round(alone),
        "commit_p50_us": round(journal_p50),
        "limit_us": round(1.3 * alone + 300),
        "ok": p50 <= 1.3 * alone + 300,
    }


def _in_turns(one: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Measure two things in turns, so that the machine's other work falls on both; sorted microseconds."""
    for _ in range(WARM_UP):
        one()
        other()
    pairs = [(_took(one), _took(other)) for _ in range(TIMES)]
    return sorted(first for first, _ in pairs), sorted(second for _, second in pairs)


def _took(what: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    what()
    return (time.perf_counter_ns() - begun) / 1_000


def _commit(journal: Journal, case: Case, number: int) -> None:
    order = case.order
    started = OrderRow.started(replace(order, seq=number), "train", f"{number:064x}", NOW)

    def charge(conn: Any) -> None:
        store.spent(conn, order.agreement)
        store.spend(conn, order.agreement, cost_of(case))
        store.start_order(conn, started)

    journal.transact(charge)


def _case() -> Case:
    keys = {org: OrgKeys.generate() for org in ORGS}
    charter = Charter(
        version=1,
        consortium="bench",
        previous=None,
        members=tuple(Member(org, org, org, keys[org].public) for org in ORGS),
        log_name="log",
        log_key=to_base64(OrgKeys.generate().public.statement),
        quorum={},
        max_checkpoint_age_s=600,
        defaults=Terms(),
    )
    step = TrainStep("train", ORGS[0], AppRef("ab" * 32, 1, "app", "us", "1"), 10, {"num-server-rounds": 10}, 60)
    terms = Terms.parse({"purposes": ["research"], "aggregation": "lead-key", "rounds": 10, "uses": 1})
    proposal = Proposal(
        proposal_id="prop-1",
        revision=1,
        consortium="bench",
        proposer=ORGS[0],
        purpose="research",
        title="t",
        steps=(step,),
        required=ORGS,
        optional=(),
        minimum=3,
        datasets=tuple(DatasetAsk(org, "patients", ("x", "y")) for org in ORGS),
        terms=terms,
        deadline=LATER,
    )
    agreement = Agreement("agr-1", "bench", charter.digest, proposal, ORGS, terms)
    message = message_for("agreement", agreement.digest)
    certificate = make_certificate(agreement.digest, {org: keys[org].bls_sign(message) for org in ORGS})
    order = OrderHeader(
        agreement=agreement.digest,
        run=run_id(agreement.digest, 1),
        step="train",
        round=1,
        seq=0,
        message_type="train",
        lead=ORGS[0],
        receivers=ORGS,
        payload={"digest": "ab" * 32, "size": 100, "boxes": {}},
        content_digest="cd" * 32,
        reply_by=LATER,
    )
    said = sign_statement(keys[ORGS[0]], kind="order", consortium="bench", issuer=ORGS[0], body=order.to_json())
    stored = StoredAgreement(agreement, "final", certificate, None, NOW, NOW)
    abilities = Abilities(frozenset({"plain", "lead-key"}), "sandbox")
    nothing_yet = History({}, True, 0, None, 0)
    return Case(
        order, said, stored, charter, nothing_yet, ORGS[1], NOW, abilities, CATALOGUE, False, made_under=charter
    )
