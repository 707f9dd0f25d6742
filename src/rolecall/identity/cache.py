"""Caches of members and credentials: by organization revision, which commits invalidate, and by time."""

import math
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from rolecall.domain import AssignedRoles, Principal, PrincipalKind
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.storage import Change

__all__ = ["MISSING", "CacheEntry", "LoadedEntry", "RevisionCache", "TTLCache", "names_of"]

# Changed names kept for one organization; above it, the organization's entries are dropped.
MAX_NAMES = 10_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Keyed(Protocol):
    """Object with a cache key."""

    @property
    def key(self) -> str:
        """The key."""
        ...


class LoadedEntry(NamedTuple):
    """Value read from the database, None for one that doesn't exist. It depends on the ids in `names`.

    `seconds`: time after which it is no longer valid without any change.
    """

    key: Hashable
    value: Any
    names: tuple[str, ...] = ()
    seconds: float = math.inf


class CacheEntry(NamedTuple):
    """A cached value, the revision of the snapshot that it was read in, and its end on the monotonic clock."""

    value: Any
    revision: int
    names: tuple[str, ...]
    until: float


def names_of(assigned: AssignedRoles, *ids: str) -> tuple[str, ...]:
    """Return the names that an entry depends on: ids, of which empty ones are left out, and the subject's teams."""
    teams = (Principal(PrincipalKind.TEAM, team_id).text for team_id in assigned.teams)
    return (*filter(None, ids), *teams)


MISSING: Final = CacheEntry(None, -1, (), 0.0)


class _OrganizationCache:
    """Entries of one organization. Those read below the revision `floor` are refused: earlier changes are unknown."""

    __slots__ = ("changed", "entries", "floor", "last_added", "revision")

    def __init__(self, revision: int) -> None:
        self.revision = self.floor = revision
        self.changed: dict[str, int] = {}
        # The last revision that may have added something: it invalidates cached absence.
        self.last_added = 0
        self.entries: dict[Hashable, CacheEntry] = {}

    def get(self, key: Hashable) -> CacheEntry:
        entry = self.entries.get(key)
        if entry is None or entry.until < time.monotonic():
            return MISSING
        if entry.value is None:
            return entry if entry.revision >= self.last_added else MISSING
        changed = self.changed
        if changed:
            for name in entry.names:
                if changed.get(name, 0) > entry.revision:
                    return MISSING
        return entry


