"""New, empty databases of each kind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.environment import PGBOUNCER_URL, POSTGRES_URL
from support.postgres import PostgresServer

__all__ = ["ALL_KINDS", "POSTGRESQL_KINDS", "direct_url", "new_database"]

# `pgbouncer` is PostgreSQL behind PgBouncer in transaction mode.
POSTGRESQL_KINDS = ("postgresql", "pgbouncer")
ALL_KINDS = ("sqlite", *POSTGRESQL_KINDS)


@contextmanager
def new_database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new database; skip the test where what it needs isn't installed."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/rolecall.db"
        return
    if POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL is not installed")
    if kind == "pgbouncer" and PGBOUNCER_URL not in os.environ:
        pytest.skip("PgBouncer is not installed")
    with PostgresServer.new_database(os.environ[POSTGRES_URL]) as url:
        yield url if kind == "postgresql" else _server(PGBOUNCER_URL) + url.removeprefix(_server(POSTGRES_URL))


def direct_url(url: str) -> str:
    """The URL of the same database without PgBouncer, for work that needs a session of its own."""
    if PGBOUNCER_URL in os.environ and url.startswith(_server(PGBOUNCER_URL)):
        return _server(POSTGRES_URL) + url.removeprefix(_server(PGBOUNCER_URL))
    return url


def _server(variable: str) -> str:
    return os.environ[variable].rpartition("/")[0]
