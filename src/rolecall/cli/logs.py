"""Where the log goes: standard error, so that answers and secrets are alone on standard output."""

import logging
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import structlog

__all__ = ["configure_logs", "say"]

# So long a line is waited for, and so many wait behind one that isn't taken; of more, the oldest are lost.
PATIENCE_SECONDS = 0.1
MAX_LINES = 1000


class _StandardError:
    """Standard error that nobody fails or waits for: its reader may be gone or asleep, or its disk full.

    While the reader keeps up, a line is written before the next step is taken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque(maxlen=MAX_LINES)
        self._is_writing = False
        self._is_stuck = False
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Have it written by a thread that may wait."""
        with self._changed:
            self._waiting.append(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, unless that is stuck."""
        with self._changed:
            if not self._is_stuck:
                self._is_stuck = not self._changed.wait_for(self._is_done, PATIENCE_SECONDS)

    def _is_done(self) -> bool:
        return not self._waiting and not self._is_writing

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = "".join(self._waiting)
                self._waiting.clear()
                self._is_writing = True
            with suppress(OSError, ValueError):
                self._put(text)
            with self._changed:
                self._is_writing = self._is_stuck = False
                self._changed.notify_all()

    @staticmethod
    def _put(text: str) -> None:
        try:
            descriptor = sys.stderr.fileno()
        except (OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
            return
        # Past the stream, whose lock the end of the process would wait for.
        rest = text.encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(descriptor, rest) :]


_standard_error = _StandardError()


def say(text: str) -> None:
    """Tell the person at the terminal, whether they listen or not."""
    _standard_error.write(f"{text}\n")
    _standard_error.flush()


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
        logger_factory=structlog.WriteLoggerFactory(_standard_error),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
