"""What was read a moment ago: bounded, short-lived, and never older than the last change of this process."""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Remembered"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# So many names that were changed lately are told apart; a read that began before the oldest of them is not kept.
MAX_CHANGES = 10_000


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    until: float
    names: tuple[str, ...]


class Remembered(Generic[K, V]):
    """Values by key. Threads may share it; `get` takes no lock."""

    def __init__(self, capacity: int, seconds: float) -> None:
        """Holds at most `capacity` values, each for so many seconds; the oldest go first."""
        self._capacity = capacity
        self._seconds = seconds
        self._lock = threading.Lock()
        self._entries: dict[K, _Entry[V]] = {}
        self._keys: dict[str, set[K]] = {}
        self._changes = 0
        self._changed: OrderedDict[str, int] = OrderedDict()
        self._forgotten_before = 0

    def get(self, key: K) -> V | None:
        """The value; None where there is none, or its time is over."""
        entry = self._entries.get(key)
        return entry.value if entry is not None and entry.until > time.monotonic() else None

    def ticket(self) -> int:
        """To be drawn before a value is read, and shown when it is put."""
        return self._changes

    def put(self, key: K, value: V, names: tuple[str, ...], ticket: int) -> None:
        """Keep the value, unless one of `names`, which it depends on, was changed since the ticket was drawn."""
        entry = _Entry(value, time.monotonic() + self._seconds, names)
        with self._lock:
            if ticket < self._forgotten_before or any(self._changed.get(name, 0) > ticket for name in names):
                return
            self._drop(key)
            while len(self._entries) >= self._capacity:
                self._drop(next(iter(self._entries)))
            self._entries[key] = entry
            for name in names:
                self._keys.setdefault(name, set()).add(key)

    def forget(self, names: Iterable[str]) -> None:
        """Drop whatever depends on one of `names`, and what is being read of it at this moment."""
        with self._lock:
            self._changes += 1
            for name in names:
                self._changed[name] = self._changes
                self._changed.move_to_end(name)
                for key in tuple(self._keys.get(name, ())):
                    self._drop(key)
            while len(self._changed) > MAX_CHANGES:
                _, self._forgotten_before = self._changed.popitem(last=False)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        for name in entry.names if entry else ():
            keys = self._keys[name]
            keys.discard(key)
            if not keys:
                del self._keys[name]
