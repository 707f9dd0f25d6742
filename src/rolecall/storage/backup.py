"""Copy of an SQLite database, made while servers use it."""

import os
import sqlite3
from pathlib import Path

from sqlalchemy import URL

from rolecall.errors import ConfigError
from rolecall.storage.database_url import name_of

__all__ = ["back_up"]


def back_up(url: URL, file: Path) -> None:
    """Write the state of one moment to a new file, readable by this user only. Raises `ConfigError`.

    Writers of the database aren't held up.
    """
    if url.get_backend_name() != "sqlite":
        raise ConfigError(
            f"The database {name_of(url)} is on PostgreSQL, and `backup` copies SQLite files: use pg_dump"
            " (docs/maintenance.md)."
        )
    try:
        copy = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"The file {file} exists already: name a new one.") from error
    except OSError as error:
        raise ConfigError(f"The file {file} can't be created: {error.strerror}.") from error
    try:
        _copy(str(url.database), file)
        os.fsync(copy)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error | OSError):
            raise ConfigError(f"The database {name_of(url)} can't be copied to {file}: {error}.") from error
        raise
    finally:
        os.close(copy)


def _copy(database: str, file: Path) -> None:
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        # SQLite takes a file that is empty.
        connection.execute("VACUUM INTO ?", (str(file),))
    finally:
        connection.close()
