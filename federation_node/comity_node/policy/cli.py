"""`comity policy log|explain|replay|diff|sign|adopt`: what was decided and why, what would have been, whose bundle.

Replays run in the command's own process, never in the node's: thousands of evaluations must not delay a decision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

if TYPE_CHECKING:
    from comity_policies.bundle import Bundle
    from comity_policies.replay import Change, Difference, Recorded

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Folder = Annotated[Path, typer.Argument(help="A policy folder: data.json and own Rego.")]
Stage = Annotated[str, typer.Option(help="Only this stage: membership, proposal, dispatch or egress.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="The newest so many decisions.")]
DEFAULT_HOME = Path.home() / ".comity"
PAGE = 500
STAGES = ("membership", "proposal", "dispatch", "egress")
DECISIONS = ("allow", "deny", "review")


def register(policy: typer.Typer) -> None:
    """Add the commands to the group `policy`."""
    policy.command("log")(log)
    policy.command("explain")(explain)
    policy.command("replay")(replay)
    policy.command("diff")(diff)
    policy.command("sign")(sign)
    policy.command("adopt")(adopt)


def log(
    stage: Stage = "",
    decision: Annotated[str, typer.Option(help="Only allow, deny or review.")] = "",
    limit: Limit = 50,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """List what this node's policy decided, the newest first.

    \b
    Examples:
      comity policy log --decision deny
      comity policy log --stage dispatch --limit 500 --json
    """
    found = list(_recorded(home, stage=stage, decision=decision, limit=limit, inputs=False))
    if as_json:
        _show({"decisions": found})
        return
    for each in found:
        rules = ", ".join(sorted({reason["rule"] for reason in each["result"]["reasons"]}))
        typer.echo(
            f"{each['id']:<10} {each['at']}  {each['stage']:<10} {each['result']['decision']:<6} "
            f"{each['subject'][:34]:<34} {rules}".rstrip()
        )
    if not found:
        typer.echo("nothing has been decided yet")


def explain(
    name: Annotated[str, typer.Argument(help="dec-NUMBER, a proposal, an agreement's digest, a run or a candidate.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Show why: the deciding rules with file and line, and what each bundle said.

    \b
    Examples:
      comity policy explain prop-0192f0c0a1b2c3d4e5f60718
      comity policy explain dec-42 --json
    """
    found = _api(home).get(f"/v1/policy/decisions/{quote(name, safe='')}")
    if as_json:
        _show(found)
        return
    for each in found["decisions"]:
        _explain_one(each, found["rules"])


