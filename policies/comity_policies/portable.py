"""The portable profile: the Rego that every engine answers alike (infra.md section 2.8).

Rules, checked over the syntax tree when a bundle is loaded, because the embedded engine reports a missing built-in
only when the rule is evaluated. `comity policy lint` prints them by these names, with file and line:
- `parse`: the embedded engine can read it; no `$"…"`, no keywords as references;
- `call`: only listed built-ins, and functions that the bundle's modules define, in full if they are in another package
  (the embedded engine does not resolve imports there); no built-in does I/O, reads a clock, draws random numbers or
  looks at the process, and a corpus proves that the engines agree on each;
- `arity`: a built-in has its exact number of arguments, no output argument;
- `format`: `sprintf` has its format as text, with `%s` and `%v` only, one for each item of a list written out;
- `number`: numbers are whole (the engines round fractions differently), and only a number is negated;
- `key`: object keys that are written out are text; `head`: a rule's head has at most two parts;
- `with`: it replaces input and data, and only in tests;
- `annotation`: OPA reads METADATA comments as YAML, the embedded engine not at all: a value on its key's line holds no
  `: `, and one file alone annotates a package;
- `nesting`: brackets are nested at most `NESTING_MAX` deep (parsing time doubles with each level);
- `recursion`: no rule and no function depends on itself;
- `package`, `default`: packages are `comity.*`, and every stage's `result` has a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import portable_recursion

# Built-in -> number of arguments. In OPA 1.x and in the embedded engine, pure, answered alike (`probe.py`). Left out
# although both have them: `ceil` and `floor` (OPA errs below zero), `lower` and `upper` (other Unicode tables),
# `indexof` (an empty needle).
BUILTINS = {
    **dict.fromkeys(("abs", "round", "count", "sum", "product", "max", "min", "sort"), 1),
    **dict.fromkeys(("trim_space", "to_number", "type_name"), 1),
    **dict.fromkeys(("is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string"), 1),
    **dict.fromkeys(("intersection", "union", "object.keys", "array.reverse", "time.parse_rfc3339_ns"), 1),
    **dict.fromkeys(("concat", "contains", "endswith", "startswith", "split", "sprintf", "trim", "trim_left"), 2),
    **dict.fromkeys(("trim_prefix", "trim_right", "trim_suffix", "numbers.range"), 2),
    **dict.fromkeys(("array.concat", "object.union", "object.remove", "object.filter"), 2),
    **dict.fromkeys(("array.slice", "object.get", "replace", "substring"), 3),
}
ENTRY_POINTS = ("membership", "proposal", "dispatch", "egress")
HEAD_PARTS_MAX = 2
NESTING_MAX = 12
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*|[()\[\]{}]')
_VERB = re.compile(r"%(?:%|[^%]?)")
_AMBIGUOUS = re.compile(r"# [a-z_]+: +[^\"'|>\s].*?: .*")
_PLACE = re.compile(r"--> [^\n]*?:(\d+):\d+")


def refuse(detail: str) -> ComityError:
    """Return the refusal of a bundle."""
    return ComityError(ErrorCode.BUNDLE_INVALID, detail)


@dataclass(frozen=True, slots=True)
class Finding:
    """One breach of the profile: the rule's name, where, and what; line 0 is the file as a whole."""

    rule: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message} ({self.rule})"


def syntax_trees(modules: Mapping[str, str]) -> dict[str, Any]:
    """Return file name -> syntax tree. Raises `BUNDLE_INVALID` with the place of the first syntax error."""
    trees, findings = _parsed(modules)
    if findings:
        raise refuse(str(findings[0]))
    return trees


def check(modules: Mapping[str, str], tests: Mapping[str, str]) -> None:
    """Check a bundle's modules and tests against the profile. Raises `BUNDLE_INVALID` with the first finding."""
    for finding in findings(modules, tests):
        raise refuse(str(finding))


