"""When credentials were last used: noted in memory, each at most once a minute, and written down soon after."""

import time

from rolecall.domain import now
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows

__all__ = ["Uses"]

# How often a credential's use is noted.
SECONDS = 60.0
MAX_CREDENTIALS = 200_000


class Uses:
    """Uses of credentials. Threads may share it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._noted: dict[str, float] = {}
        self._waiting: dict[str, int] = {}

    def note(self, credential_id: str) -> None:
        """Have it written down that the credential is used now."""
        at = time.monotonic()
        if self._noted.get(credential_id, 0.0) > at - SECONDS:
            return
        if len(self._noted) >= MAX_CREDENTIALS:
            self._noted.clear()
        self._noted[credential_id] = at
        self._waiting[credential_id] = now()

    def flush(self) -> None:
        """Write down what waits. Raises `StorageUnavailable`, `WriteConflict`."""
        uses: dict[str, int] = {}
        while self._waiting:
            credential_id, at = self._waiting.popitem()
            uses[credential_id] = at
        if not uses:
            return

        def work(tx: Transaction) -> None:
            # In one order everywhere, lest two processes wait for each other.
            for credential_id, at in sorted(uses.items()):
                credential_rows.used(tx, credential_id, at, at - int(SECONDS * 1_000_000))

        try:
            self._storage.write(work)
        except BaseException:
            self._waiting |= uses
            raise
