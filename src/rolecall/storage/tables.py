"""The tables. Every row has its organization; times are UTC microseconds; constraints are named by one rule."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "audit_checkpoints",
    "audit_entries",
    "audit_heads",
    "audit_values",
    "changes",
    "credentials",
    "invitations",
    "mails",
    "members",
    "metadata",
    "organizations",
    "requests",
    "retired_secrets",
    "sign_ins",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
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
    # The revision that last changed the organization itself.
    Column[int]("changed", BigInteger, nullable=False, server_default=text("1")),
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
    # The policy's gate asks which roles are held, and which organizations have an owner; lists go by address.
    Index(None, "organization", "role", "email_key"),
    Index(None, "organization", "display_name", "user_id"),
    Index(None, "organization", "create_time", "user_id"),
)

invitations = Table(
    "invitations",
    metadata,
    Column[str]("id", Text, primary_key=True),
    Column[str]("organization", Text, nullable=False),
    Column[str]("email_key", Text, nullable=False),
    Column[str]("email", Text, nullable=False),
    Column[str]("role", Text, nullable=False),
    # No foreign key: an inviter may be gone. `restriction`: of the credential that invited, as in `credentials`.
    Column[str]("inviter", Text, nullable=False),
    Column[str | None]("restriction", Text, nullable=True),
    # Which secret works: it is computed from this and the id, and stored nowhere.
    Column[int]("generation", BigInteger, nullable=False),
    Column[str]("state", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    # The revision that last changed it.
    Column[int]("changed", BigInteger, nullable=False),
    # Who joined by it. No foreign key: they may be gone.
    Column[str | None]("user_id", Text, nullable=True),
    CheckConstraint("(state = 'accepted') = (user_id IS NOT NULL)", name="accepted"),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # One that is pending for each address.
    Index(
        "uq_invitations_pending",
        "organization",
        "email_key",
        unique=True,
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    # Lists go from the newest to the oldest.
    Index(None, "organization", "create_time", "id"),
)

# Requests for a link to sign in, of members and of strangers alike: `user_id` is found out when the mail is sent.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column[str]("id", Text, primary_key=True),
    # No foreign key: whoever asks may name an organization that isn't there.
    Column[str]("organization", Text, nullable=False),
    Column[str]("email_key", Text, nullable=False),
    Column[str | None]("user_id", Text, nullable=True),
    Column[int]("expire_time", BigInteger, nullable=False),
    Index(None, "expire_time"),
)

# What is to be mailed: about which invitation or request to sign in, and which of its secrets; never the secret.
mails = Table(
    "mails",
    metadata,
    Column[str]("id", Text, primary_key=True),
    # No foreign key, as above.
    Column[str]("organization", Text, nullable=False),
    Column[str]("kind", Text, nullable=False),
    Column[str]("about", Text, nullable=False),
    Column[int]("generation", BigInteger, nullable=False),
    Column[str]("state", Text, nullable=False),
    Column[int]("attempts", BigInteger, nullable=False),
    # When it is to be tried next; moved on by whoever takes it up.
    Column[int]("due_time", BigInteger, nullable=False),
    UniqueConstraint("about", "generation"),
    Index(None, "state", "due_time"),
)

credentials = Table(
    "credentials",
    metadata,
    Column[str]("id", Text, primary_key=True),
    Column[str]("organization", Text, nullable=False),
    Column[str]("kind", Text, nullable=False),
    # A person's credential has the person's present role, an organization's token one of its own.
    Column[str | None]("user_id", Text, nullable=True),
    Column[str | None]("role", Text, nullable=True),
    Column[str]("name", Text, nullable=False),
    # JSON: [[resource, action], ...]; NULL for none.
    Column[str | None]("restriction", Text, nullable=True),
    # No foreign key: an organization's token survives its creator.
    Column[str]("created_by", Text, nullable=False),
    # SHA-256 of the whole text. The text itself is stored nowhere.
    Column[bytes]("digest", LargeBinary(32), nullable=False),
    Column[str]("last_four", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    Column[int | None]("revoke_time", BigInteger, nullable=True),
    Column[int | None]("last_used_time", BigInteger, nullable=True),
    # The revision that last changed it.
    Column[int]("changed", BigInteger, nullable=False),
    CheckConstraint("(user_id IS NULL) <> (role IS NULL)", name="holder"),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # A removed member's credentials go with the row: a person who is invited again starts with none.
    ForeignKeyConstraint(["organization", "user_id"], ["members.organization", "members.user_id"], ondelete="CASCADE"),
    Index(None, "organization", "user_id"),
    # Lists go from the newest to the oldest.
    Index(None, "organization", "create_time", "id"),
)

# Secrets before a rotation: they work until `expire_time`, and whoever presents one after that is noticed.
retired_secrets = Table(
    "retired_secrets",
    metadata,
    Column[str]("credential_id", Text, primary_key=True),
    Column[bytes]("digest", LargeBinary(32), primary_key=True),
    Column[str]("organization", Text, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    ForeignKeyConstraint(["credential_id"], ["credentials.id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
)

# What a request_id was answered with, for as long as it may be repeated.
requests = Table(
    "requests",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[str]("principal", Text, primary_key=True),
    Column[str]("action", Text, primary_key=True),
    Column[str]("request_id", Text, primary_key=True),
    # SHA-256 of the request.
    Column[bytes]("body", LargeBinary(32), nullable=False),
    # JSON, without any secret.
    Column[str]("answer", Text, nullable=False),
    Column[int]("time", BigInteger, nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    Index(None, "organization", "time"),
)

# What each revision touched, so that other processes forget just that.
changes = Table(
    "changes",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("revision", BigInteger, primary_key=True),
    Column[str]("kind", Text, primary_key=True),
    Column[str]("key", Text, primary_key=True),
    # Which transaction of PostgreSQL made it; SQLite goes by the row's number.
    Column[int | None]("transaction_id", BigInteger, nullable=True),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    Index(None, "transaction_id"),
)

# The end of each organization's audit log, signed with the server's key; its lock lets one writer of entries in at a
# time. `start_*`: the last entry that was pruned.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("sequence", BigInteger, nullable=False),
    Column[bytes]("hash", LargeBinary(32), nullable=False),
    Column[bytes]("signature", LargeBinary(32), nullable=False),
    Column[int]("start_sequence", BigInteger, nullable=False),
    Column[bytes]("start_hash", LargeBinary(32), nullable=False),
    Column[bytes]("start_signature", LargeBinary(32), nullable=False),
    Column[str]("key_id", Text, nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
)

audit_entries = Table(
    "audit_entries",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column[int]("time", BigInteger, nullable=False),
    Column[str]("actor", Text, nullable=False),
    Column[str]("credential_id", Text, nullable=False),
    Column[str]("action", Text, nullable=False),
    Column[str]("object", Text, nullable=False),
    # Empty for a change that was made.
    Column[str]("reason", Text, nullable=False),
    # JSON, with a commitment in the place of each personal value.
    Column[str]("details", Text, nullable=False),
    Column[str]("request_id", Text, nullable=False),
    Column[bytes]("previous_hash", LargeBinary(32), nullable=False),
    Column[bytes]("hash", LargeBinary(32), nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # Whether a refusal was recorded within the last minute; and lists of one actor's deeds.
    Index(None, "organization", "actor", "sequence"),
)

# Addresses and names of persons, outside the chain of hashes so that they can be erased.
audit_values = Table(
    "audit_values",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column[int]("number", BigInteger, primary_key=True, autoincrement=False),
    Column[str]("person", Text, nullable=False),
    # email or name.
    Column[str]("kind", Text, nullable=False),
    Column[bytes]("salt", LargeBinary(16), nullable=False),
    Column[str]("value", Text, nullable=False),
    ForeignKeyConstraint(
        ["organization", "sequence"], ["audit_entries.organization", "audit_entries.sequence"], ondelete="CASCADE"
    ),
    Index(None, "organization", "person"),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column[bytes]("hash", LargeBinary(32), nullable=False),
    Column[str]("key_id", Text, nullable=False),
    Column[bytes]("signature", LargeBinary(32), nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
)
