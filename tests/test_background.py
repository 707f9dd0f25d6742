"""Background threads: a periodic one that continues after a task fails, and a writer whose producers never wait."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from rolecall.background import BackgroundWriter, PeriodicThread
from rolecall.errors import StorageUnavailable
from support.waiting import wait_until


class Writes:
    """The batches that a writer wrote; each batch waits for the gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> None:
        """Write one batch."""
        self.begun.set()
        self.gate.wait(10)
        self.batches.append(list(items))

    @property
    def items(self) -> list[int]:
        """All items that were written, in their order."""
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def writes() -> Writes:
    """A recorder of the written batches."""
    return Writes()


@pytest.fixture
def make_hanging(writes: Writes) -> Callable[..., BackgroundWriter[int]]:
    """Return a function that makes a writer which hangs in its first write, of the item 0."""

    def make(**options: object) -> BackgroundWriter[int]:
        writes.gate.clear()
        writer = BackgroundWriter("test", writes, **{"capacity": 3, "batch": 10, **options})  # type: ignore[arg-type]
        writer.enqueue(0)
        assert writes.begun.wait(10)
        return writer

    return make


# PeriodicThread


def test_tasks_run_in_order_again_and_again() -> None:
    """Each round runs all tasks, in the order in which they were given."""
    ran: list[str] = []
    thread = PeriodicThread("test", lambda: ran.append("a"), lambda: ran.append("b"), interval=0.001)

    thread.start()
    wait_until(lambda: len(ran) >= 6)
    thread.stop()

    assert ran[:6] == ["a", "b"] * 3


def test_stopped_thread_runs_no_task() -> None:
    """Once `stop` has returned, no further round begins, not even at `wake`."""
    rounds: list[None] = []
    thread = PeriodicThread("test", lambda: rounds.append(None), interval=0.001)
    thread.start()
    wait_until(lambda: bool(rounds))

    thread.stop()
    ran = len(rounds)
    thread.wake()
    time.sleep(0.05)

    assert len(rounds) == ran


def test_thread_that_never_started_can_be_stopped() -> None:
    """A thread that never started, as where a server fails while it starts, can be stopped."""
    PeriodicThread("test", interval=1).stop()


def test_stop_ends_a_pause_at_once() -> None:
    """`stop` ends the pause between rounds at once."""
    thread = PeriodicThread("test", interval=60)
    thread.start()
    began = time.monotonic()

    thread.stop(timeout=10)

    assert time.monotonic() - began < 5


def test_stop_waits_for_a_running_task_that_checks_it() -> None:
    """A task that takes long sees `stopping`, and `stop` returns after its end."""
    begun, ended = threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        thread.stopping.wait(10)
        ended.set()

    thread = PeriodicThread("test", task, interval=0)
    thread.start()
    assert begun.wait(10)

    thread.stop(timeout=10)

    assert ended.is_set()


def test_stop_leaves_a_hanging_task_behind() -> None:
    """`stop` returns after `timeout` seconds, whatever the task does."""
    begun, gate = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        gate.wait(10)

    thread = PeriodicThread("test", hang, interval=0)
    thread.start()
    assert begun.wait(10)
    began = time.monotonic()

    thread.stop(timeout=0.05)

    assert time.monotonic() - began < 5
    gate.set()


