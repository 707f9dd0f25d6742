"""The business rows of a database, to compare before and after."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select

from rolecall.storage import Storage, Transaction, tables
from support.sites import Site


def rows_of(storage: Storage) -> dict[str, list[tuple[Any, ...]]]:
    """Return all business rows: every table, without times of last use and refusals in the audit log."""

    def work(tx: Transaction) -> dict[str, list[tuple[Any, ...]]]:
        found = {}
        for table in tables.metadata.sorted_tables:
            if table.name in ("audit_heads", "audit_checkpoints", "audit_values"):
                continue
            columns = [column for column in table.c if column.name != "last_use_time"]
            query = select(*columns)
            if table.name == "audit_entries":
                query = query.where(table.c.reason == "").with_only_columns(table.c.action, table.c.time)
            found[table.name] = sorted(map(tuple, tx.connection.execute(query)), key=repr)
        return found

    return storage.read(work)


@contextmanager
def nothing_written(site: Site) -> Iterator[None]:
    """Assert that no business row, and so no revision, differs afterwards."""
    before = rows_of(site.storage)
    yield
    assert rows_of(site.storage) == before
