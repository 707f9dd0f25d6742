"""Databases for tests of services."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.databases import ALL_KINDS, new_database


@pytest.fixture(params=ALL_KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database; one of each kind, PostgreSQL behind PgBouncer too."""
    with new_database(request.param, tmp_path) as url:
        yield url
