"""The cache holds no stale entry, in whatever order readers, changes, the feed and expiry come."""

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall.identity import cache
from rolecall.identity.cache import MISSING, LoadedEntry, RevisionCache
from rolecall.limits import Limits
from rolecall.storage import Change
from support.environment import CI

KEYS = ("ann", "bob", "cyd")


@dataclass
class Snapshot:
    """Rows that a query has read, not yet put into the cache."""

    epoch: int
    revision: int
    rows: dict[str, str]


@dataclass
class CacheModel:
    """Model of a database with one organization, and of a process that caches it."""

    cached: RevisionCache = field(default_factory=RevisionCache)
    history: list[dict[str, str]] = field(default_factory=lambda: [{}])
    own: dict[str, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    readers: list[Snapshot] = field(default_factory=list)

    @property
    def revision(self) -> int:
        """The newest revision."""
        return len(self.history) - 1

    def commit(self, key: str, value: str, *, own: bool) -> None:
        """Change a row; the cache gets own changes at once, others by the feed."""
        rows = dict(self.history[-1])
        rows[key] = value
        if not value:
            del rows[key]
        self.history.append(rows)
        change = Change("acme", self.revision, "member", key)
        self.pending.append(change)
        if own:
            self.cached.apply([change], own=True)
            self.own[key] = self.revision

    def feed(self) -> None:
        """Apply all pending changes, those of this process once more."""
        self.cached.apply(self.pending, own=False)
        self.pending = []

    def reconnect(self) -> None:
        """Restart the feed after all committed changes, which clears the cache."""
        self.pending = []
        self.cached.clear()

    def read(self) -> None:
        """Read all rows, to be put into the cache later."""
        self.readers.append(Snapshot(self.cached.epoch, self.revision, self.history[-1]))

    def put(self, number: int, keys: set[str]) -> None:
        """Put rows that were read earlier into the cache."""
        if self.readers:
            reader = self.readers[number % len(self.readers)]
            found = [
                LoadedEntry(key, reader.rows.get(key), (key,) if key in reader.rows else ()) for key in sorted(keys)
            ]
            self.cached.put("acme", reader.revision, found, reader.epoch)

    def check(self) -> None:
        """Assert that the cache holds the rows of the known revision, or of a later one."""
        known = self.cached.revision("acme")
        for key in KEYS:
            entry = self.cached.get("acme", key)
            if entry is MISSING:
                continue
            assert known is not None
            assert entry.value == self.history[entry.revision].get(key)
            for later in range(entry.revision, known + 1):
                assert self.history[later].get(key) == entry.value, (key, entry, later, known)
            # A process's own writes are in force before it answers.
            assert entry.revision >= self.own.get(key, 0) or entry.value == self.history[self.own[key]].get(key)


STEPS = st.one_of(
    st.tuples(st.just("commit"), st.sampled_from(KEYS), st.sampled_from(["", "OWNER", "VIEWER"]), st.booleans()),
    st.tuples(st.just("put"), st.integers(0, 20), st.sets(st.sampled_from(KEYS), min_size=1)),
    st.sampled_from([("feed",), ("read",), ("read",), ("reconnect",)]),
)


@settings(max_examples=4000 if CI else 200, deadline=None)
@given(st.lists(STEPS, max_size=25), st.sampled_from([2, 10_000]))
def test_cache_holds_in_any_order_of_events(steps: list[tuple[object, ...]], names: int) -> None:
    """The cache is right after commits anywhere, reads, late fills, lagging feeds and reconnections in any order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "MAX_NAMES", names)
        model = CacheModel()
        for kind, *rest in steps:
            match kind:
                case "commit":
                    key, value, own = rest
                    model.commit(str(key), str(value), own=bool(own))
                case "put":
                    number, keys = rest
                    model.put(int(str(number)), set(keys))  # type: ignore[call-overload]
                case "feed":
                    model.feed()
                case "read":
                    model.read()
                case _:
                    model.reconnect()
            model.check()


def test_own_write_does_not_revive_entries_that_others_changed_before() -> None:
    """A process's own write is known at once, with all before it, though the feed hasn't delivered that yet."""
    model = CacheModel()
    model.commit("ann", "VIEWER", own=False)
    model.read()
    model.commit("ann", "OWNER", own=False)
    model.commit("bob", "VIEWER", own=True)
    model.put(0, {"ann"})

    assert model.cached.revision("acme") == 3
    assert model.cached.get("acme", "ann") is MISSING


def test_entry_put_after_a_change_is_kept() -> None:
    """A row filled after a change is kept, and once the feed has applied everything, the newest revision is known."""
    model = CacheModel()
    model.commit("ann", "OWNER", own=False)
    model.read()
    model.put(0, {"ann", "bob"})
    model.commit("bob", "VIEWER", own=False)
    model.feed()

    assert model.cached.get("acme", "ann").value == "OWNER"
    assert model.cached.get("acme", "bob") is MISSING
    assert model.cached.revision("acme") == 2
    model.read()
    model.put(1, {"bob"})
    assert model.cached.get("acme", "bob").value == "VIEWER"


def test_unknown_subjects_evict_no_member() -> None:
    """The cache has one limit for existing and one for absent facts; the oldest go first, and nothing else grows."""
    cached = RevisionCache(Limits(cached_entries=100))
    cached.put("acme", 1, [LoadedEntry(f"member{number}", "VIEWER", (f"member{number}",)) for number in range(100)], 0)
    for number in range(5000):
        cached.put("acme", 1, [LoadedEntry(f"nobody{number}", None)], 0)

    assert all(cached.get("acme", f"member{number}").value == "VIEWER" for number in range(100))
    assert cached.get("acme", "nobody4999").value is None
    assert cached.get("acme", "nobody4899") is MISSING
    assert len(cached._organizations["acme"].entries) == 200
    assert sum(map(len, cached._order.values())) == 200


def test_entries_expire() -> None:
    """A row that was changed by hand in the database is seen after the entry's lifetime."""
    cached = RevisionCache(Limits(cached_seconds=0.05))
    cached.put("acme", 1, [LoadedEntry("ann", "OWNER", ("ann",))], 0)
    kept = cached.get("acme", "ann")
    time.sleep(0.06)

    assert kept.value == "OWNER"
    assert cached.get("acme", "ann") is MISSING


def test_number_of_organizations_is_bounded() -> None:
    """Above the maximum all entries are dropped, and results of queries that are running are ignored."""
    cached = RevisionCache(Limits(cached_organizations=3))
    epoch = cached.epoch
    for number in range(10):
        cached.put(f"org{number}", 1, [LoadedEntry("ann", "OWNER", ("ann",))], cached.epoch)
    cached.put("org0", 1, [LoadedEntry("ann", "OWNER", ("ann",))], epoch)

    assert len(cached._organizations) <= 3
    assert cached.get("org9", "ann").value == "OWNER"
    assert cached.get("org0", "ann") is MISSING


def test_known_revision_never_decreases_after_too_many_changes() -> None:
    """The feed repeats this process's own changes: nothing applied since is dropped by that."""
    cached = RevisionCache()
    cached.put("o", 1, (), cached.epoch)
    last = cache.MAX_NAMES
    for revision in range(2, last + 1):
        cached.apply([Change("o", revision, "member", f"u{revision}")], own=True)
    entry = cached.external_entry("o", last, "held", ("token",), cached.epoch)
    assert entry is not None
    cached.apply([Change("o", last + 1, "credential", "token")], own=True)
    cached.apply([Change("o", revision, "member", f"u{revision}") for revision in (last - 1, last)], own=False)

    assert not cached.is_current("o", entry, cached.epoch)
    assert (cached.revision("o") or 0) > last


def test_entry_is_never_newer_than_the_returned_revision() -> None:
    """No fact is newer than the answer's revision: a caller that uses it elsewhere must not go back in time."""
    cached = RevisionCache()
    cached.put("o", 1, (), cached.epoch)
    cached.put("o", 2, [LoadedEntry("k", "role", ("u",))], cached.epoch)

    assert cached.get_one("o", "k") is None
    cached.apply([Change("o", 2, "member", "other")], own=False)
    assert cached.get_one("o", "k") == (2, "role")
