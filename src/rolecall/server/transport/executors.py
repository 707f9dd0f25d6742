"""Thread pools that run calls: one for authenticated callers, and a small one for each method without a credential.

On the standard transport, a call that sends its headers and no message holds a thread until it is cancelled; a call of
grpc's own methods, such as reflection, until its connection ends. Other callers can't hold the threads of authenticated
ones, as a message is only awaited once its caller is authenticated.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Executors"]

# Threads of each method that takes no credential.
DEDICATED_THREADS = 4


class Executors:
    """All thread pools of a server. `callers` is that of authenticated callers."""

    def __init__(self, callers: int) -> None:
        """`callers`: number of threads for authenticated callers."""
        self.callers = ThreadPoolExecutor(callers, thread_name_prefix="call")
        self._dedicated: dict[str, ThreadPoolExecutor] = {}

    def dedicated(self, name: str) -> ThreadPoolExecutor:
        """Return the pool of this name, which nothing else uses."""
        if name not in self._dedicated:
            self._dedicated[name] = ThreadPoolExecutor(DEDICATED_THREADS, thread_name_prefix=name)
        return self._dedicated[name]

    def run_dedicated(self, name: str, *behaviours: Callable[..., Any]) -> None:
        """Have grpc run the behaviours of handlers in a pool of their own."""
        for behaviour in behaviours:
            behaviour.experimental_thread_pool = self.dedicated(name)  # type: ignore[attr-defined]

    def close(self) -> None:
        """End each thread once its call is done; queued calls are cancelled."""
        for executor in (self.callers, *self._dedicated.values()):
            executor.shutdown(wait=False, cancel_futures=True)
