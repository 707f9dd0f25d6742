"""Clearing away what nobody can use any more: requests to sign in that ended, answers that are no longer repeated."""

import time

from rolecall.domain import now
from rolecall.mutations import REPEAT_MICROSECONDS
from rolecall.storage import Storage, Transaction
from rolecall.storage import mails as mail_rows
from rolecall.storage import requests as request_rows

__all__ = ["Sweep"]

EVERY_SECONDS = 600.0


class Sweep:
    """Does so now and then."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._next = time.monotonic() + EVERY_SECONDS

    def run(self) -> None:
        """Clear away, if it is time to. Raises `StorageUnavailable`, `WriteConflict`."""
        if time.monotonic() < self._next:
            return
        at = now()

        def work(tx: Transaction) -> None:
            mail_rows.prune_sign_ins(tx, at)
            request_rows.prune(tx, at - REPEAT_MICROSECONDS)

        self._storage.write(work)
        self._next = time.monotonic() + EVERY_SECONDS
