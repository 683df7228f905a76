"""`comity login` and `comity access …`: who I am at my organisation's node, and the tokens that it issues."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table

if TYPE_CHECKING:
    from comity_client.transport import Endpoint

ID_TOKEN = "COMITY_ID_TOKEN"  # noqa: S105 - a variable's name
_DURATION = re.compile(r"([1-9][0-9]{0,5})([hd])")
_SECONDS = {"h": 3_600, "d": 86_400}


def register(app: typer.Typer) -> None:
    """Add `login` and the group `access`."""
    app.command("login")(login)
    access = typer.Typer(no_args_is_help=True, help="Who I am here, and the tokens of this organisation's people.")
    access.command("me")(me)
    token = typer.Typer(no_args_is_help=True, help="Tokens for people and programs of this organisation.")
    token.command("issue")(issue)
    token.command("list")(list_tokens)
    token.command("revoke")(revoke)
    access.add_typer(token, name="token")
    app.add_typer(access, name="access")


def login(
    token_file: Annotated[
        Path | None,
        typer.Option("--id-token-file", help="A file with an ID token or a token of the organisation; - for input."),
    ] = None,
    provider_ca: Annotated[Path | None, typer.Option(help="Authorities of the identity provider's server.")] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Log in at your organisation's node: open a page anywhere, type the code that is shown here.

    The login is kept in a file of your own (0600). Commands with --node find it; others take it by --token-file.
    A token that a program has already is given by --id-token-file, or in the variable COMITY_ID_TOKEN.

    \b
    Examples:
      comity --node https://node.hospital.example:8443 login
      comity login --home /srv/node --id-token-file ./token
    """
    from comity_client import where
    from comity_client.login import checked_token, save
    from comity_client.sdk import Node

    place = where.target(home)
    if token_file is not None:
        token = _given(token_file)
    elif os.environ.get(ID_TOKEN):
        token = checked_token(os.environ[ID_TOKEN])
    else:
        token = _by_device(place, home, provider_ca)
    file = where.login_file(place)
    former = file.read_bytes() if file.exists() else None
    save(file, token)
    try:
        with Node(home, place.with_token(file)) as node:
            found = node.me()
    except ComityError:
        _put_back(file, former)
        raise
    if as_json:
        print_json({**found, "token_file": str(file)})
        return
    typer.echo(f"logged in at {found['org']} as {found['user']}, until {found['until'] or 'revoked'}")
    _tell_roles(found)
    if place.uds is not None:
        typer.echo(f"commands on this machine take it by: comity --token-file {file} …")


def me(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Show who I am at this node, and which roles its policy gives me.

    \b
    Examples:
      comity access me
      comity --node https://node.hospital.example:8443 access me
    """
    from comity_client import where

    with where.node(home) as node:
        found = node.me()
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['user']} of {found['org']}, by {found['via']}, until {found['until'] or 'revoked'}")
    _tell_roles(found)


def issue(
    user: Annotated[str, typer.Option(help="Whose token it is.")],
    role: Annotated[list[str], typer.Option(help="admin, proposer, reviewer or auditor; repeat it.")],
    expires: Annotated[str, typer.Option(help="How long it holds: 12h, 30d.")] = "30d",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file (0600).")] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Issue a token. It is shown once, here; the node keeps only its digest.

    \b
    Examples:
      comity access token issue --user ada --role reviewer --expires 30d -o ada.token
      comity access token issue --user nightly-report --role auditor --role proposer --expires 12h
    """
    from comity_client import where
    from comity_client.login import save

    valid_s = duration_s(expires)
    with where.node(home) as node:
        issued = node.issue_token(user, role, valid_s)
    if output is not None:
        save(output, issued.pop("token"))
        issued["token_file"] = str(output)
    if as_json:
        print_json(issued)
        return
    typer.echo(f"token {issued['id']} for {issued['user']}: {', '.join(issued['roles'])}, until {issued['expires_at']}")
    typer.echo(f"written to {output}" if output is not None else issued["token"])


def list_tokens(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the tokens of this organisation, newest first: whose, which roles, until when.

    \b
    Example:
      comity access token list
    """
    from comity_client import where

    with where.node(home) as node:
        found = node.tokens()
    if as_json:
        print_json(found)
        return
    rows = [
        (each["id"], each["user"], ", ".join(each["roles"]), each["state"], each["expires_at"], each["issued_by"])
        for each in found
    ]
    print_table(("token", "user", "roles", "state", "expires", "issued by"), rows, empty="no token was issued yet")


def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, see `comity access token list`.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """End a token: it is refused from the next request on.

    \b
    Example:
      comity access token revoke 0123456789abcdef
    """
    from comity_client import where

    with where.node(home) as node:
        found = node.revoke_token(token)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"token {found['id']} of {found['user']} is {found['state']}")


def duration_s(text: str) -> int:
    """Return the seconds that a duration such as 12h or 30d means. Raises `MALFORMED`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ComityError(ErrorCode.MALFORMED, "how long: hours or days, such as 12h or 30d")
    return int(found[1]) * _SECONDS[found[2]]


def _given(file: Path) -> str:
    from comity_client.login import TOKEN_BYTES_MAX, checked_token, read_token

    if str(file) == "-":
        return checked_token(sys.stdin.readline(TOKEN_BYTES_MAX + 1).strip())
    return read_token(file)


def _by_device(place: Endpoint, home: Path, provider_ca: Path | None) -> str:
    from comity_client.login import DeviceFlow
    from comity_client.sdk import Node

    with Node(home, place) as node:
        facts = node.login_facts()
    with DeviceFlow(facts["issuer"], facts["client_id"], facts["scope"], provider_ca) as flow:
        code = flow.begin()
        page = code.whole_url or code.url
        typer.echo(f"Open {page} in a browser, and type or compare the code {code.code}", err=True)
        return flow.wait(code)


def _put_back(file: Path, former: bytes | None) -> None:
    """Undo a login that the node refuses."""
    from comity_client.login import save

    if former is None:
        file.unlink(missing_ok=True)
    else:
        save(file, former.decode("ascii", "replace").strip())


def _tell_roles(found: dict[str, Any]) -> None:
    if found["roles"]:
        typer.echo(f"roles: {', '.join(found['roles'])}")
    else:
        typer.echo("no roles: your organisation's admin names you, or a group of yours, in access.roles of data.json")
