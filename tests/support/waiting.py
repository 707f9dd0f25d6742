"""Waiting for a condition, with a limit."""

import time
from collections.abc import Callable
from typing import Any


def keep_asking(ask: Callable[[], object], seconds: float = 5) -> None:
    """Call `ask` repeatedly for this time: a cached answer must make it raise before that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ask()
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until the condition holds, for this many seconds at most."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def until(found: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first true value that `found` returns; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "no value was found in time"
        time.sleep(0.05)
    return value
