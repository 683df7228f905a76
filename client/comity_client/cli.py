"""The client's own commands. What a command needs is imported inside it, so that `comity --help` stays quick."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated

import typer

from comity_client.commands import access, aggregate, demo, doctor, intersect, proposals, reviews, runs, status, train


def register(app: typer.Typer) -> None:
    """Add the client's commands to `app`."""
    app.command("train")(train.train)
    app.command("aggregate")(aggregate.aggregate)
    app.command("intersect")(intersect.intersect)
    runs.register(app)
    proposals.register(app)
    reviews.register(app)
    access.register(app)
    app.command("status")(status.status)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.command("version")(show_version)


def show_version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print the installed version."""
    found = version("comity")
    typer.echo(json.dumps({"version": found}) if as_json else found)
