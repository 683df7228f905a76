"""`comity app key|sign|vouch`: a reviewer signs for an app, and an organisation takes the signature in.

The reviewer needs no node: a key of one's own and the app. Whose signatures count, each organisation says in
`reviewers` of its policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
KeyFile = Annotated[Path, typer.Option("--key", metavar="FILE", help="The reviewer's key.")]
DEFAULT_HOME = Path.home() / ".comity"


def register(apps: typer.Typer) -> None:
    """Add the commands to the group `app`."""
    apps.command("key")(key)
    apps.command("sign")(sign)
    apps.command("vouch")(vouch)


def key(
    file: Annotated[Path, typer.Argument(help="The key's file; a new one is made if it is not there.")],
    as_json: Json = False,
) -> None:
    """Print a reviewer's public key, as it goes into `reviewers` of a policy; make the key first if there is none.

    \b
    Example:
      comity app key ~/reviewer.pem
    """
    from comity_crypto import vouching

    found = vouching.load_key(file) if file.exists() else vouching.make_key(file)
    _show({"key": vouching.key_name(found)}, vouching.key_name(found), as_json)


def sign(
    app: Annotated[Path, typer.Argument(help="The app's folder, as you have read it.", exists=True, file_okay=False)],
    key_file: KeyFile,
    out: Annotated[Path, typer.Option(help="Where the voucher goes.")] = Path("app.voucher"),
    note: Annotated[str, typer.Option(help="One line, signed with it.")] = "",
    as_json: Json = False,
) -> None:
    """Sign for an app that you have read: its digest, now. The voucher is public; send it to whoever names you.

    \b
    Example:
      comity app sign ./app --key ~/reviewer.pem --note "returns weights only"
    """
    from comity.wire import instants
    from comity_agents.flower.bundle import build_app
    from comity_crypto import vouching
    from comity_node.settings import write_private

    voucher = vouching.vouch(vouching.load_key(key_file), build_app(app).digest, instants.now_text(), note)
    write_private(out, voucher.to_bytes())
    _show(_plain(voucher), f"{voucher.key} signed for {voucher.digest}: {out}", as_json)


def vouch(
    file: Annotated[Path, typer.Argument(help="What `comity app sign` wrote.", exists=True, dir_okay=False)],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Take a voucher in at this organisation. It counts if `reviewers` or `app_signers` of the policy names its key.

    Proposals that wait for people are judged again by `comity policy reload`.

    \b
    Example:
      comity app vouch app.voucher && comity policy reload
    """
    from comity_crypto.vouching import VOUCHER_BYTES_MAX
    from comity_node.negotiation.vouchers import Vouchers
    from comity_node.settings import NodeSettings

    settings = NodeSettings.load(home)
    with file.open("rb") as source:
        voucher = Vouchers(settings.home).keep(source.read(VOUCHER_BYTES_MAX + 1))
    named = _named(settings.policy_folder, voucher.key)
    line = f"{voucher.key} vouches here for {voucher.digest}"
    if not named:
        line += "\n  no effect yet: neither `reviewers` nor `app_signers` in policy/data.json names this key"
    _show({**_plain(voucher), "named": named}, line, as_json)


def _named(folder: Path, name: str) -> bool:
    try:
        settings = json.loads((folder / "data.json").read_bytes())
        return name in [*settings["reviewers"], *settings["app_signers"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _plain(voucher: Any) -> dict[str, Any]:
    return {"digest": voucher.digest, "key": voucher.key, "at": voucher.at, "note": voucher.note}


def _show(document: dict[str, Any], line: str, as_json: bool) -> None:
    typer.echo(json.dumps(document, sort_keys=True) if as_json else line)
