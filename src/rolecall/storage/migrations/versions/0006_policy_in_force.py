"""Policies by version, and their activations."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables. The first server that starts activates the policy of its folder."""
    op.create_table(
        "policies",
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("tests", sa.Text, nullable=False),
        sa.Column("comparisons", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policies"),
    )
    op.create_table(
        "policy_activations",
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("activator", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_policy_activations"),
        sa.ForeignKeyConstraint(["version"], ["policies.version"], name="fk_policy_activations_policies"),
    )
