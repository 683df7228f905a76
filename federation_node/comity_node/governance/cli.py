"""`comity charter show|propose|vote|list`: the members' decisions, at a running node.

Imports of what a command needs are inside it, so that `comity --help` stays quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Orgs = Annotated[list[str] | None, typer.Option(metavar="ORG", help="May be given several times.")]
Withdrawn = typer.Option(metavar="APP", help="A published app, by digest or NAME@VERSION, is taken off.")
Distrusted = typer.Option(metavar="KIND:NAME", help="A root of attestation is trusted no more.")
DEFAULT_HOME = Path.home() / ".comity"
FILE_BYTES_MAX = 16 << 20
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def register(app: typer.Typer) -> None:
    """Add the group `charter` to `app`."""
    charter = typer.Typer(no_args_is_help=True, help="The consortium's constitution: read it, change it by vote.")
    charter.command("show")(show)
    charter.command("propose")(propose)
    charter.command("vote")(vote)
    charter.command("list")(list_all)
    app.add_typer(charter, name="charter")


def show(
    proposal: Annotated[str, typer.Argument(help="A proposal's digest or name; by default what is in force.")] = "",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Show the charter in force and what is being voted on, or everything that one proposal would change.

    \b
    Examples:
      comity charter show
      comity charter show xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx
    """
    api = _api(home)
    if proposal:
        found = api.get(f"/v1/charter/proposals/{_plain(proposal)}")
        _print(found, as_json, _proposal_lines(found))
        return
    found = api.get("/v1/charter")
    lines = [f"charter {found['version']}: {found['name']}", f"genesis: {found['genesis']}"]
    for member in found["members"]:
        mark = "  suspended" if member["suspended"] else ""
        lines.append(f"  {member['org']:<24} {member['fingerprint']}  {member['title']}, {member['owner']}{mark}")
    lines += [f"  to {kind}: {rule}" for kind, rule in found["quorum"].items()]
    lines.append("  everything else: all members")
    lines += _constitution_lines(found["charter"])
    for waiting in found["candidates"]:
        lines.append(f"  waits to be admitted: {waiting['org']} {waiting['fingerprint']}")
    for each in found["proposals"]:
        lines += ["", *_proposal_lines(each)]
    _print(found, as_json, lines)


