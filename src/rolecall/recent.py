"""What happened or was read a moment ago: bounded and short-lived."""

import threading
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Recent"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key. Threads may share it; `get` takes no lock."""

    def __init__(self, capacity: int, seconds: float) -> None:
        """Holds at most `capacity` values, each for so many seconds; the oldest go first."""
        self._capacity = capacity
        self._seconds = seconds
        self._lock = threading.Lock()
        self._entries: dict[K, tuple[V, float]] = {}

    def get(self, key: K) -> V | None:
        """The value; None where there is none, or its time is over."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and entry[1] > time.monotonic() else None

    def drop(self, key: K) -> None:
        """Forget the value."""
        with self._lock:
            self._entries.pop(key, None)

    def put(self, key: K, value: V) -> None:
        """Keep the value."""
        with self._lock:
            self._entries.pop(key, None)
            while len(self._entries) >= self._capacity:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = (value, time.monotonic() + self._seconds)
