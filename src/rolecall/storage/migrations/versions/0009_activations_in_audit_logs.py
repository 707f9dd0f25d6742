"""The last activation of a policy that an audit log records."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column. Logs record the activations from now on: who made the earlier ones, they can't tell any more."""
    op.add_column("audit_heads", sa.Column("activation", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE audit_heads SET activation = (SELECT COALESCE(MAX(sequence), 0) FROM policy_activations)")
