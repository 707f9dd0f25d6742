"""Refused attempts, recorded so that nobody can fill the log, or hold up its writers, by being refused."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import structlog

from rolecall.audit.log import AuditLog, Event
from rolecall.domain import now
from rolecall.errors import OrganizationNotFound, RolecallError, StorageUnavailable
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["Denials"]

# Design, section 5: at most one entry per actor, action and reason a minute.
QUIET_SECONDS = 60.0
# More kinds of refusals of one organization than this at once are told together.
MAX_KINDS = 100
OTHERS = "others"

_log = structlog.get_logger("rolecall.audit")
_Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Waiting:
    """The first of the refusals that are not recorded yet, and how many there are."""

    event: Event
    count: int = 0
    quiet_until: float = 0.0


class Denials:
    """Counts refusals in memory; `flush`, called again and again, writes them down."""

    def __init__(self, storage: Storage, log: AuditLog) -> None:
        self._storage = storage
        self._audit = log
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: dict[_Key, _Waiting] = {}
        self._kinds: Counter[str] = Counter()

    def note(self, event: Event) -> None:
        """Count a refusal. Costs no database work."""
        with self._lock:
            waiting = self._waiting.get(_key(event))
            if waiting is None and self._kinds[event.organization] >= MAX_KINDS:
                # Nobody shall fill the log by being many.
                event = Event(event.organization, OTHERS, OTHERS, reason=event.reason)
                waiting = self._waiting.get(_key(event))
            if waiting is None:
                waiting = self._waiting[_key(event)] = _Waiting(event)
                self._kinds[event.organization] += 1
            if not waiting.count:
                waiting.event = event
            waiting.count += 1

    def flush(self, *, closing: bool = False) -> None:
        """Record what may be recorded by now; when closing, all. Raises `StorageUnavailable`."""
        with self._flushing:
            at = time.monotonic()
            with self._lock:
                due = [key for key, waiting in self._waiting.items() if closing or waiting.quiet_until <= at]
            for key in due:
                try:
                    self._flush(key, at, closing=closing)
                except StorageUnavailable:
                    raise
                except RolecallError as error:
                    # One organization's trouble must not keep others from their entries.
                    _log.warning("a refusal can't be recorded yet", organization=key[0], error=error.message)

    def _flush(self, key: _Key, at: float, *, closing: bool) -> None:
        with self._lock:
            waiting = self._waiting[key]
            count, waiting.count = waiting.count, 0
            waiting.quiet_until = at + QUIET_SECONDS
            if not count:
                # A minute of quiet is over, and nothing came.
                del self._waiting[key]
                self._kinds[key[0]] -= 1
                return
        try:
            # Another process may have recorded one like it; to find that out must lock nothing.
            left = 0.0 if closing else self._storage.read(lambda tx: _seconds_left(tx, waiting.event))
            if not left:
                left = self._storage.write(lambda tx: self._record(tx, waiting.event, count, closing=closing))
        except OrganizationNotFound:
            return
        except BaseException as error:
            # During an outage soon again; what is wrong with one organization takes longer to be put right.
            self._return(waiting, count, at if isinstance(error, StorageUnavailable) else at + QUIET_SECONDS)
            raise
        if left:
            self._return(waiting, count, at + left)

    def _return(self, waiting: _Waiting, count: int, again_at: float) -> None:
        """Take back what could not be recorded yet."""
        with self._lock:
            waiting.count += count
            waiting.quiet_until = again_at

    def _record(self, tx: Transaction, event: Event, count: int, *, closing: bool) -> float:
        """Write one entry, unless another process has just done so; answers for how long to wait then."""
        self._audit.locked_head(tx, event.organization)
        left = 0.0 if closing else _seconds_left(tx, event)
        if not left:
            self._audit.record(tx, replace(event, details={**event.details, "count": count}))
        return left


def _key(event: Event) -> _Key:
    return event.organization, event.actor, event.action, event.reason


def _seconds_left(tx: Transaction, event: Event) -> float:
    """How much is left of the minute since a refusal like it was recorded; 0 where none was."""
    at = now()
    since = at - int(QUIET_SECONDS * 1_000_000)
    last = rows.denied_at(tx, event.organization, event.actor, event.action, event.reason, since, at)
    return 0.0 if last is None else (last - since) / 1_000_000
