"""`comity demo`: three hospitals on this machine negotiate, train and verify, as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import print_json

if TYPE_CHECKING:
    from comity_client.demo.cast import Cast
    from comity_client.demo.story import Story
    from comity_client.demo.telling import Teller

# What proposals ask for where nobody says otherwise.
AGGREGATION_DEFAULT = "threshold"
MARKER = "demo.json"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
# A Unix socket's path is bounded by the kernel; the longest one in the folder is <folder>/hospital-a/api.sock.
FOLDER_BYTES_MAX = 100 - len("/hospital-a/api.sock")


def demo(
    aggregation: Annotated[
        str, typer.Option(help="How updates are combined: plain, lead-key, masked or threshold.")
    ] = AGGREGATION_DEFAULT,
    folder: Annotated[Path | None, typer.Option(help="Where the files go; by default a new folder.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the processes running, for exploring.")] = False,
    stop: Annotated[Path | None, typer.Option(help="Stop what an earlier --keep left running in this folder.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object; the story goes to standard error.")
    ] = False,
) -> None:
    """Run three hospitals on this machine: negotiate, train, verify. Ends with status 0 only if every check held.

    \b
    Examples:
      comity demo
      comity demo --keep --folder /tmp/hospitals
      comity demo --stop /tmp/hospitals
      comity demo --json
    """
    from rich.console import Console

    from comity_client.demo.story import SAID_OF
    from comity_client.demo.telling import Teller

    if stop is not None:
        _stop_kept(stop, as_json)
        return
    if aggregation not in SAID_OF:
        raise ComityError(ErrorCode.MALFORMED, f"--aggregation is one of {', '.join(SAID_OF)}")
    teller = Teller(Console(stderr=as_json, highlight=False, soft_wrap=True))
    place = _place(folder)
    summary = _perform(place, teller, aggregation, keep)
    if as_json:
        print_json(summary)
    if not summary["ok"]:
        raise typer.Exit(EXIT_INTERRUPTED if summary.get("interrupted") else EXIT_FAILED)


def _perform(place: Path, teller: Teller, aggregation: str, keep: bool) -> dict[str, Any]:
    """Tell the whole story; whatever happens, no process is left unless it is to be kept."""
    from comity_client.commands.doctor import comity_command
    from comity_client.demo.cast import Cast, DemoError
    from comity_client.demo.story import Story, explained

    begun = time.monotonic()
    cast = Cast(place, comity_command())
    story = Story(cast, teller, _example(), aggregation)
    teller.console.print(f"Comity: three hospitals train one model without sharing a patient. Files: {place}")
    # A shell's background job ignores Ctrl-C's signal; the demo hears it all the same.
    former = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    kept = False
    try:
        with explained(cast):
            _chapters(story, cast, teller, keep)
        kept = keep
    except DemoError as error:
        teller.check("the story was told to its end", False, str(error))
    except KeyboardInterrupt:
        story.summary["interrupted"] = True
        teller.check("the story was told to its end", False, "interrupted")
    finally:
        story.close()
        if kept:
            _remember(place, cast)
        else:
            _quietly_stop(cast)
        for number, handler in former.items():
            signal.signal(number, handler)
    story.summary["duration_s"] = round(time.monotonic() - begun, 1)
    story.summary["checks"] = [each.to_json() for each in teller.checks]
    story.summary["ok"] = teller.all_held
    story.summary["kept"] = kept
    story.summary["chapters_s"] = teller.durations_s()
    _epilogue(place, teller, story.summary)
    return story.summary


def _chapters(story: Story, cast: Cast, teller: Teller, keep: bool) -> None:
    from comity_client.demo.cast import leftovers

    story.data()
    story.enrolment()
    story.genesis()
    story.marketing()
    agreement = story.research()
    story.training(agreement)
    story.comparison()
    file = story.ledger()
    teller.chapter("An auditor with nothing but the export and the genesis name")
    if not keep:
        killed = cast.stop()
        left = leftovers(cast.folder)
        teller.check("every process has ended, coordinator included", not killed and not left, f"{killed} {left}")
    story.verification(file)


def _epilogue(place: Path, teller: Teller, summary: dict[str, Any]) -> None:
    teller.chapter("Where things are")
    for name, what in (
        ("hospital-a", "a hospital's folder: keys, policy, journal, results; b and c have theirs"),
        ("coordinator", "what the operator holds: states, times, sizes, the ledger"),
        ("ledger.jsonl", "the ledger's export"),
        ("model.npz", "the model that they trained together"),
        ("logs", "what every process said"),
    ):
        if (place / name).exists():
            teller.say(f"{place}/{name:<14} {what}")
    if summary["kept"]:
        teller.say("the processes go on; look around with, for example:")
        teller.command(f"status --home {place}/hospital-b")
        teller.command(f"runs list --home {place}/hospital-c")
        teller.command(f"demo --stop {place}")
    held = sum(each["ok"] for each in summary["checks"])
    verdict = "every check held" if summary["ok"] else "NOT every check held"
    teller.console.print(f"\n{verdict}: {held} of {len(summary['checks'])}, in {summary['duration_s']} s")


def _place(folder: Path | None) -> Path:
    """Return an empty folder for the demo: a new one, or `folder` if that is empty or an earlier demo's."""
    from comity_client.demo.cast import leftovers

    if folder is None:
        base = Path(tempfile.gettempdir())
        short = len(os.fsencode(base)) + len("/comity-demo-12345678") <= FOLDER_BYTES_MAX
        place = Path(tempfile.mkdtemp(prefix="comity-demo-", dir=base if short else Path("/tmp")))  # noqa: S108 - mkdtemp makes it private
    else:
        place = folder.expanduser().resolve()
        if len(os.fsencode(place)) > FOLDER_BYTES_MAX:
            raise ComityError(ErrorCode.MALFORMED, "the folder's path is too long", limit_bytes=FOLDER_BYTES_MAX)
        if place.is_dir() and any(place.iterdir()):
            if not (place / MARKER).is_file():
                raise ComityError(ErrorCode.CONFLICT, "--folder: the folder is not empty and no earlier demo's")
            if leftovers(place):
                raise ComityError(ErrorCode.CONFLICT, f"a demo runs there: comity demo --stop {place}")
            shutil.rmtree(place)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / MARKER).write_text("{}\n")
    return place.resolve()


def _remember(place: Path, cast: Cast) -> None:
    (place / MARKER).write_text(json.dumps({"processes": cast.pids()}, indent=2) + "\n")


def _stop_kept(folder: Path, as_json: bool) -> None:
    from comity_client.demo.cast import stop_kept

    place = folder.expanduser().resolve()
    try:
        processes = json.loads((place / MARKER).read_text()).get("processes", {})
    except (OSError, ValueError) as error:
        raise ComityError(ErrorCode.NOT_FOUND, "no demo was run in that folder") from error
    stopped = stop_kept(place, [int(pid) for pid in processes.values()])
    if as_json:
        print_json({"stopped": stopped})
    else:
        typer.echo(f"{len(stopped)} processes stopped")


def _example() -> Path:
    """Return `examples/hospitals`: beside the packages in a checkout, inside this one in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "examples" / "hospitals", package.parents[1] / "examples" / "hospitals"):
        if (place / "compare.py").is_file():
            return place
    raise ComityError(ErrorCode.NOT_FOUND, "the example examples/hospitals is not installed")


def _quietly_stop(cast: Cast) -> None:
    """Stop everything; a second signal does not leave half of it running."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cast.stop()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
