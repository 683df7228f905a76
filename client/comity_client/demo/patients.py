"""The demo's data: Breast Cancer Wisconsin (Diagnostic) as scikit-learn ships it, divided among three hospitals.

The division is uneven and not identically distributed, as real ones are: a large screening centre sees mostly benign
masses, a university clinic both, a small oncology clinic mostly malignant ones, and of those the largest. Every patient
is at exactly one hospital; nothing is changed in the rows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError, ErrorCode

LABEL = "diagnosis"
MALIGNANT = 0
# (hospital, benign patients, malignant patients): 569 in all.
SHARES = (("hospital-a", 255, 45), ("hospital-b", 85, 95), ("hospital-c", 17, 72))
HOSPITALS = tuple(name for name, _, _ in SHARES)
SIZE_COLUMN = "mean_radius"


@dataclass(frozen=True, slots=True)
class Part:
    """One hospital's file."""

    path: Path
    patients: int
    malignant: int

    @property
    def malignant_percent(self) -> int:
        """Share of malignant masses, in percent."""
        return round(100 * self.malignant / self.patients)


def write(folder: Path) -> tuple[Path, dict[str, Part]]:
    """Write `original.csv` and each hospital's part below `folder`.

    Returns:
        The original's path, and the parts by hospital.

    Raises:
        ComityError: `UNSUPPORTED` if scikit-learn is not installed.
    """
    header, rows = _data_set()
    original = folder / "original.csv"
    _write(original, header, rows)
    parts: dict[str, Part] = {}
    for name, own in _divide(header, rows).items():
        path = folder / name / "patients.csv"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, header, own)
        parts[name] = Part(path, len(own), sum(row[-1] == MALIGNANT for row in own))
    return original, parts


def _data_set() -> tuple[list[str], list[list[Any]]]:
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise ComityError(ErrorCode.UNSUPPORTED, "the demo's data set needs: pip install 'comity[demo]'") from error
    found = load_breast_cancer()
    header = [str(name).replace(" ", "_") for name in found.feature_names] + [LABEL]
    return header, [[*map(float, row), int(label)] for row, label in zip(found.data, found.target, strict=True)]


def _divide(header: Sequence[str], rows: Sequence[list[Any]]) -> dict[str, list[list[Any]]]:
    """Deal out the patients: benign ones as they come, malignant ones by size, so that hospitals see different ones."""
    size = header.index(SIZE_COLUMN)
    benign = [row for row in rows if row[-1] != MALIGNANT]
    malignant = sorted((row for row in rows if row[-1] == MALIGNANT), key=lambda row: row[size])
    parts: dict[str, list[list[Any]]] = {}
    for name, benign_count, malignant_count in SHARES:
        own = benign[:benign_count] + malignant[:malignant_count]
        del benign[:benign_count], malignant[:malignant_count]
        parts[name] = own
    assert not benign
    assert not malignant, "the shares add up to the data set"
    return parts


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    path.chmod(0o600)
