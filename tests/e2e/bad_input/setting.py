"""What the tests of bad input are made of: tables, apps, wishes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from harness.consortium import ORGS

ROGUE = Path(__file__).resolve().parent / "rogue"
RECORDS = 30


def write_table(path: Path, *columns: str) -> None:
    """Write a table of small whole numbers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([number + place for place in range(len(columns))] for number in range(RECORDS))


def change_json(path: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def broken_app(folder: Path) -> Path:
    """Write an app whose ClientApp does not import; its bundle is a good one."""
    for source in ROGUE.rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            target = folder / source.relative_to(ROGUE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    client = folder / "rogue" / "client_app.py"
    client.write_text("import a_module_that_nobody_has\n" + client.read_text())
    return folder


def wish(title: str, **values: Any) -> dict[str, Any]:
    """Return what the lead asks for; every party is needed, so that what one party does is seen at the lead."""
    asked = {
        "app": str(ROGUE),
        "purpose": "research",
        "dataset": "numbers",
        "title": title,
        "rounds": 1,
        "deadline_s": 600,
        "reply_timeout_s": 30,
        "terms": {"min_participants": len(ORGS)},
    }
    return {**asked, **values}
