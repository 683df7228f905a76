"""`comity access certificate`: a certificate for the port for people, where the organisation has none of its own."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_HOME = Path.home() / ".comity"
CERTIFICATE, KEY = "people.cert.pem", "people.key.pem"
VALID_DAYS = 365


def register(app: typer.Typer) -> None:
    """Add `certificate` to the group `access`."""
    access = typer.Typer(no_args_is_help=True, help="Who I am here, and the tokens of this organisation's people.")
    access.command("certificate")(certificate)
    app.add_typer(access, name="access")


def certificate(
    names: Annotated[list[str], typer.Argument(help="Names or addresses by which people reach the node.")],
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The port that node.json will name.")] = 8443,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the certificate that is there.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Make a key and a certificate for the node's port for people; hand people.cert.pem to them, they name it by --ca.

    Needed only where the organisation has no certificate of its own for this host: node.json may name any other pair.

    \b
    Example:
      comity access certificate node.hospital.example 192.0.2.7 --home /srv/node
    """
    from comity.wire.errors import ComityError, ErrorCode
    from comity_crypto import x509
    from comity_node.settings import NodeSettings, write_private

    NodeSettings.load(home)
    if (home / KEY).exists() and not replace:
        raise ComityError(ErrorCode.CONFLICT, f"{KEY} is there already; --replace makes a new one")
    hosts = [name for name in names if not _is_address(name)]
    key_pem, certificate_pem = x509.self_signed(hosts, [name for name in names if _is_address(name)], VALID_DAYS)
    write_private(home / KEY, key_pem)
    write_private(home / CERTIFICATE, certificate_pem)
    listen = {"address": f"0.0.0.0:{port}", "certificate": CERTIFICATE, "key": KEY}
    found = {"fingerprint": x509.fingerprint(certificate_pem), "certificate": str(home / CERTIFICATE), "listen": listen}
    if as_json:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    typer.echo(f"{home / CERTIFICATE}, SHA-256 {found['fingerprint']}, for {VALID_DAYS} days")
    typer.echo(f'In node.json: "listen": {json.dumps(listen)}; then restart the node.')
    typer.echo(f"People: comity --node https://{names[0]}:{port} --ca {CERTIFICATE} login")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
