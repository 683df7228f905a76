"""What people read of a negotiation: the protocol's names as in the handbook, and what happens at the deadline."""

from pathlib import Path

from comity_coordinator.negotiation import model, view
from comity_coordinator.negotiation.states import LegState
from comity_policies.terms import Terms

ROOT = Path(__file__).resolve().parents[3]
NOW, DEADLINE = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def opened(**changes):
    values = {
        "proposal_id": "p",
        "revision": 1,
        "proposer": "alpha",
        "required": ("alpha", "beta"),
        "optional": ("gamma",),
        "minimum": 2,
        "deadline": DEADLINE,
        "terms": Terms.parse({"rounds": 10}),
        "now": NOW,
    }
    return model.open_negotiation(**{**values, **changes})


def answered(negotiation, *orgs, **terms):
    for org in orgs:
        event = model.Answered(org, "allow", Terms.parse(terms), (), f"{org:>064}".replace(" ", "0"))
        negotiation = model.step(negotiation, event, NOW)
    return negotiation


def test_the_handbook_names_every_state_and_message():
    page = (ROOT / "docs" / "governance.md").read_text()
    for state, message in view.MESSAGES.items():
        assert f"| `{state}` | {message} |" in page
    assert set(view.MESSAGES) == set(LegState)


def test_what_happens_at_the_deadline_is_what_the_model_would_do():
    asked = opened()
    assert view.then(asked) == "it ends: alpha,beta,gamma did not answer in time"
    most = answered(asked, "alpha", "beta")
    assert view.then(most) == "it goes on without gamma"
    signing = model.step(answered(most, "gamma"), model.Drafted(1, "ab" * 32), NOW)
    signing = model.step(signing, model.Signed("alpha", "ab" * 32), NOW)
    assert view.then(signing) == "it ends: beta,gamma did not sign in time"
    for org in ("beta", "gamma"):
        signing = model.step(signing, model.Signed(org, "ab" * 32), NOW)
    assert view.then(signing) == "the coordinator puts the certificate on the ledger"
    assert view.then(model.step(signing, model.Finalized(), NOW)) == ""


def test_a_counter_offer_is_a_difference_whose_move_is_the_proposers():
    offered = answered(opened(accepts="none"), "beta", rounds=4, purposes=["research"])
    leg = next(each for each in view.update(offered)["legs"] if each["org"] == "beta")
    assert (leg["state"], leg["move"], leg["message"]) == ("OFFERED", "alpha", "ContractOfferMessage")
    assert leg["difference"] == [
        {"field": "purposes", "asked": None, "offered": ["research"]},
        {"field": "rounds", "asked": 10, "offered": 4},
    ]
