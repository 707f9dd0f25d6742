"""Calls of the fast lane that lack what may be read at once: one thread reads it for all of them.

A flood of questions about strangers would have a thread woken for each, and the interpreter handed over as often. So
that thread doesn't answer them either, unless the one that polls is asleep.
"""

from functools import partial

from rolecall.server.fastcall import FastCall
from rolecall.server.lane import Lane

__all__ = ["answer_together"]


def answer_together(lane: Lane, calls: list[FastCall]) -> None:
    """Have one of the lane's threads do it. Raises nothing."""
    parked = [call for call in calls if call.park()]
    if not parked:
        return
    try:
        lane.threads.submit(_read, lane, parked)
    except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
        for call in parked:
            call.drop(error)


def _read(lane: Lane, calls: list[FastCall]) -> None:
    try:
        lane.calls.remember([call.lacking for call in calls])
    except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
        # Each by itself would wait as long again.
        for call in calls:
            call.do(partial(call.refuse, error))
        return
    if not lane.give_back(calls):
        for call in calls:
            call.do(call.work)
