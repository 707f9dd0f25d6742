"""Calls of the fast lane that lack what may be read at once: one thread reads it, and answers them all.

A flood of questions about strangers would have a thread woken for each, and the interpreter handed over as often.
"""

from concurrent import futures
from functools import partial

from rolecall.server.fastcall import FastCall
from rolecall.server.lane import Answering

__all__ = ["answer_together"]


def answer_together(answering: Answering, threads: futures.Executor, calls: list[FastCall]) -> None:
    """Have one of the threads do it. Raises nothing."""
    parked = [call for call in calls if call.park()]
    if not parked:
        return
    try:
        threads.submit(_answer, answering, parked)
    except Exception as error:  # noqa: BLE001 - it would end the thread that polls for all
        for call in parked:
            call.drop(error)


def _answer(answering: Answering, calls: list[FastCall]) -> None:
    try:
        answering.remember([call.lacking for call in calls])
    except Exception as error:  # noqa: BLE001 - nobody looks after a thread's work
        # Each by itself would wait as long again.
        for call in calls:
            call.do(partial(call.refuse, error))
    else:
        for call in calls:
            call.do(call.work)
