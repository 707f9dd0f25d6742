"""Denied attempts, recorded in batches so that nobody can fill the log, or block its writers, by being denied."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import structlog

from rolecall.audit.log import AuditLog, Event
from rolecall.domain import now
from rolecall.errors import OrganizationNotFound, RolecallError, StorageUnavailable
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["Denials"]

OTHERS = "others"

_log = structlog.get_logger("rolecall.audit")
_Key = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _PendingDenial:
    """Denials of one kind that are not recorded yet: the first of them, and their number."""

    event: Event
    count: int = 0
    quiet_until: float = 0.0


class Denials:
    """Counts denials in memory; `flush`, called periodically, records them."""

    def __init__(
        self,
        storage: Storage,
        log: AuditLog,
        limits: Limits = DEFAULT_LIMITS,
        *,
        seconds: float | None = None,
        by_object: bool = False,
    ) -> None:
        """`seconds`: time in which one kind is recorded at most once, instead of `limits.denial_seconds`.

        `by_object`: a kind is of one object, besides its actor, action and reason.
        """
        self._storage = storage
        self._limits = limits
        self._seconds = limits.denial_seconds if seconds is None else seconds
        self._by_object = by_object
        self._audit = log
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: dict[_Key, _PendingDenial] = {}
        self._kinds: Counter[str] = Counter()

    def note(self, event: Event) -> None:
        """Count a denial, without a database access."""
        with self._lock:
            pending = self._pending.get(self._key(event))
            if pending is None and self._kinds[event.organization] >= self._limits.denial_kinds:
                # Many different callers must not fill the log either.
                event = Event(event.organization, OTHERS, OTHERS, reason=event.reason)
                pending = self._pending.get(self._key(event))
            if pending is None:
                pending = self._pending[self._key(event)] = _PendingDenial(event)
                self._kinds[event.organization] += 1
            if not pending.count:
                pending.event = event
            pending.count += 1

    def flush(self, *, closing: bool = False) -> None:
        """Record the denials whose time is over; when closing, all. Raises `StorageUnavailable`."""
        with self._flushing:
            at = time.monotonic()
            with self._lock:
                due = [key for key, pending in self._pending.items() if closing or pending.quiet_until <= at]
            for key in due:
                try:
                    self._flush(key, at, closing=closing)
                except StorageUnavailable:
                    raise
                except RolecallError as error:
                    # A failure in one organization must not keep others from their entries.
                    _log.warning("denial can't be recorded yet", organization=key[0], error=error.message)

    def _flush(self, key: _Key, at: float, *, closing: bool) -> None:
        with self._lock:
            pending = self._pending[key]
            count, pending.count = pending.count, 0
            # The next denial replaces it, perhaps before this one is written.
            event = pending.event
            pending.quiet_until = at + self._seconds
            if not count:
                # The time passed without a further denial.
                del self._pending[key]
                self._kinds[key[0]] -= 1
                return
        try:
            # Another process may have recorded one of this kind; checking that must lock nothing.
            left = 0.0 if closing else self._storage.read(lambda tx: self._seconds_left(tx, event))
            if not left:
                left = self._storage.write(lambda tx: self._record(tx, event, count, closing=closing))
        except OrganizationNotFound:
            return
        except BaseException as error:
            # After an outage, retry soon; a defect in one organization takes longer to be repaired.
            pause = 0.0 if isinstance(error, StorageUnavailable) else self._seconds
            self._put_back(pending, count, at + pause)
            raise
        if left:
            self._put_back(pending, count, at + left)

    def _put_back(self, pending: _PendingDenial, count: int, again_at: float) -> None:
        """Count denials again that could not be recorded yet; the next attempt is at `again_at`."""
        with self._lock:
            pending.count += count
            pending.quiet_until = again_at

    def _record(self, tx: Transaction, event: Event, count: int, *, closing: bool) -> float:
        """Write one entry; return 0, or the seconds left of the time in which another process wrote one."""
        self._audit.locked_head(tx, event.organization)
        left = 0.0 if closing else self._seconds_left(tx, event)
        if not left:
            self._audit.record(tx, replace(event, details={**event.details, "count": count}))
        return left

    def _seconds_left(self, tx: Transaction, event: Event) -> float:
        """Return the seconds for which no further denial of this kind is recorded, as one was lately; else 0."""
        at = now()
        since = at - int(self._seconds * 1_000_000)
        about = event.object if self._by_object else None
        last = rows.denied_at(tx, event.organization, event.actor, event.action, event.reason, since, at, about)
        return 0.0 if last is None else (last - since) / 1_000_000

    def _key(self, event: Event) -> _Key:
        about = event.object if self._by_object else ""
        return event.organization, event.actor, event.action, event.reason, about
