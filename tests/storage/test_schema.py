"""The migrations make exactly the tables that the queries use, and another schema is refused with what to do."""

import shutil
import socket
import sqlite3
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from rolecall.audit import AuditLog, begin_first, check_key, verify
from rolecall.cli.operator import db as upgrade
from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import CredentialKind, Organization, now
from rolecall.errors import ConfigError, StorageUnavailable
from rolecall.identity.authentication import Authenticator
from rolecall.limits import Limits
from rolecall.services import operator_tokens
from rolecall.storage import Storage, engine, organizations, schema, tables, tokens
from rolecall.storage.engine import WRITES
from support.engines import engine_of

PASSWORD = "hunter2"
HOUR = 3_600_000_000

# What the first version's tables hold, in the order in which they refer to one another.
FIRST_TABLES = {
    "organizations": ("id", "display_name", "revision", "create_time"),
    "members": (
        *("organization", "user_id", "email_key", "email"),
        *("display_name", "role", "create_time", "update_time"),
    ),
    "credentials": (
        *("id", "organization", "kind", "user_id", "name"),
        *("digest", "last_four", "create_time", "expire_time", "revoke_time"),
    ),
    "changes": ("organization", "revision", "kind", "key"),
}
# The tables of those in which a later version has other names for the same columns.
RENAMED = {
    "credentials": tuple("display_name" if name == "name" else name for name in FIRST_TABLES["credentials"]),
}


@pytest.fixture
def storage_file(sqlite_url: str, tmp_path: Path) -> Path:
    """An SQLite file with the tables."""
    storage = Storage(sqlite_url)
    storage.create()
    storage.close()
    return tmp_path / "rolecall.db"


def _writing(storage: Storage) -> Connection:
    """Return a connection that may write, without `Storage.write`."""
    return engine_of(storage).connect().execution_options(**{WRITES: True})


