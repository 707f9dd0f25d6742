"""The calls of the fast lane that wait for a thread, and how many may."""

from collections.abc import Hashable

__all__ = ["Waiting"]

# So many calls may wait, with so many bytes of messages; more are refused.
MAX_CALLS = 10_000
MAX_BYTES = 64 * 1024 * 1024
LARGE_BYTES = 4096


class Waiting:
    """Calls by the size of their messages. Threads may share it."""

    def __init__(self) -> None:
        self._sizes: dict[Hashable, int] = {}

    def take_in(self, call: Hashable, size: int) -> bool:
        """Count a call whose message has so many bytes; False where there is no room for it."""
        if len(self._sizes) >= MAX_CALLS:
            return False
        # Reckoned anew each time, but for large ones only: the small ones of all that may wait have 40 MB.
        if size >= LARGE_BYTES and sum(list(self._sizes.values())) + size > MAX_BYTES:
            return False
        self._sizes[call] = size
        return True

    def let_go(self, call: Hashable) -> None:
        """It waits no longer."""
        self._sizes.pop(call, None)
