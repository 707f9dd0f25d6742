"""The tables. Every row has its organization; times are UTC microseconds; constraints are named by one rule."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = ["changes", "credentials", "members", "metadata", "organizations"]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

organizations = Table(
    "organizations",
    metadata,
    Column[str]("id", Text, primary_key=True),
    Column[str]("display_name", Text, nullable=False),
    # Bumped first by every writer: the row's lock lets one writer of an organization in at a time.
    Column[int]("revision", BigInteger, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[str]("user_id", Text, primary_key=True),
    Column[str]("email_key", Text, nullable=False),
    Column[str]("email", Text, nullable=False),
    Column[str]("display_name", Text, nullable=False),
    Column[str]("role", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("update_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    UniqueConstraint("organization", "email_key"),
    # The policy's gate asks which roles are held, and which organizations have an owner.
    Index(None, "organization", "role"),
)

credentials = Table(
    "credentials",
    metadata,
    Column[str]("id", Text, primary_key=True),
    Column[str]("organization", Text, nullable=False),
    Column[str]("kind", Text, nullable=False),
    Column[str]("user_id", Text, nullable=False),
    Column[str]("name", Text, nullable=False),
    # SHA-256 of the whole text. The text itself is stored nowhere.
    Column[bytes]("digest", LargeBinary(32), nullable=False),
    Column[str]("last_four", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    Column[int | None]("revoke_time", BigInteger, nullable=True),
    # A removed member's credentials go with the row: a person who is invited again starts with none.
    ForeignKeyConstraint(["organization", "user_id"], ["members.organization", "members.user_id"], ondelete="CASCADE"),
    Index(None, "organization", "user_id"),
)

# What each revision touched, so that other processes forget just that.
changes = Table(
    "changes",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("revision", BigInteger, primary_key=True),
    Column[str]("kind", Text, primary_key=True),
    Column[str]("key", Text, primary_key=True),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
)
