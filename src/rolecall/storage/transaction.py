"""What the query modules work in."""

from dataclasses import dataclass

from sqlalchemy import Connection

__all__ = ["Transaction"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction. `revision` is the one that it makes, where it writes to an organization; else 0."""

    connection: Connection
    revision: int = 0
