"""Change feed: invalidates cache entries when any process commits a change to them, and reports the policy in force.

A connection to SQLite sees whether another one has committed; PostgreSQL notifies listeners, and is polled as well.
When the connection breaks, the whole cache is dropped (docs/concepts.md, Freshness).
"""

import threading
import time
from collections.abc import Callable

import structlog

from rolecall.errors import RolecallError, Stale
from rolecall.identity.cache import RevisionCache
from rolecall.storage import Change, Storage
from rolecall.storage.follower import POSTGRES_SECONDS

__all__ = ["ChangeFeed"]

# Seconds before the next try after a failure.
RETRY_SECONDS = 0.2
# Maximum seconds between two polls. After more, changes may have been pruned unread: `cleanup` does so every 600 s.
MAX_SILENCE_SECONDS = 300.0
# Maximum seconds that `start` waits for the first poll.
START_SECONDS = 2.0

_log = structlog.get_logger("rolecall.change_feed")


class ChangeFeed:
    """Follows the `changes` table in a thread of its own, and applies it to `cache`."""

    def __init__(
        self,
        storage: Storage,
        cache: RevisionCache,
        max_staleness: float,
        on_policy: Callable[[int], None] = lambda _sequence: None,
    ) -> None:
        """`max_staleness`: seconds after the last successful poll for which the cache may be used.

        `on_policy` gets the sequence number of the policy's activation in force, with each poll, and 0 at the start, as
        that may be any; it must not block.
        """
        self._storage = storage
        self.cache = cache
        self._max_staleness = max_staleness
        self._on_policy = on_policy
        storage.on_change(self.apply_own)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="change-feed", daemon=True)
        # On the monotonic clock, the end of the cache's freshness.
        self._fresh_until = 0.0
        self._started = threading.Event()
        self._has_warned = False

    def start(self) -> None:
        """Start, and wait for the first poll."""
        self._thread.start()
        self._started.wait(timeout=START_SECONDS)

    @property
    def is_fresh(self) -> bool:
        """Whether the last successful poll is recent enough for the cache to be used."""
        return time.monotonic() <= self._fresh_until

    def require_fresh(self) -> None:
        """Raise `Stale` where the last successful poll is too long ago for the cache to be used."""
        if time.monotonic() > self._fresh_until:
            raise Stale("The database can't be reached, and the cache is too old to decide by: try again in a second.")

    def stop(self) -> None:
        """Stop the thread, within a second if its query ends in time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def apply_own(self, changes: list[Change] | None) -> None:
        """Apply what a transaction of this process committed; None where that is unknown, which drops everything."""
        if changes is None:
            self.cache.clear()
        else:
            self.cache.apply(changes, own=True)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except RolecallError as error:
                _log.debug("change feed interrupted", error=error.message)
            except Exception:  # noqa: BLE001 - the feed outlives any defect, and starts again
                _log.exception("change feed interrupted")
            self._stopped.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        """Follow the changes until the connection breaks."""
        with self._storage.follow() as follower:
            if follower.misses_notifications and not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "no notifications through a connection pooler, polling for changes of other processes",
                    seconds=POSTGRES_SECONDS,
                )
            # Changes that were committed while no follower was connected are unknown.
            self.cache.clear()
            self._on_policy(0)
            last = time.monotonic()
            while not self._stopped.is_set():
                began = time.monotonic()
                if began - last > MAX_SILENCE_SECONDS:
                    return
                last = began
                committed = follower.read_committed()
                if committed.changes:
                    self.cache.apply(committed.changes, own=False)
                self._on_policy(committed.policy_sequence)
                self._fresh_until = began + self._max_staleness
                self._started.set()
                follower.wait()
