"""`python recording_coordinator.py FILE coordinator up HOME`: a coordinator that writes down every decoded message.

For tests. It stands where the coordinator's own code stands: behind TLS and the decoder, at the one place through which
every handler is wrapped. What comes in and what goes out is appended to FILE.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from comity_client.main import main
from comity_coordinator.transport.server import Edge

_file = Path(sys.argv.pop(1)).open("ab", buffering=0)  # noqa: SIM115 - open as long as the process lives
_wrap = Edge._wrap


def _note(message: Any) -> None:
    if hasattr(message, "SerializeToString"):
        message = message.SerializeToString()
    if isinstance(message, bytes):
        _file.write(message + b"\n")


class _Context:
    """The call's context, with ears."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        _note(message)
        return message

    async def write(self, message: Any) -> None:
        _note(message)
        await self._context.write(message)


async def _heard(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        _note(message)
        yield message


def _recorded(edge: Edge, behaviour: Any, grant: str | None, timeout_s: float | None) -> Any:
    async def handler(request: Any, context: Any) -> Any:
        if hasattr(request, "SerializeToString"):
            _note(request)
        else:
            request = _heard(request)
        answer = await behaviour(request, _Context(context))
        _note(answer)
        return answer

    return _wrap(edge, handler, grant, timeout_s)


Edge._wrap = _recorded  # type: ignore[method-assign]
main()
