"""Schema checks and upgrades with Alembic."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from rolecall.errors import ConfigError
from rolecall.storage.database_url import name_of
from rolecall.storage.engine import WRITES

__all__ = ["check_schema", "is_empty", "upgrade_schema"]

# Key of the advisory lock that serializes upgrades: any number that no other program uses.
UPGRADE_LOCK = 7_265_501


def check_schema(engine: Engine) -> None:
    """Raise `ConfigError` where the database is unreachable, empty, or of another version."""
    where = name_of(engine.url)
    script = ScriptDirectory.from_config(_config())
    found = _revision_of(engine)
    if found == script.get_current_head():
        return
    if found is None:
        raise ConfigError(f"The database {where} is empty: run `rolecall init`, or `rolecall operator db upgrade`.")
    _require_known(engine, script, found)
    raise ConfigError(f"The schema of {where} is older than this Rolecall: run `rolecall operator db upgrade`.")


def is_empty(engine: Engine) -> bool:
    """Whether the database has no tables of Rolecall yet. Raises `ConfigError` where it can't be reached."""
    return _revision_of(engine) is None


def upgrade_schema(engine: Engine, fill: Callable[[Connection, str | None], None] = lambda _tx, _found: None) -> None:
    """Upgrade the schema to this version's, if it isn't yet. Raises `ConfigError`.

    `fill` is called in the same transaction, with the previous schema; None for an empty database.
    """
    found = _revision_of(engine)
    script = ScriptDirectory.from_config(_config())
    if found is not None:
        _require_known(engine, script, found)
    config = _config()
    try:
        with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                # One upgrade at a time; a second one finds nothing left to do.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            fill(connection, found)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ConfigError(
            f"The schema of {name_of(engine.url)} can't be upgraded: {reason}."
            " Rolecall needs a database of its own, which nothing else changes during the upgrade."
        ) from error


def _require_known(engine: Engine, script: ScriptDirectory, found: str) -> None:
    """Raise `ConfigError` where the schema is of a version unknown to this one."""
    if found not in {revision.revision for revision in script.walk_revisions()}:
        where = name_of(engine.url)
        raise ConfigError(f"The schema of {where} is newer than this Rolecall: install a newer Rolecall.")


def _revision_of(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        where = name_of(engine.url)
        # Errors other than the driver's may quote the URL. The driver's name what `database_url` has told apart.
        reason = str(error.orig).strip().splitlines()[0] if isinstance(error, DBAPIError) else "its URL is wrong"
        raise ConfigError(
            f"The database {where} can't be used: {reason}."
            " Check that it is running, or that the file and its folder exist and are writable (ROLECALL_DATABASE)."
        ) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
