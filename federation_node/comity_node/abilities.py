"""What this node can enforce, and the refusal of terms that it cannot.

Rules:
1. A term that nothing here enforces is refused by name, before it is agreed to and again at each order: agreeing to it
   would be a promise that nobody keeps.
2. A term that only some profiles of aggregation enforce is refused under the others.
3. A step of a kind that this node cannot run is refused by name, at the same places.
4. Who takes part is judged by legal owner: members of one owner count once, and nobody is its own peer.
5. `round_recipients` permits: whoever takes part sees each round's model, so it has to be named. Who opens a round's
   sum beside the lead is named by the step (`opened_by`), within that term, and only under a profile that keeps to it.

Source: negotiation.md sections 3 and 5, secure-aggregation.md section 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.sandbox import IsolationLevel
from comity_policies.charter import Charter
from comity_policies.steps import AGGREGATE, TRAIN, Step
from comity_policies.terms import Terms

# Nothing here re-serves copies.
UNENFORCED = ("min_copies",)
# Kinds of steps whose results get noise, and those whose updates are bounded: a term without its kind is refused.
KINDS_WITH_NOISE, KINDS_WITH_BOUNDS = frozenset({AGGREGATE}), frozenset({TRAIN})
# Bounds on one organisation's update: applied by the profile that encodes it, unknown to the others.
BOUNDS = ("clip_norm", "range", "weight_max")
PROFILES_WITH_BOUNDS = frozenset({"lead-key", "masked", "threshold"})
# Under the others the lead opens a sum alone: nobody could keep the promise.
PROFILES_WITH_QUORUM = frozenset({"threshold"})
# Under the others nobody but the lead has a key that opens a sum.
PROFILES_WITH_OPENERS = frozenset({"threshold"})
# Of two parties, one subtracts its own part of a sum and holds the other's.
SUM_PARTIES_MIN, SUM_PARTIES_MAX = 3, 50


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this node has.

    Args:
        profiles: of aggregation.
        isolation: the strongest that it offers (a term's value).
        kinds: of steps that it can run.
        attests: whether it can show evidence of its hardware (`attestation`).
    """

    profiles: frozenset[str]
    isolation: str
    kinds: frozenset[str] = frozenset({TRAIN})
    attests: bool = False

    def check(self, terms: Terms, steps: Collection[Step] = ()) -> None:
        """Refuse steps that this node cannot run, and terms that it cannot enforce over them.

        Args:
            terms: of an agreement, or of one about to be.
            steps: its steps; without them it is judged as a training.

        Raises:
            ComityError: `UNSUPPORTED`, `ISOLATION_TOO_WEAK`, naming the term or kind.
        """
        self.check_steps(steps)
        kinds = {step.kind for step in steps} or {TRAIN}
        if "privacy" in terms and not kinds <= KINDS_WITH_NOISE:
            raise _unsupported("privacy")
        for field in BOUNDS:
            if field in terms and not kinds <= KINDS_WITH_BOUNDS:
                raise _unsupported(field)
        for field in UNENFORCED:
            if field in terms:
                raise _unsupported(field)
        if terms.get("attestation", "none") != "none" and not self.attests:
            raise _unsupported("attestation")
        profile = str(terms.get("aggregation", "plain"))
        if profile not in self.profiles:
            raise ComityError(ErrorCode.UNSUPPORTED, f"this node has no profile {profile}", field="aggregation")
        _check_powers(terms, profile, steps)
        needed = IsolationLevel.for_term(terms.get("isolation"))
        if needed > IsolationLevel.for_term(self.isolation):
            raise ComityError(ErrorCode.ISOLATION_TOO_WEAK, asked=needed.term, offered=self.isolation)

    def check_steps(self, steps: Collection[Step]) -> None:
        """Refuse steps of a kind that this node cannot run, or of several. Raises `UNSUPPORTED`, naming the kind."""
        if len({step.kind for step in steps}) > 1:
            raise ComityError(ErrorCode.UNSUPPORTED, "one agreement has steps of one kind", field="kind")
        for step in steps:
            if step.kind not in self.kinds:
                raise ComityError(
                    ErrorCode.UNSUPPORTED, f"this node cannot run a step of kind {step.kind}", field=f"kind {step.kind}"
                )


