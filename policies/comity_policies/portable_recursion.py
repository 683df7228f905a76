"""Which rules and functions of a bundle depend on themselves: OPA refuses them, the embedded engine may die of them.

Rules: a dependency is a name of the same package that is not declared in the rule, or a path below `data`; a path that
ends in a package, or in something computed, depends on everything below it. What only looks like a cycle because a
variable has a rule's name is avoided by looking at declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Path = Callable[[Any], list[str]]


def cycles(rules: Mapping[str, list[tuple[str, int, Any]]], path_of: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (rule's full name, file, line) of each rule on a cycle, or between two of them.

    Args:
        rules: full name (`data.<package>.<rule>`) -> its definitions: file, line, syntax tree.
        path_of: the dotted names of a reference's tree.
    """
    graph = {
        name: {found for _, _, tree in definitions for found in _dependencies(name, tree, rules, path_of)}
        for name, definitions in rules.items()
    }
    backwards: dict[str, set[str]] = {name: set() for name in graph}
    for name, needs in graph.items():
        for needed in needs:
            backwards[needed].add(name)
    for name in sorted(_kept(graph, backwards) & _kept(backwards, graph)):
        file, line, _ = rules[name][0]
        yield name, file, line


def _kept(graph: Mapping[str, set[str]], backwards: Mapping[str, set[str]]) -> set[str]:
    """Return what is left when whoever depends on nothing that is left is taken away, again and again."""
    open_count = {name: len(needs) for name, needs in graph.items()}
    free = [name for name, count in open_count.items() if not count]
    left = set(graph)
    while free:
        name = free.pop()
        left.discard(name)
        for user in backwards[name]:
            open_count[user] -= 1
            if not open_count[user]:
                free.append(user)
    return left


def _dependencies(name: str, tree: Any, rules: Mapping[str, Any], path_of: Path) -> Iterator[str]:
    package = name.rpartition(".")[0]
    declared = set(_declared(tree))
    for kind, node in _nodes(tree):
        if kind == "Var":
            own = f"{package}.{node['value']}"
            if own in rules and node["value"] not in declared:
                yield own
            continue
        path = path_of({kind: node})
        if path[0] != "data":
            continue
        known = ".".join(path[: path.index("[]")] if "[]" in path else path)
        yield from (each for each in rules if f"{known}.".startswith(f"{each}.") or each.startswith(f"{known}."))


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every variable and the outermost part of every reference, without the rule's own head."""
    open_nodes = [tree["Default"]["value"]] if "Default" in tree else [tree["Spec"]["bodies"], _head(tree)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, list):
            open_nodes.extend(node)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key not in ("Var", "RefDot", "RefBrack") or not isinstance(value, dict):
                    open_nodes.append(value)
                    continue
                yield key, value
                # Along the chain only what stands in brackets, and the name that it begins with, are further nodes.
                while key != "Var":
                    open_nodes.append(value.get("index"))
                    ((key, value),) = value["refr"].items()
                    if key not in ("Var", "RefDot", "RefBrack"):
                        open_nodes.append({key: value})
                        break
                    if key == "Var":
                        yield key, value


def _head(tree: Any) -> Any:
    """Return a head without the reference that names the rule."""
    (head,) = tree["Spec"]["head"].values()
    return {key: value for key, value in head.items() if key not in ("refr", "args")}


def _declared(tree: Any) -> Iterator[str]:
    """Yield names that a rule declares: arguments, `some`, `:=`."""
    open_nodes = [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, list):
            open_nodes.extend(node)
        elif isinstance(node, dict):
            if "SomeIn" in node:
                yield from _variables([node["SomeIn"]["key"], node["SomeIn"]["value"]])
            if node.get("op") == "ColEq" and "lhs" in node:
                yield from _variables(node["lhs"])
            if "args" in node:
                yield from _variables(node["args"])
            open_nodes.extend(node.values())


def _variables(tree: Any) -> Iterator[str]:
    open_nodes = [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, list):
            open_nodes.extend(node)
        elif isinstance(node, dict):
            if isinstance(node.get("Var"), dict):
                yield str(node["Var"]["value"])
            open_nodes.extend(node.values())
