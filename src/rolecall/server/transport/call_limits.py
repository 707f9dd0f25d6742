"""Bounds on calls that wait: for their request message, or for an executor or a batch loader."""

import time
from typing import Protocol

from rolecall.limits import DEFAULT_LIMITS, Limits

__all__ = ["LATE_SECONDS", "CallLimits"]

# Messages below this don't count against `waiting_bytes`.
LARGE_BYTES = 4096
# A call whose message is there later than this is authenticated again, as its caller may have been removed meanwhile.
# Most messages come with the headers.
LATE_SECONDS = 0.02


class Cancellable(Protocol):
    """A call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call. Raises nothing."""
        ...


class CallLimits:
    """Register of calls that wait. Threads may share it; no method takes a lock."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        # When each call began to wait for its message, the oldest first; the size of each queued call's message.
        self._receiving: dict[Cancellable, float] = {}
        self._queued: dict[Cancellable, int] = {}

    @property
    def receiving(self) -> int:
        """Number of calls that wait for their message."""
        return len(self._receiving)

    @property
    def queued(self) -> int:
        """Number of queued calls."""
        return len(self._queued)

    def receive(self, call: Cancellable) -> None:
        """Add a call that waits for its message from now on."""
        self._receiving[call] = time.monotonic()

    def received(self, call: Cancellable) -> bool:
        """Remove a call whose message came, or will not come. Returns whether that was late."""
        since = self._receiving.pop(call, None)
        return since is None or time.monotonic() - since > LATE_SECONDS

    def enqueue(self, call: Cancellable, size: int) -> bool:
        """Add a queued call whose message has `size` bytes; False where there is no room for it."""
        queued = self._queued
        if len(queued) >= self._limits.waiting_calls:
            return False
        # The sum is computed each time, but only for large messages.
        if size >= LARGE_BYTES and sum(list(queued.values())) + size > self._limits.waiting_bytes:
            return False
        queued[call] = size
        return True

    def dequeue(self, call: Cancellable) -> None:
        """Remove a call from the queue, if it is queued."""
        self._queued.pop(call, None)

    def cancel_overdue(self) -> None:
        """Cancel calls whose message doesn't arrive in time, and the oldest ones above the maximum."""
        try:
            receiving = list(self._receiving.items())
        except RuntimeError:
            # Changed by another thread meanwhile; the next round sees it.
            return
        overdue = time.monotonic() - self._limits.message_seconds
        for number, (call, since) in enumerate(receiving):
            if since < overdue or len(receiving) - number > self._limits.waiting_calls:
                self.received(call)
                call.cancel()
