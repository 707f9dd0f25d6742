"""What is remembered holds: however reading, changing, noting and forgetting fall together."""

import threading
import time
from dataclasses import dataclass, field

import pytest
from conftest import CI
from hypothesis import given, settings
from hypothesis import strategies as st

from rolecall import remembered
from rolecall.gathered import Gathered
from rolecall.remembered import MISSING, Found, Remembered
from rolecall.storage import Change

KEYS = ("ann", "bob", "cyd")


@dataclass
class Snapshot:
    """What a reader has in hand."""

    ticket: int
    revision: int
    rows: dict[str, str]


@dataclass
class World:
    """A database of one organization, and a process that remembers it."""

    memory: Remembered = field(default_factory=lambda: Remembered(1000))
    history: list[dict[str, str]] = field(default_factory=lambda: [{}])
    own: dict[str, int] = field(default_factory=dict)
    unnoted: list[Change] = field(default_factory=list)
    readers: list[Snapshot] = field(default_factory=list)

    @property
    def revision(self) -> int:
        """The newest."""
        return len(self.history) - 1

    def commit(self, key: str, value: str, *, own: bool) -> None:
        """Change a row; this process notes its own changes at once, others come by the feed."""
        rows = dict(self.history[-1])
        rows[key] = value
        if not value:
            del rows[key]
        self.history.append(rows)
        change = Change("acme", self.revision, "member", key)
        self.unnoted.append(change)
        if own:
            self.memory.note([change], own=True)
            self.own[key] = self.revision

    def feed(self) -> None:
        """All that was committed is noted, what is this process's own once more."""
        self.memory.note(self.unnoted, own=False)
        self.unnoted = []

    def reconnect(self) -> None:
        """The feed begins anew, behind all that was committed."""
        self.unnoted = []
        self.memory.clear()

    def read(self) -> None:
        """Somebody reads all rows, and puts them later."""
        self.readers.append(Snapshot(self.memory.ticket(), self.revision, self.history[-1]))

    def put(self, number: int, keys: set[str]) -> None:
        """A reader has what was read of these remembered."""
        if self.readers:
            reader = self.readers[number % len(self.readers)]
            found = [Found(key, reader.rows.get(key), (key,) if key in reader.rows else ()) for key in sorted(keys)]
            self.memory.put("acme", reader.revision, found, reader.ticket)

    def check(self) -> None:
        """What is remembered is what stands in the database at the revision that is known, or at a later one."""
        known = self.memory.revision("acme")
        for key in KEYS:
            fact = self.memory.get("acme", key)
            if fact is MISSING:
                continue
            assert known is not None
            assert fact.value == self.history[fact.revision].get(key)
            for later in range(fact.revision, known + 1):
                assert self.history[later].get(key) == fact.value, (key, fact, later, known)
            # A process's own writes are in force before it answers.
            assert fact.revision >= self.own.get(key, 0) or fact.value == self.history[self.own[key]].get(key)


STEPS = st.one_of(
    st.tuples(st.just("commit"), st.sampled_from(KEYS), st.sampled_from(["", "OWNER", "VIEWER"]), st.booleans()),
    st.tuples(st.just("put"), st.integers(0, 20), st.sets(st.sampled_from(KEYS), min_size=1)),
    st.sampled_from([("feed",), ("read",), ("read",), ("reconnect",)]),
)


@settings(max_examples=4000 if CI else 200, deadline=None)
@given(st.lists(STEPS, max_size=25), st.sampled_from([2, 10_000]))
def test_what_is_remembered_holds(steps: list[tuple[object, ...]], names: int) -> None:
    """In any order of commits here and elsewhere, reads, fills that come late, feeds that lag, and reconnections."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "MAX_NAMES", names)
        world = World()
        for kind, *rest in steps:
            match kind:
                case "commit":
                    key, value, own = rest
                    world.commit(str(key), str(value), own=bool(own))
                case "put":
                    number, keys = rest
                    world.put(int(str(number)), set(keys))  # type: ignore[call-overload]
                case "feed":
                    world.feed()
                case "read":
                    world.read()
                case _:
                    world.reconnect()
            world.check()


def test_what_others_changed_before_an_own_write_is_not_filled_with_what_came_before() -> None:
    """The own write is known at once, and with it all that came before it, though the feed hasn't told of it yet."""
    world = World()
    world.commit("ann", "VIEWER", own=False)
    world.read()
    world.commit("ann", "OWNER", own=False)
    world.commit("bob", "VIEWER", own=True)
    world.put(0, {"ann"})

    assert world.memory.revision("acme") == 3
    assert world.memory.get("acme", "ann") is MISSING


