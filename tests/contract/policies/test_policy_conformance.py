"""Both engines agree: every built-in of the portable profile, the language, our own policies over generated questions.

And start-up refuses a bundle that the configured engine cannot run faithfully.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import portable, probe
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.decisions import Decision, Stage, example
from comity_policies.embedded import EmbeddedEngine
from comity_policies.engine import PolicyEngine, PolicySettings, open_engine

EXAMPLES = hypothesis_settings(suppress_health_check=list(HealthCheck), max_examples=20)


@pytest.fixture(scope="module")
def both(open_named: Callable[[str, Bundle], Any], bundle: Bundle) -> tuple[Any, Any]:
    return open_named("embedded", bundle), open_named("opa", bundle)


def test_the_corpus_has_every_built_in() -> None:
    tree = portable.syntax_trees({probe.MODULE: (shipped_folder() / probe.MODULE).read_text()})[probe.MODULE]
    called = {".".join(portable._path(call["fcn"])) for call in portable._nodes(tree["rules"], "Call")}
    assert set(portable.BUILTINS) <= called
    assert set(portable.BUILTINS) | {"language"} == set(probe.wanted())


@pytest.mark.parametrize("name", ["embedded", "opa"])
def test_the_corpus_holds(open_named: Callable[[str, Bundle], Any], bundle: Bundle, name: str) -> None:
    engine = open_named(name, bundle)
    assert probe.differing(engine.ask(probe.PACKAGE, probe.question())) == []


TEXT = st.text(st.sampled_from("abcXYZ019 -_/.:%äß日"), max_size=8)
WHOLE = st.integers(-100_000, 100_000)
VALUE = st.recursive(
    st.none() | st.booleans() | WHOLE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LIST = st.lists(VALUE, max_size=4)
FLAT = st.dictionaries(st.sampled_from("abc"), WHOLE | TEXT, max_size=3)
INSTANT = st.datetimes().filter(lambda at: 1700 <= at.year <= 2200).map(lambda at: at.strftime("%Y-%m-%dT%H:%M:%SZ"))
GENERATED = {
    "whole_numbers": WHOLE,
    "collections": LIST,
    "number_lists": st.lists(st.integers(-99, 99), min_size=1, max_size=4),
    "texts": TEXT,
    "number_texts": st.integers(0, 10**9).map(str) | WHOLE | st.none() | st.booleans(),
    "values": VALUE,
    "objects": FLAT.map(lambda each: {key: each[key] for key in each}),
    "arrays": LIST,
    "instants": INSTANT,
    "text_lists": st.lists(TEXT, max_size=3),
    "pairs": st.tuples(TEXT, TEXT),
    "formats": st.tuples(TEXT, WHOLE, VALUE),
    "ranges": st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    "array_pairs": st.tuples(LIST, LIST),
    "object_pairs": st.tuples(FLAT, FLAT),
    "object_keys": st.tuples(FLAT, st.lists(st.sampled_from("abc"), max_size=2, unique=True)),
    "slices": st.tuples(LIST, st.integers(-2, 5), st.integers(-2, 5)),
    "gets": st.tuples(FLAT, st.sampled_from("abcd"), VALUE),
    "replaces": st.tuples(TEXT, TEXT.filter(bool), TEXT),
    "substrings": st.tuples(TEXT, st.integers(0, 9), st.integers(-1, 9)),
}


def test_generated_arguments_of_every_built_in(both: tuple[Any, Any]) -> None:
    embedded, opa = both
    lists = {key: st.lists(each, min_size=2, max_size=3) for key, each in GENERATED.items()}
    assert set(lists) == set(probe.question())

    @given(st.fixed_dictionaries(lists))
    @EXAMPLES
    def compare(document: dict[str, Any]) -> None:
        document = json.loads(json.dumps(document))
        document["objects"][1] = dict.fromkeys(document["objects"][1], 1)
        mine, theirs = embedded.ask(probe.PACKAGE, document), opa.ask(probe.PACKAGE, document)
        assert [name for name in mine if not probe.same(mine[name], theirs.get(name))] == []
        assert set(mine) == set(theirs)

    compare()


def _facts(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    yield path
    children = document.items() if isinstance(document, dict) else enumerate(document) if _is_list(document) else ()
    for key, item in children:
        yield from _facts(item, (*path, key))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _essence(decision: Decision) -> Any:
    if "engine" in {reason.rule for reason in decision.reasons}:
        return decision.decision
    return decision.decision, decision.reasons, decision.terms, decision.review


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return document
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


VARIANTS: dict[str, dict[str, Any]] = {
    "open": {"hours": None, "min_cohort": 1, "app_digests": []},
    "strict": {
        "purposes": ["x-own", "research"],
        "aggregation": "masked",
        "privacy": {"epsilon": "4", "delta": "0.00001"},
        "terms": {"retention_s": 60, "human_review": ["dispatch"]},
        "known_members": {"hospital-d": "abcd-efgh-ijkl-mnop-qrstu-vwxyz"},
        "reviews": {"role": "admin", "approvals": 2},
        "egress": {"kinds": ["model"], "metrics": ["accuracy"], "size_bytes_max": 5000},
    },
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_generated_questions_of_every_stage(
    open_named: Callable[[str, Bundle], PolicyEngine],
    bundle: Bundle,
    hospital_settings: dict[str, Any],
    variant: str,
) -> None:
    varied = Bundle.of(dict(bundle.modules), hospital_settings | VARIANTS[variant])
    embedded, opa = open_named("embedded", varied), open_named("opa", varied)
    places = {stage: list(_facts(example(stage)))[1:] for stage in Stage}
    odd = VALUE | st.just(...) | st.sampled_from(["research", "hospital-b", "2029-06-01T03:00:00Z", "dispatch", "*"])
    cases = st.sampled_from(sorted(Stage)).flatmap(
        lambda stage: st.tuples(st.just(stage), st.lists(st.tuples(st.sampled_from(places[stage]), odd), max_size=2))
    )
    seen: set[str] = set()

    @given(cases)
    @EXAMPLES
    def compare(case: tuple[Stage, list[tuple[tuple[Any, ...], Any]]]) -> None:
        stage, changes = case
        document = example(stage)
        for path, value in changes:
            try:
                document = _changed(document, path, value)
            except (TypeError, KeyError, IndexError):
                continue
        mine, theirs = embedded.decide(stage, document), opa.decide(stage, document)
        seen.add(mine.decision)
        if isinstance(_essence(mine), str) or isinstance(_essence(theirs), str):
            assert (mine.decision, theirs.decision) == ("deny", "deny")
        else:
            assert _essence(mine) == _essence(theirs)

    compare()
    assert "deny" in seen
    assert len(seen) > 1


OWN = """package comity.dispatch

