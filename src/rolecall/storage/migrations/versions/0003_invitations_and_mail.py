"""Invitations, sign-in requests, mails; indexes for lists of members."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables, and the indexes of ordered lists."""
    op.drop_index("ix_members_organization_role", "members")
    op.create_index("ix_members_organization_role_email_key", "members", ["organization", "role", "email_key"])
    op.create_index(
        "ix_members_organization_display_name_user_id", "members", ["organization", "display_name", "user_id"]
    )
    op.create_index(
        "ix_members_organization_create_time_user_id", "members", ["organization", "create_time", "user_id"]
    )
    op.create_table(
        "invitations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("email_key", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("inviter", sa.Text, nullable=False),
        sa.Column("restriction", sa.Text, nullable=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.Column("user_id", sa.Text, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.CheckConstraint("(state = 'accepted') = (user_id IS NOT NULL)", name=op.f("ck_invitations_accepted")),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_invitations_organizations"),
    )
    op.create_index(
        "uq_invitations_pending",
        "invitations",
        ["organization", "email_key"],
        unique=True,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_invitations_organization_create_time_id", "invitations", ["organization", "create_time", "id"])
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("email_key", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=True),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ins"),
    )
    op.create_index("ix_sign_ins_expire_time", "sign_ins", ["expire_time"])
    op.create_table(
        "mails",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("due_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mails"),
        sa.UniqueConstraint("about", "generation", name="uq_mails_about_generation"),
    )
    op.create_index("ix_mails_state_due_time", "mails", ["state", "due_time"])
