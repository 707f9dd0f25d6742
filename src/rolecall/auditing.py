"""What AuditService does: the organization's log for whoever may look at it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from rolecall.audit import (
    AuditFormat,
    AuditLog,
    Mark,
    Verdict,
    export_lines,
    list_entries,
    read_entries,
    verify,
)
from rolecall.directory import Directory
from rolecall.domain import AuditEntry, AuditFilter, Caller, Page
from rolecall.errors import InvalidField, RateLimited
from rolecall.live_policy import LivePolicy
from rolecall.pages import Pages
from rolecall.rights import require
from rolecall.storage import Storage, Transaction

__all__ = ["AuditPage", "Auditing", "Chunk"]

CHUNK_ENTRIES = 500
# A walk along a log takes as much of the processor as it gets.
MAX_VERIFYING = 2
# Of details in one page.
PAGE_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of entries."""

    entries: tuple[AuditEntry, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of an export, and the sequence number up to which entries were looked at."""

    text: str
    last_sequence: int


class Auditing:
    """Reads and checks the log. Every method raises `PermissionMissing`, `StorageUnavailable`."""

    def __init__(self, storage: Storage, directory: Directory, live: LivePolicy, pages: Pages, log: AuditLog) -> None:
        self._storage = storage
        self._directory = directory
        self._live = live
        self._pages = pages
        self._log = log
        self._lock = threading.Lock()
        self._verifying: set[str] = set()

    def entries(self, caller: Caller, wanted: AuditFilter, page: Page) -> AuditPage:
        """Entries that pass the filter, the newest first. Raises `InvalidField`, `PageToken`."""
        size = self._pages.size(page)
        require(self._live.in_force.policy, caller, "view", "audit-logs")
        scope = ("ListAuditEntries", caller.organization, repr(wanted))
        position = self._pages.position(scope, page)
        below = int(position[0]) if position else None
        found = self._storage.read(lambda tx: list_entries(tx, caller.organization, wanted, below, size + 1))
        # Entries about many people are long: a page must fit into a message.
        sizes = accumulate(len(str(entry.details)) for entry in found)
        shown = max(1, min(size, sum(total <= PAGE_CHARACTERS for total in sizes)))
        token = self._pages.token(scope, [str(found[shown - 1].sequence)]) if len(found) > shown else ""
        return AuditPage(tuple(found[:shown]), token)

    def export(self, caller: Caller, wanted: AuditFilter, form: AuditFormat, after: int) -> Iterator[Chunk]:
        """The entries that pass the filter as lines, the oldest first, from behind the sequence number `after`.

        Between two pieces no transaction is open, however slowly they are taken; and each is given only to a caller who
        may have it at that moment. Raises `UnauthenticatedCredential` too.
        """
        header = not after
        while True:
            found = self._storage.read(partial(self._piece, caller, wanted, after))
            if not found and not header:
                return
            last = found[-1].sequence if found else after
            yield Chunk(export_lines(found, form, header=header), last)
            header, after = False, last

    def verify(self, caller: Caller, first: int, last: int, known: Mark | None, confirm: Callable[[], None]) -> Verdict:
        """Whether the entries `first` to `last` (0: all) are as they were written.

        `confirm` raises where nobody waits for it any more. Raises `InvalidField`, `RateLimited` where the log is being
        verified already, or too many others are.
        """
        require(self._live.in_force.policy, caller, "view", "audit-logs")
        if last and last < first:
            raise InvalidField(
                f"last_sequence is {last}, before first_sequence, {first}: turn them round.", field="last_sequence"
            )
        organization = caller.organization
        with self._lock:
            if organization in self._verifying or len(self._verifying) >= MAX_VERIFYING:
                raise RateLimited("The audit log is being verified already, or too many others are: try again later.")
            self._verifying.add(organization)
        try:
            return self._storage.read(lambda tx: verify(tx, self._log, organization, first, last, known, confirm))
        finally:
            self._verifying.discard(organization)

    def _piece(self, caller: Caller, wanted: AuditFilter, after: int, tx: Transaction) -> list[AuditEntry]:
        present = self._directory.again(tx, caller)
        require(self._live.in_force.policy, present, "download", "audit-logs")
        return read_entries(tx, caller.organization, wanted, after, CHUNK_ENTRIES)
