"""The negotiation's model under every order of events: states move forward, refusals change nothing, ends are final."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.negotiation import model, states
from comity_coordinator.negotiation.states import JOINED, OPEN, LegState, Phase
from comity_policies.documents import SIGNING_S_MAX, takes
from comity_policies.terms import Terms, conforms

ORGS = ("alpha", "beta", "gamma", "delta")
START = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = (
    {},
    {"rounds": 5},
    {"min_participants": 3},
    {"result_recipients": ["alpha"]},
    {"result_recipients": ["beta"]},
    {"aggregation": "masked"},
)
ORDER = list(LegState)
orgs = st.sampled_from(ORGS)
# Whoever a lying coordinator, or a stranger, might name.
anybody = st.sampled_from((*ORGS, "stranger", "coordinator", ""))
FORGED = "ef" * 32


class NegotiationMachine(RuleBasedStateMachine):
    """Events of all kinds, from all sides, in any order, some of them twice."""

    @initialize(
        required=st.sets(orgs, min_size=1, max_size=3),
        proposer=orgs,
        minimum=st.integers(1, 4),
        accepts=st.sampled_from(["any", "none", "within"]),
    )
    def begin(self, required, proposer, minimum, accepts):
        self.clock = START
        self.count = 0
        self.seen = []
        self.signed = set()
        self.accepted = set()
        optional = tuple(sorted(set(ORGS) - required))
        negotiation = model.open_negotiation(
            proposal_id="p",
            revision=1,
            proposer=proposer,
            required=tuple(sorted(required)),
            optional=optional,
            minimum=minimum,
            deadline=instants.to_text(START + timedelta(seconds=1000)),
            terms=Terms.parse({"rounds": 10}),
            now=self.now,
            accepts=accepts,
            bounds=Terms.parse({"rounds": 4} if accepts == "within" else {}),
        )
        self.state = states.from_json(states.to_json(negotiation))

    @property
    def now(self):
        return instants.to_text(self.clock)

    def take(self, event):
        before, text = self.state, canonical.canonical(states.to_json(self.state))
        try:
            after = model.step(before, event, self.now)
        except ComityError:
            assert canonical.canonical(states.to_json(self.state)) == text
            return
        if after.phase is Phase.SIGNING and not after.agreement:
            digest = canonical.digest({"attempt": after.attempt})
            after = model.step(after, model.Drafted(after.attempt, digest), self.now)
        self.check_move(before, after)
        self.check_again(after, event)
        if isinstance(event, model.Signed) and after is not before:
            self.signed.add((event.org, event.digest))
        if isinstance(event, model.CounterAccepted) and after is not before:
            self.accepted.add(event.answer)
        self.state = states.from_json(states.to_json(after))
        assert self.state == after

    def check_again(self, after, event):
        """The same event once more changes nothing, whatever it meets."""
        if isinstance(event, model.CharterChanged):
            return
        refusal = None
        try:
            assert model.step(after, event, self.now) is after
        except ComityError as error:
            refusal = error
        if refusal is not None:
            assert not isinstance(event, model.DeadlinePassed | model.Drafted)
            ends = (ErrorCode.ILLEGAL_EVENT, ErrorCode.WITHDRAWN, ErrorCode.DEADLINE_PASSED, ErrorCode.SUPERSEDED)
            if isinstance(event, model.Answered) and after.legs[event.org].answer != event.digest:
                return
            assert refusal.code in ends
            assert after.phase is Phase.TERMINATED

    def check_move(self, before, after):
        if before.phase not in OPEN:
            assert after is before
        assert after.attempt >= before.attempt
        for org, leg in after.legs.items():
            old = before.legs[org].state
            back = after.attempt > before.attempt and leg.state is LegState.ACCEPTED and old in JOINED
            assert back or ORDER.index(leg.state) >= ORDER.index(old)
            if old in (LegState.TERMINATED, LegState.FINALIZED):
                assert leg == before.legs[org]

    @rule(org=anybody, event=st.sampled_from(["answer", "counter", "sign", "withdraw"]))
    def forge(self, org, event):
        """Words about strangers, and digests that nobody ever made, change nothing."""
        if org in ORGS and event not in ("sign", "counter"):
            return
        forged = {
            "answer": model.Answered(org, "allow", Terms(), (), FORGED),
            "counter": model.CounterAccepted(org, FORGED),
            "sign": model.Signed(org, FORGED),
            "withdraw": model.Withdrew(org, "reason"),
        }[event]
        before = self.state
        self.take(forged)
        assert self.state == before

    @precondition(lambda self: self.count > 3)
    @rule(seconds=st.sampled_from([1, 400, 2000]))
    def late(self, seconds):
        """Time passes and nobody rings: what comes then is late."""
        self.clock += timedelta(seconds=seconds)

    @rule(org=orgs, decision=st.sampled_from(["allow"] * 4 + ["deny", "review"]), terms=st.sampled_from(TERMS))
    def answer(self, org, decision, terms):
        self.count += 1
        event = model.Answered(org, decision, Terms.parse(terms), (), f"{self.count:064x}")
        self.seen.append(event)
        self.take(event)

    @rule(terms=st.sampled_from(TERMS[:3]), sparing=st.sets(orgs, max_size=1))
    def most_allow(self, terms, sparing):
        for org in ORGS:
            if org not in sparing and self.state.legs[org].state is LegState.REQUESTED:
                self.answer(org, "allow", terms)

    @precondition(lambda self: self.state.agreement)
    @rule(sparing=st.sets(orgs, max_size=1))
    def most_sign(self, sparing):
        for org in self.state.parties:
            if org not in sparing:
                self.take(model.Signed(org, self.state.agreement))

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def again(self, data):
        self.take(data.draw(st.sampled_from(self.seen)))

    @rule(org=orgs, stale=st.booleans())
    def accept_counter(self, org, stale):
        self.take(model.CounterAccepted(org, "ab" * 32 if stale else self.state.legs[org].answer))

    @precondition(lambda self: self.count > 2)
    @rule(really=st.integers(0, 5))
    def revise(self, really):
        if not really:
            self.take(model.Superseded(2))

    @rule(org=orgs, stale=st.booleans())
    def sign(self, org, stale):
        digest = canonical.digest({"attempt": 0}) if stale else self.state.agreement
        self.take(model.Signed(org, digest))

    @precondition(lambda self: self.count > 2)
    @rule(org=orgs, really=st.integers(0, 3))
    def withdraw(self, org, really):
        if not really:
            self.take(model.Withdrew(org, "reason"))

    @rule()
    def ledger(self):
        self.take(model.Finalized())

    @rule(really=st.integers(0, 2))
    def charter(self, really):
        if not really:
            self.take(model.CharterChanged())

    @precondition(lambda self: self.count > 2)
    @rule(seconds=st.sampled_from([1, 100, 700]))
    def wait(self, seconds):
        self.clock += timedelta(seconds=seconds)
        self.take(model.DeadlinePassed())
        assert self.state.phase not in (Phase.ANSWERING, Phase.SIGNING) or self.state.until > self.now

    @invariant()
    def always(self):
        negotiation = self.state
        required = {org for org, leg in negotiation.legs.items() if leg.required}
        if negotiation.phase in (Phase.SIGNING, Phase.VERIFIED, Phase.FINALIZED):
            parties = negotiation.parties
            assert required <= set(parties)
            assert len(parties) >= negotiation.minimum
            assert not conforms(negotiation.meet, negotiation.terms)
            for org in parties:
                assert not conforms(negotiation.meet, negotiation.legs[org].terms)
        if negotiation.phase is Phase.FINALIZED:
            assert {negotiation.legs[org].state for org in negotiation.parties} == {LegState.FINALIZED}
        if negotiation.phase in (Phase.VERIFIED, Phase.FINALIZED):
            assert {(org, negotiation.agreement) for org in negotiation.parties} <= self.signed
        for org in negotiation.parties:
            leg = negotiation.legs[org]
            unasked = takes(negotiation.terms, negotiation.accepts, negotiation.bounds, leg.terms)
            assert unasked or org == negotiation.proposer or leg.answer in self.accepted
        if negotiation.phase is Phase.TERMINATED:
            assert negotiation.ended
            assert not negotiation.parties
            assert negotiation.ended.code in ErrorCode
            assert negotiation.ended.move, "an end names whose move it was"
        if negotiation.phase in OPEN:
            alive = [leg for leg in negotiation.legs.values() if leg.state is not LegState.TERMINATED]
            assert all(leg.move for leg in alive)
            latest = instants.parse(negotiation.deadline) + timedelta(seconds=SIGNING_S_MAX)
            assert negotiation.until <= instants.to_text(latest), "every wait has an end"


NegotiationMachine.TestCase.settings = settings(stateful_step_count=30)
TestNegotiation = NegotiationMachine.TestCase


class RunMachine(RuleBasedStateMachine):
    """A run's events in any order: one ending, closed once, nothing after that."""

    @initialize()
    def begin(self):
        from comity_coordinator.training import model as runs

        self.runs = runs
        self.clock = START
        self.state = runs.create("run-1", "aa" * 32, 1, "alpha", ("alpha", "beta"), ("s",), {}, 3600, self.now)

    @property
    def now(self):
        return instants.to_text(self.clock)

    def take(self, event):
        before = self.state
        try:
            after = self.runs.step(before, event, self.now)
        except ComityError:
            return
        if before.closed:
            assert after is before
        if before.state in self.runs.ENDINGS:
            assert after.state is before.state
        if before.state is self.runs.RunState.PREPARING and after.state not in self.runs.ENDINGS:
            assert (after.state is self.runs.RunState.READY) == (after.ready == frozenset(("alpha", "beta")))
        self.state = after

    @rule(org=orgs)
    def ready(self, org):
        self.take(self.runs.Ready(org))

    @rule(org=orgs, number=st.integers(0, 3))
    def progress(self, org, number):
        self.take(self.runs.Progressed(org, number, 3))

    @rule(
        org=orgs, state=st.sampled_from(["COMPLETED", "FAILED", "RUNNING"]), exact=st.booleans(), digest=st.text("ab")
    )
    def finish(self, org, state, exact, digest):
        expected = {"alpha": 1, "beta": 2}
        self.take(self.runs.Finished(org, self.runs.RunState(state), "", "", 3, digest + "x", expected, exact))

    @rule(org=orgs, count=st.integers(0, 2))
    def receipts(self, org, count):
        self.take(self.runs.Received(org, count))

    @rule()
    def cancel(self):
        if self.state.round == 2:
            self.take(self.runs.Cancelled(ErrorCode.WITHDRAWN, "gone", "beta"))

    @precondition(lambda self: self.state.round == 3)
    @rule(seconds=st.sampled_from([1, 20, 5000]))
    def wait(self, seconds):
        self.clock += timedelta(seconds=seconds)
        self.take(self.runs.DeadlinePassed())
        assert self.state.closed or self.state.until > self.now


RunMachine.TestCase.settings = settings(stateful_step_count=25)
TestRun = RunMachine.TestCase
