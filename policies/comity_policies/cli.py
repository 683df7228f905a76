"""`comity policy …` and `comity ledger verify`: offline tools for whoever writes policies or audits a ledger.

Exit status: 0 if what was asked holds, 1 if a test fails, 2 for a refusal (the `comity` command prints it).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import charter_cli
from comity_policies.portable import ENTRY_POINTS

INPUT_BYTES_MAX = 1 << 20
EXIT_FAILED = 1

Folder = Annotated[Path, typer.Argument(help="The organisation's policy folder: data.json and its own Rego.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
# Stages by name: the type itself would bring every document with it, whichever command is typed.
StageName = Annotated[
    str, typer.Argument(click_type=click.Choice(ENTRY_POINTS), help="membership, proposal, dispatch or egress.")
]


def register(app: typer.Typer) -> None:
    """Add the groups `policy` and `ledger` to the `comity` command."""
    policy = typer.Typer(no_args_is_help=True, help="Test, check, try and reload an organisation's policies.")
    policy.command("test")(run_tests)
    policy.command("lint")(lint)
    policy.command("eval")(evaluate)
    policy.command("explain-input")(explain_input)
    policy.command("terms")(terms)
    policy.command("init")(init)
    policy.command("build")(build)
    app.add_typer(policy, name="policy")
    ledger = typer.Typer(no_args_is_help=True, help="The shared history.")
    ledger.command("verify")(verify)
    app.add_typer(ledger, name="ledger")
    charter_cli.register(app)


def run_tests(
    folder: Folder,
    opa: Annotated[str, typer.Option(help="Also on OPA: a binary, or http(s)://host:port of a server.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run the bundle's test rules on the embedded engine and, with --opa, on OPA.

    \b
    Examples:
      comity policy test /srv/node/policy
      comity policy test /srv/node/policy --opa opa
    """
    from comity_policies import rego_tests

    bundle = _bundle(folder)
    rows = [("embedded", each) for each in rego_tests.run_embedded(bundle)]
    if opa.startswith(("http://", "https://")):
        rows += [("opa", each) for each in _ask_server(opa, bundle)]
    elif opa:
        rows += [("opa", each) for each in rego_tests.run_opa(bundle, _binary(opa))]
    failed = [(engine, each) for engine, each in rows if each.problem]
    if as_json:
        found = [{"engine": e, "file": r.file, "rule": r.rule, "problem": r.problem} for e, r in rows]
        _print_json({"bundle": bundle.digest, "passed": len(rows) - len(failed), "failed": len(failed), "tests": found})
    else:
        for engine, each in failed:
            typer.echo(f"FAIL {engine}: {each.file}: {each.rule} {each.problem}")
        typer.echo(f"{len(rows) - len(failed)} passed, {len(failed)} failed; bundle {bundle.digest}")
    if failed or not rows:
        raise typer.Exit(EXIT_FAILED)


def lint(folder: Folder, as_json: AsJson = False) -> None:
    """Check settings and Rego: everything that a node checks when it loads the bundle.

    Every breach of the portable profile is printed with file, line and rule; then the settings, then a trial.

    \b
    Example:
      comity policy lint /srv/node/policy
    """
    from comity_policies import portable
    from comity_policies.bundle import apart, read_texts, shipped_folder
    from comity_policies.embedded import EmbeddedEngine

    texts = read_texts(shipped_folder(), folder)
    findings = sorted(portable.findings(*apart(texts)), key=lambda each: (each.file, each.line))
    if findings:
        if as_json:
            rows = [{"rule": f.rule, "file": f.file, "line": f.line, "message": f.message} for f in findings]
            _print_json({"findings": rows})
        else:
            typer.echo("\n".join(str(each) for each in findings))
        raise typer.Exit(EXIT_FAILED)
    bundle = _bundle(folder)
    EmbeddedEngine(bundle).close()
    found = {"bundle": bundle.digest, "modules": sorted(bundle.modules), "tests": sorted(bundle.tests)}
    found["findings"] = []
    if as_json:
        _print_json(found)
    else:
        typer.echo(f"{len(bundle.modules)} modules, {len(bundle.tests)} test files; bundle {bundle.digest}")


def evaluate(
    stage: StageName,
    document: Annotated[Path, typer.Argument(help="JSON file with the stage's input.")],
    folder: Annotated[Path, typer.Option(help="The organisation's policy folder.")],
    as_json: AsJson = False,
) -> None:
    """Ask the policies in a folder one question and show the deciding rules.

    \b
    Example:
      comity policy explain-input proposal > question.json
      comity policy eval proposal question.json --folder /srv/node/policy
    """
    from comity_policies.decisions import Stage, validate_input
    from comity_policies.embedded import EmbeddedEngine

    question = _read_json(document)
    validate_input(Stage(stage), question)
    engine = EmbeddedEngine(_bundle(folder))
    decision = engine.decide(Stage(stage), question)
    engine.close()
    if as_json:
        _print_json(decision.to_json())
        return
    typer.echo(decision.decision)
    for reason in decision.reasons:
        typer.echo(f"  {reason.rule}: {reason.message} ({reason.code})")
    if decision.decision == "review":
        typer.echo(f"  awaited: {decision.review.approvals} of role {decision.review.role}")
    for field, value in decision.terms.to_json().items():
        typer.echo(f"  asks for {field}: {json.dumps(value)}")


