"""`comity review list|show|approve|deny|delegate|delegations`: what waits for people of this organisation.

Rules: `show` prints everything that is in the document, with control characters made visible; a vote names the digest
of the document, and the id of an item is made of that digest, so what was shown under an id is what is decided.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table

if TYPE_CHECKING:
    from comity_client.documents import ReviewView

Name = Annotated[str, typer.Argument(metavar="ID", help="The item's id, see `comity review list`.")]
_SPAN = re.compile(r"([1-9][0-9]{0,3})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def register(app: typer.Typer) -> None:
    """Add the group `review`."""
    reviews = typer.Typer(no_args_is_help=True, help="What waits for people of this organisation, and their votes.")
    reviews.command("list")(list_reviews)
    reviews.command("show")(show)
    reviews.command("approve")(approve)
    reviews.command("deny")(deny)
    reviews.command("delegate")(delegate)
    reviews.command("delegations")(delegations)
    app.add_typer(reviews, name="review")


def list_reviews(
    every: Annotated[bool, typer.Option("--all", help="Also what was decided.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """List what waits for people, newest first; `yours` marks what you may decide.

    \b
    Examples:
      comity review list
      comity review list --all --json
    """
    from comity_client import where

    with where.node(home) as node:
        found = node.reviews("all" if every else "open")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["id"],
            each["stage"],
            visible(each["title"]),
            each["state"],
            f"{each['missing']} of role {each['role']}" if each["missing"] else each["decided_at"],
            "yes" if each["yours"] else "",
            each["until"],
        )
        for each in found
    ]
    print_table(("id", "stage", "what", "state", "waits for", "yours", "until"), rows, empty="nothing waits for people")


def show(name: Name, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show an item whole: everything that a vote on it decides, the votes so far, its story.

    \b
    Example:
      comity review show rev-0123456789abcdef0123
    """
    view = _view(name, home)
    if as_json:
        print_json(view)
        return
    for line in told(view):
        typer.echo(line)


def approve(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; the other organisations may read it.")] = "",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Approve an item, exactly as `comity review show` prints it.

    \b
    Example:
      comity review approve rev-0123456789abcdef0123 --reason "read the app, it returns weights only"
    """
    _vote(name, "approve", reason, home, as_json)


def deny(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; the other organisations may read it.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Deny an item: one denial ends it.

    \b
    Example:
      comity review deny rev-0123456789abcdef0123 --reason "the ethics vote covers 2024 only"
    """
    _vote(name, "deny", reason, home, as_json)


def delegate(
    to: Annotated[str, typer.Option(help="The user who decides instead.")],
    until: Annotated[str, typer.Option(help="An instant (2030-01-31T00:00:00Z) or a span such as 14d, 12h, 30m.")],
    role: Annotated[str, typer.Option(help="The role that is lent.")] = "reviewer",
    giver: Annotated[str, typer.Option("--for", help="For another user; only an admin may.")] = "",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Let another user decide in your voice for a time. It counts as your vote, so you cannot approve as well.

    \b
    Examples:
      comity review delegate --to carla --until 14d
      comity review delegate --to carla --until 2030-01-31T00:00:00Z --for anna
    """
    from comity_client import where

    with where.node(home) as node:
        made = node.delegate(to, instant_of(until), role, giver)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made['receiver']} decides for {made['giver']} as {made['role']} until {made['until']}")
        typer.echo(f"take it back with: comity review delegations --end {made['id']}")


def delegations(
    end: Annotated[str, typer.Option(help="Take this delegation back.")] = "",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """List who decides for whom, or take one delegation back.

    \b
    Examples:
      comity review delegations
      comity review delegations --end DELEGATION
    """
    from comity_client import where

    with where.node(home) as node:
        found = [node.end_delegation(end)] if end else node.delegations()
    if as_json:
        print_json(found)
        return
    rows = [
        (each["id"], each["giver"], each["receiver"], each["role"], each["until"], each["ended_at"]) for each in found
    ]
    print_table(("id", "for", "decides", "role", "until", "ended"), rows, empty="everybody decides alone")


def told(view: ReviewView) -> list[str]:
    """Return an item as lines: what is asked of whom, the whole document, the votes, the story."""
    lines = [f"{view['id']}: {visible(view['title'])}", f"  {view['stage']}, {view['state'].lower()}"]
    if view["missing"]:
        but = f", not {visible(view['not_by'])}, who asked" if view["not_by"] else ""
        lines.append(f"  waits for {view['missing']} of the role {view['role']}{but}")
        lines.append(f"  since {view['asked_at']} until {view['until']}; then {view['then']}")
    else:
        lines.append(f"  ended {view['decided_at']}: {visible(view['why'])}")
    lines += [f"  because {each['rule']}: {visible(each['message'])}" for each in view["reasons"]]
    lines += ["", f"Document {view['document_digest']}:", *document_lines(view["document"], "  ")]
    for vote in view["votes"]:
        voice = "" if vote["voice"] == vote["user"] else f" for {visible(vote['voice'])}"
        lines.append(f"{vote['at']}  {visible(vote['user'])}{voice}: {vote['decision']} {visible(vote['reason'])}")
    return lines


def document_lines(value: Any, indent: str = "") -> Iterator[str]:
    """Yield every key and value of a JSON document, an item a line; nothing is left out or cut."""
    pairs = (
        value.items() if isinstance(value, dict) else ((f"- {number}", each) for number, each in enumerate(value, 1))
    )
    for key, each in pairs:
        if isinstance(each, dict | list) and each:
            yield f"{indent}{visible(key)}:"
            yield from document_lines(each, indent + "  ")
        else:
            yield f"{indent}{visible(key)}: {visible(each) if isinstance(each, str) else json.dumps(each)}"


def visible(text: str) -> str:
    """Return foreign text so that a terminal obeys nothing in it; what would look like something else is quoted."""
    return text if text.isprintable() and text.strip() == text and text else json.dumps(text)


def instant_of(text: str) -> str:
    """Return an instant, or the one that a span from now ends at. Raises `MALFORMED`."""
    span = _SPAN.fullmatch(text)
    if span is None:
        try:
            return instants.to_text(instants.parse(text))
        except ComityError as error:
            raise ComityError(ErrorCode.MALFORMED, f"{error.detail}, or is a span such as 14d, 12h, 30m") from error
    return instants.to_text(instants.now() + timedelta(**{_UNITS[span[2]]: int(span[1])}))


def _vote(name: str, decision: str, reason: str, home: Any, as_json: bool) -> None:
    from comity_client import where

    view = _view(name, home)
    with where.node(home) as node:
        after = node.vote(name, decision, view["document_digest"], reason)
    if as_json:
        print_json(after)
        return
    more = f"; {after['missing']} more of the role {after['role']} must approve" if after["missing"] else ""
    typer.echo(f"{name}: {after['state'].lower()}{more}")


def _view(name: str, home: Any) -> ReviewView:
    """Return an item whose document is the one that its id names. Raises `CONFLICT` if it is not."""
    from comity_client import where

    with where.node(home) as node:
        view = node.review(name)
    digest = canonical.digest(view["document"])
    named = hashlib.sha256(f"{view['stage']}/{view['subject']}/{digest}".encode()).hexdigest()[:20]
    if digest != view["document_digest"] or name != f"rev-{named}":
        raise ComityError(ErrorCode.CONFLICT, "the document is not the one that this id names")
    return view
