"""What the query modules work in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

__all__ = ["Change", "Transaction"]


class Change(NamedTuple):
    """That a revision of an organization changed the `kind` of thing named `key`."""

    organization: str
    revision: int
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """An open transaction. `revision` is the one that it makes, where it writes to an organization; else 0."""

    connection: Connection
    revision: int = 0
    # What it changes: noted when it is committed.
    touched: list[Change] = field(default_factory=list)
    # What to do once it is committed.
    afterwards: list[Callable[[], None]] = field(default_factory=list)