def replay(
    bundle: Annotated[Path, typer.Option("--bundle", help="The policy folder to try.")],
    stage: Stage = "",
    limit: Limit = 10_000,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Ask another bundle what this node's policy was asked, and print each decision that would change.

    \b
    Example:
      cp -r /srv/node/policy /tmp/stricter && $EDITOR /tmp/stricter/data.json
      comity policy replay --bundle /tmp/stricter --home /srv/node
    """
    loaded = _bundle(bundle)
    count, changes = _replayed(loaded, _questions(home, stage, limit))
    if as_json:
        found = [change.to_json() for change in changes]
        _show({"bundle": loaded.digest, "replayed": count, "changed": found})
        return
    for change in changes:
        _show_change(change)
    typer.echo(f"{count} decisions replayed, {len(changes)} would change; bundle {loaded.digest}")


def diff(
    before: Folder,
    after: Folder,
    recorded: Annotated[bool, typer.Option("--recorded", help="Also run the node's recorded decisions.")] = False,
    stage: Stage = "",
    limit: Limit = 10_000,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Compare two policy folders: settings, modules, rules and, with --recorded, what they would decide otherwise.

    \b
    Example:
      comity policy diff /srv/node/policy /tmp/stricter --recorded --home /srv/node
    """
    from comity_policies.replay import difference

    one, other = _bundle(before), _bundle(after)
    found = difference(one, other)
    count = 0
    changes: list[Change] = []
    if recorded:
        count, changes = _between(one, other, list(_questions(home, stage, limit)))
    if as_json:
        _show({**found.to_json(), "replayed": count, "changed": [change.to_json() for change in changes]})
        return
    _show_difference(found)
    for change in changes:
        _show_change(change)
    if recorded:
        typer.echo(f"{count} decisions replayed under both, {len(changes)} differ")


def sign(folder: Folder, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Sign a policy folder as it is with this organisation's key; `require_signed_bundle` in node.json asks for it.

    \b
    Example:
      comity policy sign /srv/node/policy --home /srv/node && comity policy reload --home /srv/node
    """
    from comity_crypto.keystore import FileKeyStore
    from comity_node.settings import NodeSettings, write_private
    from comity_policies.bundle import SIGNATURE_FILE
    from comity_policies.bundle_signature import sign_bundle

    settings = NodeSettings.load(home)
    loaded = _bundle(folder)
    keys = FileKeyStore(settings.keys_folder).load()
    statement = sign_bundle(loaded, keys, consortium=settings.consortium, org=settings.org)
    write_private(folder / SIGNATURE_FILE, statement.to_bytes())
    if as_json:
        _show({"bundle": loaded.digest, "signed_by": settings.org})
    else:
        typer.echo(f"{settings.org} signed bundle {loaded.digest}")


def adopt(
    file: Annotated[Path, typer.Argument(help="The consortium's bundle, as a member built it.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Hold the consortium's policy bundle: the one whose digest the charter in force names, and no other.

    \b
    Example:
      comity policy adopt consortium.tar.gz --home /srv/node
    """
    import base64

    from comity_policies.bundle import read_bounded
    from comity_policies.bundle_archive import ARCHIVE_BYTES_MAX

    data = read_bounded(file, ARCHIVE_BYTES_MAX)
    found = _api(home).post("/v1/policy/consortium", {"archive": base64.b64encode(data).decode()})
    if as_json:
        _show(found)
    else:
        typer.echo(f"in force beside your own: the consortium's bundle {found['consortium']}")


def _explain_one(found: dict[str, Any], rules: dict[str, Any]) -> None:
    result = found["result"]
    typer.echo(f"{found['id']}  {found['at']}  {found['stage']}  {found['subject']}: {result['decision']}")
    for reason in result["reasons"]:
        places = rules.get(reason["rule"], [])
        where = f"{places[0]['file']}:{places[0]['line']}  {places[0]['title']}" if places else "not a rule of a bundle"
        typer.echo(f"  {reason['rule']}  ({where})")
        typer.echo(f"    {reason['message']} ({reason['code']})")
    if not result["reasons"]:
        typer.echo("  no rule denied, none asked for a person")
    if result["decision"] == "review":
        need = result["review"]
        typer.echo(f"  awaited: {need['approvals']} of role {need['role']}")
    for field, value in result["terms"].items():
        typer.echo(f"  asks for {field}: {json.dumps(value)}")
    for name, layer in result["layers"].items():
        typer.echo(
            f"  {name} bundle {layer['bundle_digest'][:16]}: {layer['decision']} "
            f"({layer['engine']}, {layer['duration_us']} us)"
        )


def _show_change(change: Change) -> None:
    found = change.to_json()
    before, after = found["before"], found["after"]
    typer.echo(f"{found['id']:<10} {found['at']}  {found['stage']:<10} {found['subject']}")
    typer.echo(f"  {before['decision']} -> {after['decision']}")
    for mark, these, others in (("-", before, after), ("+", after, before)):
        for reason in these["reasons"]:
            if reason not in others["reasons"]:
                typer.echo(f"  {mark} {reason['rule']}: {reason['message']} ({reason['code']})")
        for field, value in these["terms"].items():
            # A denial asks for nothing: all its terms would be listed as gone.
            if "deny" not in (before["decision"], after["decision"]) and others["terms"].get(field) != value:
                typer.echo(f"  {mark} asks for {field}: {json.dumps(value)}")


def _show_difference(found: Difference) -> None:
    for key, (one, other) in found.settings.items():
        typer.echo(f"setting {key}: {json.dumps(one)} -> {json.dumps(other)}")
    for name, fate in found.modules.items():
        typer.echo(f"module {name}: {fate}")
    for rule, fate in found.rules.items():
        typer.echo(f"rule {rule}: {fate}")
    if not (found.settings or found.modules):
        typer.echo("the two decide by the same bundle")


def _replayed(bundle: Bundle, questions: Iterator[Recorded]) -> tuple[int, list[Change]]:
    """Return how many were replayed, and what would change."""
    from comity_policies import replay as what_if
    from comity_policies.embedded import EmbeddedEngine

    engine = EmbeddedEngine(bundle)
    try:
        pairs = list(what_if.replay(questions, engine))
    finally:
        engine.close()
    return len(pairs), [change for _, change in pairs if change is not None]


def _between(one: Bundle, other: Bundle, questions: list[Recorded]) -> tuple[int, list[Change]]:
    """Return how many were replayed under both bundles, and where they differ."""
    from dataclasses import replace

    from comity_policies import replay as what_if
    from comity_policies.embedded import EmbeddedEngine

    engine = EmbeddedEngine(one)
    try:
        under_one = [
            replace(each, decision=change.now if change is not None else each.decision)
            for each, change in what_if.replay(questions, engine)
        ]
    finally:
        engine.close()
    return _replayed(other, iter(under_one))


def _questions(home: Path, stage: str, limit: int) -> Iterator[Recorded]:
    from comity_policies.replay import Recorded

    for each in _recorded(home, stage=stage, decision="", limit=limit, inputs=True):
        yield Recorded.from_json(each)


def _recorded(home: Path, *, stage: str, decision: str, limit: int, inputs: bool) -> Iterator[dict[str, Any]]:
    """Yield recorded decisions, the newest first, page by page."""
    for value, known, option in ((stage, STAGES, "--stage"), (decision, DECISIONS, "--decision")):
        if value and value not in known:
            raise typer.BadParameter(f"one of {', '.join(known)}", param_hint=option)
    api, left = _api(home), limit
    before: dict[str, str] = {}
    while left > 0:
        query = {"stage": stage, "decision": decision, "limit": min(left, PAGE), "inputs": inputs, **before}
        page = api.get(f"/v1/policy/decisions?{urlencode(query)}")["decisions"]
        yield from page
        left -= len(page)
        if len(page) < PAGE:
            return
        before = {"before": page[-1]["id"].removeprefix("dec-")}


def _bundle(folder: Path) -> Bundle:
    from comity_policies.bundle import Bundle, shipped_folder

    return Bundle.load(shipped_folder(), folder)


def _api(home: Path) -> Any:
    from comity_node.local import LocalApi

    return LocalApi(home)


def _show(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, sort_keys=True))
