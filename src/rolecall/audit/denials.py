"""Refused attempts, recorded so that nobody can fill the log, or hold up its writers, by being refused."""

import threading
import time
from dataclasses import dataclass

import structlog

from rolecall.audit.log import AuditLog, Event
from rolecall.domain import now
from rolecall.errors import OrganizationNotFound, RolecallError
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["Denials"]

# Design, section 5: at most one entry per actor, action and reason a minute.
QUIET_SECONDS = 60.0
# More kinds of refusals than this at once are no longer told apart, but counted.
MAX_KINDS = 10_000

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
        self._uncounted = 0

    def note(self, event: Event) -> None:
        """Count a refusal. Costs no database work."""
        key = (event.organization, event.actor, event.action, event.reason)
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                if len(self._waiting) >= MAX_KINDS:
                    self._uncounted += 1
                    return
                waiting = self._waiting[key] = _Waiting(event)
            if not waiting.count:
                waiting.event = event
            waiting.count += 1

    def flush(self, *, closing: bool = False) -> None:
        """Record what may be recorded by now; when closing, all. Raises `StorageUnavailable`, `WriteConflict`."""
        with self._flushing:
            self._flush_all(closing=closing)

    def _flush_all(self, *, closing: bool) -> None:
        at = time.monotonic()
        with self._lock:
            due = [key for key, waiting in self._waiting.items() if closing or waiting.quiet_until <= at]
            uncounted, self._uncounted = self._uncounted, 0
        if uncounted:
            _log.warning("refusals are not in the audit log: too many kinds at once", count=uncounted)
        for key in due:
            try:
                self._flush(key, at, closing=closing)
            except RolecallError:
                raise
            except Exception:  # noqa: BLE001 - one organization's broken log must not keep others from theirs
                _log.exception("a refusal can't be recorded", organization=key[0])

    def _flush(self, key: _Key, at: float, *, closing: bool) -> None:
        with self._lock:
            waiting = self._waiting[key]
            count, waiting.count = waiting.count, 0
            waiting.quiet_until = at + QUIET_SECONDS
            if not count:
                # A minute of quiet is over, and nothing came.
                del self._waiting[key]
                return
        try:
            recorded = self._storage.write(lambda tx: self._record(tx, waiting.event, count, closing=closing))
        except OrganizationNotFound:
            return
        except RolecallError:
            self._return(waiting, count, at)
            raise
        except Exception:
            self._return(waiting, count, at + QUIET_SECONDS)
            raise
        if not recorded:
            self._return(waiting, count, at + 1.0)

    def _return(self, waiting: _Waiting, count: int, again_at: float) -> None:
        """Take back what could not be recorded yet."""
        with self._lock:
            waiting.count += count
            waiting.quiet_until = again_at

    def _record(self, tx: Transaction, event: Event, count: int, *, closing: bool) -> bool:
        """Write one entry, unless another process wrote one like it within the minute."""
        self._audit.locked_head(tx, event.organization)
        since = now() - int(QUIET_SECONDS * 1_000_000)
        if not closing and rows.denied_since(tx, event.organization, event.actor, event.action, event.reason, since):
            return False
        counted = Event(
            event.organization,
            event.actor,
            event.action,
            event.object,
            {**event.details, "count": count},
            event.credential_id,
            event.request_id,
            event.reason,
        )
        self._audit.record(tx, counted)
        return True
