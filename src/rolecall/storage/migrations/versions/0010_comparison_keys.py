"""Keys of the comparisons of policies with Casbin."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column. Policies that are there already are compared once more."""
    op.add_column("policies", sa.Column("comparison_key", sa.Text, nullable=False, server_default=sa.text("''")))
