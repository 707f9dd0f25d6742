"""Where the log goes: standard error, so that answers and secrets are alone on standard output."""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog

__all__ = ["configure_logs"]


class _Harmless:
    """A stream that nobody fails for: its reader may be gone, or its disk full, while there is work to do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(level: str = "info", form: str = "auto") -> None:
    """Log from `level` on, as `text`, `json`, or `auto`: text on a terminal."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if text else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Locals of a traceback's frames would show requests and secrets.
            structlog.processors.ExceptionRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(_Harmless(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
