"""From what a person wishes to the next charter: pure.

Rules:
1. whatever is not wished for stays as it is;
2. a wish that changes nothing is refused, and one that names a stranger;
3. the same wish twice makes the same charter, so that votes of a proposal that ended still count when it is put again;
   if it was denied, its `attempt` is raised, because who denied a charter never signs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import MemberKeys
from comity_policies.charter import (
    Adopted,
    AgentRef,
    Charter,
    Member,
    PolicyRef,
    QuorumRule,
    TrustRoot,
    WitnessRule,
    changes,
)
from comity_policies.charter_document import ATTEMPTS_MAX
from comity_policies.term_rows import malformed
from comity_policies.terms import Terms

SETTINGS_MAX = 64
SETTING_CHARS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Wish:
    """What the next charter shall differ in. `settings` are KEY=VALUE pairs as people write them (`apply_setting`).

    `keys` are this organisation's new ones, `coordinator` is (log name, base64 of the log key, where the former ended).
    `withdraw_agents` are digests or NAME@VERSION, `distrust` roots by KIND:NAME.
    """

    admit: tuple[str, ...] = ()
    suspend: tuple[str, ...] = ()
    reinstate: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    settings: Mapping[str, str] | None = None
    keys: tuple[str, MemberKeys] | None = None
    policy: PolicyRef | None = None
    agents: tuple[AgentRef, ...] = ()
    trust_roots: tuple[TrustRoot, ...] = ()
    coordinator: tuple[str, str, Adopted] | None = None
    withdraw_agents: tuple[str, ...] = ()
    distrust: tuple[str, ...] = ()


def next_charter(current: Charter, wish: Wish, candidates: Mapping[str, Member]) -> Charter:
    """Return the charter that follows `current` by `wish`.

    Raises:
        ComityError: `NOT_FOUND` for a candidate that has not enrolled; `NOT_A_MEMBER`, `ALREADY_A_MEMBER`;
            `ILLEGAL_EVENT` if nothing changes; `CHARTER_INVALID`, `MALFORMED`.
    """
    values: dict[str, Any] = {
        "version": current.version + 1,
        "previous": current.digest,
        "attempt": 1,
        "members": _members(current, wish, candidates),
        "suspended": _suspended(current, wish),
    }
    if wish.policy is not None:
        values["policy"] = wish.policy
    if wish.remove and current.witnesses is not None:
        values["witnesses"] = current.witnesses.without(wish.remove)
    values["agents"] = _agents(current, wish)
    values["trust_roots"] = _roots(current, wish)
    if wish.coordinator is not None:
        values["log_name"], values["log_key"], values["adopted"] = wish.coordinator
    settings = wish.settings or {}
    if len(settings) > SETTINGS_MAX:
        raise malformed(f"at most {SETTINGS_MAX} settings at once")
    for key, text in settings.items():
        apply_setting(current, values, key, text)
    following = replace(current, **values)
    if following == replace(current, version=following.version, previous=following.previous, attempt=1):
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "this is how it is already: name what the next charter shall change")
    changes(current, following)
    return following


def _agents(current: Charter, wish: Wish) -> tuple[AgentRef, ...]:
    """Return the published apps: the same name and version replaces an entry, what is withdrawn goes."""
    gone = {(each.name, each.version) for each in wish.agents}
    for typed in wish.withdraw_agents:
        found = [each for each in current.agents if typed in (each.digest, f"{each.name}@{each.version}")]
        if not found:
            raise ComityError(
                ErrorCode.NOT_FOUND, "no published app has this digest or NAME@VERSION", agent=typed[:200]
            )
        gone |= {(each.name, each.version) for each in found}
    return (*(each for each in current.agents if (each.name, each.version) not in gone), *wish.agents)


def _roots(current: Charter, wish: Wish) -> tuple[TrustRoot, ...]:
    gone = {f"{each.kind}:{each.name}" for each in wish.trust_roots}
    for typed in wish.distrust:
        if all(typed != f"{each.kind}:{each.name}" for each in current.trust_roots):
            raise ComityError(ErrorCode.NOT_FOUND, "the charter trusts no root of this KIND:NAME", root=typed[:200])
        gone.add(typed)
    return (*(each for each in current.trust_roots if f"{each.kind}:{each.name}" not in gone), *wish.trust_roots)


def apply_setting(current: Charter, values: dict[str, Any], key: str, text: str) -> None:
    """Write one setting into the fields of the next charter.

    Keys: `quorum.KIND` (a rule, or `default` for all), `roles.ROLE` (ORG,ORG or empty), `defaults.TERM` (JSON, empty),
    `max_checkpoint_age_s`, `witnesses` (`WitnessRule.from_text`, or empty for none). Raises `MALFORMED`.
    """
    if len(text) > SETTING_CHARS_MAX:
        raise malformed(f"a setting has at most {SETTING_CHARS_MAX} characters")
    group, dot, name = key.partition(".")
    if key == "max_checkpoint_age_s" and text.isdecimal():
        values[key] = int(text[:9])
    elif key == "witnesses":
        values[key] = WitnessRule.from_text(text) if text else None
    elif dot and group == "quorum":
        rules: dict[str, QuorumRule] = values.setdefault("quorum", dict(current.quorum))
        rules.pop(name, None)
        if text != "default":
            rules[name] = QuorumRule.from_text(text)
    elif dot and group == "roles":
        roles: dict[str, tuple[str, ...]] = values.setdefault("roles", dict(current.roles))
        roles.pop(name, None)
        if text:
            roles[name] = tuple(text.split(","))
    elif dot and group == "defaults":
        plain = dict(values.get("defaults", current.defaults).to_json())
        plain.pop(name, None)
        values["defaults"] = Terms.parse(plain | ({name: _json(text)} if text else {}))
    else:
        raise malformed("settings are quorum.KIND, roles.ROLE, defaults.TERM, max_checkpoint_age_s and witnesses")


def attempt_of(charter: Charter, was_denied: Callable[[str], bool]) -> Charter:
    """Return `charter` in its first attempt that nobody denied. Raises `BUSY` if there were too many."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        tried = replace(charter, attempt=attempt)
        if not was_denied(tried.digest):
            return tried
    raise ComityError(ErrorCode.BUSY, "this was denied too often", limit=ATTEMPTS_MAX)