# Work on weekdays is for the ethics board's list; the two of them look at anything larger.
board := {"ethics", "privacy"}

deny contains {"rule": "own.round", "code": "ROUND", "message": sprintf("round %v of %v", [input.order.round, n])} if {
	n := count(input.agreement.parties) * 4
	input.order.round > n
}

review contains {"rule": "own.board", "code": "BOARD", "message": concat(", ", board), "approvals": count(board)} if {
	every party in input.agreement.parties {
		startswith(party, "hospital-")
	}
	input.order.round > 5
}
"""


def test_own_rego_is_answered_alike(open_named: Callable[[str, Bundle], PolicyEngine], bundle: Bundle) -> None:
    own = Bundle.of({**bundle.modules, "own/board.rego": OWN}, dict(bundle.settings))
    embedded, opa = open_named("embedded", own), open_named("opa", own)
    for number, wanted in ((3, "allow"), (6, "review"), (9, "deny")):
        document = example(Stage.DISPATCH)
        document["order"]["round"] = number
        mine, theirs = embedded.decide(Stage.DISPATCH, document), opa.decide(Stage.DISPATCH, document)
        assert (mine.decision, _essence(mine)) == (wanted, _essence(theirs))
        if wanted == "review":
            assert (mine.review.role, mine.review.approvals) == ("reviewer", 2)


# Start-up.


def _answers(**changes: Any) -> Callable[[str, dict[str, Any]], Any]:
    def ask(package: str, document: dict[str, Any]) -> Any:
        if package == probe.PACKAGE:
            return {name: value for name, value in (probe.wanted() | changes).items() if value is not None}
        if package == "access":
            return {"roles": []}
        return {"decision": "allow", "reasons": [], "terms": {}}

    return ask


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"split": None}, "split"), ({"count": [1]}, "count"), ({"is_boolean": [1, 0]}, "is_boolean")],
)
def test_an_engine_that_answers_otherwise_is_refused(bundle: Bundle, changes: dict[str, Any], named: str) -> None:
    probe.check(bundle, _answers())
    with pytest.raises(ComityError, match=named) as caught:
        probe.check(bundle, _answers(**changes))
    assert caught.value.code == ErrorCode.BUNDLE_INVALID


def test_an_engine_without_a_built_in_is_refused(bundle: Bundle) -> None:
    def ask(package: str, document: dict[str, Any]) -> Any:
        raise ComityError(ErrorCode.POLICY_ERROR, "could not find function object.filter")

    with pytest.raises(ComityError, match=r"object\.filter") as caught:
        probe.check(bundle, ask)
    assert caught.value.code == ErrorCode.BUNDLE_INVALID


def test_a_stage_that_is_answered_otherwise_than_embedded_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ComityError, match="stage membership answers its example otherwise"):
        probe.check(bundle, _answers(), by=lambda: probe.by_embedded(bundle))


def test_a_bundle_whose_own_rego_fails_only_when_asked_is_refused(bundle: Bundle) -> None:
    text = "package comity.membership\n\nown(x) := x\n\nown(x) := x + 1\n\ndeny contains own(input.candidate.org)\n"
    with pytest.raises(ComityError) as caught:
        EmbeddedEngine(Bundle.of({**bundle.modules, "own/x.rego": text}, dict(bundle.settings)))
    assert caught.value.code == ErrorCode.BUNDLE_INVALID
    assert "membership" in caught.value.detail


@pytest.fixture
def folder(tmp_path: Path, hospital_settings: dict[str, Any]) -> Path:
    (tmp_path / "data.json").write_text(json.dumps(hospital_settings))
    return tmp_path


def test_a_real_server_passes_when_it_comes_up(folder: Path, start_opa: Callable[[Bundle], str]) -> None:
    url = start_opa(Bundle.load(shipped_folder(), folder))
    engine = open_engine(PolicySettings(folder, engine="opa", opa_url=url, timeout_ms=3000))
    assert engine.decide(Stage.EGRESS, example(Stage.EGRESS)).allowed
    engine.close()


def test_a_server_that_is_away_denies_until_it_has_passed(folder: Path) -> None:
    engine = open_engine(PolicySettings(folder, engine="opa", opa_url="http://127.0.0.1:1"))
    decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_UNAVAILABLE")


def test_a_server_with_another_bundle_denies_until_it_has_ours(
    folder: Path, hospital_settings: dict[str, Any], start_opa: Callable[[Bundle], str], bundle: Bundle
) -> None:
    url = start_opa(Bundle.of(dict(bundle.modules), hospital_settings | {"min_cohort": 1}))
    engine = open_engine(PolicySettings(folder, engine="opa", opa_url=url, timeout_ms=3000))
    decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_UNAVAILABLE")
    assert "another bundle" in decision.reasons[0].message
