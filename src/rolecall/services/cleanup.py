"""Periodic deletion of rows that are no longer needed.

Expired requests to sign in, answers stored for repeated requests, changes that every server has read, role assignments
that ended long ago.
"""

import time

from rolecall.domain import now
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.services.unit_of_work import REPEAT_MICROSECONDS
from rolecall.storage import Storage, Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import changes as change_rows
from rolecall.storage import idempotency as request_rows
from rolecall.storage import outbox as mail_rows

__all__ = ["Cleanup"]

# Time for which lists show an assignment after its end: 30 days.
ENDED_MICROSECONDS = 30 * 24 * 60 * 60 * 1_000_000


class Cleanup:
    """Deletes these rows every `cleanup_seconds`. Not thread-safe: one periodic thread runs it."""

    def __init__(self, storage: Storage, limits: Limits = DEFAULT_LIMITS) -> None:
        self._storage = storage
        self._interval = limits.cleanup_seconds
        self._next = time.monotonic() + self._interval
        # Position of the change feed at the last run. A process that has not read up to there clears its
        # cache instead, as `change_feed.MAX_SILENCE_SECONDS` is shorter than the interval.
        self._position = 0

    def run(self) -> None:
        """Delete the rows if the interval has passed. Raises `StorageUnavailable`, `WriteConflict`."""
        if time.monotonic() < self._next:
            return
        at = now()

        def work(tx: Transaction) -> int:
            mail_rows.prune_sign_ins(tx, at)
            request_rows.prune(tx, at - REPEAT_MICROSECONDS)
            change_rows.prune(tx, self._position)
            assignment_rows.prune(tx, at - ENDED_MICROSECONDS)
            return change_rows.position(tx)

        self._position = self._storage.write(work)
        self._next = time.monotonic() + self._interval
