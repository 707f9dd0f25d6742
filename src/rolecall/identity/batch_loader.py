"""Coalesces concurrent cache misses: one query for all that miss at once, one for all that miss the same key."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from rolecall.errors import RateLimited, StorageUnavailable
from rolecall.limits import DEFAULT_LIMITS, Limits

__all__ = ["BatchLoader", "Miss"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")

# Messages to the loader's thread: keys are queued, or it is to end.
_WORK, _END = "work", ""
_TOO_SLOW = "The database takes too long to answer: try again in a second."


class Miss(Generic[T]):
    """Cache miss: the query that loads what the cache lacks, and the function that computes the answer from it.

    `start` enqueues the query, or joins one that is queued, and returns its Future; it may raise `RateLimited`.
    `finish` computes the answer from the query's result.
    """

    __slots__ = ("_seconds", "finish", "start")

    def __init__(self, start: Callable[[], Future[Any]], finish: Callable[[Any], T], seconds: float = 10.0) -> None:
        """`seconds`: maximum time that `wait` blocks, enough for a batch that hangs and the one behind it."""
        self.start = start
        self.finish = finish
        self._seconds = seconds

    def then(self, convert: Callable[[T], U]) -> "Miss[U]":
        """Return a miss with the same query, whose answer is passed through `convert`."""
        finish = self.finish
        return Miss(self.start, lambda loaded: convert(finish(loaded)), self._seconds)

    def wait(self) -> T:
        """Block until the query is done, and return the answer. Raises `StorageUnavailable`, `RateLimited`."""
        try:
            loaded = self.start().result(self._seconds)
        except TimeoutError as error:
            raise StorageUnavailable(_TOO_SLOW) from error
        return self.finish(loaded)


class BatchLoader(Generic[K, V]):
    """Loads values by key, in batches, in one thread. Threads may share it.

    Several threads would take the interpreter lock from the polling thread more often, for the same database.
    The result is of a query that starts after `load` is called: a key whose query is running already is queried again.
    """

    def __init__(
        self,
        name: str,
        load_batch: Callable[[list[K]], Sequence[V | Exception]],
        limits: Limits = DEFAULT_LIMITS,
        *,
        queue: int = DEFAULT_LIMITS.queued_subjects,
    ) -> None:
        """`load_batch` returns a value or an error for each key, in order; an exception fails the whole batch.

        `queue`: maximum queued keys; above it, a load is refused.
        """
        self._name = name
        self._load_batch = load_batch
        self._limits = limits
        self._max_queued = queue
        self._lock = threading.Lock()
        self._queued: dict[K, Future[V]] = {}
        self._loading: list[Future[V]] = []
        self._began = 0.0
        self._last_size = 0
        # Wakes the present thread, and identifies it: a thread whose batch was given up finds another queue here.
        self._wake: SimpleQueue[str] | None = None
        self._is_idle = False

    def load(self, key: K, *, urgent: bool = False) -> Future[V]:
        """Enqueue the key; concurrent loads of one key share a Future.

        Raises `RateLimited` where the queue is full, unless it is `urgent`.
        """
        with self._lock:
            future = self._queued.get(key)
            if future is not None:
                return future
            if len(self._queued) >= self._max_queued and not urgent:
                raise RateLimited(f"More than {self._max_queued} look-ups are queued: try again in a second.")
            wake = self._wake or self._start_thread()
            future = self._queued[key] = Future()
            if self._is_idle:
                self._is_idle = False
                wake.put(_WORK)
            return future

    def _start_thread(self) -> "SimpleQueue[str]":
        """Start a thread, which is idle, and return what wakes it. Where that raises, the next load tries again."""
        wake: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._run, args=(wake,), name=self._name, daemon=True).start()
        self._wake, self._is_idle = wake, True
        return wake

    def fail_overdue(self) -> None:
        """Fail a batch that has been loading for too long, and what is queued behind it, with `StorageUnavailable`."""
        self._abandon(_TOO_SLOW, after=self._limits.load_seconds)

    def close(self) -> None:
        """Fail what is queued, and end the thread once its query ends."""
        self._abandon("The server stops: ask another one.")

    def _abandon(self, message: str, after: float | None = None) -> None:
        """Fail what is loading and queued; with `after`, only where a batch has been loading for so many seconds."""
        with self._lock:
            # Under the lock: a batch that begins just now is not the one that began long ago.
            if after is not None and not (self._loading and time.monotonic() - self._began > after):
                return
            dropped = [*self._loading, *self._queued.values()]
            self._loading, self._queued = [], {}
            if self._wake:
                self._wake.put(_END)
                self._wake = None
        for future in dropped:
            future.set_exception(StorageUnavailable(message))

    def _run(self, wake: "SimpleQueue[str]") -> None:
        while wake.get():
            while batch := self._next_batch(wake):
                self._load(wake, batch)

    def _next_batch(self, wake: "SimpleQueue[str]") -> dict[K, Future[V]]:
        """Return the next keys, once the pace allows; empty, and the thread idle, where nothing is queued."""
        if pause := self._pause():
            time.sleep(pause)
        with self._lock:
            if self._wake is not wake:
                return {}
            batch = dict(islice(self._queued.items(), self._limits.load_batch))
            for key in batch:
                del self._queued[key]
            self._loading, self._last_size = list(batch.values()), len(batch)
            self._is_idle = not batch
            self._began = time.monotonic()
        return batch

    def _pause(self) -> float:
        """Return the seconds to wait for more keys; 0 for a key that comes alone."""
        queued = len(self._queued)
        if max(queued, self._last_size) <= 1 or queued >= self._limits.load_unpaced:
            return 0.0
        return max(0.0, self._began + self._limits.load_pace - time.monotonic())

    def _load(self, wake: "SimpleQueue[str]", batch: dict[K, Future[V]]) -> None:
        loaded: Sequence[V | Exception]
        try:
            loaded = self._load_batch(list(batch))
            if len(loaded) != len(batch):
                raise ValueError(f"{len(loaded)} values for {len(batch)} keys")  # noqa: TRY301 - handled like any other
        except Exception as error:  # noqa: BLE001 - fails the batch; the thread continues
            loaded = [error] * len(batch)
        with self._lock:
            if self._wake is not wake:
                # The batch was given up, and its futures have failed.
                return
            self._loading = []
        for future, value in zip(batch.values(), loaded, strict=True):
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)
