"""Work in a thread, which goes on when whoever waits for it is cancelled: what it uses and makes stays in one hand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

__all__ = ["carried_out", "ended"]

T = TypeVar("T")


async def carried_out(work: asyncio.Future[T]) -> T:
    """Return the result of `work`, or raise what it raised; a cancelled caller, too, goes only when it has ended.

    So the caller's `finally` may close what the thread used, and take what it made from `work.result()`.
    """
    try:
        return await asyncio.shield(work)
    finally:
        await ended(work)


async def ended(work: asyncio.Future[Any]) -> None:
    """Wait until `work` has ended, well or not, however often the caller is cancelled."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # seen: nobody else may ask for it