def _schema_of(database: Engine) -> dict[str, dict[str, Any]]:
    """The database's description of each of our tables, with the names of constraints and indexes."""
    inspector = inspect(database)
    return {
        table: {
            "columns": [
                # A migration can only add at the end, which nothing depends on.
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in sorted(inspector.get_columns(table), key=_name)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(inspector.get_foreign_keys(table), key=_name),
            "unique": sorted(inspector.get_unique_constraints(table), key=_name),
            "indexes": [
                # What an index leaves out is a piece of SQL, which isn't equal to another one.
                {**index, "dialect_options": {key: str(value) for key, value in index["dialect_options"].items()}}
                for index in sorted(inspector.get_indexes(table), key=_name)
            ],
            "checks": sorted(inspector.get_check_constraints(table), key=_name),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def _name(part: Any) -> str:
    return str(part["name"])


def _version(storage: Storage) -> str | None:
    with engine_of(storage).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _set_version(storage: Storage, version: str) -> None:
    with _writing(storage) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


def _add_migration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a migration to Rolecall that makes the table `later`."""
    migrations = folder / "migrations"
    shutil.copytree(
        Path(schema.__file__).parent / "migrations", migrations, ignore=shutil.ignore_patterns("__pycache__")
    )
    config = Config()
    config.set_main_option("script_location", str(migrations))
    head = ScriptDirectory.from_config(config).get_current_head()
    (migrations / "versions" / "9999_later.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f'revision, down_revision = "9999", "{head}"\n'
        "def upgrade() -> None:\n"
        '    op.create_table("later", sa.Column("id", sa.Text, primary_key=True))\n'
    )
    monkeypatch.setattr(schema, "_migrations", lambda: migrations)


def _make_first_version(storage: Storage) -> dict[str, MintedCredential]:
    """Tables as the first version made them, with `acme` (ann OWNER, bob VIEWER) and `other` (ann EDITOR).

    Answers a token for each `acme/ann`; `acme/dead` is one that was revoked.
    """
    with _writing(storage) as connection, connection.begin():
        config = schema._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    people = {"acme/ann": "OWNER", "acme/bob": "VIEWER", "other/ann": "EDITOR"}
    minted = {name: token_format.mint(CredentialKind.PERSONAL) for name in [*people, "acme/dead"]}
    rows: dict[str, list[tuple[object, ...]]] = {
        "organizations": [("acme", "Äcme 🦊", 7, 11), ("other", "Other", 2, 12)],
        "members": [
            (organization, user, f"{user}@acme.io", f"{user.title()}@acme.io", user.title(), role, 13, 14)
            for organization, _, user, role in ((*name.partition("/"), role) for name, role in people.items())
        ],
        "credentials": [
            (token.id, organization, "rcp", user, "laptop", token.digest, token.last_four, 15, now() + HOUR, None)
            for organization, _, user, token in ((*name.partition("/"), minted[name]) for name in people)
        ],
        "changes": [("acme", revision, "member", "ann") for revision in range(1, 8)],
    }
    dead = minted["acme/dead"]
    rows["credentials"].append((dead.id, "acme", "rcp", "bob", "lost", dead.digest, dead.last_four, 15, 2**60, 16))
    with _writing(storage) as connection, connection.begin():
        for table, columns in FIRST_TABLES.items():
            values = ", ".join(f":{column}" for column in columns)
            insert = text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})")
            connection.execute(insert, [dict(zip(columns, row, strict=True)) for row in rows[table]])
    return minted


def _first_rows(storage: Storage, *, first: bool = False) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the first version's tables, as far as that version knew them."""
    with engine_of(storage).connect() as connection:
        return {
            table: sorted(tuple(row) for row in connection.execute(text(f"SELECT {', '.join(columns)} FROM {table}")))
            for table, columns in (FIRST_TABLES if first else {**FIRST_TABLES, **RENAMED}).items()
        }


def _whole_text(error: BaseException) -> str:
    """Return the error as a log would show it, with its causes."""
    return "".join(traceback.format_exception(error))


# What the migrations make


def test_migrations_make_the_tables(storage: Storage) -> None:
    """Alembic finds no difference between the migrated database and the tables that the queries use."""
    with engine_of(storage).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, tables.metadata)

    assert differences == []


def test_migrations_make_every_name(storage: Storage) -> None:
    """Columns, constraints and indexes are those that the tables themselves would make, names included."""
    migrated = _schema_of(engine_of(storage))
    with _writing(storage) as connection, connection.begin():
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)

    assert migrated == _schema_of(engine_of(storage))
    assert set(migrated) == set(tables.metadata.tables)


def test_every_constraint_has_a_name(storage: Storage) -> None:
    """No constraint or index is left to the database to name: a later migration must be able to drop it."""
    shapes = _schema_of(engine_of(storage)).values()
    made = [
        made
        for shape in shapes
        for made in (
            shape["primary key"],
            *(made for kind in ("foreign keys", "unique", "indexes", "checks") for made in shape[kind]),
        )
    ]

    assert all(item["name"].partition("_")[0] in ("pk", "fk", "uq", "ix", "ck") for item in made)


def test_upgrade_twice_is_harmless(storage: Storage) -> None:
    """A second upgrade, and a second create, change nothing."""
    before = _schema_of(engine_of(storage)), _version(storage)
    storage.upgrade()
    storage.create()

    assert (_schema_of(engine_of(storage)), _version(storage)) == before


def test_upgrade_creates_no_database(tmp_path: Path) -> None:
    """A mistyped path is refused, where a new, empty database would look like success."""
    storage = Storage(f"sqlite:///{tmp_path}/mistyped.db")
    with pytest.raises(ConfigError, match="does not exist"):
        storage.upgrade()

    assert list(tmp_path.iterdir()) == []


def test_sqlite_file_is_readable_by_its_user_only(sqlite_url: str, tmp_path: Path) -> None:
    """The file that `create` makes is readable by nobody else, and so are those that SQLite puts beside it."""
    storage = Storage(sqlite_url)
    storage.create()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("rolecall.db*")}
    storage.close()

    assert modes.keys() >= {"rolecall.db", "rolecall.db-wal"}
    assert set(modes.values()) == {0o600}


