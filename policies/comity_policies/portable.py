"""The portable profile: the Rego that every engine answers alike (infra.md section 2.8).

Rules, checked over the syntax tree when a bundle is loaded, because the embedded engine reports a missing built-in
only when the rule is evaluated:
1. only listed built-ins, with their exact number of arguments (no output arguments); none does I/O, reads a clock,
   draws random numbers or looks at the process;
2. every other call names a function that the bundle defines, in full if it is in another package (the embedded engine
   does not resolve imports there);
3. `with` replaces input and data, and only in tests;
4. packages are `comity.*`, and every stage's `result` has a default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from comity.wire.errors import ComityError, ErrorCode

# Built-in -> number of arguments. In OPA 1.x and in the embedded engine, pure, answered alike in OPA's corpus.
BUILTINS = {
    **dict.fromkeys(("abs", "ceil", "floor", "round", "count", "sum", "product", "max", "min", "sort"), 1),
    **dict.fromkeys(("lower", "upper", "trim_space", "to_number", "type_name"), 1),
    **dict.fromkeys(("is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string"), 1),
    **dict.fromkeys(("intersection", "union", "object.keys", "array.reverse", "time.parse_rfc3339_ns"), 1),
    **dict.fromkeys(("concat", "contains", "endswith", "startswith", "split", "sprintf", "trim", "trim_left"), 2),
    **dict.fromkeys(("trim_prefix", "trim_right", "trim_suffix", "indexof", "numbers.range"), 2),
    **dict.fromkeys(("array.concat", "object.union", "object.remove", "object.filter"), 2),
    **dict.fromkeys(("array.slice", "object.get", "replace", "substring"), 3),
}
ENTRY_POINTS = ("proposal", "dispatch", "egress")


def refuse(detail: str) -> ComityError:
    """Return the refusal of a bundle."""
    return ComityError(ErrorCode.BUNDLE_INVALID, detail)


def syntax_trees(modules: Mapping[str, str]) -> dict[str, Any]:
    """Return file name -> syntax tree. Raises `BUNDLE_INVALID` with the place of a syntax error."""
    import regorus

    engine = regorus.Engine()
    for name, text in modules.items():
        try:
            engine.add_policy(name, text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the engine's panics are no `Exception`
            raise refuse(f"{name} cannot be parsed: {_first_lines(str(error))}") from None
    return {tree["source"]["file"]: tree["ast"] for tree in json.loads(engine.get_ast_as_json())}


def check(modules: Mapping[str, str], tests: Mapping[str, str]) -> None:
    """Check a bundle's modules and tests against the profile. Raises `BUNDLE_INVALID`, naming file and line."""
    trees = syntax_trees({**modules, **tests})
    functions = {f"{package_of(tree)}.{name}" for tree in trees.values() for name in _functions(tree)}
    for name, tree in trees.items():
        package = package_of(tree)
        if not package.startswith("data.comity."):
            raise refuse(f"{name}: package {package.removeprefix('data.')} is outside comity")
        _check_calls(name, tree, package, functions)
        _check_with(name, tree, is_test=name in tests)
    defaults = {package_of(trees[name]) for name in modules for rule in trees[name]["rules"] if _default_result(rule)}
    for stage in ENTRY_POINTS:
        if f"data.comity.{stage}" not in defaults:
            raise refuse(f"package comity.{stage} has no default for result")


def package_of(tree: Any) -> str:
    """Return `data.<package>` of one syntax tree."""
    return "data." + ".".join(_path(tree["package"]["refr"]))


def test_rules(tree: Any) -> list[str]:
    """Return the names of a module's test rules, in order of their first appearance."""
    names = [".".join(_path(_head_reference(rule))) for rule in tree["rules"]]
    return list(dict.fromkeys(name for name in names if name.startswith("test_")))


def _check_calls(name: str, tree: Any, package: str, functions: set[str]) -> None:
    for call in _nodes(tree["rules"], "Call"):
        called = ".".join(_path(call["fcn"]))
        line = call["span"]["line"]
        if called in functions or f"{package}.{called}" in functions:
            continue
        if called not in BUILTINS:
            raise refuse(f"{name}:{line}: {called[:64]} is not in the portable profile")
        if len(call["params"]) != BUILTINS[called]:
            raise refuse(f"{name}:{line}: {called} takes {BUILTINS[called]} arguments here")


def _check_with(name: str, tree: Any, *, is_test: bool) -> None:
    for statement in _nodes(tree["rules"], "with_mods", whole=True):
        for change in statement["with_mods"]:
            path = _path(change["refr"])
            if not is_test:
                raise refuse(f"{name}:{statement['span']['line']}: `with` belongs in tests")
            if path[0] not in {"input", "data"}:
                raise refuse(f"{name}:{statement['span']['line']}: `with` replaces input and data only")


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
