"""Conditions of policies."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column. Policies that are there already have no conditions."""
    op.add_column("policies", sa.Column("conditions", sa.Text, nullable=False, server_default=sa.text("''")))
