"""Reviews at the node: put an item before people, take their votes, tell whoever asked.

Rules:
1. An item is put in the caller's transaction: what waits for people and the item itself stand or fall together.
2. A verdict is on disk, with the votes signed by this organisation, before anybody hears it; whoever asked hears it at
   least once, after a restart too.
3. Everything ends: at its instant an item expires; what nobody needs decided any more becomes obsolete.
4. At most `OPEN_MAX` items are open; beyond that asking is refused, which is a denial.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection

from comity.wire import catalog, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import sign_statement
from comity_node.access.model import ADMIN, LOCAL_USER, Principal
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.engine import ReloadablePolicy
from comity_node.policy.recorded import RecordedPolicy
from comity_node.reviews import model, store
from comity_node.reviews.model import Delegation, Review, ReviewAsk, ReviewState, Verdict, Voter
from comity_policies.decisions import ReviewNeed

if TYPE_CHECKING:
    from comity_node.context import NodeContext

OPEN_MAX = 1_000
DELEGATIONS_MAX = 1_000
TOLD_AT_ONCE_MAX = 64
TELLING_TRIED_MAX = 1_000
RETRY_S = 2.0
LOOK_S_MAX = 60.0

# (subject, verdict): awaited once the verdict is on disk; it may come twice.
Decided = Callable[[str, Verdict], Awaitable[None]]
# (item, kind, facts): what happened to an item, told on the loop after it is on disk.
News = Callable[[Review, str, dict[str, Any]], None]
log = structlog.get_logger("comity.node.reviews")


class ReviewService:
    """The people of this organisation. Built by `build`."""

    def __init__(self, node: NodeContext, need: Callable[[], ReviewNeed] = ReviewNeed) -> None:
        """`need` is asked who has to look where a term alone says that somebody has to."""
        self.need = need
        self._node = node
        self._callbacks: dict[str, list[Decided]] = {}
        self._listeners: list[News] = []
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._tried: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to expire, remind and tell, with what an earlier process left."""
        self._loop = asyncio.get_running_loop()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End; items stay as they are."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    # -- for capabilities that ask

    def on_decided(self, stage: str, callback: Decided) -> None:
        """Await `callback(subject, verdict)` for each item of `stage` that ended otherwise than as obsolete.

        It may come twice. An error of the catalogue that a retry helps is tried again; any other is logged.
        """
        self._callbacks.setdefault(stage, []).append(callback)

    def on_news(self, listener: News) -> None:
        """Call `listener` on the loop for whatever happens to any item; it must not raise or block."""
        self._listeners.append(listener)

    def ask(self, conn: Connection, item: ReviewAsk) -> None:
        """Put an item before people, in the transaction of `conn`; the same item again is harmless.

        The item that was asked for last is the one that counts for its stage and subject.

        Raises:
            ComityError: `BUSY` if too many items are open, `DEADLINE_PASSED` if its end has come, `CONFLICT` if the
                same document was put before other people: role and approvals belong into the document.
        """
        self.consult(conn, item)

    def consult(self, conn: Connection, item: ReviewAsk, *, alone: bool = False) -> Review:
        """As `ask`; returns the item as it stands. `alone`: other open items of its subject become obsolete."""
        if alone:
            others = store.open_of(conn, stage=item.stage, subject=item.subject)
            self._end_all(conn, [each for each in others if each.ask.id != item.id], "another took its place")
        known = store.look(conn, item.id)
        if known is not None:
            if (known.ask.role, known.ask.approvals) != (item.role, item.approvals):
                raise ComityError(ErrorCode.CONFLICT, "the same document waits for other people, or did", id=item.id)
            store.make_newest(conn, item.id, item.stage, item.subject)
            return known
        if store.count_open(conn) >= OPEN_MAX:
            raise ComityError(ErrorCode.BUSY, "as many reviews wait for people as may", limit=OPEN_MAX)
        review = model.open_review(item, self.now(), store.asker_of(conn, item.proposal or item.subject))
        store.put(conn, review)
        self._note(conn, review, "asked", role=item.role, approvals=item.approvals, until=item.until)
        return review

    def state(self, conn: Connection, stage: str, subject: str) -> ReviewState | None:
        """Return where the newest item of `subject` stands, None if people were never asked."""
        review = store.newest(conn, stage, subject)
        return None if review is None else review.state

    def verdict(self, conn: Connection, stage: str, subject: str) -> Verdict | None:
        """Return the verdict on the newest item of `subject`, None while there is none."""
        review = store.newest(conn, stage, subject)
        return None if review is None else model.verdict_of(review)

    def asked(self, conn: Connection, stage: str, subject: str) -> ReviewNeed | None:
        """Return who had to look at the newest item of `subject`, None if people were never asked."""
        review = store.newest(conn, stage, subject)
        return None if review is None else ReviewNeed(review.ask.role, review.ask.approvals)

    async def wait(self, stage: str, subject: str, until: str) -> Verdict:
        """Return the verdict on the newest item of `subject` once it is on disk.

        Raises:
            ComityError: `NOT_FOUND` if people were never asked, `DEADLINE_PASSED` if nobody decided until `until`.
        """
        changed = asyncio.Event()
        waiting = self._waiting.setdefault((stage, subject), set())
        waiting.add(changed)
        try:
            async with asyncio.timeout((instants.parse(until) - self._node.clock()).total_seconds()):
                while True:
                    changed.clear()
                    found = await self._node.journal.run(lambda conn: store.newest(conn, stage, subject))
                    if found is None:
                        raise ComityError(ErrorCode.NOT_FOUND, "nobody was asked about this")
                    verdict = model.verdict_of(found)
                    if verdict is not None:
                        return verdict
                    await changed.wait()
        except TimeoutError as error:
            raise ComityError(ErrorCode.DEADLINE_PASSED, "nobody decided in time", until=until) from error
        finally:
            waiting.discard(changed)
            if not waiting:
                self._waiting.pop((stage, subject), None)

    def obsolete(self, conn: Connection, stage: str, subject: str, why: str) -> None:
        """Nobody needs to decide any more: open items of `subject` end; none is harmless."""
        self._end_all(conn, store.open_of(conn, stage=stage, subject=subject), why)

    def end_of_run(self, conn: Connection, run: str, why: str) -> None:
        """A run ended: what waits in it for people is obsolete."""
        self._end_all(conn, store.open_of(conn, run=run), why)

    def end_of_proposal(self, conn: Connection, proposal: str, why: str) -> None:
        """A proposal, by digest, ended without work to do: what waits in it for people is obsolete."""
        self._end_all(conn, store.open_of(conn, proposal=proposal), why)

    def note_asker(self, conn: Connection, proposal: str, user: str) -> None:
        """Record which of our users made a proposal, by its digest: this user does not decide on it."""
        store.put_asker(conn, proposal, model.person(user))

    # -- for people

    async def vote(self, name: str, who: Principal, *, decision: str, reason: str, document: str) -> Review:
        """Take a vote on an item; `document` is the digest of what was shown.

        Raises:
            ComityError: `NOT_FOUND`, and what `model.cast` raises.
        """

        def write(conn: Connection) -> Review:
            review, now = store.find(conn, name), self.now()
            after = model.cast(review, self._voter(conn, review, who, now), decision, reason, document, now)
            if after is review:
                return review
            cast = after.votes[-1]
            store.put_vote(conn, name, cast, len(after.votes), self._signed(after, who))
            self._note(conn, after, "voted", user=cast.user, voice=cast.voice, decision=decision, missing=after.missing)
            if after.state is not ReviewState.OPEN:
                self._end(conn, after)
            return after

        return await self._node.journal.run(write)

    def may_vote(self, conn: Connection, review: Review, who: Principal) -> bool:
        """Tell whether a vote of `who` would count on an open item."""
        if any(vote.user == who.user for vote in review.votes):
            return False
        now, document = self.now(), review.ask.document_digest
        try:
            model.cast(review, self._voter(conn, review, who, now), model.APPROVE, "", document, now)
        except ComityError:
            return False
        return True

    async def delegate(self, who: Principal, *, receiver: str, role: str, until: str, giver: str = "") -> Delegation:
        """Let `receiver` decide in the voice of `giver` (by default who calls) for one role.

        Raises:
            ComityError: `FORBIDDEN` if the caller has not the role, or delegates for another without being an admin;
                `BUSY`, `MALFORMED`.
        """
        for_other = bool(giver) and giver != who.user
        if for_other and not has_role(who, ADMIN):
            raise ComityError(ErrorCode.FORBIDDEN, "only an admin delegates for another user", role=ADMIN)
        if for_other and receiver == who.user:
            raise ComityError(ErrorCode.FORBIDDEN, "nobody takes another user's voice for oneself")
        if not for_other and not has_role(who, role):
            raise ComityError(ErrorCode.FORBIDDEN, "only a role that you have can be delegated", role=role)
        now = self.now()
        made = Delegation(ids.new_id("del"), giver or who.user, receiver, role, now, until, who.user)

        def write(conn: Connection) -> None:
            if len(store.open_delegations(conn, now)) >= DELEGATIONS_MAX:
                raise ComityError(ErrorCode.BUSY, "as many delegations hold as may", limit=DELEGATIONS_MAX)
            store.put_delegation(conn, made)

        await self._node.journal.run(write)
        log.info("delegation.made", id=made.id, giver=made.giver, receiver=receiver, role=role, until=until)
        return made

    async def end_delegation(self, who: Principal, name: str) -> Delegation:
        """Take a delegation back. Raises `NOT_FOUND`, `FORBIDDEN` unless the giver, who entered it or an admin asks."""

        def write(conn: Connection) -> Delegation:
            found = store.find_delegation(conn, name)
            if who.user not in (found.giver, found.entered_by) and not has_role(who, ADMIN):
                raise ComityError(ErrorCode.FORBIDDEN, "only its giver or an admin ends a delegation")
            store.end_delegation(conn, name, self.now())
            return store.find_delegation(conn, name)

        return await self._node.journal.run(write)

    # -- inside

    def _voter(self, conn: Connection, review: Review, who: Principal, now: str) -> Voter:
        if who.user == LOCAL_USER and who.via != LOCAL_USER:
            raise ComityError(ErrorCode.FORBIDDEN, "this name is the organisation's own account")
        role = review.ask.role
        voices = model.voices_of(store.delegations_to(conn, who.user, now), who.user, role, now)
        return Voter(who.user, has_role(who, role), voices)

    def _signed(self, review: Review, who: Principal) -> bytes:
        """Sign the last vote: a local statement, for whoever audits this organisation."""
        settings, ask, vote = self._node.settings, review.ask, review.votes[-1]
        body = {
            "review": ask.id,
            "stage": ask.stage,
            "subject": ask.subject,
            "document": vote.document,
            "user": vote.user,
            "voice": vote.voice,
            "via": who.via,
            "role": ask.role,
            "decision": vote.decision,
            "reason": vote.reason,
            "at": vote.at,
        }
        keys, consortium = self._node.keys, settings.consortium
        statement = sign_statement(keys, kind="review-vote", consortium=consortium, issuer=settings.org, body=body)
        return statement.to_bytes()

    def _end_all(self, conn: Connection, reviews: list[Review], why: str) -> None:
        for review in reviews:
            self._end(conn, model.make_obsolete(review, why, self.now()))

    def _end(self, conn: Connection, review: Review) -> None:
        nobody = review.state is ReviewState.OBSOLETE or review.ask.stage not in self._callbacks
        store.change(conn, review, told=nobody)
        self._note(conn, review, review.state.lower(), why=review.why)

    def _note(self, conn: Connection, review: Review, kind: str, **body: Any) -> None:
        store.put_event(conn, review.ask.id, self.now(), kind, body)
        self._node.journal.after_commit(conn, lambda: self._on_loop(review, kind, body))

    def _on_loop(self, review: Review, kind: str, body: dict[str, Any]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._noted, review, kind, body)

    def _noted(self, review: Review, kind: str, body: dict[str, Any]) -> None:
        ask = review.ask
        log.info(f"review.{kind}", id=ask.id, stage=ask.stage, title=ask.title, run=ask.run, **body)
        for listener in self._listeners:
            listener(review, kind, body)
        self._wake.set()
        if review.state is not ReviewState.OPEN:
            for changed in self._waiting.get((ask.stage, ask.subject), ()):
                changed.set()

    async def _keep(self) -> None:
        """Expire, remind and tell until cancelled; asleep until something is due or happens."""
        while True:
            self._wake.clear()
            try:
                pause_s = await self._tick()
            except ComityError as error:
                log.warning("reviews.waiting", error=str(error))
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _tick(self) -> float:
        """Do what is due; returns the seconds until something else is."""
        due = await self._node.journal.run(self._due)
        ended = await self._node.journal.run(lambda conn: store.untold(conn, TOLD_AT_ONCE_MAX))
        told = [await self._tell(review) for review in ended]
        if not all(told):
            return RETRY_S
        if len(told) == TOLD_AT_ONCE_MAX:
            return 0.0
        if not due:
            return LOOK_S_MAX
        left_s = (instants.parse(due) - self._node.clock()).total_seconds()
        return min(max(left_s, 0.1), LOOK_S_MAX)

    def _due(self, conn: Connection) -> str:
        """Expire and remind what is due now; returns when something is due next, "" for never."""
        now = self.now()
        for review in store.overdue(conn, now):
            self._end(conn, model.expire(review, now))
        for review in store.to_remind(conn, now):
            store.set_remind_at(conn, review.ask.id, model.next_reminder(review, now))
            self._note(conn, review, "reminded", role=review.ask.role, missing=review.missing, until=review.ask.until)
        return store.next_due(conn)

    async def _tell(self, review: Review) -> bool:
        """Tell whoever asked how an item ended; returns False if that is to be tried again."""
        verdict, name = model.verdict_of(review), review.ask.id
        assert verdict is not None, "only what ended is told"
        try:
            for callback in self._callbacks.get(review.ask.stage, ()):
                await callback(review.ask.subject, verdict)
        except ComityError as error:
            log.warning("verdict.waiting", id=name, error=str(error))
            self._tried[name] = self._tried.get(name, 0) + 1
            if catalog.row(error.code).retry and self._tried[name] < TELLING_TRIED_MAX:
                return False
        except Exception as error:  # one asker's defect must not keep verdicts from the others
            log.error("verdict.failed", id=name, exc_info=error)
        self._tried.pop(name, None)
        await self._node.journal.run(lambda conn: store.set_told(conn, name))
        return True

    def now(self) -> str:
        """Return the present as RFC 3339 text."""
        return instants.to_text(self._node.clock())


def has_role(who: Principal, role: str) -> bool:
    """Tell whether `who` has a role; the holder of api.token is the organisation itself and has every one."""
    return who.via == LOCAL_USER or role in who.roles


def build(node: NodeContext) -> ReviewService:
    """Build the capability; a term alone asks for whom the settings name."""
    policy = node.policy
    service = ReviewService(node, lambda: _looks(policy)) if isinstance(policy, RecordedPolicy) else ReviewService(node)
    node.services.add(service)
    return service


def _looks(policy: RecordedPolicy) -> ReviewNeed:
    """Return who looks by the settings of our own bundle and of the consortium's, if there is one: the stricter.

    Bundles are exchanged beneath a policy, so they are read at each question.
    """
    held = (policy.own, policy.consortium)
    bundles = [each.bundle for each in held if isinstance(each, ReloadablePolicy | ConsortiumPolicy)]
    needs = [ReviewNeed.from_json(bundle.settings["reviews"]) for bundle in bundles if bundle is not None]
    return reduce(lambda one, other: one.stricter(other), needs, needs[0] if needs else ReviewNeed())