def explain_input(
    stage: StageName,
    with_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema, not an example.")] = False,
    result: Annotated[bool, typer.Option("--result", help="Print what the stage answers instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a stage is asked, or answers: an example, or the schema. Always JSON.

    \b
    Examples:
      comity policy explain-input dispatch --schema
      comity policy explain-input egress --result
    """
    from comity_policies.decisions import Stage, example, result_example, schema

    del as_json  # the flag is accepted everywhere; this output is JSON anyway
    if with_schema:
        _print_json(schema("result" if result else stage))
    else:
        _print_json(result_example(Stage(stage)) if result else example(Stage(stage)))


def terms(
    term: Annotated[str, typer.Argument(help="One term; all of them by default.")] = "",
    with_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of terms.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain the terms that an agreement may have, each with an example.

    \b
    Examples:
      comity policy terms min_cohort
      comity policy terms --schema
    """
    from comity_policies import term_pages

    if with_schema:
        _print_json(term_pages.schema())
        return
    if term and term not in term_pages.EXPLAINED:
        raise ComityError(ErrorCode.NOT_FOUND, "there is no such term; `comity policy terms` lists all")
    shown = {term: term_pages.EXPLAINED[term]} if term else term_pages.EXPLAINED
    if as_json:
        _print_json({field: {"says": each.says, "example": each.example} for field, each in shown.items()})
        return
    for field, each in shown.items():
        typer.echo(f"{field}: {each.says}\n  for example {json.dumps(each.example)}")


def init(
    folder: Folder,
    org: Annotated[str, typer.Option(help="The organisation's id, or the consortium's for a bundle of its own.")],
    as_json: AsJson = False,
) -> None:
    """Make a policy folder with the settings that a new organisation starts with; nothing is overwritten.

    \b
    Example:
      comity policy init ./policy --org hospital-b
    """
    from comity_policies.bundle import write_defaults

    write_defaults(folder, org)
    bundle = _bundle(folder)
    if as_json:
        _print_json({"bundle": bundle.digest, "folder": str(folder)})
    else:
        typer.echo(f"{folder}: data.json and README.md; bundle {bundle.digest}")


def build(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Where to write the archive for `opa run --server --bundle`.")],
    as_json: AsJson = False,
) -> None:
    """Write the bundle as OPA loads it; its revision is the digest that nodes check.

    \b
    Example:
      comity policy build /srv/node/policy bundle.tar.gz
      opa run --server --addr 127.0.0.1:8181 --bundle bundle.tar.gz
    """
    from comity_policies.bundle import SIGNATURE_BYTES_MAX, SIGNATURE_FILE, read_bounded

    bundle, signature = _bundle(folder), folder / SIGNATURE_FILE
    signed = read_bounded(signature, SIGNATURE_BYTES_MAX) if signature.exists() else None
    partial = out.with_name(f".{out.name}.partial")
    partial.write_bytes(bundle.archive(signed))
    partial.replace(out)
    if as_json:
        _print_json({"bundle": bundle.digest, "file": str(out)})
    else:
        typer.echo(f"{out}: bundle {bundle.digest}")


def verify(
    file: Annotated[Path, typer.Argument(help="A ledger export.")],
    genesis: Annotated[str, typer.Option(help="The consortium's name, obtained outside the coordinator.")] = "",
    independent: Annotated[
        bool,
        typer.Option("--independent", help="Check keys, certificates and proofs a second way too (slow)."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a ledger export offline: signatures, certificates, agreements, receipts, the Merkle root.

    \b
    Example:
      comity ledger verify ledger.jsonl --genesis xxxx-xxxx-xxxxx-xxxx-xxxx-xxxxx
    """
    from comity_policies.history import verify_export

    report = verify_export(file, genesis or None, independent=independent)
    if as_json:
        _print_json(report.to_json())
        return
    for check in report.checks:
        note = f" ({check.note})" if check.note else ""
        typer.echo(f"  {check.number}. {check.title}: {check.count} checked{note}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    typer.echo(f"The ledger of {report.consortium} holds: {report.size} entries ({kinds}); genesis {report.genesis}")


def _bundle(folder: Path) -> Any:
    from comity_policies.bundle import Bundle, shipped_folder

    return Bundle.load(shipped_folder(), folder)


def _ask_server(url: str, bundle: Any) -> list[Any]:
    """Compare a server's answers to the published examples with the embedded engine's."""
    from comity_policies.decisions import Stage, example
    from comity_policies.embedded import EmbeddedEngine
    from comity_policies.opa import OpaServerEngine
    from comity_policies.rego_tests import Outcome

    outcomes = []
    mine, theirs = EmbeddedEngine(bundle), OpaServerEngine(url, bundle)
    for stage in map(Stage, ENTRY_POINTS):
        wanted, got = mine.decide(stage, example(stage)), theirs.decide(stage, example(stage))
        same = (wanted.decision, wanted.reasons, wanted.terms) == (got.decision, got.reasons, got.terms)
        problem = "" if same else f"answers otherwise: {got.reasons[0].message if got.reasons else got.decision}"
        outcomes.append(Outcome("example", str(stage), problem))
    mine.close()
    theirs.close()
    return outcomes


def _binary(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise ComityError(ErrorCode.NOT_FOUND, "there is no such OPA binary")
    return Path(found)


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(INPUT_BYTES_MAX + 1)
    except OSError:
        raise ComityError(ErrorCode.NOT_FOUND, f"{os.fspath(path.name)} cannot be read") from None
    if len(data) > INPUT_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, limit_bytes=INPUT_BYTES_MAX)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ComityError(ErrorCode.MALFORMED, f"{path.name} is not JSON") from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))
