"""This organisation's evidence, and its judgement of everybody else's (`attestation: required`).

Rules, in this order:
1. an agreement that asks for it is signed after this node showed its own evidence and judged that of every other
   party, bound to that party's statement key and to a nonce that holds this node's own signed answer;
2. before each order, evidence older than `evidence_max_age_s`, or no longer trusted under the charter in force, is
   asked for anew with fresh bytes; until it is here the order waits (`ATTESTATION_STALE`); new evidence that does not
   hold ends the matter (`ATTESTATION_INVALID`);
3. this node shows evidence to parties of an agreement in force here, one report at a time: hardware is slow at it;
4. evidence that cannot be gathered is told as the reason of a withdrawal, so that nobody waits for it.

`hold_back` and `of_order` are what others call; both return at once where the terms ask for nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.attestation.evidence import report_data
from comity_crypto.attestation.judging import judge
from comity_crypto.encoding import to_base64
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.attestation import store
from comity_node.attestation.source import ConfigfsTsm, EvidenceSource
from comity_node.attestation.store import Shown
from comity_node.attestation.trust import complete, settings_of, trust_of
from comity_node.negotiation import store as negotiation
from comity_node.transport.model import Message
from comity_policies.charter import Charter
from comity_policies.documents import Agreement
from comity_policies.evidence import (
    ASK,
    CHALLENGE_BYTES,
    EVIDENCE,
    EvidenceAsk,
    EvidenceBody,
    EvidenceGiven,
    asked_nonce,
    check_on_record,
    required,
    signing_nonce,
)

if TYPE_CHECKING:
    from comity_node.context import NodeContext

# Clocks of parties may differ by this much.
SKEW_S = 300
# Nobody is asked more often, nor after evidence that did not hold; what is answered later is refused.
ASK_AGAIN_S, REJECTED_S, ANSWER_S_MAX = 30, 600, 86_400
TASKS_MAX = 64
KEPT_MAX = 1_000

Woken = Callable[[str], Awaitable[None]]
Work = Callable[[], Coroutine[Any, Any, None]]
K = TypeVar("K")
V = TypeVar("V")
log = structlog.get_logger("comity.node.attestation")


@dataclass(frozen=True, slots=True)
class OrderEvidence:
    """What an order rests on: why it must wait or be refused, or the digests of the other parties' evidence."""

    error: ComityError | None = None
    digests: tuple[str, ...] | None = None


NOTHING = OrderEvidence()


