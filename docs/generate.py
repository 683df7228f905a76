"""Write what in the handbook says what the code says: docs/errors.md, docs/cli.md, and the tables in docs/access.md.

    python docs/generate.py            write them
    python docs/generate.py --check    end with status 1 if one of them is not current

Rules: only what the catalogue and the commands' own help say; nothing of this machine is in a page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import typer.main

from comity.wire.authorisation import PUBLIC, SIGNED_IN
from comity.wire.catalog import CATALOG
from comity.wire.remedies import remedy
from comity_client.main import build_app
from comity_coordinator import authorisation
from comity_node.access import rows
from comity_policies import term_pages

DOCS = Path(__file__).resolve().parent
WIDTH_CHARS = 100
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"
GENERATED = "<!-- Written by docs/generate.py; tests/unit/docs checks that it is current. -->"
ERRORS_HEAD = """# Errors

Every refusal that crosses a process or an organisation is one of these. The `comity` command prints the code, its
sentence, the detail and facts, whose move it is and what to do; with `--json` the same as an object under `error`.
Exit status 2 means refused, 1 means that what was asked for did not come out well (a test failed, a run did not
complete). The REST API answers with `application/problem+json` and the status below, gRPC with the status below.
"""
TERMS_HEAD = """# Terms

Terms say how a workflow may run. An absent term is no constraint. An agreement holds the *meet* of what all parties
ask, term by term the strictest, whoever asked. Each term below has an example of that. A contradiction (no purpose
left, a time that has passed, more participants than named) ends the proposal and names the term and who clashes
(`TERMS_CONFLICT`).

Whether this version's nodes enforce a term stands in [governance.md](governance.md#terms); a term that a node cannot
enforce it refuses by name. The JSON Schema: `comity policy terms --schema`. Real numbers are text, because signed bytes
hold no fractions; instants read `YYYY-MM-DDTHH:MM:SSZ`, in UTC.
"""
CLI_HEAD = """# Commands

The text of `--help` of each command. `--home` (or `COMITY_HOME`) names a node's folder, by default `~/.comity`; the
coordinator's commands take its folder as the first argument (or from `COMITY_COORDINATOR_HOME`).
"""


def errors_page() -> str:
    """Return docs/errors.md."""
    rows = [
        f"| `{code}` | {row.sentence} | {row.move} | {'yes' if row.retry else 'no'} | {remedy(code)} "
        f"| {row.http} | {row.grpc} |"
        for code, row in CATALOG.items()
    ]
    titles = ("code", "what it says", "whose move", "does a retry help", "what to do", "HTTP", "gRPC")
    head = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|"
    return "\n".join([ERRORS_HEAD, GENERATED, "", head, *rows]) + "\n"


def cli_page() -> str:
    """Return docs/cli.md."""
    command = typer.main.get_command(build_app())
    parts = [CLI_HEAD, GENERATED]
    for name, text in helps(command, "comity", None):
        parts += ["", f"## {name}", "", "```text", text, "```"]
    return "\n".join(parts) + "\n"


def helps(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Yield (full name, help) of a command and everything below it."""
    context = click.Context(
        command,
        info_name=name.rpartition(" ")[2],
        parent=parent,
        terminal_width=WIDTH_CHARS,
        max_content_width=WIDTH_CHARS,
    )
    text = command.get_help(context).replace(str(Path.home()), "~")
    yield name, "\n".join(line.rstrip() for line in text.splitlines()).strip()
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            yield from helps(command.commands[each], f"{name} {each}", context)


def terms_page() -> str:
    """Return docs/terms.md."""
    return f"{TERMS_HEAD}\n{GENERATED}\n\n{term_pages.page()}"


def access_page() -> str:
    """Return docs/access.md: what is written there, with the tables between the marks as the code has them."""
    head, _, rest = (DOCS / "access.md").read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{GENERATED}\n\n{access_tables()}\n{END}{tail}"


def access_tables() -> str:
    """Return the authorisation tables of the node's API, the coordinator's API and its gRPC methods."""
    order = ("admin", "proposer", "reviewer", "auditor")
    lines = ["### The node's API", "", f"| route | {' | '.join(order)} |", "|---" * (len(order) + 1) + "|"]
    for (method, path), row in rows.ROUTES.items():
        if row == PUBLIC:
            cells = ["everybody, without credentials"] + [""] * (len(order) - 1)
        elif row == SIGNED_IN:
            cells = ["whoever is signed in"] + [""] * (len(order) - 1)
        else:
            cells = ["yes" if role in row else "" for role in order]
        lines.append(f"| `{method} {path}` | {' | '.join(cells)} |")
    lines += ["", "### The coordinator's API (loopback)", "", "| route | who |", "|---|---|"]
    for (method, path), row in authorisation.ROUTES.items():
        who = "everybody on that machine" if row == PUBLIC else "the operator, with the coordinator's `api.token`"
        lines.append(f"| `{method} {path}` | {who} |")
    lines += ["", "### The coordinator's gRPC port (mutual TLS 1.3)", "", "| method | certificate |", "|---|---|"]
    kinds = {
        authorisation.JOIN: "of a join token",
        authorisation.ORG: "of an enrolled organisation, its current one",
        authorisation.REPLICA: "of another replica of this coordinator",
    }
    lines += [f"| `{method}` | {kinds[kind]} |" for method, kind in authorisation.METHODS.items()]
    return "\n".join(lines)


PAGES = {"errors.md": errors_page, "cli.md": cli_page, "access.md": access_page, "terms.md": terms_page}


def main() -> int:
    """Write or check the pages; returns the exit status."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"docs/{name} {'is not current: run python docs/generate.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
