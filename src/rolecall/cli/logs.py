"""Log and messages of the program, on standard error: standard output is for results and secrets only."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog

from rolecall.background import BackgroundWriter

__all__ = ["configure_logs", "is_text", "write_message"]

# How long a caller waits until its line is written. After one wait was too short, no caller waits before a line is
# written again.
PATIENCE_SECONDS = 0.1
# Maximum queued lines, while nobody reads standard error; above it the oldest are dropped.
MAX_LINES = 1000


class _StandardError:
    """Standard error that neither fails nor blocks a caller: its reader may have ended or stopped, or its disk be full.

    While the reader keeps up, a line is written before the caller continues, the last one of the process included.
    """

    def __init__(self) -> None:
        self._is_stuck = False
        self._writer = BackgroundWriter(
            "log", self._write, capacity=MAX_LINES, batch=MAX_LINES, keep="newest", on_dropped=_announce
        )

    def write(self, text: str) -> None:
        """Queue the text for the thread that writes it."""
        self._writer.enqueue(text)

    def flush(self) -> None:
        """Wait until all is written, unless the reader is known to have stopped."""
        if not self._is_stuck:
            self._is_stuck = not self._writer.flush(PATIENCE_SECONDS)

    def _write(self, texts: Sequence[str]) -> None:
        # Nobody can be notified where standard error itself fails.
        with suppress(Exception):
            _put("".join(texts))
        self._is_stuck = False


def _put(text: str) -> None:
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
        return
    # Not by the stream: the end of the process would wait for its lock.
    rest = text.encode(errors="backslashreplace")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _announce(dropped: int) -> None:
    structlog.get_logger("rolecall.log").warning("log lines dropped, standard error is not read", dropped=dropped)


_standard_error = _StandardError()


def write_message(text: str) -> None:
    """Write a message for the person at the terminal; it is lost where standard error can't be written."""
    _standard_error.write(f"{text}\n")
    _standard_error.flush()


def is_text(form: str) -> bool:
    """Whether the log has lines for people, and not JSON, where the setting `log_format` is `form`."""
    return form == "text" or (form == "auto" and sys.stderr.isatty())


def configure_logs(level: str = "info", form: str = "auto") -> None:
    """Log events of `level` and above, as `text`, `json`, or `auto`: text on a terminal, else JSON."""
    renderer: Any = structlog.processors.JSONRenderer()
    if is_text(form):
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without the local variables of frames, which would disclose requests and secrets.
            structlog.processors.ExceptionRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(_standard_error),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
