"""Organizations' tokens, restrictions, rotation; repeated requests; the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Extend the credentials, and create the tables of the audit log."""
    op.add_column("organizations", sa.Column("changed", sa.BigInteger, nullable=False, server_default=sa.text("1")))
    _widen_credentials()
    op.create_table(
        "retired_secrets",
        sa.Column("credential_id", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("credential_id", "digest", name="pk_retired_secrets"),
        sa.ForeignKeyConstraint(
            ["credential_id"], ["credentials.id"], name="fk_retired_secrets_credentials", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_retired_secrets_organizations"),
    )
    op.create_table(
        "requests",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary(32), nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("organization", "principal", "action", "request_id", name="pk_requests"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_requests_organizations"),
    )
    op.create_index("ix_requests_organization_time", "requests", ["organization", "time"])
    _make_audit_tables()


def _widen_credentials() -> None:
    with op.batch_alter_table("credentials") as credentials:
        credentials.alter_column("user_id", existing_type=sa.Text, nullable=True)
        credentials.add_column(sa.Column("role", sa.Text, nullable=True))
        credentials.add_column(sa.Column("restriction", sa.Text, nullable=True))
        credentials.add_column(sa.Column("created_by", sa.Text, nullable=True))
        credentials.add_column(sa.Column("last_used_time", sa.BigInteger, nullable=True))
        credentials.add_column(sa.Column("changed", sa.BigInteger, nullable=True))
    # All existing ones were created by commands at the database.
    op.execute("UPDATE credentials SET created_by = 'operator', changed = 1")
    with op.batch_alter_table("credentials") as credentials:
        credentials.alter_column("created_by", existing_type=sa.Text, nullable=False)
        credentials.alter_column("changed", existing_type=sa.BigInteger, nullable=False)
        credentials.create_check_constraint(op.f("ck_credentials_holder"), "(user_id IS NULL) <> (role IS NULL)")
        credentials.create_foreign_key("fk_credentials_organizations", "organizations", ["organization"], ["id"])
    op.create_index("ix_credentials_organization_create_time_id", "credentials", ["organization", "create_time", "id"])


def _make_audit_tables() -> None:
    op.create_table(
        "audit_heads",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(32), nullable=False),
        sa.Column("start_sequence", sa.BigInteger, nullable=False),
        sa.Column("start_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("start_signature", sa.LargeBinary(32), nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("organization", name="pk_audit_heads"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_audit_heads_organizations"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("credential_id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("organization", "sequence", name="pk_audit_entries"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_audit_entries_organizations"),
    )
    op.create_index(
        "ix_audit_entries_organization_actor_sequence", "audit_entries", ["organization", "actor", "sequence"]
    )
    op.create_table(
        "audit_values",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("person", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("organization", "sequence", "number", name="pk_audit_values"),
        sa.ForeignKeyConstraint(
            ["organization", "sequence"],
            ["audit_entries.organization", "audit_entries.sequence"],
            name="fk_audit_values_audit_entries",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_audit_values_organization_person", "audit_values", ["organization", "person"])
    op.create_table(
        "audit_checkpoints",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("organization", "sequence", name="pk_audit_checkpoints"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_audit_checkpoints_organizations"),
    )
