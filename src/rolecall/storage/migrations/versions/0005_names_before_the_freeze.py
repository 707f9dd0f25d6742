"""Columns by the names that the API freezes. No value of an audit entry changes, so that its hash stays valid."""

from alembic import op

revision = "0005"
down_revision = "0004"

_COLUMNS = (
    ("audit_entries", "request_id", "call_id"),
    ("credentials", "name", "display_name"),
    ("credentials", "created_by", "creator"),
    ("credentials", "last_used_time", "last_use_time"),
    ("invitations", "inviter", "creator"),
)


def upgrade() -> None:
    """Rename the columns, and their keys in the answers that are stored for repeated requests."""
    for table, old, new in _COLUMNS:
        # Both databases know this statement; on SQLite, alembic would copy the whole table.
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
        # Only a key stands between such a quote and a colon: within a value, quotes are escaped.
        op.execute(f"UPDATE requests SET answer = replace(answer, '\"{old}\":', '\"{new}\":')")  # noqa: S608
