"""Decision log: one JSON object a line for each decision, in files that are rotated by size."""

import fcntl
import os
import sys
import time
from collections.abc import Sequence
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from typing import IO, Literal, NamedTuple

import orjson
import structlog

from rolecall.background import BackgroundWriter
from rolecall.config import Settings
from rolecall.domain import CheckResult, Question, now, rfc3339
from rolecall.errors import ConfigError

__all__ = ["DecisionLog"]

# Seconds between two lines in the server's log while the file can't be written.
ERROR_LOG_SECONDS = 5.0
# Seconds for which a decision is kept so that others are written in the same batch. No caller waits for the disk.
EVERY_SECONDS = 0.05
# Maximum queued decisions; above it new ones are dropped, which the server's log says.
MAX_QUEUED = 100_000
# Maximum seconds that the stop of the server waits for the disk.
CLOSE_SECONDS = 5.0
# Maximum lines in one write. With one write for each line, a line takes twice as long, and holds the interpreter lock.
BATCH = 32

_log = structlog.get_logger("rolecall.decisions")


class _Entry(NamedTuple):
    """Decision that is to be written."""

    time: int
    organization: str
    question: Question
    result: CheckResult
    call_id: str


class DecisionLog:
    """Queues decisions for a thread that writes them, where the settings say so. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """Open the file. Raises `ConfigError` where it can't be opened, or another server writes it."""
        self.mode: Literal["off", "denies", "all"] = settings.decision_log
        self._file: _Files | None = None
        self._writer: BackgroundWriter[_Entry] = BackgroundWriter(
            "decisions",
            self._write,
            capacity=MAX_QUEUED,
            batch=BATCH,
            interval=EVERY_SECONDS,
            on_dropped=lambda dropped: _log.error("disk too slow for the decision log", dropped=dropped),
        )
        if self.mode == "off":
            return
        try:
            self._file = _Files(
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

    def note(self, organization: str, question: Question, result: CheckResult, call_id: str) -> None:
        """Queue one decision for writing.

        A disk that is full or slow doesn't stop decisions; the server's log reports it.
        """
        if self._file is None or (result and self.mode == "denies"):
            return
        self._writer.enqueue(_Entry(now(), organization, question, result, call_id))

    def flush(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait until what was noted is written, at most `timeout` seconds; False where it isn't."""
        return self._writer.flush(timeout)

    def close(self) -> None:
        """Write what is queued, and close the file."""
        if self._file is None:
            return
        self._writer.close(CLOSE_SECONDS)
        try:
            self._file.close()
        except (OSError, ValueError) as error:
            _log.warning("decision log can't be closed", error=str(error))

    def _write(self, entries: Sequence[_Entry]) -> None:
        assert self._file  # noqa: S101 - for the type checker: without a file nothing is queued
        lines: list[bytes] = []
        for entry in entries:
            try:
                lines.append(_line(*entry))
            except Exception:  # noqa: BLE001 - the other decisions of the batch are written
                _log.exception("decision can't be written", organization=entry.organization)
        if lines:
            self._file.write(b"\n".join(lines).decode())


def _line(time: int, organization: str, question: Question, result: CheckResult, call_id: str) -> bytes:
    return orjson.dumps(
        {
            "time": rfc3339(time),
            "organization": organization,
            "subject": question.subject.text,
            "action": question.action,
            "resource": question.resource,
            "scope": question.scope,
            "decision": result.decision,
            "reason": result.reason.name,
            "assignment_id": result.assignment_id,
            "policy_version": result.policy_version,
            "revision": result.revision,
            "call_id": call_id,
        }
    )


class _Files(RotatingFileHandler):
    """Rotating log files of the standard library, readable by this user only, without its log records."""

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
            self._quiet_until = time.monotonic() + ERROR_LOG_SECONDS
            _log.error("decision log can't be written", file=self.baseFilename, error=str(sys.exception()))
