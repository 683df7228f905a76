"""Logs: JSON lines on standard error, one an event. Never payloads, keys, tokens or policy inputs."""

from __future__ import annotations

import logging
import sys

import structlog

PROCESSORS: tuple[structlog.typing.Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
)


def configure() -> None:
    """Send this process's logs to standard error as JSON lines; libraries speak from warnings up."""
    structlog.configure(
        processors=PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format='{"level": "warning", "event": "%(name)s"}')
