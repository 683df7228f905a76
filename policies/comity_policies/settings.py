"""An organisation's `data.json`: what it can say before it writes any Rego of its own.

Rules: every key is there, in its type, and no unknown key is (a key that is misspelt would otherwise be a setting that
silently does not hold). Reals are decimal text, as in terms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.vouching import public_bytes
from comity_policies.decisions import ReviewNeed
from comity_policies.document import name_of
from comity_policies.term_rows import malformed, one_of, text_of, whole_number
from comity_policies.terms import AGGREGATION, EGRESS_KINDS, TABLE, Terms, org, purpose

LIST_MAX = 4096
ISSUERS_MAX = 16
ROLE_PREFIX = "role:"

# Key -> what it means, for the README beside the file. The order is the order of the file.
MEANINGS = {
    "organisation": "this organisation's id, for people who read the file",
    "purposes": "codes of purposes that this organisation supports",
    "data_classes": "classifications of datasets that may take part in shared work",
    "proposers": 'organisations that may propose work here; "role:NAME" means members with that role in the charter,'
    ' "*" every member',
    "min_cohort": "records that must stand behind any released number",
    "rounds_max": "the most rounds of one training",
    "uses_max": "the most uses of one agreement",
    "hours": 'null, or {"from": 8, "to": 18}: whole hours in UTC at which work may run',
    "app_digests": "SHA-256 digests of apps that this organisation has reviewed",
    "published_only": "true: only apps that the members published in the charter run here, whoever vouches for others",
    "app_signers": "who may vouch for an app: consortium, for those that the members published in the charter",
    "reviewers": "keys of people (ed25519:BASE64, see comity app key) whose signature on an app counts as a review",
    "privacy": 'null, or {"epsilon": "4", "delta": "0.00001"}: the budget asked of every agreement'
    " (statistics pay from it; with a budget every training is refused)",
    "aggregation": f"the weakest aggregation accepted: {', '.join(AGGREGATION)}",
    "egress": "kinds of results that may leave, names of metrics that may leave, the largest result in bytes",
    "terms": "further terms that this organisation asks of every agreement",
    "known_members": "organisation -> key fingerprint that was compared beforehand",
    "reviews": "who looks where a policy says review: a role, and how many different people of it (1 to 5)",
    "access": "role -> users, or group:NAME; issuers that may vouch for users. Who holds api.token has every role",
}
ROLES = ("admin", "proposer", "reviewer", "auditor")
DATA_CLASSES = ("public", "internal", "pseudonymous", "confidential", "secret")


def defaults(organisation: str) -> dict[str, Any]:
    """Return the settings that a new organisation starts with: research on pseudonymous data, reviewed apps only."""
    return {
        "organisation": organisation,
        "purposes": ["research", "academic-research", "public-health", "statistics"],
        "data_classes": ["public", "internal", "pseudonymous"],
        "proposers": ["*"],
        "min_cohort": 20,
        "rounds_max": 200,
        "uses_max": 10,
        "hours": None,
        "app_digests": [],
        "published_only": False,
        "app_signers": [],
        "reviewers": [],
        "privacy": None,
        "aggregation": "lead-key",
        "egress": {"kinds": ["aggregate", "model", "statistic"], "metrics": ["*"], "size_bytes_max": 1 << 28},
        "terms": {},
        "known_members": {},
        "reviews": {"role": "reviewer", "approvals": 1},
        "access": {"roles": {role: [] for role in ROLES}, "issuers": {}},
    }


def check(settings: Any) -> dict[str, Any]:
    """Return `settings` if they hold. Raises `BUNDLE_INVALID`, naming the key."""
    if not isinstance(settings, dict):
        raise ComityError(ErrorCode.BUNDLE_INVALID, "data.json is an object")
    odd = sorted(str(each)[:64] for each in settings.keys() ^ _CHECKS.keys())
    if odd:
        what = "is unknown"
        if odd[0] in _CHECKS:
            what = f"is missing; its default is {json.dumps(defaults('an-organisation')[odd[0]])}"
        raise ComityError(ErrorCode.BUNDLE_INVALID, f"data.json: {odd[0]} {what}", key=odd[0])
    for key, test in _CHECKS.items():
        try:
            test(settings[key])
        except ComityError as error:
            raise ComityError(ErrorCode.BUNDLE_INVALID, f"data.json: {key}: {error.detail}", key=key) from error
    return settings


def _list_of(item: Callable[[Any], Any]) -> Callable[[Any], None]:
    def test(value: Any) -> None:
        if not isinstance(value, list) or len(value) > LIST_MAX:
            raise malformed(f"a list of at most {LIST_MAX} items expected")
        for each in value:
            item(each)

    return test


def _proposer(value: Any) -> None:
    role = text_of(value).removeprefix(ROLE_PREFIX)
    if role != value:
        name_of(role)
    elif value != "*":
        org(value)


def _key(value: Any) -> None:
    public_bytes(text_of(value))


def _boolean(value: Any) -> None:
    if not isinstance(value, bool):
        raise malformed("true or false expected")


def _digest(value: Any) -> None:
    ids.sha256_hex(text_of(value))


def _hours(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or set(value) != {"from", "to"}:
        raise malformed("null, or an object of from and to")
    start = whole_number(value["from"], 0, 23)
    whole_number(value["to"], start + 1, 24)


def _egress(value: Any) -> None:
    if not isinstance(value, Mapping) or set(value) != {"kinds", "metrics", "size_bytes_max"}:
        raise malformed("an object of kinds, metrics and size_bytes_max")
    _list_of(one_of(EGRESS_KINDS))(value["kinds"])
    _list_of(text_of)(value["metrics"])
    whole_number(value["size_bytes_max"], 0, 1 << 40)


def _privacy(value: Any) -> None:
    if value is not None:
        TABLE["privacy"].parse(value)


def _known(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > LIST_MAX:
        raise malformed("an object of organisation and fingerprint")
    for name, fingerprint in value.items():
        org(name)
        text_of(fingerprint)


def _reviews(value: Any) -> None:
    need = ReviewNeed.from_json(value)
    one_of(ROLES)(need.role)


def _access(value: Any) -> None:
    if not isinstance(value, Mapping) or set(value) != {"roles", "issuers"}:
        raise malformed("an object of roles and issuers")
    roles, issuers = value["roles"], value["issuers"]
    if not isinstance(roles, Mapping) or set(roles) != set(ROLES):
        raise malformed(f"roles names exactly {', '.join(ROLES)}")
    for users in roles.values():
        _list_of(text_of)(users)
    if not isinstance(issuers, Mapping) or len(issuers) > ISSUERS_MAX:
        raise malformed(f"issuers is an object of at most {ISSUERS_MAX}")
    for name, facts in issuers.items():
        text_of(name)
        if not isinstance(facts, Mapping) or len(facts) > ISSUERS_MAX:
            raise malformed("each issuer is an object")


def _count(low: int, high: int) -> Callable[[Any], Any]:
    return lambda value: whole_number(value, low, high)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "organisation": org,
    "purposes": _list_of(purpose),
    "data_classes": _list_of(one_of(DATA_CLASSES)),
    "proposers": _list_of(_proposer),
    "min_cohort": _count(1, 1 << 40),
    "rounds_max": _count(0, 100_000),
    "uses_max": _count(0, 10_000),
    "hours": _hours,
    "app_digests": _list_of(_digest),
    "published_only": _boolean,
    "app_signers": _list_of(text_of),
    "reviewers": _list_of(_key),
    "privacy": _privacy,
    "aggregation": one_of(AGGREGATION),
    "egress": _egress,
    "terms": Terms.parse,
    "known_members": _known,
    "reviews": _reviews,
    "access": _access,
}
