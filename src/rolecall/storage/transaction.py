"""Open transaction that the query modules work in, and the changes that it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import Connection

__all__ = ["Change", "Rollback", "Transaction"]

T = TypeVar("T")


class Change(NamedTuple):
    """Record that a revision of an organization changed the object `key` of this kind."""

    organization: str
    revision: int
    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """Open transaction. `revision` is the one that it creates, where it writes to an organization; else 0."""

    connection: Connection
    revision: int = 0
    # Changes that it makes; listeners get them once it is committed.
    changes_made: list[Change] = field(default_factory=list)
    # Callbacks to run once it is committed.
    on_commit: list[Callable[[], None]] = field(default_factory=list)
    # Callbacks that are added to `on_commit` when it queues mails.
    on_mail_queued: Sequence[Callable[[], None]] = ()

    @property
    def previous_revision(self) -> int:
        """Revision before the one that this transaction makes; still in force where it is rolled back."""
        return self.revision - 1


@dataclass(frozen=True, slots=True)
class Rollback(Generic[T]):
    """Result of a transaction's work that is to be rolled back: `answer` is returned, and nothing is committed."""

    answer: T