def test_folder_with_a_percent_sign_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database and the migrations work with a `%` in their path."""
    folder = tmp_path / "100%s"
    folder.mkdir()
    shutil.copytree(Path(schema.__file__).parent / "migrations", folder / "migrations")
    monkeypatch.setattr(schema, "__file__", str(folder / "schema.py"))
    storage = Storage(f"sqlite:///{folder}/rolecall.db")
    storage.create()

    storage.check()
    storage.close()


def test_names_of_the_migrations_are_their_order() -> None:
    """A check at start, which imports no Alembic, finds the same revisions in the same order."""
    script = ScriptDirectory.from_config(schema._config())

    ordered = [revision.revision for revision in script.walk_revisions()]

    assert len(ordered) > 5
    assert schema._revisions() == ordered[::-1]


# From the first version to this one


@pytest.fixture
def first_version(database_url: str, tmp_path: Path) -> Iterator[tuple[Storage, dict[str, MintedCredential]]]:
    """A database as the first version left it, and the tokens in it."""
    storage = Storage(database_url)
    if database_url.startswith("sqlite"):
        engine.create_file(storage._url)
    yield storage, _make_first_version(storage)
    storage.close()


def test_upgrade_from_the_first_version_keeps_every_row(
    first_version: tuple[Storage, dict[str, MintedCredential]],
) -> None:
    """Every row of the first version is there after the upgrade, value for value, in tables that are this version's."""
    storage, _ = first_version
    before = _first_rows(storage, first=True)
    with pytest.raises(ConfigError, match="run `rolecall operator db upgrade`"):
        storage.check()
    storage.upgrade()
    storage.check()
    with engine_of(storage).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, tables.metadata)

    assert [len(rows) for rows in before.values()] == [2, 3, 4, 7]
    assert _first_rows(storage) == before
    assert differences == []


def test_upgraded_tokens_work(first_version: tuple[Storage, dict[str, MintedCredential]]) -> None:
    """Live tokens are live after the upgrade, with the same role, and dead ones dead. The operator created them all."""
    storage, minted = first_version
    storage.upgrade()
    authenticator = Authenticator(storage)
    callers = {name: authenticator.authenticate(token.text) for name, token in minted.items()}
    token = storage.read(lambda tx: tokens.get(tx, "acme", minted["acme/ann"].id))

    assert {
        name: caller and (caller.organization, caller.user_id, caller.role) for name, caller in callers.items()
    } == {
        "acme/ann": ("acme", "ann", "OWNER"),
        "acme/bob": ("acme", "bob", "VIEWER"),
        "other/ann": ("other", "ann", "EDITOR"),
        "acme/dead": None,
    }
    assert [caller.restriction for caller in callers.values() if caller] == [None] * 3
    assert token is not None
    assert (token.display_name, token.user_id, token.creator) == ("laptop", "ann", "operator")
    assert (token.restriction, token.last_use_time, token.etag) == (None, None, "1")


def test_upgraded_organizations_audit_log_begins(
    first_version: tuple[Storage, dict[str, MintedCredential]], log: AuditLog
) -> None:
    """Until its log is begun, no server starts on it; begun once, it verifies and takes entries."""
    storage, minted = first_version
    begun: list[str] = []
    storage.upgrade(lambda tx, found: begun.extend(begin_first(tx, log, found)))
    storage.upgrade(lambda tx, found: begun.extend(begin_first(tx, log, found)))
    check_key(storage, log)
    empty = storage.read(lambda tx: [verify(tx, log, name) for name in ("acme", "other")])
    issued = operator_tokens.issue(storage, log, "acme", "bob@acme.io")
    operator_tokens.revoke(storage, log, "acme", minted["acme/ann"].id)
    used = storage.read(lambda tx: [verify(tx, log, name) for name in ("acme", "other")])
    authenticator = Authenticator(storage)

    assert sorted(begun) == ["acme", "other"]
    assert [(verdict.problem, verdict.entries) for verdict in empty] == [("", 1), ("", 1)]
    assert [(verdict.problem, verdict.entries) for verdict in used] == [("", 3), ("", 1)]
    assert authenticator.authenticate(issued.text) is not None
    assert authenticator.authenticate(minted["acme/ann"].text) is None


