"""The batch loader coalesces concurrent misses; a query that hangs delays its own batch only."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rolecall.errors import RateLimited, StorageUnavailable
from rolecall.identity.batch_loader import BatchLoader, Miss
from rolecall.limits import Limits


class Database:
    """Loader function that doubles numbers, and can be blocked by a gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.starts: list[float] = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, keys: list[int]) -> Sequence[int | Exception]:
        self.starts.append(time.monotonic())
        self.batches.append(keys)
        assert self.gate.wait(20)
        return [ValueError("odd luck") if key == 999 else 2 * key for key in keys]


@pytest.fixture
def database() -> Database:
    """A database whose gate is open."""
    return Database()


@pytest.fixture
def loader(database: Database) -> Iterator[BatchLoader[int, int]]:
    """A loader with small bounds."""
    made = BatchLoader("test", database.load, Limits(load_batch=10, load_seconds=0.3), queue=25)
    yield made
    database.gate.set()
    made.close()


def _load_slowly(database: Database, loader: BatchLoader[int, int]) -> Future[int]:
    """Start a load whose query runs until the gate opens."""
    database.gate.clear()
    future = loader.load(0)
    deadline = time.monotonic() + 5
    while not database.batches and time.monotonic() < deadline:
        time.sleep(0.001)
    return future


def test_concurrent_loads_of_one_key_share_a_query(database: Database, loader: BatchLoader[int, int]) -> None:
    """Loads that come while a query runs are one query after it, whatever their keys; nothing older is returned."""
    first = _load_slowly(database, loader)
    with ThreadPoolExecutor(30) as threads:
        others = list(threads.map(lambda number: loader.load(number % 7), range(30)))
    database.gate.set()

    assert first.result(5) == 0
    assert [future.result(5) for future in others] == [2 * (number % 7) for number in range(30)]
    assert [sorted(batch) for batch in database.batches] == [[0], list(range(7))]


def test_error_of_one_key_fails_no_other(loader: BatchLoader[int, int]) -> None:
    """The rest of the batch gets its values, and the loader continues."""
    futures = [loader.load(key) for key in (12, 999, 14)]

    assert futures[0].result(5) == 24
    assert futures[2].result(5) == 28
    with pytest.raises(ValueError, match="odd luck"):
        futures[1].result(5)
    assert loader.load(5).result(5) == 10


def test_a_batch_that_raises_fails_all_its_keys(database: Database) -> None:
    """The next batch is loaded as ever."""
    errors = iter([OSError("away")])

    def load(keys: list[int]) -> Sequence[int | Exception]:
        for error in errors:
            raise error
        return database.load(keys)

    loader = BatchLoader("test", load)
    with pytest.raises(OSError, match="away"):
        loader.load(1).result(5)

    assert loader.load(2).result(5) == 4
    loader.close()


def test_batch_has_a_maximum_size(database: Database, loader: BatchLoader[int, int]) -> None:
    """Keys above the maximum go into further batches, in the order of their loads."""
    _load_slowly(database, loader)
    futures = [loader.load(key) for key in range(1, 26)]
    database.gate.set()

    assert [future.result(5) for future in futures] == [2 * key for key in range(1, 26)]
    assert [len(batch) for batch in database.batches] == [1, 10, 10, 5]


def test_a_full_queue_refuses_all_but_urgent_loads(database: Database, loader: BatchLoader[int, int]) -> None:
    """A load of a key that is queued already takes no place."""
    _load_slowly(database, loader)
    for key in range(1, 26):
        loader.load(key)

    with pytest.raises(RateLimited):
        loader.load(99)
    assert loader.load(7) is loader.load(7)
    urgent = loader.load(100, urgent=True)
    database.gate.set()
    assert urgent.result(5) == 200


