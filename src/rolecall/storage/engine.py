"""Database engines for SQLite and PostgreSQL, configured so that writers queue and no update is lost."""

import math
import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from rolecall.errors import ConfigError

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "POOLED",
    "WRITES",
    "create_file",
    "engine_for",
    "file_identity",
    "file_is_missing",
]

# Execution option of connections that write.
WRITES = "rolecall_writes"
# Key in the `info` of a connection to PostgreSQL: whether it leads to a connection pooler, such as PgBouncer.
POOLED = "rolecall_pooled"
# Maximum seconds of a statement on PostgreSQL.
STATEMENT_SECONDS = 30


def engine_for(url: URL, pool_size: int, wait_seconds: float) -> Engine:
    """Create an engine whose connections are ready for use. Doesn't connect yet.

    `wait_seconds`: longest wait of a statement for another writer's lock, and for a connection from the pool.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=wait_seconds,
            connect_args={"timeout": wait_seconds},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
        connect_args={
            # The driver's own BEGIN takes a round trip without the timeouts: `_begin_postgresql` begins instead.
            "autocommit": True,
            # A network that drops packets is detected within seconds, not after TCP's own timeouts.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "connect_timeout": url.query.get("connect_timeout", math.ceil(wait_seconds)),
        },
    )
    # Consecutive transactions behind a connection pooler run in different sessions: nothing is set for a session.
    timeouts = f"SET LOCAL lock_timeout = '{wait_seconds}s'; SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"
    read = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {timeouts}"
    write = f"BEGIN ISOLATION LEVEL READ COMMITTED; {timeouts}"
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", partial(_begin_postgresql, read, write))
    return engine


def create_file(url: URL) -> None:
    """Create SQLite's file, readable by this user only, where it doesn't exist. Raises `ConfigError`."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    try:
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"The database file {url.database} can't be created: {error.strerror}.") from error


def file_is_missing(url: URL) -> bool:
    """Whether SQLite would create a new, empty file."""
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


def file_identity(url: URL) -> tuple[int, int] | None:
    """Return device and inode of the file at SQLite's path; None where it doesn't exist, or for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    try:
        found = os.stat(url.database)  # noqa: PTH116 - called in each transaction, and a Path takes twice as long
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own BEGIN comes late and is deferred, which loses updates: `_begin_sqlite` begins instead.
    connection.isolation_level = None
    # Text that was corrupted outside Rolecall must not look like an outage: it is read as surrogates, never valid text.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    # Deleted content is overwritten (secure_delete): an erased name must not stay in a free page.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    # The pragma lasts as long as the connection, and so does `info`.
    if connection.info.get(WRITES) is not writes:
        connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if writes else 'ON'}")
        connection.info[WRITES] = writes
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(connection: "psycopg.Connection[Any]", record: ConnectionPoolEntry) -> None:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    # A connection pooler makes up the process id that clients get when they connect.
    record.info[POOLED] = row != (connection.info.backend_pid,)
    if record.info[POOLED]:
        # PgBouncer in transaction mode runs a prepared statement in a session that may not have it, or have another one
        # of its name. Without a pooler, a change with prepared statements takes about a quarter less time.
        connection.prepare_threshold = None


def _begin_postgresql(read: str, write: str, connection: Connection) -> None:
    statement = write if connection.get_execution_options().get(WRITES, False) else read
    driver: Any = connection.connection.driver_connection
    try:
        # All in one round trip, and past SQLAlchemy, which takes longer for it than PostgreSQL.
        driver.execute(statement)
    except connection.dialect.loaded_dbapi.OperationalError:
        # The connection broke while it was idle, as others may have: SQLAlchemy drops them all when it notices.
        with suppress(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        connection.exec_driver_sql(statement)