def propose(
    admit: Orgs = None,
    suspend: Orgs = None,
    reinstate: Orgs = None,
    remove: Orgs = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Replace this organisation's own keys.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="quorum.KIND, roles.ROLE, defaults.TERM, …; see docs."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="The consortium's policy bundle: a folder, or what `policy build` wrote.", exists=True),
    ] = None,
    publish_agent: Annotated[Path | None, typer.Option(help="An app's folder, to be published.", exists=True)] = None,
    withdraw_agent: Annotated[list[str] | None, Withdrawn] = None,
    trust_root: Annotated[
        str, typer.Option(metavar="KIND:FILE", help="A root of attestation, such as sev-snp:amd-milan.pem.")
    ] = "",
    distrust: Annotated[list[str] | None, Distrusted] = None,
    coordinator: Annotated[
        Path | None, typer.Option(help="What `comity coordinator adopt` wrote for the members.", exists=True)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; every member reads it.")] = "",
    deadline: Annotated[str, typer.Option(help="Until when votes count: 30m, 24h, 7d.")] = "7d",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Put the next charter to the vote. Proposing is not voting: vote afterwards, by its name.

    \b
    Examples:
      comity charter propose --admit hospital-d --reason "joined the study; fingerprint compared"
      comity charter propose --set quorum.admit-member=3/4 --reason "as decided on Monday"
      comity charter propose --suspend hospital-c --reason "keys may be stolen" --deadline 24h
      comity charter propose --withdraw-agent tumours@1.0.0 --reason "it leaks"
    """
    wish: dict[str, Any] = {
        "admit": admit or [],
        "suspend": suspend or [],
        "reinstate": reinstate or [],
        "remove": remove or [],
        "rotate": rotate,
        "settings": dict(_pair(each) for each in set_ or []),
        "withdraw_agents": withdraw_agent or [],
        "distrust": distrust or [],
        "reason": reason or "no reason was given",
        "deadline_s": _seconds(deadline),
    }
    if policy is not None:
        wish["policy"] = _policy(policy)
    if publish_agent is not None:
        wish["agents"] = [_agent(publish_agent)]
    if trust_root:
        wish["trust_roots"] = [_trust_root(trust_root)]
    if coordinator is not None:
        wish["coordinator"] = _document(coordinator)
    found = _api(home).post("/v1/charter/proposals", wish)
    _print(found, as_json, [*_proposal_lines(found), f"Each member votes: comity charter vote {found['name']}"])


def vote(
    proposal: Annotated[str, typer.Argument(help="The digest or name that was compared, typed by hand.")],
    deny: Annotated[str, typer.Option(metavar="REASON", help="Say no, with the reason.")] = "",
    reason: Annotated[str, typer.Option(help="Why yes, although the organisation's own policy says no.")] = "",
    instead_of: Annotated[
        str, typer.Option(metavar="DIGEST", help="Sign although this node signed DIGEST; see docs/charter.md.")
    ] = "",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Say yes, or no with a reason, to a charter that a member has proposed.

    \b
    Examples:
      comity charter vote xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx
      comity charter vote xxxx-xxxx-xxxx-xxxx-xxxxx-xxxxx --deny "nobody of us has met them"
    """
    request = {"digest": proposal, "deny": deny, "reason": reason, "instead_of": instead_of}
    found = _api(home).post("/v1/charter/votes", request)
    _print(found, as_json, _proposal_lines(found))


def list_all(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the charter proposals that this node knows, newest first: how they stand, whose vote is awaited.

    \b
    Example:
      comity charter list
    """
    found = _api(home).get("/v1/charter/proposals")
    lines = [
        f"{each['name']}  {each['state']:<10} {', '.join(each['kinds'])}  until {each['deadline']}"
        + (f"  awaited: {', '.join(each['awaited'])}" if each["awaited"] else "")
        for each in found["proposals"]
    ]
    _print(found, as_json, lines or ["nothing was proposed since the genesis"])


def _constitution_lines(charter: dict[str, Any]) -> list[str]:
    """Return what else the members have agreed on; nothing where there is none."""
    lines = [f"  role {role}: {', '.join(orgs)}" for role, orgs in charter["roles"].items()]
    lines += [f"  every proposal asks for {term}: {json.dumps(value)}" for term, value in charter["defaults"].items()]
    if charter["policy"] is not None:
        lines.append(f"  policy of all: {charter['policy']['name']} {charter['policy']['digest']}")
    lines += [f"  published: {app['name']}@{app['version']} {app['digest']}" for app in charter["agents"]]
    lines += [f"  trusted root: {each['kind']}:{each['name']} {each['digest']}" for each in charter["trust_roots"]]
    return lines


def _proposal_lines(found: dict[str, Any]) -> list[str]:
    state = "in force" if found["in_force"] else found["state"]
    lines = [
        f"proposal {found['name']} by {found['proposer']}: {state}, until {found['deadline']}",
        f"  {found['reason']}",
        *(f"  * {line}" for line in found["differences"]),
        *(f"  {kind} needs: {rule}" for kind, rule in found["needed"].items()),
    ]
    for word in ("allowed", "denied", "awaited", "missing"):
        if found[word]:
            said = [f"{org} ({found['reasons'][org]})" if org in found["reasons"] else org for org in found[word]]
            lines.append(f"  {word}: {', '.join(said)}")
    return [*lines, f"  {found['then']}"]


def _policy(path: Path) -> dict[str, str]:
    from comity_policies.bundle import Bundle, shipped_folder
    from comity_policies.bundle_archive import read_archive

    bundle = Bundle.load(shipped_folder(), path) if path.is_dir() else read_archive(_read(path))
    return {"digest": bundle.digest, "name": path.resolve().name}


def _agent(folder: Path) -> dict[str, str]:
    from comity_agents.flower.bundle import build_app

    app = build_app(folder)
    return {"digest": app.digest, "name": app.name, "version": app.version, "publisher": app.publisher}


def _trust_root(text: str) -> dict[str, str]:
    import hashlib

    kind, colon, name = text.partition(":")
    if not colon:
        raise typer.BadParameter("a trust root reads KIND:FILE", param_hint="--trust-root")
    return {"kind": kind, "name": Path(name).name, "digest": hashlib.sha256(_read(Path(name))).hexdigest()}


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise typer.BadParameter("not the JSON file that `comity coordinator adopt` writes") from error
    names = ("log_name", "log_key", "size", "root")
    if not isinstance(found, dict) or not set(names) <= set(found):
        raise typer.BadParameter("not the JSON file that `comity coordinator adopt` writes")
    return {name: found[name] for name in names}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise typer.BadParameter(f"{path.name} cannot be read") from error
    if len(data) > FILE_BYTES_MAX:
        raise typer.BadParameter(f"{path.name} is larger than {FILE_BYTES_MAX} bytes")
    return data


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter("a setting reads KEY=VALUE", param_hint="--set")
    return key, value


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_S or not number.isdecimal() or len(number) > 6:
        raise typer.BadParameter("a time reads 90s, 30m, 24h or 7d", param_hint="--deadline")
    return int(number) * UNITS_S[unit]


def _plain(name: str) -> str:
    """A name as it stands in a URL: digits, letters and hyphens."""
    return "".join(each for each in name[:200] if each.isalnum() or each == "-")


def _api(home: Path) -> Any:
    from comity_node.local import LocalApi

    return LocalApi(home)


def _print(document: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    typer.echo(json.dumps(document, sort_keys=True) if as_json else "\n".join(lines))
