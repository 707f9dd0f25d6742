"""Audit logs: list, export and verify an organization's entries."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from rolecall.audit import AuditFormat, AuditLog, EntryHash, Verdict, export_lines, list_entries, read_entries, verify
from rolecall.domain import AuditEntry, AuditFilter, Caller, Page
from rolecall.errors import InvalidField, RateLimited
from rolecall.identity.authentication import Authenticator
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import require
from rolecall.services.pagination import Pagination
from rolecall.storage import Storage, Transaction

__all__ = ["AuditLogs", "AuditPage", "Chunk"]

# Maximum characters of details in one page, so that it fits into a message.
PAGE_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Page of entries."""

    entries: tuple[AuditEntry, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Complete lines of an export, and the sequence number of the last entry that was read."""

    text: str
    last_sequence: int


class AuditLogs:
    """Use cases of AuditService. Every method raises `PermissionMissing`, `StorageUnavailable`."""

    def __init__(
        self,
        storage: Storage,
        authenticator: Authenticator,
        live: LivePolicy,
        pages: Pagination,
        log: AuditLog,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._storage = storage
        self._authenticator = authenticator
        self._live = live
        self._pages = pages
        self._log = log
        self._limits = limits
        self._lock = threading.Lock()
        self._verifying: set[str] = set()

    def entries(self, caller: Caller, wanted: AuditFilter, page: Page) -> AuditPage:
        """List the entries that match the filter, the newest first. Raises `InvalidField`, `PageToken`."""
        size = self._pages.size(page)
        require(self._live.in_force.policy, caller, "view", "audit-logs")
        scope = ("ListAuditEntries", caller.organization, repr(wanted))
        position = self._pages.position(scope, page)
        below = int(position[0]) if position else None
        found = self._storage.read(lambda tx: list_entries(tx, caller.organization, wanted, below, size + 1))
        # Entries about many people are long, and a page must fit into a message.
        sizes = accumulate(len(str(entry.details)) for entry in found)
        shown = max(1, min(size, sum(total <= PAGE_CHARACTERS for total in sizes)))
        token = self._pages.token(scope, [str(found[shown - 1].sequence)]) if len(found) > shown else ""
        return AuditPage(tuple(found[:shown]), token)

    def export(self, caller: Caller, wanted: AuditFilter, form: AuditFormat, after: int) -> Iterator[Chunk]:
        """Export the entries that match the filter as lines, the oldest first, from after the sequence number `after`.

        No transaction is open between two chunks, however slowly the client reads. The caller is authenticated and
        authorized again for each chunk. Raises `UnauthenticatedCredential` too.
        """
        header = not after
        while True:
            found = self._storage.read(partial(self._chunk, caller, wanted, after))
            if not found and not header:
                return
            last = found[-1].sequence if found else after
            yield Chunk(export_lines(found, form, header=header), last)
            header, after = False, last

    def verify(
        self, caller: Caller, first: int, last: int, known: EntryHash | None, confirm: Callable[[], None]
    ) -> Verdict:
        """Verify that the entries `first` to `last` (0: all) are as they were written.

        `confirm` raises if the client has cancelled the call. Raises `InvalidField`, and `RateLimited` if this log or
        too many others are being verified.
        """
        require(self._live.in_force.policy, caller, "view", "audit-logs")
        if last and last < first:
            raise InvalidField(
                f"last_sequence is {last}, before first_sequence, {first}: swap them.", field="last_sequence"
            )
        organization = caller.organization
        with self._lock:
            if organization in self._verifying or len(self._verifying) >= self._limits.verifications:
                raise RateLimited("This audit log is being verified already, or too many others are: try again later.")
            self._verifying.add(organization)
        try:
            return self._storage.read(lambda tx: verify(tx, self._log, organization, first, last, known, confirm))
        finally:
            self._verifying.discard(organization)

    def _chunk(self, caller: Caller, wanted: AuditFilter, after: int, tx: Transaction) -> list[AuditEntry]:
        present = self._authenticator.reload(tx, caller)
        require(self._live.in_force.policy, present, "download", "audit-logs")
        return read_entries(tx, caller.organization, wanted, after, self._limits.export_entries)
