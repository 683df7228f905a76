"""Commands of an organisation's admin that work on the node's folder alone, whether the node runs or not.

`comity datasets add|list|remove` and `comity app digest`; the running node reads the catalogue anew at each use.
`comity policy reload` tells a running node to use the edited policy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from comity_node.negotiation import cli as voucher_cli
from comity_node.policy import cli as policy_cli

Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, nothing else.")]
Name = Annotated[str, typer.Argument(help="How agreements name the dataset.")]
DEFAULT_HOME = Path.home() / ".comity"


def register(app: typer.Typer) -> None:
    """Add the groups `datasets` and `app`, and `reload` to the group `policy`."""
    datasets = typer.Typer(no_args_is_help=True, help="The datasets that others may ask for by name.")
    datasets.command("add")(add)
    datasets.command("list")(list_all)
    datasets.command("remove")(remove)
    apps = typer.Typer(no_args_is_help=True, help="Flower apps, before they are proposed or reviewed.")
    apps.command("digest")(digest)
    voucher_cli.register(apps)
    policy = typer.Typer(no_args_is_help=True, help="Test, check, try and reload an organisation's policies.")
    policy.command("reload")(reload)
    policy_cli.register(policy)
    app.add_typer(policy, name="policy")
    app.add_typer(datasets, name="datasets")
    app.add_typer(apps, name="app")


def add(
    name: Name,
    source: Annotated[str, typer.Argument(help="A CSV or npz file; for sql the variable that holds the URL.")],
    classification: Annotated[str, typer.Option(help="public, internal, pseudonymous, confidential or secret.")],
    owner: Annotated[str, typer.Option(help="Who answers for it inside the organisation.")] = "",
    format: Annotated[str | None, typer.Option(help="csv, npz or sql; by default the file's ending.")] = None,  # noqa: A002 - the word people use
    table: Annotated[str | None, typer.Option(help="For sql, the table.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the entry of this name.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Name a dataset, so that others may ask for it; its records are counted, it is not copied.

    \b
    Example:
      comity datasets add patients ./patients.csv --classification pseudonymous --owner "Dr Ada Byron"
    """
    from comity_node.settings import NodeSettings
    from comity_node.training.datasets import DatasetCatalogue

    NodeSettings.load(home)
    entry = DatasetCatalogue(home).add(
        name, source, classification=classification, owner=owner, format=format, table=table, replace=replace
    )
    found = {"name": entry.name, "records": entry.records, "columns": list(entry.columns)}
    permitted = _permitted_classes(home)
    if permitted is not None and classification not in permitted:
        typer.echo(
            f"note: your policy keeps {classification} out of shared work; its data_classes are {', '.join(permitted)}",
            err=True,
        )
    _show(found, f"{entry.name}: {entry.records} records, {len(entry.columns)} columns", as_json)


def list_all(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the datasets of this organisation.

    \b
    Example:
      comity datasets list --json
    """
    from dataclasses import asdict

    from comity_node.training.datasets import DatasetCatalogue

    entries = DatasetCatalogue(home).list()
    lines = [f"{each.name}  {each.records} records  {each.classification}  {each.source}" for each in entries]
    _show([asdict(each) for each in entries], "\n".join(lines) or "no dataset is named yet", as_json)


def remove(name: Name, home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Take a dataset out of the catalogue; the source stays as it is.

    \b
    Example:
      comity datasets remove patients
    """
    from comity_node.training.datasets import DatasetCatalogue

    DatasetCatalogue(home).remove(name)
    _show({"removed": name}, f"{name} is no longer named", as_json)


def digest(
    folder: Annotated[Path, typer.Argument(help="Folder of a Flower app.", exists=True, file_okay=False)],
    as_json: Json = False,
) -> None:
    """Print an app's digest, which a reviewer puts into `app_digests` of the policy.

    \b
    Example:
      comity app digest ./app
    """
    from comity_agents.flower.bundle import build_app

    app = build_app(folder)
    found = {
        "digest": app.digest,
        "size_bytes": app.size,
        "name": app.name,
        "publisher": app.publisher,
        "version": app.version,
        "dependencies": list(app.dependencies),
        "config": app.config,
        "files": list(app.files),
    }
    _show(found, f"{app.digest}  {app.publisher}/{app.name} {app.version}", as_json)


def reload(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """Let the running node decide by the policy folder as it is now; a bundle that does not hold changes nothing.

    \b
    Example:
      comity policy test /srv/node/policy && comity policy reload --home /srv/node
    """
    from comity_node.local import LocalApi

    found = LocalApi(home).post("/v1/policy/reload", {})
    _show(found, f"in force: bundle {found['bundle']}", as_json)


def _permitted_classes(home: Path) -> list[str] | None:
    """Return the classifications that the shipped policy lets into shared work; None if data.json cannot be read."""
    try:
        found = json.loads((home / "policy" / "data.json").read_bytes())["data_classes"]
        return [str(each) for each in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _show(document: Any, line: str, as_json: bool) -> None:
    typer.echo(json.dumps(document, sort_keys=True) if as_json else line)
