"""A small table of patients, for runs whose data does not matter."""

from __future__ import annotations

import csv
from pathlib import Path

ROWS = 30


def table(path: Path) -> Path:
    """Write it to `path`; returns that."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "outcome"])
        writer.writerows([30 + row, row % 2] for row in range(ROWS))
    return path
