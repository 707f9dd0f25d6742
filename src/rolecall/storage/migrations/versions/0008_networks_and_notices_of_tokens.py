"""Networks from which a token may be used, and the notices of its expiry."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns: existing tokens may be used from any network, and no notice of their expiry was queued."""
    op.add_column("credentials", sa.Column("networks", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column(
        "credentials", sa.Column("expiry_notices", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.create_index("ix_credentials_expire_time", "credentials", ["expire_time"])
