"""Look-ups that come together are made together: one query for a stampede, one for many that miss at once."""

import threading
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["Gathered"]

K = TypeVar("K", bound=Hashable)


class _Round(Generic[K]):
    """Keys that are looked up together."""

    def __init__(self) -> None:
        self.keys: set[K] = set()
        self.done = threading.Event()
        self.error: BaseException | None = None


class Gathered(Generic[K]):
    """Looks up keys of organizations. Threads may share it."""

    def __init__(self, look_up: Callable[[str, set[K]], None]) -> None:
        """`look_up` is told an organization and keys, and puts what it finds where everybody sees it."""
        self._look_up = look_up
        self._lock = threading.Lock()
        # For each organization the round that still takes keys, and the lock of the one that runs.
        self._open: dict[str, tuple[_Round[K], threading.Lock]] = {}
        self._running: dict[str, threading.Lock] = {}

    def look_up(self, organization: str, keys: Collection[K]) -> None:
        """Return when the keys were looked up, since this was called or a moment before. Raises what that raises."""
        with self._lock:
            running = self._running.setdefault(organization, threading.Lock())
            present = self._open.get(organization)
            round_ = present[0] if present else _Round[K]()
            round_.keys.update(keys)
            if not present:
                self._open[organization] = (round_, running)
        if present:
            round_.done.wait()
        else:
            # Whoever opens a round runs it, once the one before is over: meanwhile others join it.
            self._run(organization, round_, running)
        if round_.error is not None:
            raise round_.error

    def _run(self, organization: str, round_: _Round[K], running: threading.Lock) -> None:
        with running:
            with self._lock:
                del self._open[organization]
            try:
                self._look_up(organization, round_.keys)
            except BaseException as error:  # noqa: BLE001 - for all who wait for it
                round_.error = error
            finally:
                round_.done.set()
        with self._lock:
            if organization not in self._open and not running.locked():
                self._running.pop(organization, None)
