"""Database access: atomic transactions, with the same behaviour on SQLite and PostgreSQL."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rolecall.errors import ConfigError, StorageUnavailable, WriteConflict
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.storage import organizations
from rolecall.storage.backup import back_up
from rolecall.storage.changes import notify_followers, position, record_change
from rolecall.storage.database_url import parse
from rolecall.storage.engine import (
    WRITES,
    create_file,
    engine_for,
    file_identity,
    file_is_missing,
)
from rolecall.storage.follower import Follower, PostgresFollower, SqliteFollower
from rolecall.storage.schema import check_schema, is_empty, upgrade_schema
from rolecall.storage.transaction import Change, Rollback, Transaction

__all__ = ["Change", "Rollback", "Storage", "Transaction"]

T = TypeVar("T")

_SQLITE_OUTAGES = tuple(
    f"SQLITE_{name}"
    for name in ("CANTOPEN", "CORRUPT", "FULL", "IOERR", "LOCKED", "NOMEM", "NOTADB", "PERM", "PROTOCOL", "READONLY")
)

_UNREACHABLE = "The database can't be reached: try again in a moment."
_BUSY = "Other writers kept the database busy: try again in a moment."

# Maximum attempts of a transaction that conflicts with others.
TRIES = 4
# The pause after a conflict is random: at most 40 ms after the first try, twice as long after each later one.
FIRST_PAUSE_SECONDS = 0.04
MAX_PAUSE_SECONDS = 0.2


class Storage:
    """Access to one database. Threads may share it."""

    def __init__(self, url: str, pool_size: int = 16, limits: Limits = DEFAULT_LIMITS, *, password: str = "") -> None:
        """Prepare the engine; doesn't connect yet. Raises `ConfigError` where `url` is malformed or not supported.

        `password`: for the database, where it isn't in the URL.
        """
        self._url = parse(url, password)
        self._engine = engine_for(self._url, pool_size, limits.database_seconds)
        self._wait_seconds = limits.database_seconds
        self._writer = threading.Lock()
        self._identity = file_identity(self._url)
        self._postgresql = self._url.get_backend_name() == "postgresql"
        self._listeners: list[Callable[[list[Change] | None], None]] = []
        self._mail_listeners: list[Callable[[], None]] = []
        # Position after the last change of this process. On SQLite the next change has a later one, unless the file was
        # restored to an earlier state.
        self._position = 0

    def on_change(self, notify: Callable[[list[Change] | None], None]) -> None:
        """Call `notify` with the changes of each transaction of this process, before `write` returns.

        The argument is None where it is unknown whether the changes were committed, or where the database was restored
        to an earlier state, so that others are unknown.
        """
        self._listeners.append(notify)

    def on_mail_queued(self, notify: Callable[[], None]) -> None:
        """Call `notify` after each transaction of this process that queued mails."""
        self._mail_listeners.append(notify)

    def is_new(self) -> bool:
        """Whether the database doesn't exist, or is empty; `check` any other. Raises `ConfigError`."""
        if file_is_missing(self._url) or is_empty(self._engine):
            return True
        self.check()
        return False

    def create(self) -> None:
        """Create the tables in a new or empty database; `check` any other. Raises `ConfigError`."""
        create_file(self._url)
        if is_empty(self._engine):
            upgrade_schema(self._engine)
        self.check()

    def upgrade(self, fill: Callable[[Transaction, str | None], None] = lambda _tx, _found: None) -> None:
        """Upgrade the schema of the database to this version's. Raises `ConfigError`.

        `fill` adds data that migrations can't, in the same transaction; its second argument is the previous schema.
        """
        self.require_file()
        upgrade_schema(self._engine, lambda connection, found: fill(Transaction(connection), found))

    def check(self) -> None:
        """Raise `ConfigError` where the database is missing, or its schema is older or newer than this version's."""
        self.require_file()
        check_schema(self._engine)

    def require_file(self) -> None:
        """Raise `ConfigError` where SQLite would create a new, empty file."""
        if file_is_missing(self._url):
            where = self._url.database
            raise ConfigError(
                f"The database {where} does not exist: run `rolecall init`, or correct ROLECALL_DATABASE."
            )

    def back_up(self, file: Path) -> None:
        """Copy an SQLite database to a new file, whatever its schema. Raises `ConfigError`."""
        self.require_file()
        back_up(self._url, file)

    def scrub(self) -> bool:
        """Truncate SQLite's write-ahead log, which still holds erased values; False where it is in use."""
        if self._postgresql:
            return True
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None  # noqa: S101 - for the type checker
            busy: int = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one snapshot, and return its result. It may be called again. Raises `StorageUnavailable`."""
        return self._run(work, {WRITES: False}, conflict=StorageUnavailable)

    def write(self, work: Callable[[Transaction], T | Rollback[T]]) -> T:
        """Run `work`, commit its writes, and return its result. It may be called again, after a rollback.

        Raises `WriteConflict` where each attempt conflicted with other writers, `StorageUnavailable`, and what `work`
        raises: then nothing is written.
        """
        if self._postgresql:
            return self._run(work, {WRITES: True}, conflict=WriteConflict)
        # Writers of this process queue here: SQLite admits the one that happens to poll next, and can starve others.
        if not self._writer.acquire(timeout=self._wait_seconds):
            raise WriteConflict(_BUSY)
        try:
            return self._run(work, {WRITES: True}, conflict=WriteConflict)
        finally:
            self._writer.release()

    def exclusive(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` while no change of any organization is in progress, in any process. Raises what `write` does."""

        def locked(tx: Transaction) -> T:
            if self._postgresql:
                organizations.lock_all(tx)
            return work(tx)

        return self.write(locked)

    def mutate(self, organization: str, work: Callable[[Transaction], T | Rollback[T]]) -> T:
        """Run `work` as `write` does, after raising the organization's revision, which serializes its writers.

        Where `work` returns a `Rollback`, nothing is committed, the new revision included. Raises
        `OrganizationNotFound` too.
        """

        def revised(tx: Transaction) -> T | Rollback[T]:
            tx = replace(tx, revision=organizations.bump(tx, organization))
            answer = work(tx)
            if not tx.changes_made and not isinstance(answer, Rollback):
                # Other processes learn of the new revision only by its changes.
                record_change(tx, organization, "revision", "")
            return answer

        return self.write(revised)

    def _run(
        self,
        work: Callable[[Transaction], T | Rollback[T]],
        options: dict[str, Any],
        conflict: type[StorageUnavailable | WriteConflict],
    ) -> T:
        self._release_replaced_file()
        give_up_at = time.monotonic() + self._wait_seconds
        longest_pause = FIRST_PAUSE_SECONDS
        for tries_left in reversed(range(TRIES)):
            try:
                return self._once(work, options)
            except PoolTimeoutError as error:
                raise StorageUnavailable("All database connections are in use: try again in a moment.") from error
            except SQLAlchemyError as error:
                # After a long wait for a lock, another one of the same length is unlikely to succeed.
                last = not tries_left or time.monotonic() > give_up_at
                if _is_duplicate(error) and not last:
                    # Two transactions inserted the same row: the second attempt finds it, and raises its own error.
                    pass
                elif _is_outage(error):
                    raise StorageUnavailable(_UNREACHABLE) from error
                elif not _is_conflict(error):
                    raise
                elif last:
                    raise conflict(_BUSY) from error
            # Full jitter: writers that conflicted don't meet again.
            time.sleep(random.uniform(0.0, longest_pause))  # noqa: S311 - no secret
            longest_pause = min(2 * longest_pause, MAX_PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    def _once(self, work: Callable[[Transaction], T | Rollback[T]], options: dict[str, Any]) -> T:
        with self._engine.connect().execution_options(**options) as connection:
            if WRITES in options:
                # A reader's transaction begins with its first statement, if it has one.
                connection.begin()
            tx = Transaction(connection, on_mail_queued=self._mail_listeners)
            answer = work(tx)
            if isinstance(answer, Rollback):
                connection.rollback()
                return answer.answer
            was_restored = False
            if tx.changes_made:
                notify_followers(tx)
                was_restored = not self._postgresql and self._was_restored(tx)
            try:
                connection.commit()
            except BaseException:
                # The changes may be committed all the same.
                if tx.changes_made:
                    self._notify(None)
                raise
        if tx.changes_made:
            self._notify(None if was_restored else tx.changes_made)
        for callback in tx.on_commit:
            callback()
        return answer

    def _was_restored(self, tx: Transaction) -> bool:
        """Whether the file was restored to an earlier state since this process last wrote to it."""
        before, self._position = self._position, position(tx)
        return self._position <= before

    def _notify(self, changes: list[Change] | None) -> None:
        for notify in self._listeners:
            notify(changes)

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """Follow the changes committed from now on, on a separate connection. Raises `StorageUnavailable`."""
        self._release_replaced_file()
        identity = self._identity

        def check_file() -> None:
            if file_identity(self._url) != identity:
                raise StorageUnavailable(_UNREACHABLE)

        # Loaded with the engine: the driver of the other database is never imported.
        driver: Any = self._engine.dialect.loaded_dbapi
        try:
            with self._engine.connect().execution_options(**{WRITES: False}) as connection:
                try:
                    yield PostgresFollower(connection) if self._postgresql else SqliteFollower(connection, check_file)
                finally:
                    # The connection listens, or was used outside a transaction: it must not go back to the pool.
                    connection.invalidate()
        except (SQLAlchemyError, driver.Error) as error:
            raise StorageUnavailable(_UNREACHABLE) from error

    def _release_replaced_file(self) -> None:
        """Close the connections to an SQLite file that is no longer the one at its path: its content is outdated."""
        if self._postgresql:
            return
        identity = file_identity(self._url)
        if identity is None:
            raise StorageUnavailable(_UNREACHABLE)
        if identity != self._identity:
            self._engine.dispose()
            self._identity = identity


def _is_conflict(error: SQLAlchemyError) -> bool:
    """Whether the transaction conflicted with another one, and may succeed when it is tried again."""
    if not isinstance(error, DBAPIError):
        return False
    # Serialization failure, deadlock, lock not available.
    if getattr(error.orig, "sqlstate", None) in ("40001", "40P01", "55P03"):
        return True
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def _is_duplicate(error: SQLAlchemyError) -> bool:
    """Whether the row exists already."""
    if not isinstance(error, IntegrityError):
        return False
    if getattr(error.orig, "sqlstate", None) == "23505":
        return True
    return getattr(error.orig, "sqlite_errorname", "") in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY")


def _is_outage(error: SQLAlchemyError) -> bool:
    """Whether the database itself fails, and not the statement."""
    if not isinstance(error, DBAPIError):
        return False
    name: str | None = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return name.startswith(_SQLITE_OUTAGES)
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state is None:
        # The connection broke, or couldn't be opened; a value that the driver refuses has no state either.
        return isinstance(error, OperationalError | InterfaceError)
    # Classes of errors: connection, resources, operator intervention, system, unknown database, log-in.
    return state[:2] in ("08", "53", "57", "58", "3D", "28")
