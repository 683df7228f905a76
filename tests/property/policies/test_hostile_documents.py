"""Whatever a stranger writes into a document: it is refused with a code, or it is a document with one spelling."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError
from comity_crypto.encoding import to_base64
from comity_crypto.keys import OrgKeys
from comity_policies.charter import AgentRef, Charter, Member, PolicyRef, QuorumRule, TrustRoot
from comity_policies.charter_votes import CharterEnded, CharterProposal, CharterVote
from comity_policies.decisions import example, parse_result
from comity_policies.documents import Agreement, Answer, OrderHeader, Proposal, Reason, Receipt, ReplyHeader
from comity_policies.terms import Terms

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["hospital-a", "research", "0a" * 32, "plain", "2030-01-01T00:00:00Z", "\ud800", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
DIGEST = "0a" * 32


def _documents() -> dict[str, tuple[Any, dict[str, Any]]]:
    proposal = Proposal.from_json(example_proposal())
    terms = proposal.terms
    agreement = Agreement("agr-1", "hospitals", DIGEST, proposal, ("hospital-a", "hospital-b"), terms)
    answer = Answer(DIGEST, "review", (Reason("r", "C", "m"),), terms, DIGEST, DIGEST, "embedded")
    head = {"agreement": DIGEST, "run": "run-1", "step": "fit"}
    order = OrderHeader(
        **head,
        round=1,
        seq=1,
        message_type="train",
        lead="hospital-a",
        receivers=("hospital-b",),
        payload={"digest": DIGEST},
        content_digest=DIGEST,
        reply_by="2030-01-01T00:00:00Z",
    )
    error = {"code": "POLICY_DENIED", "detail": "", "facts": {}}
    reply = ReplyHeader(**head, order=DIGEST, seq=1, outcome="refused", error=error, payload=None, content_digest=None)
    receipt = Receipt(**head, order=DIGEST, seq=1, outcome="failed", code="APP_FAILED", result=None, grants={"uses": 1})
    charter = Charter(
        version=1,
        consortium="hospitals",
        previous=None,
        members=(Member("hospital-a", "A", "A", OrgKeys.generate().public),),
        log_name="log.example",
        log_key=to_base64(OrgKeys.generate().public.statement),
        quorum={"admit-member": QuorumRule("fraction", 2, 3)},
        max_checkpoint_age_s=600,
        defaults=Terms(),
    )
    charter = replace(
        charter,
        quorum={
            "admit-member": QuorumRule("fraction", 2, 3),
            "rotate-key": QuorumRule("named", members=("hospital-a",)),
            "change-policy": QuorumRule("weighted", 2, weights={"hospital-a": 3}),
        },
        roles={"accountant": ("hospital-a",)},
        policy=PolicyRef(DIGEST, "house rules"),
        agents=(AgentRef(DIGEST, "tumours", "1.0", "hospital-a"),),
        trust_roots=(TrustRoot("sev-snp", "milan", DIGEST),),
    )
    put = CharterProposal(charter, ("admit-member",), "why", "2030-01-01T00:00:00Z")
    vote = CharterVote(DIGEST, False, None, "no")
    ended = CharterEnded(DIGEST, DIGEST, "EXPIRED", ("hospital-a",), (), ("hospital-b",))
    made = (proposal, agreement, answer, order, reply, receipt, charter, put, vote, ended)
    return {type(each).__name__: (type(each), each.to_json()) for each in made}


def example_proposal() -> dict[str, Any]:
    from comity_policies.decisions import Stage

    plain = example(Stage.PROPOSAL)["proposal"]
    assert isinstance(plain, dict)
    return plain


DOCUMENTS = _documents()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_hostile_values_are_refused_with_a_code(name: str) -> None:
    cls, good = DOCUMENTS[name]
    assert cls.from_json(good).to_json() == good

    @given(st.lists(st.tuples(st.sampled_from(_places(good)), JSON), min_size=1, max_size=2))
    def attack(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        hostile = copy.deepcopy(good)
        for path, value in changes:
            place: Any = hostile
            try:
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
            except (TypeError, KeyError, IndexError):
                continue
        try:
            document = cls.from_json(hostile)
        except ComityError:
            return
        assert document.to_json() == hostile
        assert cls.from_json(document.to_json()).digest == document.digest

    attack()


@given(JSON)
def test_hostile_terms_and_results(value: Any) -> None:
    for read in (Terms.parse, parse_result, lambda each: Terms.parse({"columns": each, "privacy": each})):
        with pytest.raises(ComityError):
            read(value if value != {} else {"x": 1})