def differences(before: Charter, after: Charter) -> list[str]:
    """Return what changes, one line each, for people who vote. Complete: every field is compared."""
    lines = [*_member_lines(before, after)]
    old, new = before.to_json(), after.to_json()
    for name in sorted(old.keys() | new.keys()):
        if name == "witnesses":
            if before.witnesses != after.witnesses:
                lines.append(f"witnesses: {before.witnesses or 'none'} -> {after.witnesses or 'none'}")
            continue
        if name in ("version", "previous", "members", "attempt", "suspended") or old[name] == new[name]:
            continue
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            keys = sorted(set(old[name]) | set(new[name]))
            lines += [
                f"{name}.{key}: {_shown(name, before, key)} -> {_shown(name, after, key)}"
                for key in keys
                if old[name].get(key) != new[name].get(key)
            ]
        else:
            lines.append(f"{name}: {_text(old[name])} -> {_text(new[name])}")
    return lines


def _member_lines(before: Charter, after: Charter) -> list[str]:
    old, new = {each.org: each for each in before.members}, {each.org: each for each in after.members}
    lines = [
        f"admit {org}: {new[org].title}, {new[org].owner}, fingerprint {new[org].keys.fingerprint()}"
        for org in sorted(new.keys() - old.keys())
    ]
    lines += [f"remove {org}" for org in sorted(old.keys() - new.keys())]
    lines += [f"suspend {org}" for org in sorted(set(after.suspended) - set(before.suspended))]
    lines += [f"reinstate {org}" for org in sorted((set(before.suspended) - set(after.suspended)) & new.keys())]
    for org in sorted(old.keys() & new.keys()):
        if old[org].keys != new[org].keys:
            lines.append(f"keys of {org}: {old[org].keys.fingerprint()} -> {new[org].keys.fingerprint()}")
        if (old[org].title, old[org].owner) != (new[org].title, new[org].owner):
            lines.append(f"{org} is: {old[org].title}, {old[org].owner} -> {new[org].title}, {new[org].owner}")
    return lines


def _members(current: Charter, wish: Wish, candidates: Mapping[str, Member]) -> tuple[Member, ...]:
    for org in wish.remove:
        current.member(org)
    members = [member for member in current.members if member.org not in wish.remove]
    for org in wish.admit:
        if org in current.organisations:
            raise ComityError(ErrorCode.ALREADY_A_MEMBER, "the charter in force names it", org=org)
        if org not in candidates:
            raise ComityError(ErrorCode.NOT_FOUND, "this organisation has not enrolled; invite it first", org=org)
        members.append(candidates[org])
    if wish.keys is not None:
        org, keys = wish.keys
        current.member(org)
        members = [replace(member, keys=keys) if member.org == org else member for member in members]
    return tuple(members)


def _suspended(current: Charter, wish: Wish) -> tuple[str, ...]:
    for org in (*wish.suspend, *wish.reinstate):
        current.member(org)
    kept = set(current.suspended) - set(wish.reinstate) - set(wish.remove)
    return tuple(sorted(kept | set(wish.suspend)))


def _shown(name: str, charter: Charter, key: str) -> str:
    if name == "quorum":
        return str(charter.rule(key))
    return _text(charter.to_json()[name].get(key))


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _json(text: str) -> Any:
    """Terms are written as JSON; a bare word is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