def findings(modules: Mapping[str, str], tests: Mapping[str, str]) -> Iterator[Finding]:
    """Yield every breach of the profile, file by file."""
    deep = list(_too_deep({**modules, **tests}))
    yield from deep
    if deep:
        return
    trees, unread = _parsed({**modules, **tests})
    yield from unread
    for name, tree in trees.items():
        package, is_test = package_of(tree), name in tests
        if not package.startswith("data.comity."):
            yield Finding("package", name, 1, f"package {package.removeprefix('data.')} is outside comity")
        # What only a test defines is not there when the bundle decides.
        defining = trees if is_test else {each: trees[each] for each in modules if each in trees}
        functions = {f"{package_of(each)}.{found}" for each in defining.values() for found in _functions(each)}
        yield from _calls(name, tree, package, functions)
        yield from _expressions(name, tree)
        yield from _replacements(name, tree, is_test=is_test)
    yield from _annotations({name: text for name, text in {**modules, **tests}.items() if name in trees}, trees)
    for rule, name, line in portable_recursion.cycles(
        _rules({each: trees[each] for each in modules if each in trees}), _path
    ):
        yield Finding("recursion", name, line, f"{rule.removeprefix('data.')} depends on itself")
    if unread:
        return  # what is missing below may stand in a file that cannot be read
    defaults = {package_of(trees[name]) for name in modules for rule in trees[name]["rules"] if _default_result(rule)}
    for stage in ENTRY_POINTS:
        if f"data.comity.{stage}" not in defaults:
            yield Finding("default", "the bundle", 0, f"package comity.{stage} has no default for result")


def _annotations(texts: Mapping[str, str], trees: Mapping[str, Any]) -> Iterator[Finding]:
    annotated: dict[str, str] = {}
    for name, text in texts.items():
        inside = False
        for number, line in enumerate(text.splitlines(), 1):
            inside = line.startswith("#") and (inside or line.rstrip() == "# METADATA")
            if inside and _AMBIGUOUS.fullmatch(line):
                yield Finding("annotation", name, number, "a value with `: ` is put in quotes, or on lines of its own")
            if inside and line.rstrip() == "# scope: package":
                first = annotated.setdefault(package_of(trees[name]), name)
                if first != name:
                    yield Finding("annotation", name, number, f"the package is annotated in {first} already")


def package_of(tree: Any) -> str:
    """Return `data.<package>` of one syntax tree."""
    return "data." + ".".join(_path(tree["package"]["refr"]))


def test_rules(tree: Any) -> list[str]:
    """Return the names of a module's test rules, in order of their first appearance."""
    names = [".".join(_path(_head_reference(rule))) for rule in tree["rules"]]
    return list(dict.fromkeys(name for name in names if name.startswith("test_")))


def _too_deep(texts: Mapping[str, str]) -> Iterator[Finding]:
    """Look at brackets before a parser does."""
    for name, text in texts.items():
        depth = 0
        for token in _TOKEN.finditer(text):
            first = token[0][0]
            depth += 1 if first in "([{" else -1 if first in ")]}" else 0
            if depth > NESTING_MAX:
                line = text.count("\n", 0, token.start()) + 1
                yield Finding("nesting", name, line, f"brackets are nested more than {NESTING_MAX} deep")
                break


def _rules(trees: Mapping[str, Any]) -> dict[str, list[tuple[str, int, Any]]]:
    """Return full name -> definitions (file, line, tree) of every rule and function."""
    found: dict[str, list[tuple[str, int, Any]]] = {}
    for name, tree in trees.items():
        for rule in tree["rules"]:
            reference = _head_reference(rule)
            line = next(iter(reference.values()))["span"]["line"]
            found.setdefault(f"{package_of(tree)}.{_path(reference)[0]}", []).append((name, line, rule))
    return found


