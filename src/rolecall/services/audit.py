"""Audit logs: list, export and verify an organization's entries."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from rolecall.audit import AuditFormat, AuditLog, EntryHash, Verdict, export_lines, list_entries, read_entries, verify
from rolecall.domain import AuditEntry, AuditFilter, Caller, Page
from rolecall.errors import InvalidField, MemberNotFound, RateLimited
from rolecall.formats import email_address
from rolecall.identity.authentication import Authenticator
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import may, require
from rolecall.services.pagination import Pagination
from rolecall.storage import Storage, Transaction
from rolecall.storage import audit as rows

__all__ = ["AuditLogs", "AuditPage", "Chunk"]

# Maximum characters of details in one page, so that it fits into a message.
PAGE_CHARACTERS = 1_000_000

# Kinds of actors and objects that are people: before they joined, their id in the log was the invitation's.
_PEOPLE = ("user", "invitation")

_ADDRESS = re.compile(r"[^@\s]@[^@\s]")


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Page of entries, and the addresses of the people in them, by `user:ID` or `invitation:ID`.

    It has no addresses for a caller that may not see members.
    """

    entries: tuple[AuditEntry, ...]
    addresses: dict[str, str]
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
        """List the entries that match the filter, the newest first. An actor and an object may be an address.

        Raises `InvalidField`, `MemberNotFound`, `PageToken`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "view", "audit-logs")
        scope = ("ListAuditEntries", caller.organization, repr(wanted))
        position = self._pages.position(scope, page)
        below = int(position[0]) if position else None
        sees_members = may(policy, caller, "view", "members")

        def work(tx: Transaction) -> tuple[list[AuditEntry], dict[str, str]]:
            entries = list_entries(tx, caller.organization, self._by_id(tx, caller, wanted), below, size + 1)
            return entries, _addresses(tx, caller.organization, entries) if sees_members else {}

        found, addresses = self._storage.read(work)
        # Entries about many people are long, and a page must fit into a message.
        sizes = accumulate(len(str(entry.details)) for entry in found)
        shown = max(1, min(size, sum(total <= PAGE_CHARACTERS for total in sizes)))
        token = self._pages.token(scope, [str(found[shown - 1].sequence)]) if len(found) > shown else ""
        return AuditPage(tuple(found[:shown]), addresses, token)

    def export(self, caller: Caller, wanted: AuditFilter, form: AuditFormat, after: int) -> Iterator[Chunk]:
        """Export the entries that match the filter as lines, the oldest first, from after the sequence number `after`.

        No transaction is open between two chunks, however slowly the client reads. The caller is authenticated and
        authorized again for each chunk. Raises `UnauthenticatedCredential` too.
        """
        by_id = wanted
        if _ADDRESS.search(" ".join(wanted.actors + wanted.objects)):
            require(self._live.in_force.policy, caller, "download", "audit-logs")
            by_id = self._storage.read(lambda tx: self._by_id(tx, caller, wanted))
        header = not after
        while True:
            found = self._storage.read(partial(self._chunk, caller, by_id, after))
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

    def _by_id(self, tx: Transaction, caller: Caller, wanted: AuditFilter) -> AuditFilter:
        """Return the filter with ids in place of an address: of everybody whose address it is or was.

        Raises `PermissionMissing` for an address unless the caller may see members, `InvalidField`, `MemberNotFound`.
        """

        def ids(values: tuple[str, ...], field: str) -> tuple[str, ...]:
            (text,) = values or ("",)
            if not _ADDRESS.search(text):
                return values
            require(self._live.in_force.policy, caller, "view", "members")
            address = email_address.parse(text.removeprefix("user:"), field)
            persons = rows.persons_with_address(tx, caller.organization, address.key, address.display)
            if not persons:
                message = f"The address {text} is and was no member's: correct it, or give an id."
                raise MemberNotFound(message, field=field)
            return tuple(f"{kind}:{person}" for person in sorted(persons) for kind in _PEOPLE)

        return replace(wanted, actors=ids(wanted.actors, "filter.actor"), objects=ids(wanted.objects, "filter.object"))

    def _chunk(self, caller: Caller, wanted: AuditFilter, after: int, tx: Transaction) -> list[AuditEntry]:
        present = self._authenticator.reload(tx, caller)
        require(self._live.in_force.policy, present, "download", "audit-logs")
        return read_entries(tx, caller.organization, wanted, after, self._limits.export_entries)


def _addresses(tx: Transaction, organization: str, entries: Sequence[AuditEntry]) -> dict[str, str]:
    named = {text for entry in entries for text in (entry.actor, entry.object)}
    people = {text: person for text in named for kind, _, person in [text.partition(":")] if kind in _PEOPLE}
    found = rows.addresses_of(tx, organization, set(people.values()))
    return {text: found[person] for text, person in people.items() if person in found}
