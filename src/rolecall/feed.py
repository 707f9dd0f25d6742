"""The revision feed: what any process commits is noted here soon after, so that memory never answers for too long.

SQLite tells a connection whether another one committed; PostgreSQL wakes those who listen, and is asked now and then
all the same. A connection that breaks drops all that was known. Source: design, section 7.
"""

import threading
import time

import structlog

from rolecall.errors import RolecallError, Stale
from rolecall.remembered import Remembered
from rolecall.storage import Change, Storage

__all__ = ["Feed"]

# After a failure.
PAUSE_SECONDS = 0.2
# Who didn't look for so long may have missed changes that were cleared away meanwhile, after 600 s (`sweep`).
MAX_SILENCE_SECONDS = 300.0
# How long the first look may take.
START_SECONDS = 2.0

_log = structlog.get_logger("rolecall.feed")


class Feed:
    """Notes in `remembered` what is committed, in a thread of its own."""

    def __init__(self, storage: Storage, remembered: Remembered, max_staleness: float) -> None:
        """What is remembered is to be used for at most `max_staleness` seconds after the database was last heard."""
        self._storage = storage
        self.remembered = remembered
        self._max_staleness = max_staleness
        storage.on_change(self._note_own)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        # Until this moment on the monotonic clock, what is remembered counts.
        self._fresh_until = 0.0
        self._began = threading.Event()

    def start(self) -> None:
        """Begin, and look once."""
        self._thread.start()
        self._began.wait(timeout=START_SECONDS)

    def require_fresh(self) -> None:
        """Raise `Stale` where the database wasn't heard for so long that memory counts no more."""
        if time.monotonic() > self._fresh_until:
            raise Stale("The database can't be reached, and what is remembered is too old: try again in a moment.")

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _note_own(self, changes: list[Change] | None) -> None:
        if changes is None:
            self.remembered.clear()
        else:
            self.remembered.note(changes, own=True)

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except RolecallError as error:
                _log.debug("the feed broke off", error=error.message)
            except Exception:  # noqa: BLE001 - it outlives any defect, and begins anew
                _log.exception("the feed broke off")
            self._stopped.wait(PAUSE_SECONDS)

    def _follow(self) -> None:
        """Follow the changes until the connection breaks."""
        with self._storage.follow() as follower:
            # What was committed while nobody listened is unknown.
            self.remembered.clear()
            last = time.monotonic()
            while not self._stopped.is_set():
                began = time.monotonic()
                if began - last > MAX_SILENCE_SECONDS:
                    return
                last = began
                changes = follower.look()
                if changes:
                    self.remembered.note(changes, own=False)
                self._fresh_until = began + self._max_staleness
                self._began.set()
                follower.wait()
