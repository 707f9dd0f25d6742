"""How often somebody may fail before they must wait."""

import threading
import time
from collections import OrderedDict

from rolecall.errors import RateLimited

__all__ = ["Limit"]

# More than these at once are forgotten, those first that failed longest ago.
MAX_KEYS = 10_000


class Limit:
    """For each key, `burst` failures, and `rate` more each second. Threads may share it."""

    def __init__(self, what: str, *, rate: float, burst: int) -> None:
        """`what` fails, in words for the error's text."""
        self._what = what
        self._rate = rate
        self._burst = burst
        self._lock = threading.Lock()
        # For each key that failed lately, how many failures are held against it, and when that was reckoned.
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def require(self, key: str) -> None:
        """Raise `RateLimited` where the key has failed too often."""
        if key in self._failures and self._held(key, time.monotonic()) + 1 > self._burst:
            raise RateLimited(
                f"There were too many {self._what}: wait a second. Over {self._burst} at once, {self._rate:g} a second"
                " are heard.",
            )

    def failed(self, key: str, times: int = 1) -> None:
        """Hold so many failures against the key."""
        at = time.monotonic()
        with self._lock:
            self._failures[key] = (self._held(key, at) + times, at)
            self._failures.move_to_end(key)
            if len(self._failures) > MAX_KEYS:
                self._failures.popitem(last=False)

    def _held(self, key: str, at: float) -> float:
        held, since = self._failures.get(key, (0.0, at))
        return max(0.0, held - (at - since) * self._rate)
