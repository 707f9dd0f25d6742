"""External ids of members and invited people, and the display names of these."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns, and the indexes that keep external ids unique."""
    op.add_column("members", sa.Column("external_id", sa.Text, nullable=True))
    op.create_index("uq_members_external_id", "members", ["organization", "external_id"], unique=True)
    op.add_column("invitations", sa.Column("display_name", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("invitations", sa.Column("external_id", sa.Text, nullable=True))
    pending = sa.text("state = 'pending'")
    op.create_index(
        "uq_invitations_external_id",
        "invitations",
        ["organization", "external_id"],
        unique=True,
        sqlite_where=pending,
        postgresql_where=pending,
    )
