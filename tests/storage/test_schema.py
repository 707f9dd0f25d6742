"""The migrations make exactly the tables that the queries use, and another schema is refused with what to do."""

import shutil
import socket
import sqlite3
import stat
import traceback
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text

from rolecall.domain import Organization
from rolecall.errors import ConfigError, StorageUnavailable
from rolecall.storage import Storage, engine, organizations, schema, tables
from rolecall.storage.engine import WRITES

PASSWORD = "hunter2"


@pytest.fixture
def storage_file(sqlite_url: str, tmp_path: Path) -> Path:
    """An SQLite file with the tables."""
    storage = Storage(sqlite_url)
    storage.create()
    storage.close()
    return tmp_path / "rolecall.db"


def _writing(storage: Storage) -> Connection:
    """A connection past `Storage.write`, which may write."""
    return storage._engine.connect().execution_options(**{WRITES: True})


def _shape(database: Engine) -> dict[str, dict[str, Any]]:
    """All that the database says of each of our tables, with the names of constraints and indexes."""
    inspector = inspect(database)
    return {
        table: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
            "unique": inspector.get_unique_constraints(table),
            "indexes": inspector.get_indexes(table),
            "checks": inspector.get_check_constraints(table),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def _version(storage: Storage) -> str | None:
    with storage._engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _set_version(storage: Storage, version: str) -> None:
    with _writing(storage) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


def _add_migration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on Rolecall is a version with one migration more, which makes the table `later`."""
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
    monkeypatch.setattr(schema, "_config", lambda: config)


def _whole_text(error: BaseException) -> str:
    """The error as a log would show it, with everything that led to it."""
    return "".join(traceback.format_exception(error))


# What the migrations make


def test_migrations_make_the_tables(storage: Storage) -> None:
    """Alembic finds no difference between the migrated database and the tables that the queries use."""
    with storage._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, tables.metadata)

    assert differences == []


def test_migrations_make_every_name(storage: Storage) -> None:
    """Columns, constraints and indexes are those that the tables themselves would make, names included."""
    migrated = _shape(storage._engine)
    with _writing(storage) as connection, connection.begin():
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)

    assert migrated == _shape(storage._engine)
    assert set(migrated) == set(tables.metadata.tables)


def test_every_constraint_has_a_name(storage: Storage) -> None:
    """No constraint or index is left to the database to name: a later migration must be able to drop it."""
    shapes = _shape(storage._engine).values()
    made = [
        made
        for shape in shapes
        for made in (shape["primary key"], *shape["foreign keys"], *shape["unique"], *shape["indexes"])
    ]

    assert all(item["name"].partition("_")[0] in ("pk", "fk", "uq", "ix") for item in made)


def test_upgrade_twice_is_harmless(storage: Storage) -> None:
    """A second upgrade, and a second create, change nothing."""
    before = _shape(storage._engine), _version(storage)
    storage.upgrade()
    storage.create()

    assert (_shape(storage._engine), _version(storage)) == before


def test_upgrade_makes_no_database_of_its_own(tmp_path: Path) -> None:
    """A mistyped path is refused, where a new, empty database would look like success."""
    storage = Storage(f"sqlite:///{tmp_path}/mistyped.db")
    with pytest.raises(ConfigError, match="There is no database"):
        storage.upgrade()

    assert list(tmp_path.iterdir()) == []


def test_sqlite_file_is_this_users_alone(sqlite_url: str, tmp_path: Path) -> None:
    """The file that `create` makes is readable by nobody else, and so are those that SQLite puts beside it."""
    storage = Storage(sqlite_url)
    storage.create()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("rolecall.db*")}
    storage.close()

    assert modes.keys() >= {"rolecall.db", "rolecall.db-wal"}
    assert set(modes.values()) == {0o600}


def test_folder_with_a_percent_sign_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database nor the migrations mind a `%` in their path."""
    folder = tmp_path / "100%s"
    folder.mkdir()
    shutil.copytree(Path(schema.__file__).parent / "migrations", folder / "migrations")
    monkeypatch.setattr(schema, "__file__", str(folder / "schema.py"))
    storage = Storage(f"sqlite:///{folder}/rolecall.db")
    storage.create()

    storage.check()
    storage.close()


# What `check` refuses


def test_check_refuses_a_missing_file(sqlite_url: str, tmp_path: Path) -> None:
    """No database file: the message tells how to make one, and none is made."""
    with pytest.raises(ConfigError) as caught:
        Storage(sqlite_url).check()

    assert "There is no database" in caught.value.message
    assert "rolecall init" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_check_refuses_an_empty_database(database_url: str, tmp_path: Path) -> None:
    """A database without tables: the message tells how to make them."""
    (tmp_path / "rolecall.db").touch()
    storage = Storage(database_url)
    with pytest.raises(ConfigError) as caught:
        storage.check()
    storage.close()

    assert "is empty" in caught.value.message
    assert "rolecall init" in caught.value.message
    assert "rolecall db upgrade" in caught.value.message


def test_older_schema_is_refused_until_the_upgrade(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema that lacks a migration is refused by `check` and `create`; `upgrade` brings just that one."""
    _add_migration(tmp_path, monkeypatch)
    for refusing in (storage.check, storage.create):
        with pytest.raises(ConfigError, match=r"is older than this Rolecall: run `rolecall db upgrade`\.$"):
            refusing()
    assert "later" not in _shape(storage._engine)

    storage.upgrade()
    storage.check()
    assert "later" in _shape(storage._engine)


def test_newer_schema_is_refused(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that a newer version made is refused by all three, and left as it is."""
    with monkeypatch.context() as newer:
        _add_migration(tmp_path, newer)
        storage.upgrade()
    before = _shape(storage._engine)
    for refusing in (storage.check, storage.create, storage.upgrade):
        with pytest.raises(ConfigError, match=r"is newer than this Rolecall: install a newer Rolecall\.$"):
            refusing()

    assert _version(storage) == "9999"
    assert _shape(storage._engine) == before


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
    with pytest.raises(ConfigError, match=r"can't be made: No such file or directory\.$"):
        storage.create()

    assert not (tmp_path / "nowhere").exists()


def test_replaced_file_is_read_anew(sqlite_url: str, tmp_path: Path) -> None:
    """A database restored under a running server is the one that counts; while there is none, nothing is answered."""
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
    """While another program writes, an upgrade is given up on after a moment, and works afterwards."""
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.1)
    _add_migration(tmp_path, monkeypatch)
    storage = Storage(sqlite_url)
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

    assert set(_shape(storage._engine)) == {"members"}
    assert [column for column, *_ in _shape(storage._engine)["members"]["columns"]] == ["name"]
    storage.close()


def test_existing_data_survives_create(storage: Storage) -> None:
    """`create` on a database in use touches no row."""
    with _writing(storage) as connection, connection.begin():
        connection.execute(tables.organizations.insert().values(id="acme", display_name="A", revision=7, create_time=1))
    storage.create()

    with storage._engine.connect() as connection:
        assert connection.execute(tables.organizations.select()).all() == [("acme", "A", 7, 1)]


# URLs and unreachable servers


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rolecall.db", "is malformed"),
        ("", "is malformed"),
        ("mysql://root:hunter2@db/rolecall", "`mysql` is not supported"),
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
    """Whatever driver the URL names, ours is used."""
    storage = Storage(f"{driver}://rolecall@db/rolecall")

    assert storage._engine.dialect.driver == "psycopg"


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
    """A password that stands elsewhere in the URL than usual is as secret."""
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
    """A database that the server hasn't is missed by name."""
    storage = Storage(f"{database_url}_missing")
    with pytest.raises(ConfigError, match='_missing" does not exist'):
        storage.create()
    storage.close()


def test_sqlite_writes_reach_the_disk(sqlite_url: str) -> None:
    """Each connection has the settings that durability and cascades rest on, those that come later too."""
    storage = Storage(sqlite_url)
    storage.create()
    with storage._engine.connect() as first, storage._engine.connect() as second:
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

    with storage._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    storage.close()
