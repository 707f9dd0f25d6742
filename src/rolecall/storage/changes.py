"""What each revision changed, for the memories of this process and of others."""

from sqlalchemy import ColumnElement, Executable, bindparam, delete, literal_column, select, text
from sqlalchemy.dialects import postgresql, sqlite

from rolecall.storage.tables import changes
from rolecall.storage.transaction import Change, Transaction

__all__ = ["position", "prune", "record_change", "since"]

_NAMES = ("organization", "revision", "kind", "key")
_TRANSACTION: ColumnElement[int] = literal_column("pg_current_xact_id()::text::bigint")
_ADD: dict[str, Executable] = {
    "postgresql": postgresql.insert(changes)
    .values({name: bindparam(name) for name in _NAMES} | {"transaction_id": _TRANSACTION})
    .on_conflict_do_nothing(),
    "sqlite": sqlite.insert(changes).on_conflict_do_nothing(),
}
# SQLite's writers come one at a time, so its row numbers are in the order of the commits. PostgreSQL's transactions
# commit in another order than they get their numbers: all from the oldest that was under way are read again.
_PLACE = {"postgresql": changes.c.transaction_id, "sqlite": literal_column("changes.rowid")}
_POSITION = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
    "sqlite": text("SELECT COALESCE(MAX(rowid), 0) + 1 FROM changes"),
}


def record_change(tx: Transaction, organization: str, kind: str, key: str) -> None:
    """Note that this revision changed the `kind` of thing named `key`; once is enough."""
    change = Change(organization, tx.revision, kind, key)
    tx.touched.append(change)
    tx.connection.execute(_ADD[tx.connection.dialect.name], change._asdict())


def position(tx: Transaction) -> int:
    """A place in the changes: what is committed after this snapshot stands at it or behind it."""
    return int(tx.connection.execute(_POSITION[tx.connection.dialect.name]).scalar_one())


def prune(tx: Transaction, place: int) -> None:
    """Drop the changes before the place, but for the last of them: SQLite numbers rows on from the highest that is."""
    tx.connection.execute(delete(changes).where(_PLACE[tx.connection.dialect.name] < place - 1))


def since(tx: Transaction, place: int) -> list[Change]:
    """The changes at `place` and behind it, each organization's in the order of its revisions."""
    where = _PLACE[tx.connection.dialect.name] >= place
    columns = [changes.c[name] for name in _NAMES]
    rows = tx.connection.execute(select(*columns).where(where).order_by(changes.c.organization, changes.c.revision))
    return [Change(*row) for row in rows]
