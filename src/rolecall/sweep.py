"""Clearing away what nobody can use any more.

Requests to sign in that ended, answers that are no longer repeated, changes that every server knows of.
"""

import time

from rolecall.domain import now
from rolecall.mutations import REPEAT_MICROSECONDS
from rolecall.storage import Storage, Transaction
from rolecall.storage import changes as change_rows
from rolecall.storage import mails as mail_rows
from rolecall.storage import requests as request_rows

__all__ = ["Sweep"]

EVERY_SECONDS = 600.0


class Sweep:
    """Does so now and then."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._next = time.monotonic() + EVERY_SECONDS
        # Where the changes stood the last time. Who hasn't read up to there begins anew: `feed.MAX_SILENCE_SECONDS`.
        self._place = 0

    def run(self) -> None:
        """Clear away, if it is time to. Raises `StorageUnavailable`, `WriteConflict`."""
        if time.monotonic() < self._next:
            return
        at = now()

        def work(tx: Transaction) -> int:
            mail_rows.prune_sign_ins(tx, at)
            request_rows.prune(tx, at - REPEAT_MICROSECONDS)
            change_rows.prune(tx, self._place)
            return change_rows.position(tx)

        self._place = self._storage.write(work)
        self._next = time.monotonic() + EVERY_SECONDS
