"""Which decisions were made: one JSON object a line, in files that are rotated by size."""

import fcntl
import os
import sys
import threading
import time
from collections import deque
from json.encoder import encode_basestring
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from typing import IO, Literal

import structlog

from rolecall.config import Settings
from rolecall.domain import CheckResult, Question, now, rfc3339
from rolecall.errors import ConfigError

__all__ = ["DecisionLog"]

# While it can't be written, one line of the server's log stands for so many seconds.
QUIET_SECONDS = 5.0
# How often what was noted is written. Nobody who decides waits for the disk.
EVERY_SECONDS = 0.05
# So many decisions wait to be written; more are lost, and the server's log says so.
MAX_WAITING = 100_000
# How long the end waits for the disk.
CLOSE_SECONDS = 5.0

# So many lines are written at once.
AT_ONCE = 32

# A text as JSON.
_text = encode_basestring
_log = structlog.get_logger("rolecall.decisions")


class DecisionLog:
    """Notes decisions, if the settings say so. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """Open the file. Raises `ConfigError` where that can't be."""
        self.mode: Literal["off", "denies", "all"] = settings.decision_log
        self._file: _Files | None = None
        self._waiting: deque[tuple[int, str, Question, CheckResult, str]] = deque()
        self._lost = 0
        self._quiet_until = 0.0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if self.mode == "off":
            return
        try:
            self._file = file = _Files(
                settings.decision_log_file,
                maxBytes=settings.decision_log_megabytes * 1_000_000,
                backupCount=settings.decision_log_files - 1,
                encoding="utf-8",
            )
        except BlockingIOError:
            raise ConfigError(
                f"Another server writes the decision log {settings.decision_log_file}: give each its own with"
                " ROLECALL_DECISION_LOG_FILE."
            ) from None
        except OSError as error:
            where = settings.decision_log_file
            raise ConfigError(f"The decision log {where} can't be written: {error.strerror}.") from error
        self._thread = threading.Thread(target=self._work, args=(file,), name="decisions", daemon=True)
        self._thread.start()

    def note(self, organization: str, question: Question, result: CheckResult, request_id: str) -> None:
        """Have one decision written down soon.

        A disk that is full or slow doesn't stop the decisions; the server's log tells of it.
        """
        if self._file is None or (result and self.mode == "denies"):
            return
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((now(), organization, question, result, request_id))
            return
        self._lost += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            _log.error("the disk is too slow for the decision log", lost=self._lost)

    def _work(self, file: "_Files") -> None:
        while not self._closing.wait(EVERY_SECONDS):
            self._write(file)
        self._write(file)

    def _write(self, file: "_Files") -> None:
        """Write what waits, in large pieces: line by line, each takes twice as long, and the interpreter with it."""
        while count := min(len(self._waiting), AT_ONCE):
            some = [self._waiting.popleft() for _ in range(count)]
            try:
                file.write("\n".join(_line(*each) for each in some))
            except Exception:  # noqa: BLE001 - nobody looks after a thread's work, and what comes next is to be written
                _log.exception("decisions weren't written down", lost=count)

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._file and self._thread:
            self._closing.set()
            self._thread.join(CLOSE_SECONDS)
            try:
                self._file.close()
            except (OSError, ValueError) as error:
                _log.warning("the decision log can't be closed", error=str(error))


def _line(at: int, organization: str, question: Question, result: CheckResult, request_id: str) -> str:
    # In one piece, as making a dictionary of it first takes three times as long.
    return (
        f'{{"time": "{rfc3339(at)}", "organization": {_text(organization)}, "subject": {_text(question.subject.text)},'
        f' "action": {_text(question.action)}, "resource": {_text(question.resource)},'
        f' "decision": "{result.decision.value}", "reason": "{result.reason.name}",'
        f' "policy_version": "{result.policy_version}", "revision": {result.revision},'
        f' "request_id": {_text(request_id)}}}'
    )


class _Files(RotatingFileHandler):
    """The standard library's rotating files, for this user only, and without its log records."""

    _quiet_until = 0.0

    def _open(self) -> IO[str]:  # type: ignore[override]
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # Two servers that rotate one set of files would throw away each other's lines.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def write(self, lines: str) -> None:
        self.handle(LogRecord("", 0, "", 0, lines, None, None))

    def handleError(self, record: LogRecord) -> None:  # noqa: N802, ARG002 - the standard library's shape
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            _log.error("the decision log can't be written", file=self.baseFilename, error=str(sys.exception()))
