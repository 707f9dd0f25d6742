"""Times, as numbers and as text."""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["now", "rfc3339"]


def now() -> int:
    """Return the current time in microseconds since 1970."""
    return time.time_ns() // 1000


def rfc3339(microseconds: int) -> str:
    """Format a time as RFC 3339, in UTC and to the microsecond."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{_second(second)}.{rest:06}Z"


@lru_cache(64)
def _second(second: int) -> str:
    """Format a time to the second. Cached, because most times that are formatted share their second with others."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=second)).isoformat().replace("+00:00", "")
