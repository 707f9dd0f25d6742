"""Calls of the fast lane that lack what may be read at once: it is read for all that are there, by one thread.

A flood of questions about strangers would have a thread woken for each, the database asked for each, and the
interpreter handed over as often. So that thread doesn't answer them either, unless the one that polls is asleep. Of
several threads that read, each would take the interpreter from the one that polls, and all would wait for one database.
"""

import threading
import time
from functools import partial

from rolecall.errors import StorageUnavailable
from rolecall.server.fastcall import FastCall, tell_failure
from rolecall.server.lane import Lane

__all__ = ["Together"]

# While a reading was begun so lately, more calls are waited for, unless there are many already: a reading of one costs
# nearly as much as one of ten. Beside 5,000 strangers a second, 1.5 ms made all late, 8 ms held others up for longer.
PACE_SECONDS = 0.0025
MANY = 100
# No reading is for more calls: what is read in one piece holds up others.
MOST = 500
# A reading that takes longer is given up. A connection may hang without end, as one to a database that is halted.
READ_SECONDS = 5.0


class Together:
    """What is waited for together. Threads may share it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        # One that hangs doesn't keep the next from beginning.
        self._threads = lane.threads.apart("together")
        self._lock = threading.Lock()
        self._waiting: list[FastCall] = []
        # What is being read for, since when, and which reader does so: one that was given up finds another there.
        self._reading: list[FastCall] = []
        self._read_at = 0.0
        self._reader: object | None = None

    def add(self, calls: list[FastCall]) -> None:
        """Have what they lack read, and them answered. Raises nothing."""
        parked = [call for call in calls if call.park()]
        with self._lock:
            self._waiting += parked
            if self._reader or not parked:
                return
            self._reader = reader = object()
            self._read_at = max(self._read_at, time.monotonic() - PACE_SECONDS)
        try:
            self._threads.submit(self._work, reader)
        except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
            for call in self._give_up():
                call.drop(error)

    def end_overdue(self) -> None:
        """End the calls of a reading that takes too long, and those behind it. Raises nothing."""
        error = StorageUnavailable("The database takes too long to answer: try again in a moment.")
        for call in self._give_up(READ_SECONDS):
            call.do(partial(call.refuse, error))

    def _give_up(self, after: float = 0.0) -> list[FastCall]:
        """Let a reader go that has read for so many seconds, and nobody wait for it any more."""
        with self._lock:
            if self._reader is None or time.monotonic() - self._read_at < after:
                return []
            dropped = self._reading + self._waiting
            self._reading, self._waiting, self._reader = [], [], None
        return dropped

    def _work(self, reader: object) -> None:
        while calls := self._next(reader):
            try:
                self._read(reader, calls)
            except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
                tell_failure("calls failed together", error)

    def _next(self, reader: object) -> list[FastCall]:
        """Those that wait, after a moment if need be; nobody, and this reader's end, where none do."""
        pause = self._read_at + PACE_SECONDS - time.monotonic()
        if pause > 0 and len(self._waiting) < MANY:
            time.sleep(pause)
        with self._lock:
            if self._reader is not reader:
                return []
            self._reading, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            if self._reading:
                self._read_at = time.monotonic()
            else:
                self._reader = None
            return self._reading

    def _read(self, reader: object, calls: list[FastCall]) -> None:
        failure: Exception | None = None
        try:
            self._lane.calls.remember([call.lacking for call in calls])
        except Exception as error:  # noqa: BLE001 - whatever it is
            failure = error
        with self._lock:
            if self._reader is not reader:
                # They were ended meanwhile.
                return
            self._reading = []
        if failure:
            # Each by itself would wait as long again.
            for call in calls:
                call.do(partial(call.refuse, failure))
        elif not self._lane.give_back(calls):
            for call in calls:
                call.do(call.work)
