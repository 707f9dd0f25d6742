"""Change followers: they read what other connections commit, on a connection of their own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from rolecall.errors import StorageUnavailable
from rolecall.storage import changes, policies
from rolecall.storage.engine import POOLED
from rolecall.storage.transaction import Change, Transaction

__all__ = ["Committed", "Follower", "PostgresFollower", "SqliteFollower"]

# How often SQLite is polled for commits of other connections. In an idle server, whose processor cache is cold, each
# poll takes some 130 µs: every 80 ms, 0.16 % of a core.
SQLITE_SECONDS = 0.08
# Polls without a commit after which `wait` returns: `read_committed` then checks that the file was not replaced.
QUIET_POLLS = 3
# Maximum wait for a notification of PostgreSQL before the changes are polled.
POSTGRES_SECONDS = 0.5
# `changes.position`, whether there are changes since an earlier position, and `policies.sequence_in_force`, in one
# snapshot. In an idle server, SQLAlchemy would take longer for the queries than all other threads for all that they do.
_PEEK = (
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint,"
    " EXISTS (SELECT FROM changes WHERE transaction_id >= %s),"
    " (SELECT COALESCE(MAX(sequence), 0) FROM policy_activations)"
)

_RESTORED = "The database was restored to an earlier state: try again in a moment."


class Committed(NamedTuple):
    """Changes committed since the last look, and possibly some earlier ones.

    `policy_sequence` is the sequence number of the policy's activation in force.
    """

    changes: list[Change]
    policy_sequence: int


class Follower(Protocol):
    """Reader of what is committed. Every method may raise the driver's exceptions.

    `misses_notifications`: whether a connection pooler keeps the database's notifications from it.
    """

    misses_notifications: bool

    def read_committed(self) -> Committed:
        """Return what was committed since the last call."""
        ...

    def wait(self) -> None:
        """Wait until it is time to call `read_committed` again."""
        ...


class SqliteFollower:
    """Follower on SQLite: `data_version` differs after a commit of another connection, except in a transaction."""

    misses_notifications = False

    def __init__(self, connection: Connection, check_file: Callable[[], None]) -> None:
        """Call `check_file` in each `read_committed`: it raises where the file at the path was replaced."""
        self._connection = connection
        self._check_file = check_file
        # One cursor for all polls: fetching the only row ends its statement.
        self._execute = _driver(connection).cursor().execute
        self._version = self._data_version()
        committed, self._position = self._read(None)
        self._policy_sequence = committed.policy_sequence

    def read_committed(self) -> Committed:
        """Implement `Follower.read_committed`."""
        self._check_file()
        version = self._data_version()
        if version == self._version:
            return Committed([], self._policy_sequence)
        committed, position = self._read(self._position)
        if position < self._position or committed.policy_sequence < self._policy_sequence:
            raise StorageUnavailable(_RESTORED)
        self._position, self._version = position, version
        self._policy_sequence = committed.policy_sequence
        return committed

    def wait(self) -> None:
        """Implement `Follower.wait`."""
        for _ in range(QUIET_POLLS):
            time.sleep(SQLITE_SECONDS)
            if self._data_version() != self._version:
                return

    def _data_version(self) -> int:
        version: int = self._execute("PRAGMA data_version").fetchone()[0]
        return version

    def _read(self, position: int | None) -> tuple[Committed, int]:
        with self._connection.begin():
            tx = Transaction(self._connection)
            found = changes.since(tx, position) if position is not None else []
            return Committed(found, policies.sequence_in_force(tx)), changes.position(tx)


class PostgresFollower:
    """Follower on PostgreSQL: woken by NOTIFY, and polling every 0.5 s as notifications may be lost."""

    def __init__(self, connection: Connection) -> None:
        """Listen on the connection, unless it leads to a connection pooler, where another session may get to listen."""
        self._connection = connection
        with connection.begin():
            self._position = changes.position(Transaction(connection))
        self.misses_notifications = bool(connection.info[POOLED])
        if not self.misses_notifications:
            _driver(connection).execute(f"LISTEN {changes.CHANNEL}")
        # While a transaction stays open anywhere in the server, the same changes are read again and again.
        self._returned: set[Change] = set()

    def read_committed(self) -> Committed:
        """Implement `Follower.read_committed`."""
        # The position first: changes committed between the two statements are read twice.
        row = _driver(self._connection).execute(_PEEK, (self._position,)).fetchone()
        next_position, has_changes, policy_sequence = row
        if next_position < self._position:
            raise StorageUnavailable(_RESTORED)
        found: list[Change] = []
        if has_changes:
            with self._connection.begin():
                found = changes.since(Transaction(self._connection), self._position)
        new = [change for change in found if change not in self._returned]
        self._position, self._returned = next_position, set(found)
        return Committed(new, policy_sequence)

    def wait(self) -> None:
        """Implement `Follower.wait`."""
        if self.misses_notifications:
            time.sleep(POSTGRES_SECONDS)
            return
        for _ in _driver(self._connection).notifies(timeout=POSTGRES_SECONDS, stop_after=1):
            pass


def _driver(connection: Connection) -> Any:
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - for the type checker
    return driver