def _parsed(modules: Mapping[str, str]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the syntax trees of what can be parsed, and what cannot."""
    import regorus

    engine, unread = regorus.Engine(), []
    for name, text in modules.items():
        try:
            engine.add_policy(name, text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the engine's panics are no `Exception`
            place = _PLACE.search(str(error))
            line = int(place[1]) if place is not None else 0
            unread.append(Finding("parse", name, line, f"{name} cannot be parsed: {_first_lines(str(error))}"))
    trees = {tree["source"]["file"]: tree["ast"] for tree in json.loads(engine.get_ast_as_json())}
    return {name: trees[name] for name in modules if name in trees}, unread


def _calls(name: str, tree: Any, package: str, functions: set[str]) -> Iterator[Finding]:
    for call in _nodes(tree["rules"], "Call"):
        called = ".".join(_path(call["fcn"]))
        line = call["span"]["line"]
        if called in functions or f"{package}.{called}" in functions:
            continue
        if called not in BUILTINS:
            yield Finding("call", name, line, f"{called[:64]} is not in the portable profile")
        elif len(call["params"]) != BUILTINS[called]:
            yield Finding("arity", name, line, f"{called} takes {BUILTINS[called]} arguments here")
        elif called == "sprintf":
            yield from _format(name, line, *call["params"])


def _format(name: str, line: int, template: Any, items: Any) -> Iterator[Finding]:
    text = template.get("String", template.get("RawString"))
    if text is None or "Array" not in items:
        yield Finding("format", name, line, "sprintf has its format as text and its items as a list, both written out")
        return
    verbs = [verb for verb in _VERB.findall(str(text["value"])) if verb != "%%"]
    odd = [verb for verb in verbs if verb not in {"%s", "%v"}]
    if odd:
        yield Finding("format", name, line, f"sprintf knows %s and %v here, not {odd[0]}")
    elif len(verbs) != len(items["Array"]["items"]):
        yield Finding("format", name, line, "sprintf has one item for each %s and %v")


def _expressions(name: str, tree: Any) -> Iterator[Finding]:
    for number in _nodes(tree["rules"], "Number"):
        if not isinstance(number["value"], int):
            yield Finding("number", name, number["span"]["line"], "numbers are whole here")
    for negated in _nodes(tree["rules"], "UnaryExpr"):
        if "Number" not in negated["expr"]:
            yield Finding("number", name, negated["span"]["line"], "only a number is negated; write 0 - x")
    for written in _nodes(tree["rules"], "Object"):
        for _, key, _ in written["fields"]:
            if {"Number", "True", "False", "Null", "Bool", "Array", "Set", "Object"} & set(key):
                yield Finding("key", name, written["span"]["line"], "object keys are text")
    for rule in tree["rules"]:
        reference = _head_reference(rule)
        if len(_path(reference)) > HEAD_PARTS_MAX:
            line = next(iter(reference.values()))["span"]["line"]
            yield Finding("head", name, line, f"a rule's head has at most {HEAD_PARTS_MAX} parts")


def _replacements(name: str, tree: Any, *, is_test: bool) -> Iterator[Finding]:
    for statement in _nodes(tree["rules"], "with_mods", whole=True):
        for change in statement["with_mods"]:
            line = statement["span"]["line"]
            if not is_test:
                yield Finding("with", name, line, "`with` belongs in tests")
            elif _path(change["refr"])[0] not in {"input", "data"}:
                yield Finding("with", name, line, "`with` replaces input and data only")


def _functions(tree: Any) -> Iterator[str]:
    for rule in tree["rules"]:
        head = rule.get("Spec", {}).get("head", {})
        if "Func" in head:
            yield ".".join(_path(head["Func"]["refr"]))


def _default_result(rule: Any) -> bool:
    return "Default" in rule and _path(rule["Default"]["refr"]) == ["result"]


def _head_reference(rule: Any) -> Any:
    if "Default" in rule:
        return rule["Default"]["refr"]
    (head,) = rule["Spec"]["head"].values()
    return head["refr"]


def _path(reference: Any) -> list[str]:
    """Return the dotted names of a reference; a computed part ends it with `[]`."""
    if "Var" in reference:
        return [str(reference["Var"]["value"])]
    if "RefDot" in reference:
        return [*_path(reference["RefDot"]["refr"]), str(reference["RefDot"]["field"][1])]
    if "RefBrack" in reference:
        index = reference["RefBrack"]["index"]
        part = str(index["String"]["value"]) if "String" in index else "[]"
        return [*_path(reference["RefBrack"]["refr"]), part]
    return ["[]"]


def _nodes(tree: Any, key: str, *, whole: bool = False) -> Iterator[Any]:
    """Yield every value under `key` (or the object that holds it); iterative, as hostile trees may be deep."""
    open_nodes = [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, dict):
            if key in node:
                yield node if whole else node[key]
            open_nodes.extend(node.values())
        elif isinstance(node, list):
            open_nodes.extend(node)


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.partition("Stack backtrace")[0].splitlines() if line.strip(" |^")]
    return " ".join(lines)[:200]
