"""Write-behind of `last_use_time`: uses of credentials are noted in memory, and written in the background."""

import time

from rolecall.domain import now
from rolecall.storage import Storage, Transaction
from rolecall.storage import credentials as credential_rows

__all__ = ["LastUsed"]

# Seconds for which a credential's use is not noted again.
INTERVAL_SECONDS = 60.0
MAX_CREDENTIALS = 200_000


class LastUsed:
    """Buffer of times of use that are not written yet. Threads may share it; `note` takes no lock."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._noted: dict[str, float] = {}
        self._pending: dict[str, int] = {}

    def note(self, credential_id: str) -> None:
        """Note that the credential is used now, at most once a minute."""
        at = time.monotonic()
        if self._noted.get(credential_id, 0.0) > at - INTERVAL_SECONDS:
            return
        if len(self._noted) >= MAX_CREDENTIALS:
            self._noted.clear()
        self._noted[credential_id] = at
        self._pending[credential_id] = now()

    def flush(self) -> None:
        """Write what is pending. Raises `StorageUnavailable`, `WriteConflict`; then it stays pending."""
        uses: dict[str, int] = {}
        while self._pending:
            credential_id, at = self._pending.popitem()
            uses[credential_id] = at
        if not uses:
            return

        def work(tx: Transaction) -> None:
            # In one order everywhere, so that two processes don't deadlock.
            for credential_id, at in sorted(uses.items()):
                credential_rows.record_use(tx, credential_id, at, at - int(INTERVAL_SECONDS * 1_000_000))

        try:
            self._storage.write(work)
        except BaseException:
            self._pending |= uses
            raise