class AttestationService:
    """Build with `build`."""

    def __init__(self, node: NodeContext, source: EvidenceSource) -> None:
        self._node = node
        self._source = source
        self._one = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake: Woken | None = None
        # By agreement: why our own evidence failed. By agreement and party: why newer evidence does not hold.
        self._failed: dict[str, ComityError] = {}
        self._rejected: dict[tuple[str, str], tuple[ComityError, str]] = {}
        self._asked: dict[tuple[str, str], str] = {}
        self._verdicts: dict[tuple[str, str, str], ComityError | None] = {}

    def register(self) -> None:
        """Take this capability's messages from the link."""
        self._node.link.register("evidence.given", self.on_given)
        self._node.link.register("evidence.asked", self.on_asked)
        self._node.link.on_refused("evidence.give", self._refused)

    def on_evidence(self, wake: Woken) -> None:
        """Await `wake(agreement digest)` when an agreement that waits for evidence should be judged again."""
        self._wake = wake

    async def start(self) -> None:
        """Nothing waits: agreements that do are the negotiation's."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """End what is being gathered; it is gathered again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- before a signature

    def before_signing(self, conn: Connection, agreement: Agreement, answers: Sequence[Statement]) -> str | None:
        """Return for what the signature waits, None if all evidence is here and holds.

        Raises:
            ComityError: `ATTESTATION_MISSING` or `ATTESTATION_INVALID` of this node's own evidence;
                `ATTESTATION_INVALID` naming the party whose evidence does not hold; `UNSUPPORTED`.
        """
        digest, me = agreement.digest, self._node.settings.org
        if (failure := self._failed.get(digest)) is not None:
            raise failure
        settings_of(self._node.settings)
        nonce = signing_nonce(digest, (each.digest for each in answers))
        held = store.shown(conn, digest)
        if me not in held:
            self._node.journal.after_commit(conn, partial(self._begin, digest, partial(self._show, digest, nonce)))
            return "this node's own evidence is being gathered"
        if awaited := sorted(set(agreement.parties) - held.keys()):
            return f"the evidence of {', '.join(awaited)} is awaited"
        mine = next(each for each in answers if each.issuer == me)
        for org in agreement.parties:
            if org != me:
                self._judge_first(conn, digest, held[org], nonce, mine.issued_at)
        return None

    def _judge_first(self, conn: Connection, agreement: str, shown: Shown, nonce: bytes, since: str) -> None:
        made, skew = instants.parse(shown.statement.issued_at), timedelta(seconds=SKEW_S)
        if made < instants.parse(since) - skew or made > self._node.clock() + skew:
            raise ComityError(ErrorCode.ATTESTATION_INVALID, "it was not made for this agreement", org=shown.org)
        self._judge(shown.statement, nonce, self._node.charters.in_force())
        store.set_judged(conn, agreement, shown.org, nonce, since)

    # -- before an order

    async def before_order(self, agreement: Agreement, digest: str) -> OrderEvidence:
        """Return what an order under an agreement in force rests on, or why it must wait or be refused."""
        held = await self._node.journal.run(lambda conn: store.shown(conn, digest))
        charter, me = self._node.charters.in_force(), self._node.settings.org
        stale: list[str] = []
        for org in agreement.parties:
            if org != me and not self._fresh(held.get(org), charter):
                rejected, at = self._rejected.get((digest, org), (None, ""))
                if rejected is not None and at > self._now(-REJECTED_S):
                    return OrderEvidence(rejected)
                stale.append(org)
        if not stale:
            return OrderEvidence(None, tuple(sorted(held[org].digest for org in agreement.parties if org != me)))
        for org in stale:
            await self._ask(digest, org)
        return OrderEvidence(ComityError(ErrorCode.ATTESTATION_STALE, org=",".join(stale)[:400]))

    def _fresh(self, shown: Shown | None, charter: Charter) -> bool:
        if shown is None or shown.nonce is None or shown.since is None:
            return False
        limit = timedelta(seconds=settings_of(self._node.settings).evidence_max_age_s)
        if self._node.clock() - instants.parse(shown.since) > limit:
            return False
        key = (shown.digest, charter.digest, self._now()[:10])  # certificates end some day: judged anew every day
        if key not in self._verdicts:
            try:
                self._judge(shown.statement, shown.nonce, charter)
                verdict = None
            except ComityError as error:
                verdict = error
            _keep(self._verdicts, key, verdict)
        return self._verdicts[key] is None

    async def _ask(self, agreement: str, org: str) -> None:
        """Ask for evidence anew, unless that was done a moment ago."""
        last, now = self._asked.get((agreement, org)), self._now()
        if last is not None and instants.parse(now) - instants.parse(last) < timedelta(seconds=ASK_AGAIN_S):
            return
        ask = EvidenceAsk(agreement, org, to_base64(secrets.token_bytes(CHALLENGE_BYTES)))
        statement = self._sign(ASK, ask.to_json())

        def write(conn: Connection) -> None:
            store.put_ask(conn, statement.digest, agreement, org, now, self._now(-ANSWER_S_MAX))
            self._node.link.send(conn, "evidence.ask", statement)

        await self._node.journal.run(write)
        _keep(self._asked, (agreement, org), now)
        log.info("evidence.asked", agreement=agreement, org=org)

    # -- messages

    async def on_given(self, message: Message) -> None:
        """Keep another party's evidence: for an agreement that is being signed, or because we asked for it."""
        statement = _statement(message)
        given = EvidenceGiven.from_json(statement.body)
        charter, org, ask = self._node.charters.in_force(), statement.issuer, given.ask
        key = charter.member(org).keys.statement
        verify_statement(statement, key, kind=EVIDENCE, consortium=charter.consortium)
        if ask is None:
            await self._node.journal.run(lambda conn: store.put_first(conn, given.agreement, statement))
            await self._woken(given.agreement)
            return
        asked = await self._node.journal.run(lambda conn: store.find_ask(conn, ask))
        if asked is None or asked[:2] != (given.agreement, org):
            raise ComityError(ErrorCode.FORBIDDEN, "this node did not ask for that evidence")
        nonce, since = asked_nonce(given.agreement, ask), asked[2]
        try:
            self._judge(statement, nonce, charter)
        except ComityError as error:
            _keep(self._rejected, (given.agreement, org), (error, self._now()))
            raise
        self._rejected.pop((given.agreement, org), None)
        await self._node.journal.run(lambda conn: store.put_newer(conn, given.agreement, statement, nonce, since))

    async def on_asked(self, message: Message) -> None:
        """Show evidence to a party of an agreement in force here. Raises `FORBIDDEN`, `BUSY` and others."""
        statement = _statement(message)
        ask, charter = EvidenceAsk.from_json(statement.body), self._node.charters.in_force()
        charter.check_active(statement.issuer)
        key = charter.member(statement.issuer).keys.statement
        verify_statement(statement, key, kind=ASK, consortium=charter.consortium)
        stored = await self._node.journal.run(lambda conn: negotiation.find_agreement(conn, ask.agreement))
        ours = ask.org == self._node.settings.org and statement.issuer in stored.agreement.parties
        if not ours or stored.state != "final" or not required(stored.agreement.terms):
            raise ComityError(ErrorCode.FORBIDDEN, "no agreement in force here asks for this evidence")
        self._start(statement.digest, partial(self._answer, ask.agreement, statement))

    def _refused(self, conn: Connection, body: bytes) -> None:
        """The coordinator did not take our evidence: it would not hold for an auditor."""
        given = EvidenceGiven.from_json(Statement.from_bytes(body).body)
        if given.ask is None:
            detail = "the coordinator did not take this node's own evidence: the charter trusts no such machine"
            self._fail(given.agreement, ComityError(ErrorCode.ATTESTATION_INVALID, detail))
            wake = partial(self._woken, given.agreement)
            self._node.journal.after_commit(conn, partial(self._begin, f"wake {given.agreement}", wake))

    # -- our own evidence

    async def _show(self, agreement: str, nonce: bytes) -> None:
        """Gather evidence for an agreement that is being signed, keep it, send it, and have the agreement judged."""
        try:
            await self._give(agreement, nonce, None)
        except ComityError as error:
            log.warning("evidence.failed", agreement=agreement, error=str(error))
            self._fail(agreement, error)
        await self._woken(agreement)

    async def _answer(self, agreement: str, ask: Statement) -> None:
        try:
            await self._give(agreement, asked_nonce(agreement, ask.digest), ask)
        except ComityError as error:
            log.warning("evidence.failed", agreement=agreement, asker=ask.issuer, error=str(error))

    async def _give(self, agreement: str, nonce: bytes, ask: Statement | None) -> None:
        node, settings = self._node, settings_of(self._node.settings)
        async with self._one:
            data = report_data(node.keys.public.statement, nonce)
            gathered = await asyncio.to_thread(self._source.gather, data)
            evidence = await asyncio.to_thread(complete, gathered, node.settings.home / settings.files)
        asker, digest = (None, None) if ask is None else (ask.issuer, ask.digest)
        given = EvidenceGiven(agreement, EvidenceBody.of(evidence), asker, digest)
        statement = self._sign(EVIDENCE, given.to_json())
        # What nobody would accept is not sent: the reason is told here, to our own people.
        check_on_record(given, statement, node.charters.in_force(), nonce)

        def write(conn: Connection) -> None:
            if ask is None:
                store.put_first(conn, agreement, statement)
            node.link.send(conn, "evidence.give", statement)

        await node.journal.run(write)
        log.info("evidence.shown", agreement=agreement, asker=asker or "all")

    # -- inside

    def _judge(self, statement: Statement, nonce: bytes, charter: Charter) -> None:
        org, settings = statement.issuer, settings_of(self._node.settings)
        evidence = EvidenceGiven.from_json(statement.body).evidence.evidence()
        key, trust = charter.member(org).keys.statement, trust_of(settings, charter)
        try:
            judge(evidence, trust, statement_key=key, nonce=nonce, now=self._node.clock())
        except ComityError as error:
            facts = {**error.facts, "org": org}
            raise ComityError(error.code, f"the evidence of {org}: {error.detail}", **facts) from error

    def _fail(self, agreement: str, error: ComityError) -> None:
        _keep(self._failed, agreement, error)

    async def _woken(self, agreement: str) -> None:
        if self._wake is not None:
            await self._wake(agreement)

    def _begin(self, name: str, work: Work) -> None:
        """Start `work` on the node's loop, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start, name, work)

    def _start(self, name: str, work: Work) -> None:
        """Start `work` unless it is under way, or too much is: whoever waits for it asks again."""
        if name in self._tasks or len(self._tasks) >= TASKS_MAX:
            return
        task = asyncio.create_task(work())
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    def _sign(self, kind: str, body: dict[str, Any]) -> Statement:
        settings = self._node.settings
        return sign_statement(
            self._node.keys, kind=kind, consortium=settings.consortium, issuer=settings.org, body=body
        )

    def _now(self, shifted_s: int = 0) -> str:
        return instants.to_text(self._node.clock() + timedelta(seconds=shifted_s))


def hold_back(node: NodeContext, conn: Connection, agreement: Agreement, answers: Sequence[Statement]) -> str | None:
    """Return for what this organisation's signature waits; see `AttestationService.before_signing`."""
    if not required(agreement.terms):
        return None
    return node.services.get(AttestationService).before_signing(conn, agreement, answers)


async def of_order(node: NodeContext, agreement: Agreement | None, digest: str) -> OrderEvidence:
    """Return what an order under an agreement rests on; see `AttestationService.before_order`."""
    if agreement is None or not required(agreement.terms):
        return NOTHING
    return await node.services.get(AttestationService).before_order(agreement, digest)


def build(node: NodeContext) -> AttestationService:
    """Build the capability and register its handlers."""
    wanted = node.settings.attestation
    service = AttestationService(node, ConfigfsTsm() if wanted is None else ConfigfsTsm(wanted.report_root))
    service.register()
    node.services.add(service)
    return service


def _statement(message: Message) -> Statement:
    value = canonical.parse(message.body)
    return Statement.from_json(value.get("statement") if isinstance(value, dict) else None)


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Remember the newest `KEPT_MAX`; what was forgotten is judged or asked again."""
    kept[key] = value
    while len(kept) > KEPT_MAX:
        kept.pop(next(iter(kept)))
