"""Which roles an organisation's own policy gives to one of its people: Rego package `comity.access`.

Rules:
1. undecided is no role: an error, a timeout, an undefined result or another form give none, and say why;
2. a role is a name; what it opens is written in the node's table, not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from comity.wire.errors import ComityError
from comity_policies.term_rows import malformed

PACKAGE = "access"
MODULE = "access/access.rego"
ROLES_MAX = 32
_ROLE = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Granted:
    """Roles, and why there are none if the policy could not decide."""

    roles: frozenset[str] = frozenset()
    problem: str = ""


class RolePolicy(Protocol):
    """What knows the roles of people; every policy engine does."""

    def roles(self, document: dict[str, Any]) -> Granted:
        """Return the roles of the person in `document`; never raises, gives none when in doubt."""
        ...


def question(
    user: str, groups: tuple[str, ...], via: str, issuer: str = "", roles: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the input of `comity.access`."""
    return {"user": user, "groups": list(groups), "via": via, "issuer": issuer, "roles": sorted(roles)}


def example() -> dict[str, Any]:
    """Return the published example of the input (`schemas/access.json`), fresh each time."""
    text = (Path(__file__).parent / "schemas" / "access.example.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def roles_with(evaluate: Callable[[str, dict[str, Any]], Any], document: dict[str, Any]) -> Granted:
    """Turn one evaluation into roles under rule 1; `evaluate` returns the parsed `result` or raises."""
    try:
        return Granted(parse_roles(evaluate(PACKAGE, document)))
    except ComityError as error:
        return Granted(problem=str(error))
    except Exception as error:  # noqa: BLE001 - rule 1: whatever fails in an engine gives no role, and no crash
        return Granted(problem=f"the engine failed with {type(error).__name__}")


def parse_roles(value: Any) -> frozenset[str]:
    """Return the roles of a `result`. Raises `MALFORMED` for any other form."""
    if not isinstance(value, dict) or set(value) != {"roles"}:
        raise malformed("a result of comity.access has exactly roles")
    found = value["roles"]
    if not isinstance(found, list) or len(found) > ROLES_MAX:
        raise malformed(f"roles are a list of at most {ROLES_MAX}")
    if not all(isinstance(each, str) and _ROLE.fullmatch(each) for each in found):
        raise malformed("a role is a name of small letters, digits and dashes")
    return frozenset(found)