def test_upgrade_command_does_all_of_it(
    first_version: tuple[Storage, dict[str, MintedCredential]],
    database_url: str,
    log: AuditLog,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`rolecall operator db upgrade` brings tables and logs up to date; a second one changes nothing."""
    storage, _ = first_version
    upgrade.upgrade(database=database_url, key_file=tmp_path / "rolecall.key")
    first = capfd.readouterr().err.splitlines()
    upgrade.upgrade(database=database_url, key_file=tmp_path / "rolecall.key")
    second = capfd.readouterr().err.splitlines()
    storage.check()
    check_key(storage, log)

    assert sorted(first[:-1]) == [f"The audit log of {name} starts now." for name in ("acme", "other")]
    key_id = log.signer.key_id
    assert first[-1:] == second == [f"The schema is up to date; the audit logs are signed with the key {key_id}."]


# What `check` refuses


def test_check_refuses_a_missing_file(sqlite_url: str, tmp_path: Path) -> None:
    """A missing database file is reported with how to make one, and none is made."""
    with pytest.raises(ConfigError) as caught:
        Storage(sqlite_url).check()

    assert "does not exist" in caught.value.message
    assert "rolecall init" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_check_refuses_an_empty_database(database_url: str, tmp_path: Path) -> None:
    """A database without tables is reported with how to make them."""
    (tmp_path / "rolecall.db").touch()
    storage = Storage(database_url)
    with pytest.raises(ConfigError) as caught:
        storage.check()
    storage.close()

    assert "is empty" in caught.value.message
    assert "rolecall init" in caught.value.message
    assert "rolecall operator db upgrade" in caught.value.message


def test_older_schema_is_refused_until_the_upgrade(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that lacks a migration is refused by `check` and `create`; `upgrade` brings just that one."""
    _add_migration(tmp_path, monkeypatch)
    for refusing in (storage.check, storage.create):
        with pytest.raises(ConfigError, match=r"is older than this Rolecall: run `rolecall operator db upgrade`\.$"):
            refusing()
    assert "later" not in _schema_of(engine_of(storage))

    storage.upgrade()
    storage.check()
    assert "later" in _schema_of(engine_of(storage))


def test_newer_schema_is_refused(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that a newer version made is refused by all three, and left as it is."""
    with monkeypatch.context() as newer:
        _add_migration(tmp_path, newer)
        storage.upgrade()
    before = _schema_of(engine_of(storage))
    for refusing in (storage.check, storage.create, storage.upgrade):
        with pytest.raises(ConfigError, match=r"is newer than this Rolecall: install a newer Rolecall\.$"):
            refusing()

    assert _version(storage) == "9999"
    assert _schema_of(engine_of(storage)) == before


def test_unknown_schema_is_refused(storage: Storage) -> None:
    """A schema version that this version has never heard of counts as newer."""
    _set_version(storage, "of-something-else")

    with pytest.raises(ConfigError, match="is newer than this Rolecall"):
        storage.check()


def test_file_that_is_no_database_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """A file of something else is refused and left as it is."""
    content = b"These are the minutes of a meeting.\n" * 100
    (tmp_path / "rolecall.db").write_bytes(content)
    storage = Storage(sqlite_url)
    for refusing in (storage.check, storage.create):
        with pytest.raises(ConfigError, match="file is not a database"):
            refusing()
    storage.close()

    assert (tmp_path / "rolecall.db").read_bytes() == content


def test_file_in_a_missing_folder_cannot_be_made(tmp_path: Path) -> None:
    """`create` says why no file can be made, and makes no folder."""
    storage = Storage(f"sqlite:///{tmp_path}/nowhere/rolecall.db")
    with pytest.raises(ConfigError, match=r"can't be created: No such file or directory\.$"):
        storage.create()

    assert not (tmp_path / "nowhere").exists()


def test_replaced_file_is_read_again(sqlite_url: str, tmp_path: Path) -> None:
    """A file that is replaced under a running server is read; while it is missing, reads and writes fail."""
    storage = Storage(sqlite_url)
    storage.create()
    storage.write(lambda tx: organizations.add(tx, Organization("old", "Old", 1, 1)))
    for file in tmp_path.glob("rolecall.db*"):
        file.unlink()

    with pytest.raises(StorageUnavailable):
        storage.read(organizations.exists)
    assert list(tmp_path.glob("rolecall.db*")) == []

    other = Storage(sqlite_url)
    other.create()
    assert storage.read(organizations.exists) is False
    other.close()
    storage.close()


def test_locked_file_cannot_be_upgraded(
    sqlite_url: str, storage_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade beside another writer fails after its wait, and works afterwards."""
    _add_migration(tmp_path, monkeypatch)
    storage = Storage(sqlite_url, limits=Limits(database_seconds=0.1))
    other = sqlite3.connect(storage_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigError, match="database is locked"):
        storage.upgrade()
    other.close()
    storage.upgrade()

    storage.check()
    storage.close()


def test_table_of_the_same_name_is_left_alone(database_url: str) -> None:
    """A database in which something else has a table `members` is refused, and nothing is added to it."""
    storage = Storage(database_url)
    with _writing(storage) as connection, connection.begin():
        connection.execute(text("CREATE TABLE members (name TEXT)"))
    with pytest.raises(ConfigError, match="already exists"):
        storage.create()

    assert set(_schema_of(engine_of(storage))) == {"members"}
    assert [column for column, *_ in _schema_of(engine_of(storage))["members"]["columns"]] == ["name"]
    storage.close()


def test_existing_data_survives_create(storage: Storage) -> None:
    """`create` on a database in use touches no row."""
    with _writing(storage) as connection, connection.begin():
        connection.execute(tables.organizations.insert().values(id="acme", display_name="A", revision=7, create_time=1))
    storage.create()

    with engine_of(storage).connect() as connection:
        assert connection.execute(tables.organizations.select()).all() == [("acme", "A", 7, 1, 1)]


# URLs and unreachable servers


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rolecall.db", "is malformed"),
        ("", "is malformed"),
        ("mysql://root:hunter2@db/rolecall", "or of another database"),
        ("postgresql://rolecall:hunter2@db:port/rolecall", "is malformed"),
        ("sqlite://", "needs a file"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:rolecall.db?uri=true", "needs a file"),
    ],
)
def test_url_that_is_not_served_is_refused(url: str, says: str) -> None:
    """A URL that can't be right is refused before anything is opened, without its password."""
    with pytest.raises(ConfigError) as caught:
        Storage(url)

    assert says in caught.value.message
    assert PASSWORD not in _whole_text(caught.value)


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_postgresql_url_means_psycopg(driver: str) -> None:
    """A PostgreSQL URL means psycopg, whatever driver it names."""
    storage = Storage(f"{driver}://rolecall@db/rolecall")

    assert engine_of(storage).dialect.driver == "psycopg"


def test_refusing_server_is_named_without_the_password() -> None:
    """Where nothing listens, the error names the server and the cause, and never the password."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        storage = Storage(f"postgresql://rolecall:{PASSWORD}@127.0.0.1:{port}/rolecall")
        for refusing in (storage.check, storage.create, storage.upgrade):
            with pytest.raises(ConfigError) as caught:
                refusing()

            assert "The database rolecall at 127.0.0.1 can't be used: " in caught.value.message
            assert f"port {port} failed: Connection refused" in caught.value.message
            assert "\n" not in caught.value.message
            assert PASSWORD not in _whole_text(caught.value)


def test_password_in_the_query_is_not_shown() -> None:
    """A password in an unusual part of the URL is kept secret too."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        storage = Storage(f"postgresql://rolecall@127.0.0.1:{port}/rolecall?password={PASSWORD}")
        with pytest.raises(ConfigError) as caught:
            storage.check()

    assert PASSWORD not in _whole_text(caught.value)


def test_silent_server_is_given_up_on() -> None:
    """A server that takes connections and never answers is given up on after a moment, without the password."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        storage = Storage(f"postgresql://rolecall:{PASSWORD}@127.0.0.1:{port}/rolecall")
        with pytest.raises(ConfigError) as caught:
            storage.check()

    assert "timeout" in caught.value.message
    assert PASSWORD not in _whole_text(caught.value)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_missing_postgresql_database_is_named(database_url: str) -> None:
    """An error about a database that doesn't exist has its name."""
    storage = Storage(f"{database_url}_missing")
    with pytest.raises(ConfigError, match='_missing" does not exist'):
        storage.create()
    storage.close()


def test_sqlite_commits_are_synchronous(sqlite_url: str) -> None:
    """Each connection has the settings that durability and cascades rest on, those that come later too."""
    storage = Storage(sqlite_url)
    storage.create()
    with engine_of(storage).connect() as first, engine_of(storage).connect() as second:
        found = [
            [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]
            for connection in (first, second)
            for names in [("journal_mode", "synchronous", "foreign_keys")]
        ]
    storage.close()

    full = 2
    assert found == [["wal", full, 1]] * 2


def test_rollback_journal_becomes_wal(sqlite_url: str) -> None:
    """A file that some tool put back into another journal mode is served in WAL again."""
    storage = Storage(sqlite_url)
    storage.create()
    storage.close()
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as tool:
        assert tool.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    tool.close()
    storage.check()

    with engine_of(storage).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    storage.close()
