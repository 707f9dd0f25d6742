"""Data that was written to a database lately, searched for secrets of credentials."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sqlalchemy import text

from rolecall.storage import Storage, Transaction
from rolecall.storage import tables as t

__all__ = ["DatabaseWrites", "find_secrets", "secret_part", "writes_to"]

LETTERS = re.compile(r"[0-9A-Za-z]{43,}")
SECRET_LETTERS = 43
# Of SQLite's log of changes: https://www.sqlite.org/fileformat.html#walformat
LOG_HEADER = 32
FRAME_HEADER = 24


def find_secrets(content: str, known: set[str]) -> set[str]:
    """Return the known secrets that occur in the text, whatever surrounds them."""
    found = set()
    for run in LETTERS.findall(content):
        found |= {run[i : i + SECRET_LETTERS] for i in range(len(run) - SECRET_LETTERS + 1)} & known
    return found


def secret_part(secret: str) -> str:
    """Return the secret part of a credential's text."""
    return secret.rpartition("_")[2][:SECRET_LETTERS]


class DatabaseWrites(Protocol):
    """Reader of the data that is written to a database."""

    def since_last_time(self, organization: str) -> str:
        """Return the text written since the last call: of this organization at least, and maybe of others."""


def writes_to(storage: Storage, url: str) -> DatabaseWrites:
    """Return a reader for this database."""
    return _Files(Path(url.removeprefix("sqlite:///"))) if url.startswith("sqlite") else _Rows(storage)


class _Files:
    """Reader of SQLite's write-ahead log, which gets every written page first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._log = file.with_name(f"{file.name}-wal")
        self._salt = b""
        self._position = LOG_HEADER

    def since_last_time(self, organization: str) -> str:
        """Return the text written since the last call, of all organizations, overwritten or not."""
        return "\n".join(page.decode("latin-1") for page in self._pages())

    def _pages(self) -> Iterator[bytes]:
        with self._log.open("rb") as log:
            header = log.read(LOG_HEADER)
            size, salt = int.from_bytes(header[8:12], "big"), header[16:24]
            if salt != self._salt:
                # The log was restarted: its earlier entries are in the file.
                self._salt, self._position = salt, LOG_HEADER
                yield self._file.read_bytes()
            log.seek(self._position)
            while len(frame := log.read(FRAME_HEADER + size)) > FRAME_HEADER and frame[8:16] == salt:
                self._position += len(frame)
                yield frame[FRAME_HEADER:]


class _Rows:
    """Reader of PostgreSQL's rows that differ from the last time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._seen: set[str] = set()
        self._query = " UNION ALL ".join(
            f"SELECT t::text FROM {table.name} t WHERE {'id' if table is t.organizations else 'organization'} = :name"
            for table in t.metadata.sorted_tables
            # Policies are of all organizations, and are written by servers only.
            if table is t.organizations or "organization" in table.c
        )

    def since_last_time(self, organization: str) -> str:
        """Return the text written since the last call, of this organization."""

        def work(tx: Transaction) -> set[str]:
            # ASCII characters in bytes are shown as they are.
            tx.connection.execute(text("SET LOCAL bytea_output = 'escape'"))
            return set(tx.connection.scalars(text(self._query), {"name": organization}))

        rows = self._storage.read(work)
        new, self._seen = rows - self._seen, rows
        return "\n".join(new)
