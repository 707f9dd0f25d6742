"""Following what other connections commit, on a connection of one's own."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection

from rolecall.errors import StorageUnavailable
from rolecall.storage import changes
from rolecall.storage.transaction import Change, Transaction

__all__ = ["Follower", "PostgresFollower", "SqliteFollower", "wake_followers"]

# How often SQLite is asked whether anything was committed: it costs some ten microseconds.
SQLITE_SECONDS = 0.04
# How long PostgreSQL is listened to before it is asked all the same.
POSTGRES_SECONDS = 0.5
CHANNEL = "rolecall"

_BACKWARDS = "The database went back to an earlier state: try again in a moment."


class Follower(Protocol):
    """Looks at what is committed. Any method may raise what the database does."""

    def look(self) -> list[Change]:
        """What was committed since the last look, and perhaps some of what came before."""
        ...

    def wait(self) -> None:
        """Return when it is time to look again."""
        ...


class SqliteFollower:
    """SQLite's `data_version` differs once another connection has committed; it is frozen inside a transaction."""

    def __init__(self, connection: Connection, mind_file: Callable[[], None]) -> None:
        """`mind_file` raises where the connection's file is no longer the one at its path."""
        self._connection = connection
        self._mind_file = mind_file
        self._version = self._present()
        self._place = self._read(None)[1]

    def look(self) -> list[Change]:
        """As `Follower.look`."""
        self._mind_file()
        version = self._present()
        if version == self._version:
            return []
        found, place = self._read(self._place)
        if place < self._place:
            raise StorageUnavailable(_BACKWARDS)
        self._place, self._version = place, version
        return found

    def wait(self) -> None:
        """As `Follower.wait`."""
        time.sleep(SQLITE_SECONDS)

    def _present(self) -> int:
        return int(_driver(self._connection).execute("PRAGMA data_version").fetchone()[0])

    def _read(self, place: int | None) -> tuple[list[Change], int]:
        with self._connection.begin():
            tx = Transaction(self._connection)
            return changes.since(tx, place) if place is not None else [], changes.position(tx)


class PostgresFollower:
    """PostgreSQL wakes those who listen; what it may have failed to say is asked for now and then."""

    def __init__(self, connection: Connection) -> None:
        """The connection commits each statement by itself."""
        self._tx = Transaction(connection)
        _driver(connection).execute(f"LISTEN {CHANNEL}")
        self._place = changes.position(self._tx)
        # A transaction that stays open anywhere in the server has the same changes read over and over.
        self._told: set[Change] = set()

    def look(self) -> list[Change]:
        """As `Follower.look`."""
        # The place first: what is committed between the two statements is read twice.
        next_place = changes.position(self._tx)
        if next_place < self._place:
            raise StorageUnavailable(_BACKWARDS)
        found = changes.since(self._tx, self._place)
        new = [change for change in found if change not in self._told]
        self._place, self._told = next_place, set(found)
        return new

    def wait(self) -> None:
        """As `Follower.wait`."""
        for _ in _driver(self._tx.connection).notifies(timeout=POSTGRES_SECONDS, stop_after=1):
            pass


def wake_followers(tx: Transaction) -> None:
    """Have those who listen look again once the transaction is committed. SQLite's look by themselves."""
    if tx.connection.dialect.name == "postgresql":
        tx.connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


def _driver(connection: Connection) -> Any:
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - for the type checker
    return driver
