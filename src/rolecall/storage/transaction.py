"""What the query modules work in."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

__all__ = ["Transaction"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction. `revision` is the one that it makes, where it writes to an organization; else 0."""

    connection: Connection
    revision: int = 0
    # What it changes, by the ids that caches know them by: forgotten when it ends, however it does.
    touched: list[str] = field(default_factory=list)
    # What to do once it is committed.
    afterwards: list[Callable[[], None]] = field(default_factory=list)
