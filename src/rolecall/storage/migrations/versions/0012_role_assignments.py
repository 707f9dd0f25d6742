"""Teams, and roles at scopes."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the tables, which are empty: every member has its role everywhere, as before."""
    organization = sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_teams_organizations")
    op.create_table(
        "teams",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("organization", "id", name="pk_teams"),
        organization,
    )
    op.create_table(
        "team_members",
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("organization", "team_id", "user_id", name="pk_team_members"),
        _cascade("team_members", "team_id", "teams", "id"),
        _cascade("team_members", "user_id", "members", "user_id"),
    )
    op.create_index("ix_team_members_organization_user_id", "team_members", ["organization", "user_id"])
    op.create_table(
        "role_assignments",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=True),
        sa.Column("team_id", sa.Text, nullable=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("scope", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("creator", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role_assignments"),
        sa.ForeignKeyConstraint(["organization"], ["organizations.id"], name="fk_role_assignments_organizations"),
        _cascade("role_assignments", "user_id", "members", "user_id"),
        _cascade("role_assignments", "team_id", "teams", "id"),
        sa.UniqueConstraint(
            "organization", "principal", "role", "scope", name="uq_role_assignments_organization_principal_role_scope"
        ),
    )
    for columns in (
        ["organization", "user_id"],
        ["organization", "team_id"],
        ["organization", "role"],
        ["organization", "scope"],
        ["organization", "create_time", "id"],
        ["expire_time"],
    ):
        op.create_index(f"ix_role_assignments_{'_'.join(columns)}", "role_assignments", columns)


def _cascade(table: str, column: str, other: str, key: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["organization", column],
        [f"{other}.organization", f"{other}.{key}"],
        name=f"fk_{table}_{other}",
        ondelete="CASCADE",
    )
