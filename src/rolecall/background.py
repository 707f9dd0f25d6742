"""Background threads: tasks that run periodically, and a bounded queue whose items one thread writes in batches.

Both are daemon threads: one that hangs in a database or on a disk doesn't keep the process from ending.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, Literal, TypeVar

import structlog

from rolecall.errors import RolecallError

__all__ = ["BackgroundWriter", "PeriodicThread"]

T = TypeVar("T")

# Pause after a task failed, as all of them do during an outage of the database.
PAUSE_AFTER_FAILURE_SECONDS = 2.0
# How long `stop` waits for a task that is running.
STOP_SECONDS = 1.0
# While a writer's queue is full, dropped items are announced once in this time.
ANNOUNCE_SECONDS = 5.0

_log = structlog.get_logger("rolecall.background")


class PeriodicThread:
    """Thread that runs its tasks one after the other, again and again, until it is stopped.

    A task that raises is logged and runs again in the next round: no exception ends the thread.
    """

    def __init__(
        self,
        name: str,
        *tasks: Callable[[], float | None],
        interval: float,
        pause_after_failure: float = PAUSE_AFTER_FAILURE_SECONDS,
    ) -> None:
        """Pause `interval` seconds before the first round and between rounds, `pause_after_failure` after a failure.

        A task may return the number of seconds until it wants to run again, instead of `interval`; of several such
        numbers the smallest counts.
        """
        self.stopping = threading.Event()
        """Set once the thread is to end. A task that takes long checks it, or waits on it instead of sleeping."""
        self._tasks = tasks
        self._interval = interval
        self._pause_after_failure = pause_after_failure
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first round begins after `interval` seconds, or at `wake`."""
        self._thread.start()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End the thread. A running task has `timeout` seconds to return; then its thread is left behind."""
        self.stopping.set()
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def wake(self) -> None:
        """Begin the next round now; during a round, another one follows it at once."""
        self._woken.set()

    def _run(self) -> None:
        pause = self._interval
        while True:
            self._woken.wait(pause)
            self._woken.clear()
            if self.stopping.is_set():
                return
            pause = self._run_tasks()

    def _run_tasks(self) -> float:
        """Run each task once. Returns the seconds until the next round."""
        pauses: list[float] = []
        has_failed = False
        for task in self._tasks:
            try:
                pause = task()
            except RolecallError as error:
                has_failed = True
                _log.debug("background task deferred", thread=self._thread.name, error=error.message)
            except Exception:  # noqa: BLE001 - the thread survives any defect of a task, and tries again
                has_failed = True
                _log.exception("background task failed", thread=self._thread.name)
            else:
                if pause is not None:
                    pauses.append(pause)
        if has_failed:
            return self._pause_after_failure
        return max(0.0, min(pauses, default=self._interval))


class BackgroundWriter(Generic[T]):
    """Bounded queue whose items a thread passes to `write` in batches, so that no producer waits for a disk or a pipe.

    Threads may share it. The thread starts with the first item, and sleeps without a timeout while the queue is empty.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], None],
        *,
        capacity: int,
        batch: int,
        interval: float = 0.0,
        keep: Literal["oldest", "newest"] = "oldest",
        on_dropped: Callable[[int], None] | None = None,
    ) -> None:
        """Queue up to `capacity` items; where it is full, `keep` says which of them stay.

        `write` gets at most `batch` items, `interval` seconds after the first of them was queued. Where it raises, its
        items are lost, which is logged. `on_dropped` gets the number of items that were dropped since the start: at
        the first of them, every 5 s while more are, and once the queue is written. It may be called in a producer.
        """
        self._name = name
        self._write = write
        self._capacity = capacity
        self._batch = batch
        self._interval = interval
        self._keeps_newest = keep == "newest"
        self._on_dropped = on_dropped
        # Producers take no lock while the queue has room: `append` and `len` are atomic.
        self._queue: deque[T] = deque()
        self._filled = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._is_writing = False
        self._written = threading.Condition()
        self._lock = threading.Lock()
        self._dropped = 0
        self._announced = 0
        self._announce_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Number of items dropped since the start because the queue was full."""
        return self._dropped

    def enqueue(self, item: T) -> None:
        """Enqueue the item. Never waits for `write`; drops an item where the queue is full."""
        if len(self._queue) >= self._capacity and not self._keeps_newest:
            self._count_dropped()
            return
        self._queue.append(item)
        # More than one, where several producers found the last place free.
        while self._keeps_newest and len(self._queue) > self._capacity:
            with suppress(IndexError):
                self._queue.popleft()
                self._count_dropped()
        if not self._filled.is_set():
            self._filled.set()
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until the queue is written, at most `timeout` seconds. False where it isn't: `write` hangs."""
        if threading.current_thread() is self._thread:
            # Called by `write`, as where it logs: it would wait for its own end.
            return False
        if self._is_done():
            return True
        self._hurry.set()
        self._filled.set()
        with self._written:
            return self._written.wait_for(self._is_done, timeout)

    def close(self, timeout: float) -> bool:
        """Write what is queued, and end the thread; False where `timeout` seconds don't suffice.

        An item that is queued later may not be written.
        """
        self._closing.set()
        self._hurry.set()
        self._filled.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return self._is_done()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # The process may have no more threads: the next item tries again, and no producer fails for it.
                self._thread = None

    def _is_done(self) -> bool:
        # In this order: an item leaves the queue only after `_is_writing` is set.
        return not self._queue and not self._is_writing

    def _run(self) -> None:
        while True:
            self._filled.wait()
            if self._interval:
                self._hurry.wait(self._interval)
                self._hurry.clear()
            # Before the queue is read: what comes meanwhile sets it again.
            self._filled.clear()
            self._write_queue()
            if self._closing.is_set() and not self._queue:
                return

    def _write_queue(self) -> None:
        while self._queue:
            self._is_writing = True
            items: list[T] = []
            # The queue may get shorter meanwhile, where `keep` is "newest".
            with suppress(IndexError):
                while len(items) < self._batch:
                    items.append(self._queue.popleft())
            try:
                self._write(items)
            except Exception:  # noqa: BLE001 - the thread survives any defect: what comes next is to be written
                _log.exception("background write failed", thread=self._name, lost=len(items))
            self._is_writing = False
            with self._written:
                self._written.notify_all()
        if self._dropped != self._announced:
            self._announce()

    def _count_dropped(self) -> None:
        with self._lock:
            self._dropped += 1
            if time.monotonic() < self._announce_at:
                return
            self._announce_at = time.monotonic() + ANNOUNCE_SECONDS
        self._announce()

    def _announce(self) -> None:
        self._announced = self._dropped
        if self._on_dropped:
            self._on_dropped(self._announced)
