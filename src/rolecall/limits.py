"""How often something may happen, mostly a failure, before somebody must wait."""

import math
import threading
import time
from collections import OrderedDict

from rolecall.errors import RateLimited

__all__ = ["Limit"]

# More than these at once are forgotten, those first that were counted longest ago.
MAX_KEYS = 10_000


class Limit:
    """For each key, `burst` at once, and `rate` more each second. Threads may share it."""

    def __init__(self, what: str, *, rate: float, burst: int) -> None:
        """`what` is limited, in words for the error's text."""
        self._what = what
        self._rate = rate
        self._burst = burst
        self._lock = threading.Lock()
        # For each key that was counted lately, how many are held against it, and when that was reckoned.
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def require(self, key: str) -> None:
        """Raise `RateLimited` where there were too many of the key's."""
        if key not in self._counts:
            return
        beyond = self._held(key, time.monotonic()) + 1 - self._burst
        if beyond > 0:
            often = f"{self._rate:g} a second" if self._rate >= 1 else f"one in {1 / self._rate:g} seconds"
            raise RateLimited(
                f"There were too many {self._what}: try again in {math.ceil(beyond / self._rate)} s. {self._burst} at"
                f" once are taken, then {often}."
            )

    def has_few(self, key: str, number: float) -> bool:
        """Whether one more makes at most `number` that are held against the key."""
        return self._held(key, time.monotonic()) + 1 <= number

    def count(self, key: str, times: int = 1) -> None:
        """Hold so many more against the key."""
        at = time.monotonic()
        with self._lock:
            self._counts[key] = (self._held(key, at) + times, at)
            self._counts.move_to_end(key)
            if len(self._counts) > MAX_KEYS:
                self._counts.popitem(last=False)

    def _held(self, key: str, at: float) -> float:
        held, since = self._counts.get(key, (0.0, at))
        return max(0.0, held - (at - since) * self._rate)