@pytest.mark.parametrize("error", [ValueError("a defect"), StorageUnavailable("an outage")])
def test_failing_task_ends_neither_the_thread_nor_the_round(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing task is logged and runs again; the tasks behind it run too."""
    tries: list[None] = []
    others: list[None] = []

    def fail() -> None:
        tries.append(None)
        raise error

    thread = PeriodicThread("test", fail, lambda: others.append(None), interval=0.001, pause_after_failure=0.001)
    thread.start()
    wait_until(lambda: len(tries) >= 3 and len(others) >= 3)
    thread.stop()

    logged = capsys.readouterr().out
    assert ("background task failed" in logged) is isinstance(error, ValueError)


def test_failure_has_a_pause_of_its_own() -> None:
    """After a failure the next round waits `pause_after_failure`, not `interval`."""
    tries: list[None] = []

    def fail() -> None:
        tries.append(None)
        raise StorageUnavailable("an outage")

    thread = PeriodicThread("test", fail, interval=0.001, pause_after_failure=60)
    thread.start()
    wait_until(lambda: bool(tries))
    time.sleep(0.05)
    thread.stop()

    assert len(tries) == 1


def test_wake_begins_a_round_at_once() -> None:
    """`wake` starts a round at once, also where one is running."""
    rounds: list[None] = []

    def task() -> None:
        rounds.append(None)
        if len(rounds) == 1:
            thread.wake()

    thread = PeriodicThread("test", task, interval=60)
    thread.start()

    thread.wake()
    wait_until(lambda: len(rounds) == 2)
    time.sleep(0.05)
    thread.stop()

    assert len(rounds) == 2


def test_task_may_return_its_next_run() -> None:
    """The smallest of the numbers that tasks return replaces the interval."""
    rounds: list[None] = []

    def task() -> float:
        rounds.append(None)
        return 0.001

    thread = PeriodicThread("test", task, lambda: 60.0, lambda: None, interval=60)
    thread.start()
    thread.wake()
    wait_until(lambda: len(rounds) >= 3)
    thread.stop()


# BackgroundWriter


def test_items_are_written_in_order_and_in_batches(writes: Writes) -> None:
    """Items are written in order, in batches of at most `batch`."""
    writer = BackgroundWriter("test", writes, capacity=1000, batch=7)
    for item in range(100):
        writer.enqueue(item)

    assert writer.flush(10)
    assert writes.items == list(range(100))
    assert max(len(batch) for batch in writes.batches) <= 7
    assert writer.close(10)


def test_items_of_an_interval_are_one_batch(writes: Writes) -> None:
    """The writer waits for more before it writes; `flush` cuts that short."""
    writer = BackgroundWriter("test", writes, capacity=1000, batch=100, interval=60)
    for item in range(10):
        writer.enqueue(item)
    began = time.monotonic()

    assert writer.flush(10)
    assert time.monotonic() - began < 5
    assert writes.batches == [list(range(10))]
    assert writer.close(10)


def test_interval_passes_without_a_flush(writes: Writes) -> None:
    """Items are written after each interval, without a flush."""
    writer = BackgroundWriter("test", writes, capacity=1000, batch=100, interval=0.01)
    for item in range(3):
        writer.enqueue(item)
        wait_until(lambda: len(writes.items) > item)  # noqa: B023 - it is called within this round

    assert writes.items == [0, 1, 2]
    assert writer.close(10)


def test_flush_of_an_empty_writer_returns_at_once(writes: Writes) -> None:
    """Nothing is written, and no thread is started."""
    writer = BackgroundWriter("test", writes, capacity=1, batch=1)

    assert writer.flush(0)
    assert writer.close(0)
    assert writes.batches == []


def test_hanging_write_delays_no_producer(writes: Writes, make_hanging: Callable[..., BackgroundWriter[int]]) -> None:
    """`enqueue` returns at once, full queue or not, and `flush` and `close` after their timeouts."""
    writer = make_hanging()
    began = time.monotonic()
    for item in range(1, 1000):
        writer.enqueue(item)

    assert not writer.flush(0.01)
    assert not writer.close(0.01)
    assert time.monotonic() - began < 5
    writes.gate.set()
    assert writer.close(10)
    assert writes.items == [0, 1, 2, 3]


@pytest.mark.parametrize(("keep", "kept"), [("oldest", [0, 1, 2, 3]), ("newest", [0, 7, 8, 9])])
def test_full_queue_drops_and_counts(
    writes: Writes, make_hanging: Callable[..., BackgroundWriter[int]], keep: str, kept: list[int]
) -> None:
    """The caller chooses which stay; the others are counted, announced at the first and once the queue is written."""
    announced: list[int] = []
    writer = make_hanging(keep=keep, on_dropped=announced.append)
    for item in range(1, 10):
        writer.enqueue(item)
    at_once = list(announced)
    writes.gate.set()

    assert writer.close(10)
    assert writes.items == kept
    assert writer.dropped == 6
    assert at_once == [1]
    assert announced == [1, 6]


def test_dropped_items_of_many_producers_are_all_counted(
    writes: Writes, make_hanging: Callable[..., BackgroundWriter[int]]
) -> None:
    """Written and dropped items together are those that were queued."""
    writer = make_hanging(keep="newest")

    def produce() -> None:
        for item in range(1, 2001):
            writer.enqueue(item)

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    writes.gate.set()

    assert writer.close(10)
    assert len(writes.items) + writer.dropped == 1 + 4 * 2000


def test_close_writes_what_is_queued(writes: Writes) -> None:
    """`close` writes queued items before the interval has passed."""
    writer = BackgroundWriter("test", writes, capacity=1000, batch=10, interval=60)
    for item in range(25):
        writer.enqueue(item)

    assert writer.close(10)
    assert writes.items == list(range(25))


def test_failing_write_loses_its_batch_only(capsys: pytest.CaptureFixture[str]) -> None:
    """The log says how many items are lost; later ones are written."""
    written: list[int] = []

    def write(items: Sequence[int]) -> None:
        if 0 in items:
            raise ValueError
        written.extend(items)

    writer = BackgroundWriter("test", write, capacity=10, batch=1)
    for item in (0, 1):
        writer.enqueue(item)

    assert writer.close(10)
    assert written == [1]
    logged = capsys.readouterr().out
    assert "background write failed" in logged
    assert "lost=1" in logged


def test_write_that_logs_into_its_own_writer_does_not_wait_for_itself() -> None:
    """A flush by the writer's own thread returns False at once."""
    flushed: list[bool] = []
    writer: BackgroundWriter[int] = BackgroundWriter(
        "test", lambda _items: flushed.append(writer.flush(60)), capacity=10, batch=1
    )
    writer.enqueue(0)

    assert writer.close(10)
    assert flushed == [False]


def test_thread_that_cannot_be_started_is_tried_again(writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process may have no more threads, no producer fails; a later item is written with those before it."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = BackgroundWriter("test", writes, capacity=10, batch=10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer.enqueue(0)
        assert not writer.flush(0)
    writer.enqueue(1)

    assert writer.close(10)
    assert writes.items == [0, 1]