def _check_powers(terms: Terms, profile: str, steps: Collection[Step]) -> None:
    """Refuse what the profile has no means to keep to. Raises `UNSUPPORTED`."""
    for field in BOUNDS:
        if field in terms and profile not in PROFILES_WITH_BOUNDS:
            raise _powerless(field, profile)
    if "release_quorum" in terms and profile not in PROFILES_WITH_QUORUM:
        raise _powerless("release_quorum", profile)
    if profile not in PROFILES_WITH_OPENERS and any(set(step.openers) != {step.lead} for step in steps):
        raise _powerless("opened_by", profile)


def check_purpose(terms: Terms, purpose: str) -> None:
    """Refuse a purpose outside what the terms permit. Raises `TERMS_CONFLICT`."""
    if "purposes" in terms and purpose not in terms["purposes"]:
        raise ComityError(ErrorCode.TERMS_CONFLICT, f"the terms do not permit the purpose {purpose}", field="purposes")


def check_sight(terms: Terms, orgs: Collection[str]) -> None:
    """Refuse a round in which somebody would see a model that the terms do not let it see.

    Args:
        terms: of an agreement, or of one about to be.
        orgs: the lead, all who take part, and who opens sums.

    Raises:
        ComityError: `TERMS_CONFLICT`, naming the term and who is left out.
    """
    outside = sorted(set(orgs) - terms["round_recipients"]) if "round_recipients" in terms else []
    if outside:
        named = ",".join(outside)
        detail = f"round_recipients leaves out {named}: the lead and all who take part see each round's model"
        raise ComityError(ErrorCode.TERMS_CONFLICT, detail, field="round_recipients", organisations=named)


def check_company(terms: Terms, orgs: Collection[str], charter: Charter) -> None:
    """Refuse a result of fewer, or of fewer independent, organisations than the terms ask for.

    Args:
        terms: of an agreement, or of one about to be.
        orgs: who takes part.
        charter: names the members' legal owners.

    Raises:
        ComityError: `PARTICIPANTS_TOO_FEW` with the term's name, `NOT_A_MEMBER`.
    """
    here, summed = len(set(orgs)), terms.get("aggregation", "plain") != "plain"
    if summed and here > SUM_PARTIES_MAX:
        raise ComityError(ErrorCode.UNSUPPORTED, "too many parties for one sum", field="aggregation", here=here)
    needed = max(int(terms.get("min_participants", 0)), SUM_PARTIES_MIN if summed else 0)
    if summed and here < SUM_PARTIES_MIN:
        detail = "of a sum of two each party knows the other's part: ask a third one, or for `--aggregation plain`"
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, detail, field="aggregation", here=here, needed=needed)
    if here < needed:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, field="min_participants", here=here, needed=needed)
    if here < int(terms.get("release_quorum", 0)):
        needed = int(terms["release_quorum"])
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, field="release_quorum", here=here, needed=needed)
    owners = {org: charter.member(org).owner for org in orgs}
    for asker, peers in terms.get("independent_peers", {}).items():
        found = _independent(asker, peers.among, owners)
        if asker in owners and found < peers.count:
            raise ComityError(
                ErrorCode.PARTICIPANTS_TOO_FEW, field="independent_peers", org=asker, here=found, needed=peers.count
            )


def _independent(asker: str, among: Collection[str], owners: Mapping[str, str]) -> int:
    """Return how many legal owners, apart from the asker's own, stand behind `among` in this company."""
    return len({owner for org, owner in owners.items() if org in among} - {owners.get(asker)})


def _powerless(field: str, profile: str) -> ComityError:
    return ComityError(ErrorCode.UNSUPPORTED, f"nothing enforces {field} under aggregation {profile}", field=field)


def _unsupported(field: str) -> ComityError:
    return ComityError(ErrorCode.UNSUPPORTED, f"this node does not enforce the term {field}", field=field)