class RevisionCache:
    """Cache by organization and key, invalidated by committed changes. Threads may share it; reads take no lock.

    An entry holds the revision of the snapshot that it was read in, and the names (ids) that it depends on. A change is
    recorded by name before its revision becomes the organization's known one. So an entry is valid at the known
    revision exactly if none of its names was changed after the entry's own revision, in whatever order loading,
    committing and recording interleave.

    Existing and absent values are bounded apart, `cached_entries` each, the oldest evicted first: a flood of questions
    about unknown subjects evicts nothing else.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._organizations: dict[str, _OrganizationCache] = {}
        self._order: dict[bool, deque[tuple[_OrganizationCache, Hashable, CacheEntry]]] = {
            True: deque(),
            False: deque(),
        }
        self.epoch = 0
        """Number of times that all entries were dropped. Read it before a query; `put` ignores older results."""

    def revision(self, organization: str) -> int | None:
        """The organization's known revision, to be read before its entries; None for an organization never seen."""
        known = self._organizations.get(organization)
        return known.revision if known else None

    def get(self, organization: str, key: Hashable) -> CacheEntry:
        """The valid entry of the key, else `MISSING`."""
        known = self._organizations.get(organization)
        return known.get(key) if known is not None else MISSING

    def get_one(self, organization: str, key: str) -> tuple[int, Any] | None:
        """The known revision and the key's value at it (None for a cached absence); None on a cache miss."""
        known = self._organizations.get(organization)
        if known is None:
            return None
        # Before the entry: what changed up to this revision is recorded by now.
        revision = known.revision
        entry = known.get(key)
        return None if entry is MISSING or entry.revision > revision else (revision, entry.value)

    def get_many(self, organization: str, wanted: Iterable[Keyed]) -> tuple[int, list[Any]] | None:
        """The known revision and the value of each at it; None where any is missing or of a later snapshot.

        The empty key always has the value None. Equals `get_one` for each, written out for speed.
        """
        known = self._organizations.get(organization)
        if known is None:
            return None
        # Before the entries: what changed up to this revision is recorded by now.
        revision = known.revision
        get, changed, last_added, at = known.entries.get, known.changed, known.last_added, time.monotonic()
        values: list[Any] = []
        latest = 0
        for each in wanted:
            key = each.key
            entry = get(key)
            if entry is None:
                if key:
                    return None
                values.append(None)
                continue
            value, read_at, names, until = entry
            if until < at:
                return None
            if value is None:
                if read_at < last_added:
                    return None
            elif changed:
                for name in names:
                    if changed.get(name, 0) > read_at:
                        return None
            values.append(value)
            if read_at > latest:  # noqa: PLR1730 - `max` takes three times as long, once for each item of a batch
                latest = read_at
        return (revision, values) if latest <= revision else None

    def is_current(self, organization: str, entry: CacheEntry, epoch: int) -> bool:
        """Whether an entry that `external_entry` made in this epoch, of a value that exists, is still valid."""
        known = self._organizations.get(organization)
        if known is None or entry.revision < known.floor or epoch != self.epoch:
            return False
        changed = known.changed
        return not changed or all(changed.get(name, 0) <= entry.revision for name in entry.names)

    def put(self, organization: str, revision: int, loaded: Iterable[LoadedEntry], epoch: int) -> None:
        """Cache entries read in one snapshot of this revision, unless all were dropped since `epoch`."""
        at = time.monotonic()
        with self._lock:
            if epoch != self.epoch:
                return
            known = self._organizations.get(organization)
            if known is None:
                known = self._add(organization, revision)
            if revision < known.floor:
                return
            for key, value, names, seconds in loaded:
                until = at + min(seconds, self._limits.cached_seconds)
                entry = known.entries[key] = CacheEntry(value, revision, names, until)
                order = self._order[value is not None]
                order.append((known, key, entry))
                if len(order) > self._limits.cached_entries:
                    old, old_key, old_entry = order.popleft()
                    if old.entries.get(old_key) is old_entry:
                        del old.entries[old_key]

    def external_entry(
        self, organization: str, revision: int, value: Any, names: tuple[str, ...], epoch: int
    ) -> CacheEntry | None:
        """An entry for another cache, which asks `is_current`; None where it may be outdated already."""
        self.put(organization, revision, (), epoch)
        return CacheEntry(value, revision, names, 0.0) if epoch == self.epoch else None

    def apply(self, changes: Sequence[Change], *, own: bool) -> None:
        """Record committed changes, in the order of their revisions.

        `own`: the changes are of one transaction of this process; earlier ones of other processes may come later.
        """
        with self._lock:
            for change in changes:
                known = self._organizations.get(change.organization)
                if known is None:
                    known = self._add(change.organization, change.revision)
                elif own and change.revision > known.revision + 1:
                    # The revisions between are not recorded yet: start empty at this one.
                    known = self._organizations[change.organization] = _OrganizationCache(change.revision)
                elif len(known.changed) >= MAX_NAMES and known.changed.get(change.key, 0) < change.revision:
                    # Too many names: start empty, and never below the known revision.
                    start = max(change.revision, known.revision)
                    known = self._organizations[change.organization] = _OrganizationCache(start)
                known.changed[change.key] = max(change.revision, known.changed.get(change.key, 0))
                if change.kind in ("member", "credential"):
                    known.last_added = max(change.revision, known.last_added)
            for change in changes:
                known = self._organizations.get(change.organization)
                if known is None:
                    # Dropped with all others: there were too many organizations.
                    continue
                known.revision = max(change.revision, known.revision)

    def clear(self) -> None:
        """Drop all entries, and ignore the results of queries that are running."""
        with self._lock:
            self.epoch += 1
            self._organizations = {}
            for order in self._order.values():
                order.clear()

    def _add(self, organization: str, revision: int) -> _OrganizationCache:
        if len(self._organizations) >= self._limits.cached_organizations:
            self.epoch += 1
            self._organizations = {}
        known = self._organizations[organization] = _OrganizationCache(revision)
        return known


class TTLCache(Generic[K, V]):
    """Cache with a capacity and one lifetime for all entries. Threads may share it; `get` takes no lock."""

    def __init__(self, capacity: int, seconds: float) -> None:
        """Holds at most `capacity` values, each for `seconds`; the oldest are evicted first."""
        self._capacity = capacity
        self._seconds = seconds
        self._lock = threading.Lock()
        self._entries: dict[K, tuple[V, float]] = {}

    def get(self, key: K) -> V | None:
        """The value; None where the key is missing or expired."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and entry[1] > time.monotonic() else None

    def drop(self, key: K) -> None:
        """Remove the key, if it is cached."""
        with self._lock:
            self._entries.pop(key, None)

    def put(self, key: K, value: V) -> None:
        """Cache the value."""
        with self._lock:
            self._entries.pop(key, None)
            while len(self._entries) >= self._capacity:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = (value, time.monotonic() + self._seconds)