def test_what_is_filled_after_a_change_is_kept() -> None:
    """And once the feed has noted everything, the newest revision is known."""
    world = World()
    world.commit("ann", "OWNER", own=False)
    world.read()
    world.put(0, {"ann", "bob"})
    world.commit("bob", "VIEWER", own=False)
    world.feed()

    assert world.memory.get("acme", "ann").value == "OWNER"
    assert world.memory.get("acme", "bob") is MISSING
    assert world.memory.revision("acme") == 2
    world.read()
    world.put(1, {"bob"})
    assert world.memory.get("acme", "bob").value == "VIEWER"


def test_a_flood_of_unknowns_pushes_out_no_member() -> None:
    """Of what exists and of what doesn't, so many facts each; the oldest go first, and nothing else grows."""
    memory = Remembered(100)
    memory.put("acme", 1, [Found(f"member{number}", "VIEWER", (f"member{number}",)) for number in range(100)], 0)
    for number in range(5000):
        memory.put("acme", 1, [Found(f"nobody{number}", None)], 0)

    assert all(memory.get("acme", f"member{number}").value == "VIEWER" for number in range(100))
    assert memory.get("acme", "nobody4999").value is None
    assert memory.get("acme", "nobody4899") is MISSING
    assert len(memory._known["acme"].facts) == 200
    assert sum(map(len, memory._order.values())) == 200


def test_facts_are_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody changes by hand in the database is seen after that."""
    monkeypatch.setattr(remembered, "SECONDS", 0.05)
    memory = Remembered(10)
    memory.put("acme", 1, [Found("ann", "OWNER", ("ann",))], 0)
    kept = memory.get("acme", "ann")
    time.sleep(0.06)

    assert kept.value == "OWNER"
    assert memory.get("acme", "ann") is MISSING


def test_many_organizations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound all is forgotten, and what was being read is not kept."""
    monkeypatch.setattr(remembered, "MAX_ORGANIZATIONS", 3)
    memory = Remembered(1000)
    ticket = memory.ticket()
    for number in range(10):
        memory.put(f"org{number}", 1, [Found("ann", "OWNER", ("ann",))], memory.ticket())
    memory.put("org0", 1, [Found("ann", "OWNER", ("ann",))], ticket)

    assert len(memory._known) <= 3
    assert memory.get("org9", "ann").value == "OWNER"
    assert memory.get("org0", "ann") is MISSING


# Look-ups that come together


def test_a_stampede_is_one_look_up() -> None:
    """Whoever comes while one runs shares the next one, whatever they look for; nobody gets an older answer."""
    looked_up: list[set[str]] = []
    started, go_on = threading.Event(), threading.Event()

    def look_up(organization: str, keys: set[str]) -> None:
        looked_up.append(set(keys))
        started.set()
        go_on.wait(5)

    gathered: Gathered[str] = Gathered(look_up)
    first = threading.Thread(target=gathered.look_up, args=("acme", ["ann"]))
    first.start()
    started.wait(5)
    others = [threading.Thread(target=gathered.look_up, args=("acme", [f"m{n % 7}"])) for n in range(30)]
    for thread in others:
        thread.start()
    deadline = time.monotonic() + 5
    while len(gathered._open["acme"][0].keys) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    go_on.set()
    for thread in (first, *others):
        thread.join(5)

    assert looked_up == [{"ann"}, {f"m{n}" for n in range(7)}]
    assert not gathered._open
    assert not gathered._running


def test_a_look_up_that_fails_fails_for_all_who_shared_it() -> None:
    """And the next one is made anew."""
    calls: list[int] = []

    def look_up(organization: str, keys: set[str]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("broken")

    gathered: Gathered[str] = Gathered(look_up)
    with pytest.raises(KeyError):
        gathered.look_up("acme", ["ann"])
    gathered.look_up("acme", ["ann"])

    assert len(calls) == 2


def test_too_many_changes_lead_never_back() -> None:
    """The feed tells once more what this process noted itself: nothing noted since is forgotten by that."""
    memory = Remembered(1000)
    memory.put("o", 1, (), memory.ticket())
    last = remembered.MAX_NAMES
    for revision in range(2, last + 1):
        memory.note([Change("o", revision, "member", f"u{revision}")], own=True)
    fact = memory.meet("o", last, "held", ("token",), memory.ticket())
    assert fact is not None
    memory.note([Change("o", last + 1, "credential", "token")], own=True)
    memory.note([Change("o", revision, "member", f"u{revision}") for revision in (last - 1, last)], own=False)

    assert not memory.holds("o", fact, memory.ticket())
    assert (memory.revision("o") or 0) > last


def test_one_fact_is_never_newer_than_the_revision_told() -> None:
    """Whoever asks elsewhere with that revision must not go back in time."""
    memory = Remembered(1000)
    memory.put("o", 1, (), memory.ticket())
    memory.put("o", 2, [Found("k", "role", ("u",))], memory.ticket())

    assert memory.recall_one("o", "k") is None
    memory.note([Change("o", 2, "member", "other")], own=False)
    assert memory.recall_one("o", "k") == (2, "role")
