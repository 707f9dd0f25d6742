"""Threads for the calls that anybody may make without a credential, apart from those that answer callers.

A call that sends its headers and no message holds a thread until its connection ends. Nobody can hold the callers'
threads like this, as their message isn't waited for before they are known.
"""

from collections.abc import Callable
from concurrent import futures
from typing import Any, TypeVar

__all__ = ["on_threads_of_their_own"]

THREADS = 4

Behaviour = TypeVar("Behaviour", bound=Callable[..., Any])


def on_threads_of_their_own(name: str, *behaviours: Behaviour) -> tuple[Behaviour, ...]:
    """The behaviours of handlers, to be run by four threads that they share with nobody else."""
    pool = futures.ThreadPoolExecutor(THREADS, thread_name_prefix=name)
    for behaviour in behaviours:
        behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return behaviours
