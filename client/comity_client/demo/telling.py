"""How the demo speaks: as a person would tell it, on standard output, or on standard error beside `--json`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the demo must show."""

    name: str
    ok: bool
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form of `--json`."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


@dataclass
class Teller:
    """Prints the story and keeps the checks."""

    console: Console
    checks: list[Check] = field(default_factory=list)
    chapters: list[tuple[str, float]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self.chapters.append((title, time.monotonic()))
        self.console.print(Text(f"\n{len(self.chapters)}. {title}", style="bold"))

    def say(self, text: str) -> None:
        """Tell one thing."""
        self.console.print(Text(f"   {text}"))

    def command(self, text: str) -> None:
        """Show what a person would type."""
        self.console.print(Text(f"   $ comity {text}", style="cyan"))

    def check(self, name: str, ok: bool, detail: str = "") -> bool:
        """Note whether something held, and say so."""
        self.checks.append(Check(name, ok, detail))
        mark, style = ("✓", "green") if ok else ("✗", "bold red")
        tail = f": {detail}" if detail and not ok else ""
        self.console.print(Text(f"   {mark} {name}{tail}", style=style))
        return ok

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(table)

    def durations_s(self) -> dict[str, float]:
        """Return how long each chapter took, in seconds, up to the beginning of the next."""
        ends = [begun for _, begun in self.chapters[1:]] + [time.monotonic()]
        return {title: round(end - begun, 2) for (title, begun), end in zip(self.chapters, ends, strict=True)}

    @property
    def all_held(self) -> bool:
        """True if there were checks and every one held."""
        return bool(self.checks) and all(each.ok for each in self.checks)
