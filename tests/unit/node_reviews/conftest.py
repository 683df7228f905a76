"""A node with a journal, keys, a clock that tests move, and its reviews."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comity_crypto.keys import OrgKeys
from comity_node.access.model import LOCAL, Principal
from comity_node.context import Services
from comity_node.journal import Journal
from comity_node.reviews.model import ReviewAsk
from comity_node.reviews.service import ReviewService, build

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = OrgKeys.generate()


class Clinic:
    """One organisation's node, as far as reviews see it. `restart` as after a killed process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = START
        self.reviews: ReviewService
        self.journal: Journal
        self.node: Any

    async def up(self) -> None:
        self.journal = Journal.open(self.folder / "journal.db")
        settings = SimpleNamespace(org="hospital-a", consortium="demo")
        self.node = SimpleNamespace(
            journal=self.journal,
            settings=settings,
            keys=KEYS,
            clock=lambda: self.time,
            services=Services(),
            policy=None,
        )
        self.reviews = build(self.node)
        self.journal.create_all()

    async def down(self) -> None:
        await self.reviews.stop()
        self.journal.close()

    def later(self, **spans: float) -> None:
        self.time += timedelta(**spans)

    def ask(self, **changes: Any) -> ReviewAsk:
        values: dict[str, Any] = {
            "stage": "proposal",
            "subject": "ab" * 32,
            "title": "a training",
            "document": {"purpose": "research"},
            "reasons": (),
            "role": "reviewer",
            "approvals": 1,
            "until": "2026-01-11T00:00:00Z",
        }
        return ReviewAsk(**{**values, **changes})

    async def put(self, **changes: Any) -> ReviewAsk:
        item = self.ask(**changes)
        await self.journal.run(lambda conn: self.reviews.ask(conn, item))
        return item

    async def vote(
        self, item: ReviewAsk, user: str, decision: str = "approve", reason: str = "", roles: str = "reviewer"
    ) -> Any:
        who = person(user, roles)
        return await self.reviews.vote(
            item.id, who, decision=decision, reason=reason, document=item.document_digest
        )  # fmt: skip


def person(user: str, roles: str = "reviewer") -> Principal:
    if user == "local":
        return LOCAL
    return Principal(user, frozenset(roles.split()), "token")


@pytest.fixture
async def clinic(tmp_path: Path) -> AsyncIterator[Clinic]:
    clinic = Clinic(tmp_path)
    await clinic.up()
    try:
        yield clinic
    finally:
        await clinic.down()
