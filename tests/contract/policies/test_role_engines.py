"""Roles of people: the embedded engine and a real OPA server say the same, on good input and on odd input."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comity_policies.access import question
from comity_policies.bundle import Bundle
from comity_policies.embedded import EmbeddedEngine
from comity_policies.opa import OpaServerEngine

ROLES = {
    "admin": ["ada", "group:chiefs"],
    "proposer": ["group:analysts", "analysts"],
    "reviewer": ["bob", "group:board", "group:group:odd"],
    "auditor": [],
}
OWN = """
package comity.access

withhold contains "admin" if "contractors" in input.groups

grant contains "ethics-board" if "board" in input.groups
"""
NAMES = st.sampled_from(["ada", "bob", "eve", "analysts", "group:chiefs", "local", ""])
GROUPS = st.sampled_from(["chiefs", "analysts", "board", "contractors", "group:odd", "group:chiefs", "ada", ""])
ODD = st.sampled_from([None, 7, True, "board", [7], [None], {"board": True}, [["board"]], [], {}])


def over(bundle: Bundle, issuers: dict) -> Bundle:
    texts = {**bundle.modules, **bundle.tests, "own/access.rego": OWN}
    return Bundle.of(texts, {**bundle.settings, "access": {"roles": ROLES, "issuers": issuers}})


@pytest.fixture(scope="module", params=[{}, {"https://id.example": {}}], ids=["any-issuer", "named-issuer"])
def engines(request, bundle, start_opa):
    made = over(bundle, request.param)
    mine, theirs = EmbeddedEngine(made, timeout_ms=3_000), OpaServerEngine(start_opa(made), made, timeout_ms=3_000)
    yield mine, theirs
    mine.close()
    theirs.close()


BOUNDED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BOUNDED
@given(
    user=NAMES,
    groups=st.lists(GROUPS, max_size=4),
    via=st.sampled_from(["oidc", "token", "local", ""]),
    issuer=st.sampled_from(["https://id.example", "https://other.example", ""]),
    roles=st.frozensets(st.sampled_from(sorted(ROLES)), max_size=3),
)
def test_both_engines_give_the_same_roles(engines, user, groups, via, issuer, roles) -> None:
    mine, theirs = (engine.roles(question(user, tuple(groups), via, issuer, roles)) for engine in engines)
    assert mine == theirs
    assert mine.problem == ""
    if via not in ("oidc", "token"):
        assert mine.roles == frozenset()


@BOUNDED
@given(changes=st.dictionaries(st.sampled_from(["user", "groups", "via", "issuer", "roles", "more"]), ODD, max_size=3))
def test_odd_input_gives_no_role_on_either(engines, changes) -> None:
    good = question("ada", ("board",), "oidc", "https://id.example")
    mine, theirs = (engine.roles({**good, **changes}) for engine in engines)
    assert mine.roles == theirs.roles, json.dumps(changes)
    if any(isinstance(changes.get(name), (int, dict)) for name in ("user", "groups", "issuer", "roles")):
        assert mine.roles == frozenset()


@pytest.mark.parametrize("own", ["x := 7", 'x := "NO SUCH"', "x := 1 / 0"])
def test_own_rules_that_fail_give_no_role_on_either(bundle, start_opa, own) -> None:
    rule = f'package comity.access\n\ngrant contains x if {{\n\tinput.via == "token"\n\t{own}\n}}\n'
    made = Bundle.of({**bundle.modules, "own/access.rego": rule}, dict(bundle.settings))
    mine, theirs = EmbeddedEngine(made, timeout_ms=3_000), OpaServerEngine(start_opa(made), made, timeout_ms=3_000)
    asked = question("ada", (), "token", roles=frozenset(ROLES))
    for engine in (mine, theirs):
        found = engine.roles(asked)
        assert found.roles == frozenset()
        assert found.problem
        engine.close()


def test_a_server_that_is_away_gives_no_role(bundle) -> None:
    engine = OpaServerEngine("http://127.0.0.1:9", bundle, timeout_ms=500)
    found = engine.roles(question("ada", (), "token", roles=frozenset(ROLES)))
    engine.close()
    assert (found.roles, "POLICY_UNAVAILABLE" in found.problem) == (frozenset(), True)
