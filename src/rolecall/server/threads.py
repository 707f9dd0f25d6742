"""The threads that answer calls: those of the callers, and a few apart for each thing that strangers may ask.

On the public lane, a call that sends its headers and no message holds a thread until it is cut off; one of grpc's own,
as reflection, until its connection ends. Nobody can hold the callers' threads like this, as their message isn't waited
for before they are known.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Threads"]

# How many each thing has to itself that may be asked without a credential.
STRANGERS = 4


class Threads:
    """All the threads of a server that calls are answered by. `callers` are those of whoever presents a credential."""

    def __init__(self, callers: int) -> None:
        """So many for callers."""
        self.callers = ThreadPoolExecutor(callers, thread_name_prefix="call")
        self._apart: dict[str, ThreadPoolExecutor] = {}

    def apart(self, name: str) -> ThreadPoolExecutor:
        """Threads for one thing, shared with nothing else."""
        if name not in self._apart:
            self._apart[name] = ThreadPoolExecutor(STRANGERS, thread_name_prefix=name)
        return self._apart[name]

    def run_apart(self, name: str, *behaviours: Callable[..., Any]) -> None:
        """Have grpc run the behaviours of handlers by threads of their own."""
        for behaviour in behaviours:
            behaviour.experimental_thread_pool = self.apart(name)  # type: ignore[attr-defined]

    def close(self) -> None:
        """End each thread once it is done with its call, and begin none that waits."""
        for threads in (self.callers, *self._apart.values()):
            threads.shutdown(wait=False, cancel_futures=True)
