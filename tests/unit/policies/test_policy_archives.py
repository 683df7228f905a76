"""Bundles from elsewhere: archives, signatures, findings of lint, and what sets two bundles apart."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_policies import bundle_archive, bundle_signature, cli, portable
from comity_policies.bundle import SIGNATURE_FILE, Bundle, shipped_folder, write_defaults
from comity_policies.bundle_archive import read_archive
from comity_policies.decisions import Decision, Reason, ReviewNeed, Stage, example, stricter
from comity_policies.embedded import EmbeddedEngine
from comity_policies.replay import Recorded, difference, places, replay
from comity_policies.terms import Terms, conforms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_defaults(tmp_path / "policy", "hospital-b")
    return tmp_path / "policy"


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return Bundle.load(shipped_folder(), folder)


def refused(data: bytes) -> str:
    with pytest.raises(ComityError) as caught:
        read_archive(data)
    assert caught.value.code == ErrorCode.BUNDLE_INVALID
    return caught.value.detail


def packed(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, "elsewhere"
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue())


def unpacked(bundle: Bundle) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(bundle.archive()))) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


# Archives.


def test_an_archive_is_the_bundle(bundle: Bundle) -> None:
    found = read_archive(bundle.archive())
    assert (found.digest, dict(found.modules), dict(found.settings)) == (
        bundle.digest,
        dict(bundle.modules),
        dict(bundle.settings),
    )
    assert read_archive(bundle.archive(b"signature")).digest == bundle.digest


def test_a_changed_archive_is_not_what_it_says(bundle: Bundle) -> None:
    files = unpacked(bundle)
    assert read_archive(packed(files)).digest == bundle.digest, "the control"
    changed = files["lib/lib.rego"] + b"\n# changed\n"
    assert "not the digest" in refused(packed(files | {"lib/lib.rego": changed}))
    settings = json.dumps({"settings": dict(bundle.settings) | {"min_cohort": 1}}).encode()
    assert "not the digest" in refused(packed(files | {"data.json": settings}))
    assert "not the digest" in refused(packed(files | {".manifest": b'{"revision": ""}'}))


def test_the_digest_is_judged_before_anything_is_parsed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: Any) -> None:
        raise AssertionError("the parser was reached")

    def refuse(digest: str) -> None:
        raise ComityError(ErrorCode.CONFLICT, digest)

    monkeypatch.setattr(portable, "check", parse)
    with pytest.raises(ComityError, match=bundle.digest):
        read_archive(bundle.archive(), refuse)
    with pytest.raises(AssertionError, match="parser"):
        read_archive(bundle.archive())


def test_hostile_archives(bundle: Bundle) -> None:
    files, whole = unpacked(bundle), bundle.archive()
    assert "truncated" in refused(b"")
    assert "not gzip" in refused(b"not gzip at all")
    assert "truncated" in refused(whole[:-9])
    assert "more behind" in refused(whole + b"x")
    assert "larger" in refused(b"\0" * (bundle_archive.ARCHIVE_BYTES_MAX + 1))
    bomb = gzip.compress(b"\0" * (bundle_archive.UNPACKED_BYTES_MAX + 1))
    assert len(bomb) < bundle_archive.ARCHIVE_BYTES_MAX
    assert "too large" in refused(bomb)
    assert "not a tar" in refused(gzip.compress(b"x" * 2000))
    for name in ("../escape.rego", "/etc/x.rego", "a/../b.rego", "x.exe", ".hidden.rego", "own/x_test.rego"):
        assert "no module" in refused(packed(files | {name: b"package comity.x\n"})), name
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        assert "regular files" in refused(packed({"lib/lib.rego": b""}, kind))
    many = {f"own/m{number}.rego": b"package comity.x\n" for number in range(200)}
    assert "at most" in refused(packed(files | many))
    assert "missing or not JSON" in refused(packed({name: files[name] for name in files if name != "data.json"}))
    assert "holds the settings" in refused(packed(files | {"data.json": b"[]"}))
    assert "is not UTF-8" in refused(packed(files | {"own/x.rego": b"\xff"}))


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_is_never_another_bundle(noise: bytes, place: int, flip: int) -> None:
    data = bytearray(_ARCHIVE)
    data[place * len(data) // 401] ^= flip
    for each in (bytes(data), noise):
        assert _read(each) in (_DIGEST, ErrorCode.BUNDLE_INVALID)


def _read(data: bytes) -> str:
    try:
        return read_archive(data).digest
    except ComityError as error:
        return error.code


def _shipped() -> Bundle:
    shipped = shipped_folder()
    texts = {path.relative_to(shipped).as_posix(): path.read_text() for path in shipped.glob("*/*.rego")}
    from comity_policies.settings import defaults

    return Bundle.of(texts, defaults("hospital-b"))


_ARCHIVE, _DIGEST = _shipped().archive(), _shipped().digest


# Signatures.


@pytest.fixture(scope="module")
def keys() -> OrgKeys:
    return OrgKeys.generate()


def test_a_signature_holds_for_one_bundle_of_one_organisation(folder: Path, bundle: Bundle, keys: OrgKeys) -> None:
    mine = {"consortium": "demo", "org": "hospital-b"}

    def problem(checked: Bundle = bundle, key: bytes = keys.public.statement, **who: str) -> str:
        with pytest.raises(ComityError) as caught:
            bundle_signature.check_signature(checked, folder, key, **{**mine, **who})
        assert caught.value.code == ErrorCode.BUNDLE_INVALID
        return caught.value.detail

    assert "not signed" in problem()
    statement = bundle_signature.sign_bundle(bundle, keys, **mine)
    (folder / SIGNATURE_FILE).write_bytes(statement.to_bytes())
    bundle_signature.check_signature(bundle, folder, keys.public.statement, **mine)
    assert Bundle.load(shipped_folder(), folder).digest == bundle.digest, "a signature is no part of what it signs"
    assert "changed after" in problem(Bundle.of(bundle.modules, dict(bundle.settings) | {"min_cohort": 1}))
    assert "does not hold" in problem(key=OrgKeys.generate().public.statement)
    assert "does not hold" in problem(consortium="other")
    assert "changed after" in problem(org="hospital-c")
    for content in (b"", b"{}", statement.to_bytes()[:-2], b"x" * 5000):
        (folder / SIGNATURE_FILE).write_bytes(content)
        assert problem()


# Lint.

BREACHES = {
    "y := http.send({})": "call",
    "y := lower(input.a)": "call",
    "y := elsewhere(1)": "call",
    "y if split(input.a, 1, z)": "arity",
    'y := sprintf("%d", [1])': "format",
    'y := sprintf("%s", [1, 2])': "format",
    'y := sprintf(input.a, ["x"])': "format",
    'y := sprintf("%s", input.a)': "format",
    "y := 1.5": "number",
    "y := -input.a": "number",
    'y := {1: "x"}': "key",
    "y := {true: 1}": "key",
    "y := {[1]: 1}": "key",
    "a.b.c := 1": "head",
    "y if data.comity.egress.result with input as {}": "with",
    "y := y + 1": "recursion",
    "y := " + "[" * 13 + "1" + "]" * 13: "nesting",
    "y := ": "parse",
    'y := $"{input.a}"': "parse",
}


@pytest.mark.parametrize("line", sorted(BREACHES))
def test_lint_names_rule_file_and_line(folder: Path, line: str) -> None:
    (folder / "mine.rego").write_text(f"package comity.x\n\n# a comment\n{line}\n")
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(app, ["policy", "lint", str(folder), "--json"])
    (found,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, found["rule"], found["file"]) == (1, BREACHES[line], "own/mine.rego")
    assert found["line"] in ({4, 5} if found["rule"] == "parse" else {4})
    assert f"own/mine.rego:{found['line']}: " in CliRunner().invoke(app, ["policy", "lint", str(folder)]).stdout


@pytest.mark.parametrize(
    "text",
    [
        "f(n) := f(n + 1)\n\ny := f(1)",
        "f(n) := g(n)\n\ng(n) := f(n)",
        "y if z\n\nz if y",
        "y := data.comity.x.y",
        "y := data.comity.x",
        "y := data.comity[input.a]",
        "y := count(data.comity)",
        "y contains x if some x in y",
        "y := {x | some x in data.comity.x.z}\n\nz := [x | some x in y]",
        "default y := false\n\ny if not y",
        "y := 1 if { false } else := y",
    ],
)
def test_recursion_is_found(text: str) -> None:
    found = list(portable.findings({"m.rego": f"package comity.x\n\n{text}\n"}, {}))
    assert "recursion" in {each.rule for each in found}


@pytest.mark.parametrize(
    "text",
    [
        "y := z\n\nz := w\n\nw := 1",
        "f(y) := y + 1\n\ny := f(1)",
        "y := [z | some z in input.a]\n\nz := count(y)",
        "y if { z := input.a; z > 1 }\n\nz if y",
        "y := data.settings.y",
        "y := data.comity.elsewhere.y",
        "y := 1 if input.a\n\ny := 2 if input.b",
        "f(n) := 1 if n == 1\n\nf(n) := 2 if n == 2\n\ny := [f(1), f(2)]",
    ],
)
def test_what_only_looks_like_recursion_is_none(text: str) -> None:
    found = list(portable.findings({"m.rego": f"package comity.x\n\n{text}\n"}, {}))
    assert {each.rule for each in found} <= {"default"}, found


def test_brackets_in_text_and_comments_do_not_nest() -> None:
    text = 'package comity.x\n\n# ((((((((((((((\ny := "[[[[[[[[[[[[[[" if input.a == `{{{{{{{{{{{{{{`\n'
    assert {each.rule for each in portable.findings({"m.rego": text}, {})} <= {"default"}


def test_lint_finds_everything_at_once(folder: Path) -> None:
    (folder / "a.rego").write_text("package comity.x\n\ny := 1.5\n\nz := http.send({})\n")
    (folder / "b.rego").write_text("package comity.x\n\nbroken :=\n")
    (folder / "c.rego").write_text("package elsewhere\n\ny := 1\n")
    app = typer.Typer()
    cli.register(app)
    found = json.loads(CliRunner().invoke(app, ["policy", "lint", str(folder), "--json"]).stdout)["findings"]
    assert [(each["file"], each["rule"]) for each in found] == [
        ("own/a.rego", "number"),
        ("own/a.rego", "call"),
        ("own/b.rego", "parse"),
        ("own/c.rego", "package"),
    ]


def test_a_function_that_only_a_test_defines_is_none() -> None:
    module = {"m.rego": "package comity.x\n\ny := mine(1)\n"}
    test = {"m_test.rego": "package comity.x\n\nmine(n) := n\n\ntest_x if mine(1) == 1\n"}
    found = [each for each in portable.findings(module, test) if each.rule != "default"]
    assert [(each.rule, each.file) for each in found] == [("call", "m.rego")]


# What-if.


def recorded(stage: Stage, decision: Decision, consortium: Decision | None = None) -> Recorded:
    return Recorded("dec-1", "2030-01-01T00:00:00Z", stage, "s", example(stage), decision, consortium)


def test_a_replay_names_what_changes(bundle: Bundle) -> None:
    engine = EmbeddedEngine(Bundle.of(bundle.modules, dict(bundle.settings) | {"app_digests": ["5f" * 32]}))
    then = engine.decide(Stage.PROPOSAL, example(Stage.PROPOSAL))
    log = [recorded(Stage.PROPOSAL, then), recorded(Stage.EGRESS, engine.decide(Stage.EGRESS, example(Stage.EGRESS)))]
    assert [change for _, change in replay(log, engine)] == [None, None]
    engine.close()
    stricter_one = EmbeddedEngine(
        Bundle.of(bundle.modules, dict(bundle.settings) | {"min_cohort": 181, "app_digests": ["5f" * 32]})
    )
    changes = [change for _, change in replay(log, stricter_one) if change is not None]
    stricter_one.close()
    assert [each.now.decision for each in changes] == ["deny", "deny"]
    shown = changes[0].to_json()
    assert (shown["before"]["decision"], shown["after"]["reasons"][0]["rule"]) == ("allow", "proposal.cohort")


def test_a_replay_keeps_the_consortiums_word(bundle: Bundle) -> None:
    engine = EmbeddedEngine(bundle)
    denied = Decision("deny", (Reason("consortium.rule", "C", "no"),))
    ((_, change),) = replay([recorded(Stage.EGRESS, denied, consortium=denied)], engine)
    engine.close()
    assert change is None


def test_records_are_read_strictly(bundle: Bundle) -> None:
    decision = Decision("review", (Reason("r", "C", "m"),), Terms.parse({"rounds": 1}), review=ReviewNeed("admin", 2))
    shown = {"id": "dec-7", "at": "t", "stage": "egress", "subject": "s", "input": {}}
    result = {**decision.to_json(), "layers": {"own": decision.to_json()}}
    read = Recorded.from_json({**shown, "result": result})
    assert (read.decision, read.consortium) == (decision, None)
    for bad in ({}, {**shown, "result": {}}, {**shown, "stage": "x", "result": result}, []):
        with pytest.raises(ComityError):
            Recorded.from_json(bad)


def test_differences(bundle: Bundle) -> None:
    text = bundle.modules["proposal/proposal.rego"].replace("not proposer_known", "input.me\n\tnot proposer_known")
    own = 'package comity.egress\n\ndeny contains {"rule": "own.x", "code": "X", "message": "x"} if input.me == "z"\n'
    changed = {**bundle.modules, "proposal/proposal.rego": text, "own/x.rego": own}
    found = difference(bundle, Bundle.of(changed, dict(bundle.settings) | {"uses_max": 3}))
    assert found.settings == {"uses_max": (10, 3)}
    assert found.modules == {"own/x.rego": "added", "proposal/proposal.rego": "changed"}
    assert found.rules == {"own.x": "added", "proposal.proposer": "changed"}
    same = difference(bundle, bundle)
    assert (same.settings, same.modules, same.rules) == ({}, {}, {})


def test_every_shipped_rule_has_a_place_and_a_title(bundle: Bundle) -> None:
    rules = {
        line.split('"')[3]
        for text in bundle.modules.values()
        for line in text.splitlines()
        if line.strip().startswith('"rule": ')
    }
    assert len(rules) > 25
    for rule in rules:
        (place,) = places(bundle.modules, rule)
        assert place.title, rule
        assert rule in bundle.modules[place.file].splitlines()[place.line - 1]


# The stricter of two decisions.

REASONS = st.lists(st.sampled_from([Reason("a", "A", "a"), Reason("b", "B", "b"), Reason("c", "C", "c")]), unique=True)
DECISIONS = st.builds(
    Decision,
    decision=st.sampled_from(["allow", "review", "deny"]),
    reasons=REASONS.map(tuple),
    terms=st.dictionaries(st.sampled_from(["rounds", "uses"]), st.integers(0, 3)).map(Terms.parse),
    review=st.builds(ReviewNeed, st.just("reviewer"), st.integers(1, 5)),
)
ORDER = ("allow", "review", "deny")


def _plain(decision: Decision) -> Any:
    need = decision.review.approvals if decision.decision == "review" else 0
    terms = Terms() if decision.decision == "deny" else decision.terms
    return decision.decision, frozenset(decision.reasons), terms, need


@given(DECISIONS, DECISIONS, DECISIONS)
def test_stricter_is_never_weaker_than_either(a: Decision, b: Decision, c: Decision) -> None:
    both = stricter(a, b)
    for each in (a, b):
        assert ORDER.index(both.decision) >= ORDER.index(each.decision)
        if both.decision != "deny":
            assert conforms(both.terms, each.terms) == []
        if each.decision == both.decision:
            assert set(each.reasons) <= set(both.reasons)
            assert each.decision != "review" or both.review.approvals >= each.review.approvals
    assert _plain(both) == _plain(stricter(b, a))
    assert _plain(stricter(both, c)) == _plain(stricter(a, stricter(b, c)))
    assert _plain(stricter(a, a)) == _plain(a)
    assert replace(both, duration_us=0).bundle_digest == a.bundle_digest
