"""Logs: JSON lines on standard error, one an event; plain text where a person reads along. Never payloads, keys, tokens
or policy inputs. Each line names the organisation, proposal, agreement, run and trace that its task is busy with.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

from comity.observability import scope

Format = Literal["json", "text"]

_BEFORE: tuple[structlog.typing.Processor, ...] = (
    scope.into_log,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    structlog.processors.format_exc_info,
)
PROCESSORS: tuple[structlog.typing.Processor, ...] = (*_BEFORE, structlog.processors.JSONRenderer())


def configure(log_format: Format | None = None) -> None:
    """Send this process's logs to standard error; libraries speak from warnings up.

    Args:
        log_format: by default text on a terminal and JSON lines anywhere else.
    """
    text = log_format == "text" if log_format is not None else sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, timestamp_key="at", exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=(*_BEFORE, renderer) if text else PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format='{"level": "warning", "event": "%(name)s"}')
