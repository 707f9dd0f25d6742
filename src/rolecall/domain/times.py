"""Moments, as numbers and as text."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["now", "rfc3339"]


def now() -> int:
    """The present moment, in microseconds."""
    return time.time_ns() // 1000


def rfc3339(microseconds: int) -> str:
    """A moment as people and programs read it, in UTC and to the microsecond."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{_second(second)}.{rest:06}Z"


@lru_cache(64)
def _second(second: int) -> str:
    """Most moments that are written down share theirs with others."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=second)).isoformat().replace("+00:00", "")
