"""Queries on the changes of each revision, by which the caches of all processes are invalidated."""

from collections.abc import Iterable

from sqlalchemy import delete, literal_column, select, text

from rolecall.storage.tables import changes
from rolecall.storage.transaction import Change, Transaction

__all__ = ["CHANNEL", "notify_followers", "position", "prune", "record_change", "record_changes", "since"]

# The channel on which PostgreSQL notifies the followers of each commit.
CHANNEL = "rolecall"

_NAMES = ("organization", "revision", "kind", "key")
# In SQL: SQLAlchemy's own statements for it would import both dialects, with their drivers.
_ADD = {
    "postgresql": text(
        "INSERT INTO changes (organization, revision, kind, key, transaction_id)"
        " VALUES (:organization, :revision, :kind, :key, pg_current_xact_id()::text::bigint) ON CONFLICT DO NOTHING"
    ),
    "sqlite": text(
        "INSERT INTO changes (organization, revision, kind, key) VALUES (:organization, :revision, :kind, :key)"
        " ON CONFLICT DO NOTHING"
    ),
}
# SQLite has one writer at a time, so its row numbers are in commit order. PostgreSQL's transactions commit in another
# order than they get their ids: the changes from the oldest transaction that was in progress on are read again.
_POSITION_COLUMN = {"postgresql": changes.c.transaction_id, "sqlite": literal_column("changes.rowid")}
_POSITION = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
    "sqlite": text("SELECT COALESCE(MAX(rowid), 0) + 1 FROM changes"),
}


def record_change(tx: Transaction, organization: str, kind: str, key: str) -> None:
    """Record that this revision changed the object `key` of this kind; a duplicate is ignored."""
    change = Change(organization, tx.revision, kind, key)
    tx.changes_made.append(change)
    tx.connection.execute(_ADD[tx.connection.dialect.name], change._asdict())


def record_changes(tx: Transaction, organization: str, kind: str, keys: Iterable[str]) -> None:
    """Record that this revision changed several objects of this kind, at least one."""
    made = [Change(organization, tx.revision, kind, key) for key in keys]
    tx.changes_made.extend(made)
    tx.connection.execute(_ADD[tx.connection.dialect.name], [change._asdict() for change in made])


def notify_followers(tx: Transaction) -> None:
    """Notify PostgreSQL's followers once the transaction is committed. SQLite's followers poll."""
    if tx.connection.dialect.name == "postgresql":
        tx.connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


def position(tx: Transaction) -> int:
    """Return a position in the changes: a change committed after this snapshot is at it or after it."""
    return int(tx.connection.execute(_POSITION[tx.connection.dialect.name]).scalar_one())


def prune(tx: Transaction, before: int) -> None:
    """Delete the changes before a position, except the last: SQLite continues from the highest existing row number."""
    tx.connection.execute(delete(changes).where(_POSITION_COLUMN[tx.connection.dialect.name] < before - 1))


def since(tx: Transaction, first: int) -> list[Change]:
    """Read the changes from the position `first` on, those of each organization in the order of its revisions."""
    where = _POSITION_COLUMN[tx.connection.dialect.name] >= first
    columns = [changes.c[name] for name in _NAMES]
    rows = tx.connection.execute(select(*columns).where(where).order_by(changes.c.organization, changes.c.revision))
    return [Change(*row) for row in rows]
