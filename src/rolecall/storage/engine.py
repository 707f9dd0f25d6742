"""Engines for SQLite and PostgreSQL, set up so that writers queue instead of losing each other's work."""

import os
import sqlite3
from functools import partial
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from rolecall.errors import ConfigError

__all__ = [
    "WAIT_SECONDS",
    "WRITES",
    "create_file",
    "engine_for",
    "file_identity",
    "file_is_missing",
    "name_of",
    "url_of",
]

# Execution option of connections that are going to write.
WRITES = "rolecall_writes"

# How long a statement waits for another writer, and a connection for its turn.
WAIT_SECONDS = 2


def url_of(text: str) -> URL:
    """The database's URL. Raises `ConfigError`, without the URL, as it may hold a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "The database URL is malformed: write `sqlite:///file` or `postgresql://user:password@host/name`."
        ) from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"The database `{url.get_backend_name()}` is not supported: use sqlite or postgresql.")
    if url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or str(url.database).startswith("file:")
    ):
        # `file:...` names a file by SQLite's own rules, past our looking after its mode and whether it is there.
        raise ConfigError("An SQLite database needs a file by its plain path: write `sqlite:///rolecall.db`.")
    return url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg")


def engine_for(url: URL, pool_size: int) -> Engine:
    """An engine whose connections are ready for use. Connects to nothing yet."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=WAIT_SECONDS,
            connect_args={"timeout": WAIT_SECONDS},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            # A network that swallows packets is noticed within seconds, not with TCP's own patience.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "connect_timeout": url.query.get("connect_timeout", WAIT_SECONDS),
            "options": f"-c lock_timeout={WAIT_SECONDS}s -c statement_timeout=30s {url.query.get('options', '')}",
        },
    )


def name_of(url: URL) -> str:
    """The database in words for people: never its password, wherever in the URL that stands."""
    if url.get_backend_name() == "sqlite":
        return f"{url.database}"
    at = f" at {url.host}" if url.host and "@" not in url.host else ""
    return f"{url.database}{at}"


def create_file(url: URL) -> None:
    """Make SQLite's file, readable by this user only, where there is none. Raises `ConfigError`."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    try:
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"The database file {url.database} can't be made: {error.strerror}.") from error


def file_is_missing(url: URL) -> bool:
    """Whether SQLite would make a new, empty file."""
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").exists()


def file_identity(url: URL) -> tuple[int, int] | None:
    """Which file is at SQLite's path; None where there is none, or the database is another."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    try:
        found = Path(url.database).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own BEGIN comes late and deferred, which loses writes; ours is below.
    connection.isolation_level = None
    # Text that somebody spoilt past us must not look like an outage: it is handed on, unlike any that is valid.
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    # What is deleted is overwritten: an erased name must not stay in a free page.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    # It lasts as long as the connection, and so does `info`.
    if connection.info.get(WRITES) is not writes:
        connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if writes else 'ON'}")
        connection.info[WRITES] = writes
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
