"""The database: transactions that are wholly there or wholly absent, on SQLite and PostgreSQL alike."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from psycopg import Error as DriverError
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rolecall.errors import ConfigError, StorageUnavailable, WriteConflict
from rolecall.storage import organizations
from rolecall.storage.changes import position, record_change
from rolecall.storage.engine import (
    WAIT_SECONDS,
    WRITES,
    create_file,
    engine_for,
    file_identity,
    file_is_missing,
    url_of,
)
from rolecall.storage.follower import Follower, PostgresFollower, SqliteFollower, wake_followers
from rolecall.storage.schema import check_schema, is_empty, upgrade_schema
from rolecall.storage.transaction import Change, Transaction

__all__ = ["Change", "Storage", "Transaction", "WouldWait"]

T = TypeVar("T")

_SQLITE_OUTAGES = tuple(
    f"SQLITE_{name}"
    for name in ("CANTOPEN", "CORRUPT", "FULL", "IOERR", "LOCKED", "NOMEM", "NOTADB", "PERM", "PROTOCOL", "READONLY")
)

_UNREACHABLE = "The database can't be reached: try again in a moment."
_BUSY = "Other writers kept the database busy: try again in a moment."

TRIES = 4
FIRST_PAUSE_SECONDS = 0.02


class WouldWait(Exception):
    """The database would have to be waited for, in a thread that is spared that.

    `lacking` is what would be read, where that can be read for many at once; whoever raises it knows what it says.
    """

    def __init__(self, lacking: Any = None) -> None:
        super().__init__("the database would have to be waited for")
        self.lacking = lacking


class Storage:
    """One database. Threads may share it."""

    def __init__(self, url: str, pool_size: int = 16) -> None:
        """Connects to nothing yet. Raises `ConfigError` where `url` is none that we serve."""
        self._url = url_of(url)
        self._engine = engine_for(self._url, pool_size)
        self._writer = threading.Lock()
        self._identity = file_identity(self._url)
        self._postgresql = self._url.get_backend_name() == "postgresql"
        self._listeners: list[Callable[[list[Change] | None], None]] = []
        self._spared = 0
        # Behind what this process changed last. SQLite's next change has a later place, unless the file was set back.
        self._place = 0

    def on_change(self, note: Callable[[list[Change] | None], None]) -> None:
        """Have `note` told what each transaction of this process changed, before `write` answers.

        It is told None where nobody knows whether the changes were committed, or what else: the database was set back.
        """
        self._listeners.append(note)

    def spare(self, thread: int) -> None:
        """Never have the thread with this id wait: what would, raises `WouldWait` there."""
        self._spared = thread

    def require_patience(self, lacking: Any = None) -> None:
        """Raise `WouldWait`, saying what is lacking, where the present thread is one that is spared."""
        if threading.get_ident() == self._spared:
            raise WouldWait(lacking)

    def create(self) -> None:
        """Make the tables in a new or empty database; `check` any other. Raises `ConfigError`."""
        create_file(self._url)
        if is_empty(self._engine):
            upgrade_schema(self._engine)
        self.check()

    def upgrade(self, fill: Callable[[Transaction, str | None], None] = lambda _tx, _found: None) -> None:
        """Bring the schema of the database to what this version needs. Raises `ConfigError`.

        `fill` adds, in the same transaction, what no migration can: it is told the schema that was found.
        """
        self.require_file()
        upgrade_schema(self._engine, lambda connection, found: fill(Transaction(connection), found))

    def check(self) -> None:
        """Raise `ConfigError` where there is no database, or its schema is older or newer than this version's."""
        self.require_file()
        check_schema(self._engine)

    def require_file(self) -> None:
        """Raise `ConfigError` where SQLite would make a new, empty file."""
        if file_is_missing(self._url):
            where = self._url.database
            raise ConfigError(f"There is no database {where}: run `rolecall init`, or correct ROLECALL_DATABASE.")

    def scrub(self) -> bool:
        """Have SQLite drop its log of changes, where what was erased still stands; False where it is in use."""
        if self._postgresql:
            return True
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None  # noqa: S101 - for the type checker
            busy: int = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """What `work` finds in one snapshot. It may be called again. Raises `StorageUnavailable`."""
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if self._postgresql else {}
        return self._run(work, options, conflict=StorageUnavailable)

    def write(self, work: Callable[[Transaction], T]) -> T:
        """What `work` answers after its writes are committed. It may be called again, after a roll-back.

        Raises `WriteConflict` where others got in between each time, `StorageUnavailable`, and whatever `work` raises:
        then nothing is written.
        """
        if self._postgresql:
            return self._run(work, {WRITES: True}, conflict=WriteConflict)
        self.require_patience()
        # SQLite lets whoever happens to look next in, and starves the others.
        if not self._writer.acquire(timeout=WAIT_SECONDS):
            raise WriteConflict(_BUSY)
        try:
            return self._run(work, {WRITES: True}, conflict=WriteConflict)
        finally:
            self._writer.release()

    def alone(self, work: Callable[[Transaction], T]) -> T:
        """What `work` answers while no change of any organization is under way, in any process. Raises as `write`."""

        def locked(tx: Transaction) -> T:
            if self._postgresql:
                organizations.lock_all(tx)
            return work(tx)

        return self.write(locked)

    def mutate(self, organization: str, work: Callable[[Transaction], T]) -> T:
        """`write` to one organization: its revision is bumped before `work` begins, and lets one writer in at a time.

        Raises `OrganizationNotFound` too.
        """

        def revised(tx: Transaction) -> T:
            tx = replace(tx, revision=organizations.bump(tx, organization))
            answer = work(tx)
            if not tx.touched:
                # Others learn of the new revision by what it changed.
                record_change(tx, organization, "revision", "")
            return answer

        return self.write(revised)

    def _run(
        self,
        work: Callable[[Transaction], T],
        options: dict[str, Any],
        conflict: type[StorageUnavailable | WriteConflict],
    ) -> T:
        self.require_patience()
        self._mind_replaced_file()
        give_up_at = time.monotonic() + WAIT_SECONDS
        pause = FIRST_PAUSE_SECONDS
        for tries_left in reversed(range(TRIES)):
            try:
                return self._once(work, options)
            except PoolTimeoutError as error:
                raise StorageUnavailable("All database connections are in use: try again in a moment.") from error
            except SQLAlchemyError as error:
                # A lock that was waited for at length will not be had by waiting as long again.
                last = not tries_left or time.monotonic() > give_up_at
                if _is_duplicate(error) and not last:
                    # Two made the same row at once: the second try finds it and says so in our words.
                    pass
                elif _is_outage(error):
                    raise StorageUnavailable(_UNREACHABLE) from error
                elif not _is_conflict(error):
                    raise
                elif last:
                    raise conflict(_BUSY) from error
            time.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _once(self, work: Callable[[Transaction], T], options: dict[str, Any]) -> T:
        with self._engine.connect().execution_options(**options) as connection:
            if WRITES in options:
                # A reader begins with its first statement, and may find that it needs none.
                connection.begin()
            tx = Transaction(connection)
            answer = work(tx)
            was_set_back = False
            if tx.touched:
                wake_followers(tx)
                was_set_back = not self._postgresql and self._is_set_back(tx)
            try:
                connection.commit()
            except BaseException:
                # It may be done all the same.
                if tx.touched:
                    self._tell(None)
                raise
        if tx.touched:
            self._tell(None if was_set_back else tx.touched)
        for then in tx.afterwards:
            then()
        return answer

    def _is_set_back(self, tx: Transaction) -> bool:
        """Whether an earlier state of the file was restored since this process last wrote to it."""
        place, self._place = self._place, position(tx)
        return self._place <= place

    def _tell(self, changes: list[Change] | None) -> None:
        for note in self._listeners:
            note(changes)

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """Follow what is committed from now on, on a connection of its own. Raises `StorageUnavailable`."""
        self._mind_replaced_file()
        identity = self._identity

        def mind_file() -> None:
            if file_identity(self._url) != identity:
                raise StorageUnavailable(_UNREACHABLE)

        options = {"isolation_level": "AUTOCOMMIT"} if self._postgresql else {WRITES: False}
        try:
            with self._engine.connect().execution_options(**options) as connection:
                try:
                    yield PostgresFollower(connection) if self._postgresql else SqliteFollower(connection, mind_file)
                finally:
                    # It listens, or was looked at from outside a transaction: nobody else is to get it.
                    connection.invalidate()
        except (SQLAlchemyError, DriverError, sqlite3.Error) as error:
            raise StorageUnavailable(_UNREACHABLE) from error

    def _mind_replaced_file(self) -> None:
        """Let go of an SQLite file that is no longer the one at its path: what it says holds no more."""
        if self._postgresql:
            return
        identity = file_identity(self._url)
        if identity is None:
            raise StorageUnavailable(_UNREACHABLE)
        if identity != self._identity:
            self._engine.dispose()
            self._identity = identity


def _is_conflict(error: SQLAlchemyError) -> bool:
    """Whether the transaction lost against another one and may win the next time."""
    if not isinstance(error, DBAPIError):
        return False
    # Serialization failure, deadlock, lock not available.
    if getattr(error.orig, "sqlstate", None) in ("40001", "40P01", "55P03"):
        return True
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def _is_duplicate(error: SQLAlchemyError) -> bool:
    """Whether there is such a row already."""
    if not isinstance(error, IntegrityError):
        return False
    if getattr(error.orig, "sqlstate", None) == "23505":
        return True
    return getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY")


def _is_outage(error: SQLAlchemyError) -> bool:
    """Whether the database itself is the trouble, and not the statement."""
    if not isinstance(error, DBAPIError):
        return False
    name: str | None = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return name.startswith(_SQLITE_OUTAGES)
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state is None:
        # The connection broke, or never was; a value that the driver refuses has no state either.
        return isinstance(error, OperationalError | InterfaceError)
    # Connection, resources, operator, system, unknown database, log-in.
    return state[:2] in ("08", "53", "57", "58", "3D", "28")
