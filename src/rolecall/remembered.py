"""What is known of organizations: their revision, and facts that hold at it, as no later change touched them.

A fact is kept with the revision of the snapshot that it was read in and the names of what it depends on. Changes are
noted by name, each before the revision that made it counts as known. So a fact holds at the known revision exactly
where none of its names was changed after its own: whichever way reading, changing and noting fall together.
"""

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from rolecall.storage import Change

__all__ = ["MISSING", "Fact", "Found", "Remembered"]

# So many changed names of one organization are told apart; after that, all that was known of it is dropped.
MAX_NAMES = 10_000
# So many organizations; after that, everything is.
MAX_ORGANIZATIONS = 100_000
# What is changed past us, by hand in the database, is seen after so long.
SECONDS = 300.0


class Keyed(Protocol):
    """What has a key."""

    @property
    def key(self) -> str:
        """The key."""
        ...


class Found(NamedTuple):
    """What was read: `value` is None where there is no such thing. It depends on `names`, and holds for `seconds`."""

    key: Hashable
    value: Any
    names: tuple[str, ...] = ()
    seconds: float = SECONDS


class Fact(NamedTuple):
    """What is remembered of it, and of which revision the snapshot was; on the monotonic clock, until when."""

    value: Any
    revision: int
    names: tuple[str, ...]
    until: float


MISSING: Final = Fact(None, -1, (), 0.0)


class _Known:
    """One organization. Facts older than `floor` are not taken: what changed before it wasn't noted."""

    __slots__ = ("changed", "facts", "floor", "joined", "revision")

    def __init__(self, revision: int) -> None:
        self.revision = self.floor = revision
        self.changed: dict[str, int] = {}
        # The last change that may have made something that wasn't there.
        self.joined = 0
        self.facts: dict[Hashable, Fact] = {}

    def get(self, key: Hashable) -> Fact:
        fact = self.facts.get(key)
        if fact is None or fact.until < time.monotonic():
            return MISSING
        if fact.value is None:
            return fact if fact.revision >= self.joined else MISSING
        changed = self.changed
        if changed:
            for name in fact.names:
                if changed.get(name, 0) > fact.revision:
                    return MISSING
        return fact


class Remembered:
    """Facts by organization and key. Threads may share it; `get` takes no lock.

    Of what exists and of what doesn't, `capacity` facts each: a flood of questions about nobody pushes out only what
    was known about nobody. The oldest go first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._order: dict[bool, deque[tuple[_Known, Hashable, Fact]]] = {True: deque(), False: deque()}
        self._ticket = 0

    def revision(self, organization: str) -> int | None:
        """The organization's revision as far as it is known; to be read before the facts."""
        known = self._known.get(organization)
        return known.revision if known else None

    def get(self, organization: str, key: Hashable) -> Fact:
        """What is known under the key; `MISSING` where nothing is that still holds."""
        known = self._known.get(organization)
        return known.get(key) if known is not None else MISSING

    def recall_one(self, organization: str, key: str) -> tuple[int, Any] | None:
        """The revision, and the value under the key as of it, which is None where there is none; None if unknown."""
        known = self._known.get(organization)
        if known is None:
            return None
        # Before the fact: what changed up to it is noted by now.
        revision = known.revision
        fact = known.get(key)
        return None if fact is MISSING or fact.revision > revision else (revision, fact.value)

    def recall(self, organization: str, wanted: Iterable[Keyed]) -> tuple[int, list[Any]] | None:
        """The revision, and for each that is wanted the value as of it, which is None where there is none.

        None where any isn't known, or was read in a later snapshot. An empty key is nothing's.
        """
        known = self._known.get(organization)
        if known is None:
            return None
        # Before the facts: what changed up to it is noted by now.
        revision = known.revision
        recall, changed, joined, at = known.facts.get, known.changed, known.joined, time.monotonic()
        found: list[Any] = []
        latest = 0
        for each in wanted:
            key = each.key
            fact = recall(key)
            if fact is None:
                if key:
                    return None
                found.append(None)
                continue
            value, read_at, names, until = fact
            if until < at:
                return None
            if value is None:
                if read_at < joined:
                    return None
            elif changed:
                for name in names:
                    if changed.get(name, 0) > read_at:
                        return None
            found.append(value)
            if read_at > latest:  # noqa: PLR1730 - `max` takes three times as long, and this is for each of a batch
                latest = read_at
        return (revision, found) if latest <= revision else None

    def holds(self, organization: str, fact: Fact, ticket: int) -> bool:
        """Whether a fact about something that exists, kept by somebody else who drew the ticket, still holds."""
        known = self._known.get(organization)
        if known is None or fact.revision < known.floor or ticket != self._ticket:
            return False
        changed = known.changed
        return not changed or all(changed.get(name, 0) <= fact.revision for name in fact.names)

    def ticket(self) -> int:
        """To be drawn before facts are read, and shown when they are put."""
        return self._ticket

    def put(self, organization: str, revision: int, found: Iterable[Found], ticket: int) -> None:
        """Keep what was read in one snapshot of this revision."""
        at = time.monotonic()
        with self._lock:
            if ticket != self._ticket:
                return
            known = self._known.get(organization)
            if known is None:
                known = self._meet(organization, revision)
            if revision < known.floor:
                return
            for key, value, names, seconds in found:
                fact = known.facts[key] = Fact(value, revision, names, at + min(seconds, SECONDS))
                order = self._order[value is not None]
                order.append((known, key, fact))
                if len(order) > self._capacity:
                    old, old_key, old_fact = order.popleft()
                    if old.facts.get(old_key) is old_fact:
                        del old.facts[old_key]

    def meet(self, organization: str, revision: int, value: Any, names: tuple[str, ...], ticket: int) -> Fact | None:
        """A fact of this revision for somebody else to keep; None where it may be outdated already."""
        self.put(organization, revision, (), ticket)
        return Fact(value, revision, names, 0.0) if ticket == self._ticket else None

    def note(self, changes: Sequence[Change], *, own: bool) -> None:
        """Note changes that are committed, in the order of their revisions.

        `own` are those of one transaction of this process, which may have come before others that aren't noted yet.
        """
        with self._lock:
            for change in changes:
                known = self._known.get(change.organization)
                if known is None:
                    known = self._meet(change.organization, change.revision)
                elif own and change.revision > known.revision + 1:
                    # What came between is not noted yet: begin anew from here.
                    known = self._known[change.organization] = _Known(change.revision)
                elif len(known.changed) >= MAX_NAMES and known.changed.get(change.key, 0) < change.revision:
                    # Too much is: begin anew, and never from before what is known.
                    known = self._known[change.organization] = _Known(max(change.revision, known.revision))
                known.changed[change.key] = max(change.revision, known.changed.get(change.key, 0))
                if change.kind in ("member", "credential"):
                    known.joined = max(change.revision, known.joined)
            for change in changes:
                known = self._known.get(change.organization)
                if known is None:
                    # Dropped with all others, as there are too many.
                    continue
                known.revision = max(change.revision, known.revision)

    def clear(self) -> None:
        """Forget everything, and what is being read at this moment."""
        with self._lock:
            self._ticket += 1
            self._known = {}
            for order in self._order.values():
                order.clear()

    def _meet(self, organization: str, revision: int) -> _Known:
        if len(self._known) >= MAX_ORGANIZATIONS:
            self._ticket += 1
            self._known = {}
        known = self._known[organization] = _Known(revision)
        return known
