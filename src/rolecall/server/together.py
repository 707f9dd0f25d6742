"""Calls of the fast lane that lack what may be read at once: it is read for all that are there, by one thread.

A flood of questions about strangers would have a thread woken for each, the database asked for each, and the
interpreter handed over as often. So that thread doesn't answer them either, unless the one that polls is asleep. Of
several threads that read, each would take the interpreter from the one that polls, and all would wait for one database.
"""

import threading
import time
from functools import partial

from rolecall.server.fastcall import FastCall, tell_failure
from rolecall.server.lane import Lane

__all__ = ["Together"]

# While a reading was begun so lately, more calls are waited for, unless there are many already: a reading of one costs
# nearly as much as one of ten. Beside 5,000 strangers a second, 1.5 ms made all late, 8 ms held others up for longer.
PACE_SECONDS = 0.0025
MANY = 100


class Together:
    """What is waited for together. Threads may share it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._lock = threading.Lock()
        self._waiting: list[FastCall] = []
        self._is_reading = False
        self._read_at = 0.0

    def add(self, calls: list[FastCall]) -> None:
        """Have what they lack read, and them answered. Raises nothing."""
        parked = [call for call in calls if call.park()]
        with self._lock:
            self._waiting += parked
            starts = bool(parked) and not self._is_reading
            self._is_reading |= starts
        if not starts:
            return
        try:
            self._lane.threads.callers.submit(self._work)
        except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
            with self._lock:
                self._is_reading = False
                dropped, self._waiting = self._waiting, []
            for call in dropped:
                call.drop(error)

    def _work(self) -> None:
        while calls := self._next():
            try:
                self._read(calls)
            except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
                tell_failure("calls failed together", error)

    def _next(self) -> list[FastCall]:
        """Those that wait, after a moment if need be; nobody, and this thread's end, where none do."""
        pause = self._read_at + PACE_SECONDS - time.monotonic()
        if pause > 0 and len(self._waiting) < MANY:
            time.sleep(pause)
        with self._lock:
            calls, self._waiting = self._waiting, []
            if calls:
                self._read_at = time.monotonic()
            else:
                self._is_reading = False
        return calls

    def _read(self, calls: list[FastCall]) -> None:
        try:
            self._lane.calls.remember([call.lacking for call in calls])
        except Exception as error:  # noqa: BLE001 - whatever it is
            # Each by itself would wait as long again.
            for call in calls:
                call.do(partial(call.refuse, error))
            return
        if not self._lane.give_back(calls):
            for call in calls:
                call.do(call.work)