def test_hanging_query_is_given_up(database: Database, loader: BatchLoader[int, int]) -> None:
    """A hanging query fails its loads and those queued; later ones get another thread, its late result is ignored."""
    first = _load_slowly(database, loader)
    behind = loader.load(1)
    loader.fail_overdue()
    assert not first.done()
    time.sleep(0.35)
    loader.fail_overdue()

    for future in (first, behind):
        with pytest.raises(StorageUnavailable):
            future.result(0)
    database.gate.set()
    assert loader.load(2).result(5) == 4
    time.sleep(0.05)
    assert isinstance(first.exception(0), StorageUnavailable)


def test_closing_ends_the_thread_and_fails_what_is_queued(database: Database) -> None:
    """Nothing waits for a server that has stopped."""
    loader = BatchLoader("closing", database.load)
    first = _load_slowly(database, loader)
    queued = loader.load(1)
    loader.close()
    database.gate.set()

    for future in (first, queued):
        with pytest.raises(StorageUnavailable):
            future.result(1)
    deadline = time.monotonic() + 5
    while any(thread.name == "closing" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_load_that_is_alone_never_waits_for_the_pace(database: Database) -> None:
    """Batches keep a pace only while loads queue up: sequential loads run at once."""
    loader = BatchLoader("alone", database.load, Limits(load_pace=0.2))
    began = time.monotonic()
    for key in range(20):
        assert loader.load(key).result(5) == 2 * key
    took = time.monotonic() - began

    assert took < 0.2
    loader.close()


def test_loads_that_queue_up_keep_the_pace(database: Database) -> None:
    """The starts of two batches are that far apart while several loads wait."""
    loader = BatchLoader("paced", database.load, Limits(load_pace=0.1))
    first = _load_slowly(database, loader)
    several = [loader.load(key) for key in (1, 2, 3)]
    database.gate.set()
    for future in (first, *several):
        future.result(5)

    assert database.starts[1] - database.starts[0] >= 0.095
    loader.close()


def test_a_miss_waits_starts_and_converts() -> None:
    """`then` converts the answer; `wait` gives up after its seconds with STORAGE_UNAVAILABLE."""
    done: Future[int] = Future()
    done.set_result(20)
    never: Future[int] = Future()

    assert Miss(lambda: done, lambda loaded: loaded + 1).then(str).wait() == "21"
    with pytest.raises(StorageUnavailable):
        Miss(lambda: never, str, seconds=0.05).wait()


def test_a_wrong_number_of_values_fails_the_batch() -> None:
    """A query that returns too few values fails its keys instead of ending the thread; the next batch is loaded."""
    answers = iter([[], [4]])
    loader: BatchLoader[int, int] = BatchLoader("test", lambda _keys: next(answers))

    with pytest.raises(ValueError, match="0 values for 1 keys"):
        loader.load(1).result(5)
    assert loader.load(2).result(5) == 4
    loader.close()


def test_a_thread_that_cannot_be_started_fails_its_load_alone(
    database: Database, loader: BatchLoader[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process may have no more threads, a load raises, and waits for nobody; the next one starts a thread."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for key in (1, 2):
            with pytest.raises(RuntimeError):
                loader.load(key)

    assert [loader.load(key).result(5) for key in (1, 3)] == [2, 6]
    assert database.batches == [[1], [3]]


def test_a_batch_that_begins_just_now_is_not_overdue(
    database: Database, loader: BatchLoader[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog that looks while a batch begins doesn't take it for one that began as long ago as the last."""
    assert loader.load(1).result(5) == 2
    time.sleep(0.35)
    clock, watchdogs = time.monotonic, list[threading.Thread]()

    def monotonic() -> float:
        if threading.current_thread().name == "test" and not watchdogs and loader._loading:
            watchdogs.append(threading.Thread(target=loader.fail_overdue))
            watchdogs[0].start()
            watchdogs[0].join(0.1)
        return clock()

    database.gate.clear()
    monkeypatch.setattr(time, "monotonic", monotonic)
    future = loader.load(2)
    while not watchdogs or watchdogs[0].is_alive():
        time.sleep(0.01)
    database.gate.set()

    assert future.result(5) == 4
