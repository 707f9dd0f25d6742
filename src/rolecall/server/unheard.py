"""The calls whose message isn't there yet, which whoever sends headers and nothing more could let grow for ever."""

import time
from typing import Protocol

__all__ = ["Unheard"]

# A call whose message takes longer is cancelled; of more that wait for theirs, the oldest go.
MESSAGE_SECONDS = 10.0
MAX_CALLS = 10_000


class Cancellable(Protocol):
    """A call."""

    def cancel(self) -> None:
        """Cut it off. Raises nothing."""
        ...


class Unheard:
    """Calls and since when each waits, the oldest first. Threads may share it."""

    def __init__(self) -> None:
        self._since: dict[Cancellable, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, call: Cancellable) -> None:
        """It waits from now on."""
        self._since[call] = time.monotonic()

    def discard(self, call: Cancellable) -> None:
        """It doesn't any more, if it did."""
        self._since.pop(call, None)

    def cancel_overdue(self) -> None:
        """Cut off those that waited too long."""
        try:
            waiting = list(self._since.items())
        except RuntimeError:
            # It changed meanwhile.
            return
        overdue = time.monotonic() - MESSAGE_SECONDS
        for number, (call, since) in enumerate(waiting):
            if since < overdue or len(waiting) - number > MAX_CALLS:
                self.discard(call)
                call.cancel()
