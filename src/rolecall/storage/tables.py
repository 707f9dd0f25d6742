"""Tables of the database. Every row has its organization; times are UTC microseconds; one rule names constraints."""

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
    "PATH",
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
    "policies",
    "policy_activations",
    "requests",
    "retired_secrets",
    "role_assignments",
    "sign_ins",
    "team_members",
    "teams",
]

# Text that both databases compare byte by byte, so that a range of it is a path and all beneath it.
PATH = Text().with_variant(Text(collation="C"), "postgresql")

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
    # Incremented first by every writer: the row's lock serializes the writers of an organization.
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
    # NULL for none: then it is unique beside others without one.
    Column[str | None]("external_id", Text, nullable=True),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    UniqueConstraint("organization", "email_key"),
    # An index, as SQLite can't add a constraint to a table.
    Index("uq_members_external_id", "organization", "external_id", unique=True),
    # The policy's reload checks the roles in use, and which organizations have an owner; lists are ordered by address.
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
    # No foreign key: the inviter may be removed. `restriction`: of the inviting credential, as in `credentials`.
    Column[str]("creator", Text, nullable=False),
    Column[str | None]("restriction", Text, nullable=True),
    # Selects the working secret, which is derived from this and the id, and stored nowhere.
    Column[int]("generation", BigInteger, nullable=False),
    Column[str]("state", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    # The revision that last changed it.
    Column[int]("changed", BigInteger, nullable=False),
    # The person who joined by it. No foreign key: they may be removed.
    Column[str | None]("user_id", Text, nullable=True),
    # Of the person who will join; NULL for none.
    Column[str]("display_name", Text, nullable=False, server_default=text("''")),
    Column[str | None]("external_id", Text, nullable=True),
    CheckConstraint("(state = 'accepted') = (user_id IS NOT NULL)", name="accepted"),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # At most one pending invitation for each address.
    Index(
        "uq_invitations_pending",
        "organization",
        "email_key",
        unique=True,
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    # No two pending invitations have the same external id.
    Index(
        "uq_invitations_external_id",
        "organization",
        "external_id",
        unique=True,
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    # Lists are ordered newest first.
    Index(None, "organization", "create_time", "id"),
)

# Requests for a sign-in link, of members and non-members alike: `user_id` is looked up when the mail is rendered.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column[str]("id", Text, primary_key=True),
    # No foreign key: a request may name an organization that doesn't exist.
    Column[str]("organization", Text, nullable=False),
    Column[str]("email_key", Text, nullable=False),
    Column[str | None]("user_id", Text, nullable=True),
    Column[int]("expire_time", BigInteger, nullable=False),
    Index(None, "expire_time"),
)

# Outbox: the invitation or sign-in request that a mail is about, and the generation of its secret; never the secret.
# A notice is about a token and for one person, and its generation is the notice's number.
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
    # Time of the next attempt; a server that leases the mail sets the end of the lease.
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
    # A person's credential has the person's current role, an organization's token its own.
    Column[str | None]("user_id", Text, nullable=True),
    Column[str | None]("role", Text, nullable=True),
    Column[str]("display_name", Text, nullable=False),
    # JSON: [[resource, action], ...]; NULL for none.
    Column[str | None]("restriction", Text, nullable=True),
    # Separated by blanks; empty for any network.
    Column[str]("networks", Text, nullable=False, server_default=text("''")),
    # No foreign key: an organization's token survives its creator.
    Column[str]("creator", Text, nullable=False),
    # SHA-256 of the whole text. The text itself is stored nowhere.
    Column[bytes]("digest", LargeBinary(32), nullable=False),
    Column[str]("last_four", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    Column[int]("expire_time", BigInteger, nullable=False),
    Column[int | None]("revoke_time", BigInteger, nullable=True),
    Column[int | None]("last_use_time", BigInteger, nullable=True),
    # The revision that last changed it.
    Column[int]("changed", BigInteger, nullable=False),
    # Number of the notices of its expiry that were queued.
    Column[int]("expiry_notices", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("(user_id IS NULL) <> (role IS NULL)", name="holder"),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # A removed member's credentials are deleted with the row: a person who is invited again starts with none.
    ForeignKeyConstraint(["organization", "user_id"], ["members.organization", "members.user_id"], ondelete="CASCADE"),
    Index(None, "organization", "user_id"),
    # Lists are ordered newest first.
    Index(None, "organization", "create_time", "id"),
    # Notices are due by it.
    Index(None, "expire_time"),
)

teams = Table(
    "teams",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[str]("id", Text, primary_key=True),
    Column[str]("display_name", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    # The revision that last changed it or its members.
    Column[int]("changed", BigInteger, nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
)

team_members = Table(
    "team_members",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[str]("team_id", Text, primary_key=True),
    Column[str]("user_id", Text, primary_key=True),
    ForeignKeyConstraint(["organization", "team_id"], ["teams.organization", "teams.id"], ondelete="CASCADE"),
    # A removed member leaves its teams.
    ForeignKeyConstraint(["organization", "user_id"], ["members.organization", "members.user_id"], ondelete="CASCADE"),
    Index(None, "organization", "user_id"),
)

# Roles that members, teams and organization tokens have at scopes, besides the role that each has everywhere.
role_assignments = Table(
    "role_assignments",
    metadata,
    Column[str]("id", Text, primary_key=True),
    Column[str]("organization", Text, nullable=False),
    # user:ID, team:ID or token:ID.
    Column[str]("principal", Text, nullable=False),
    # The id once more, for a member or a team: an assignment ends with its principal. An organization token's ends when
    # it is revoked.
    Column[str | None]("user_id", Text, nullable=True),
    Column[str | None]("team_id", Text, nullable=True),
    Column[str]("role", Text, nullable=False),
    # Empty for the whole organization.
    Column[str]("scope", PATH, nullable=False),
    # No foreign key: the creator may be removed.
    Column[str]("creator", Text, nullable=False),
    Column[int]("create_time", BigInteger, nullable=False),
    # `NEVER` if it doesn't end by itself.
    Column[int]("expire_time", BigInteger, nullable=False),
    Column[str]("note", Text, nullable=False),
    # The revision that last changed it.
    Column[int]("changed", BigInteger, nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    ForeignKeyConstraint(["organization", "user_id"], ["members.organization", "members.user_id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["organization", "team_id"], ["teams.organization", "teams.id"], ondelete="CASCADE"),
    UniqueConstraint("organization", "principal", "role", "scope"),
    # For the deletion of members and teams.
    Index(None, "organization", "user_id"),
    Index(None, "organization", "team_id"),
    # The policy's reload checks the roles in use.
    Index(None, "organization", "role"),
    # Lists of resources read the scopes in order.
    Index(None, "organization", "scope"),
    # Lists are ordered newest first.
    Index(None, "organization", "create_time", "id"),
    # Ended assignments are deleted by it.
    Index(None, "expire_time"),
)

# Secrets before a rotation: they work until `expire_time`; presenting one later is recorded in the audit log.
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

# Answers to requests with a request_id, for as long as these may be repeated.
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

# Changes of each revision, so that other processes invalidate just those cache entries.
changes = Table(
    "changes",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("revision", BigInteger, primary_key=True),
    Column[str]("kind", Text, primary_key=True),
    Column[str]("key", Text, primary_key=True),
    # Id of PostgreSQL's transaction; SQLite uses the row number.
    Column[int | None]("transaction_id", BigInteger, nullable=True),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    Index(None, "transaction_id"),
)

# Every policy that was ever in force, by the hash of its files; the same for all organizations.
policies = Table(
    "policies",
    metadata,
    Column[str]("version", Text, primary_key=True),
    # The texts of model.conf, policy.csv, policy_test.csv and, where there is one, conditions.yaml.
    Column[str]("model", Text, nullable=False),
    Column[str]("policy", Text, nullable=False),
    Column[str]("tests", Text, nullable=False),
    # Number of decisions that were compared with Casbin's.
    Column[int]("comparisons", BigInteger, nullable=False),
    # Hash of all that their outcome depends on; empty where that is unknown.
    Column[str]("comparison_key", Text, nullable=False, server_default=text("''")),
    Column[str]("conditions", Text, nullable=False, server_default=text("''")),
)

# The activations of policies. The policy of the last one is in force, for all processes.
policy_activations = Table(
    "policy_activations",
    metadata,
    Column[int]("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column[str]("version", Text, nullable=False),
    Column[int]("time", BigInteger, nullable=False),
    # The process or person who activated it.
    Column[str]("activator", Text, nullable=False),
    ForeignKeyConstraint(["version"], ["policies.version"]),
)

# Processes that can't serve the policy in force: each renews its row while it is behind, and deletes it afterwards.
processes_behind = Table(
    "processes_behind",
    metadata,
    # HOST/PID.
    Column[str]("process", Text, primary_key=True),
    # The version that it serves.
    Column[str]("version", Text, nullable=False),
    Column[str]("problem", Text, nullable=False),
    Column[int]("time", BigInteger, nullable=False),
)

# The end of each organization's audit log, signed with the server's key; its lock serializes the writers of
# entries. `start_*`: the last entry that was pruned.
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
    # Sequence number of the last activation of a policy that the log records.
    Column[int]("activation", BigInteger, nullable=False, server_default=text("0")),
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
    # Empty for a change, else the reason of a denial.
    Column[str]("reason", Text, nullable=False),
    # JSON, with a commitment in place of each personal value.
    Column[str]("details", Text, nullable=False),
    Column[str]("call_id", Text, nullable=False),
    Column[bytes]("previous_hash", LargeBinary(32), nullable=False),
    Column[bytes]("hash", LargeBinary(32), nullable=False),
    ForeignKeyConstraint(["organization"], ["organizations.id"]),
    # For denials recorded within the last minute, and for lists of one actor's entries.
    Index(None, "organization", "actor", "sequence"),
)

# Addresses, names and external ids of persons, outside the hash chain so that they can be erased.
audit_values = Table(
    "audit_values",
    metadata,
    Column[str]("organization", Text, primary_key=True),
    Column[int]("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column[int]("number", BigInteger, primary_key=True, autoincrement=False),
    Column[str]("person", Text, nullable=False),
    # email, name or external_id.
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
