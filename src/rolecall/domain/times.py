"""Moments, as numbers and as text."""

import time
from datetime import UTC, datetime, timedelta

__all__ = ["now", "rfc3339"]


def now() -> int:
    """The present moment, in microseconds."""
    return time.time_ns() // 1000


def rfc3339(microseconds: int) -> str:
    """A moment as people and programs read it, in UTC and to the microsecond."""
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
