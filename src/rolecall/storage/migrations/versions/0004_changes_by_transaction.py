"""Changes by the transaction that made them: PostgreSQL's don't commit in the order of their ids."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column, and the index by which processes follow changes."""
    op.add_column("changes", sa.Column("transaction_id", sa.BigInteger, nullable=True))
    op.create_index("ix_changes_transaction_id", "changes", ["transaction_id"])
