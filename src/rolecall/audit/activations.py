"""Audit entries about activations of policies, for the organizations in which nothing else is recorded meanwhile.

One activation concerns every organization, too many for its own transaction. Each log keeps the number of the last
activation that it records; `AuditLog.record` catches up before any other entry, and this task does it for the rest.
"""

import time
from collections.abc import Callable
from functools import partial

import structlog

from rolecall.audit.log import AuditLog
from rolecall.errors import AuditLogBroken
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["ActivationEntries"]

# Logs in one transaction, which delays changes in these organizations (on SQLite: in all) by 10 to 50 ms.
BATCH = 20
# Pause between two transactions, in which other writers have their turn.
PAUSE_SECONDS = 0.02
# How often logs are searched where no activation is known that they could miss: a database may have been restored.
SEARCH_SECONDS = 60.0

_log = structlog.get_logger("rolecall.audit")


class ActivationEntries:
    """Records activations in batches. Several servers may do it at once: each log is locked while it is caught up.

    Not thread-safe: one periodic thread runs it.
    """

    def __init__(self, storage: Storage, log: AuditLog, in_force: Callable[[], int]) -> None:
        """`in_force` returns the sequence number of the activation in force, without reading the database."""
        self._storage = storage
        self._audit = log
        self._in_force = in_force
        self._done = 0
        self._search_at = 0.0
        self._after = ""

    def run(self) -> float | None:
        """Record the activations in the next logs that lack them. Returns the pause before the next batch, if any.

        Raises `StorageUnavailable`, `WriteConflict`.
        """
        sequence = self._in_force()
        if sequence == self._done and time.monotonic() < self._search_at:
            return None
        names = self._storage.read(lambda tx: rows.behind_activation(tx, sequence, self._after, BATCH))
        if names:
            self._storage.write(partial(self._record, names))
            self._after = names[-1]
            return PAUSE_SECONDS
        self._after, self._done, self._search_at = "", sequence, time.monotonic() + SEARCH_SECONDS
        return None

    def _record(self, names: list[str], tx: Transaction) -> None:
        for organization in names:
            try:
                self._audit.record_activations(tx, organization)
            except AuditLogBroken as error:
                # It must not keep the others from their entries.
                _log.warning("policy activation can't be recorded", organization=organization, error=error.message)
