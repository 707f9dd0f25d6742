"""Rate limiter per key, mostly for failed attempts: a leaky bucket in memory."""

import math
import threading
import time
from collections import OrderedDict

from rolecall.errors import RateLimited
from rolecall.limits import Rate

__all__ = ["RateLimiter"]

# Maximum keys; above it, the key that was counted longest ago is dropped.
MAX_KEYS = 10_000


class RateLimiter:
    """Limit of a rate of events for each key. Threads may share it."""

    def __init__(self, events: str, rate: Rate) -> None:
        """Limit `events`, a plural for the error's message."""
        self._events = events
        self._rate = rate.per_second
        self._burst = rate.burst
        self._lock = threading.Lock()
        # For each key: the level of its bucket, in events, and the time at which that was computed.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def require(self, key: str) -> None:
        """Raise `RateLimited` where one more event would exceed the key's burst."""
        if key not in self._levels:
            return
        excess = self._level(key, time.monotonic()) + 1 - self._burst
        if excess > 0:
            pace = f"{self._rate:g} a second" if self._rate >= 1 else f"one in {1 / self._rate:g} seconds"
            wait = math.ceil(excess / self._rate)
            error = RateLimited(
                f"Too many {self._events}: try again in {wait} s. {self._burst} at once are accepted, then {pace}."
            )
            error.retry_seconds = float(wait)
            raise error

    def is_below(self, key: str, number: float) -> bool:
        """Whether the key's level is at most `number` events after one more."""
        return self._level(key, time.monotonic()) + 1 <= number

    def count(self, key: str, times: int = 1) -> None:
        """Count `times` more events of the key."""
        at = time.monotonic()
        with self._lock:
            self._levels[key] = (self._level(key, at) + times, at)
            self._levels.move_to_end(key)
            if len(self._levels) > MAX_KEYS:
                self._levels.popitem(last=False)

    def _level(self, key: str, at: float) -> float:
        level, since = self._levels.get(key, (0.0, at))
        return max(0.0, level - (at - since) * self._rate)
