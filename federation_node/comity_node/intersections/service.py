"""Intersections, put together: the kind of step that training asks for its work, and the rows that stay here.

The lead's matching records are written to `<home>/results/<run>/rows.csv` (0600): number of the record in the run's
copy, counted from 0 below the line of names, and its identifier. They are in no message, no card, no ledger entry.
"""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import domain
from comity_crypto.psi.workers import PsiWorkers
from comity_node.context import NodeContext
from comity_node.intersections.asker import AskerOfIntersection
from comity_node.intersections.own import Cipher, OwnSide
from comity_node.intersections.party import PartyOfIntersection
from comity_node.intersections.profile import IntersectProfile
from comity_node.settings import write_private
from comity_node.training.datasets import Copy
from comity_node.training.led import LedRun
from comity_policies.documents import Agreement, IntersectStep, Step
from comity_policies.steps import INTERSECT

ROWS_FILE = "rows.csv"
LIBRARY = "private_set_intersection"
# One job is one core's work; more than this would starve the node's other runs.
_PROCESSES_MAX = 4


def library_here() -> bool:
    """Tell whether this node can run intersections at all."""
    return importlib.util.find_spec(LIBRARY) is not None


class IntersectKind:
    """The kind `intersect` (`training/kinds.py`)."""

    name = INTERSECT

    def __init__(self, node: NodeContext, cipher: Cipher | None = None) -> None:
        self._node = node
        self._cipher = cipher or PsiWorkers(max(1, min(_PROCESSES_MAX, (os.cpu_count() or 1) - 1)))
        # A side lives as long as the work of its run.
        self._sides: WeakValueDictionary[str, OwnSide] = WeakValueDictionary()
        self.profile = IntersectProfile(node, self._distinct)

    def party(self, run: str, agreement: Agreement, step: Step, copies: Sequence[Copy]) -> PartyOfIntersection:
        """Return the work of a run at this party. Raises `UNSUPPORTED`, `ORDER_MISMATCH`."""
        mine, me = _intersection(step), self._node.settings.org
        side = self._side(run, agreement.digest, mine, copies)
        return PartyOfIntersection(self._node.journal, side, mine, run, me)

    def lead(self, led: LedRun, copies: Sequence[Copy]) -> AskerOfIntersection:
        """Return the asking side of a run that this node leads. Raises `UNSUPPORTED`, `ORDER_MISMATCH`."""
        step = _intersection(led.step)
        side = self._side(led.run, led.digest, step, copies)

        async def keep_rows(places: tuple[int, ...]) -> None:
            rows = await side.rows(places)
            await asyncio.to_thread(_write_rows, self._node.settings.results_folder / led.run, rows)

        return AskerOfIntersection(led, step, side, keep_rows)

    def _side(self, run: str, agreement: str, step: IntersectStep, copies: Sequence[Copy]) -> OwnSide:
        side = self._sides.get(run)
        if side is not None:
            return side
        (key,) = (each for each in step.keys if each.org == self._node.settings.org)
        paths = [copy.path for copy in copies if copy.path.stem == key.dataset]
        if len(paths) != 1:
            raise ComityError(ErrorCode.DATASET_MISSING, dataset=key.dataset)
        place = domain(agreement, run, step.id)
        side = OwnSide(self._node.keys, self._cipher, paths[0], key.column, step.normalise, place, run)
        self._sides[run] = side
        return side

    def _distinct(self, run: str) -> int:
        side = self._sides.get(run)
        return 0 if side is None else side.distinct


def _intersection(step: Step) -> IntersectStep:
    if not isinstance(step, IntersectStep):
        raise ComityError(ErrorCode.ORDER_MISMATCH, "the step is no intersection", field="step")
    if not library_here():
        raise ComityError(ErrorCode.UNSUPPORTED, "openmined-psi is not installed here", field=f"kind {INTERSECT}")
    return step


def _write_rows(folder: Path, rows: Sequence[tuple[int, str]]) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("row", "identifier"))
    writer.writerows(rows)
    write_private(folder / ROWS_FILE, text.getvalue().encode())
