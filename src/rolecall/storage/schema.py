"""Schema checks, and upgrades with Alembic, which takes too long to import for a check at every start."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, column, inspect, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from rolecall.errors import ConfigError
from rolecall.storage.database_url import name_of
from rolecall.storage.engine import WRITES

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["check_schema", "is_empty", "upgrade_schema"]

# Key of the advisory lock that serializes upgrades: any number that no other program uses.
UPGRADE_LOCK = 7_265_501

# Alembic's table, which holds the revision of the schema.
_VERSION_TABLE = "alembic_version"


def check_schema(engine: Engine) -> None:
    """Raise `ConfigError` where the database is unreachable, empty, or of another version."""
    where = name_of(engine.url)
    found = _revision_of(engine)
    if found == _revisions()[-1]:
        return
    if found is None:
        raise ConfigError(f"The database {where} is empty: run `rolecall init`, or `rolecall operator db upgrade`.")
    _require_known(engine, found)
    raise ConfigError(f"The schema of {where} is older than this Rolecall: run `rolecall operator db upgrade`.")


def is_empty(engine: Engine) -> bool:
    """Whether the database has no tables of Rolecall yet. Raises `ConfigError` where it can't be reached."""
    return _revision_of(engine) is None


def upgrade_schema(engine: Engine, fill: Callable[[Connection, str | None], None] = lambda _tx, _found: None) -> None:
    """Upgrade the schema to this version's, if it isn't yet. Raises `ConfigError`.

    `fill` is called in the same transaction, with the previous schema; None for an empty database.
    """
    from alembic import command  # noqa: PLC0415 - see above

    found = _revision_of(engine)
    if found is not None:
        _require_known(engine, found)
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


def _require_known(engine: Engine, found: str) -> None:
    """Raise `ConfigError` where the schema is of a version unknown to this one."""
    if found not in _revisions():
        where = name_of(engine.url)
        raise ConfigError(f"The schema of {where} is newer than this Rolecall: install a newer Rolecall.")


def _revision_of(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(_VERSION_TABLE):
                return None
            return connection.scalar(select(column("version_num")).select_from(table(_VERSION_TABLE)))
    except SQLAlchemyError as error:
        where = name_of(engine.url)
        # Errors other than the driver's may quote the URL. The driver's name what `database_url` has told apart.
        reason = str(error.orig).strip().splitlines()[0] if isinstance(error, DBAPIError) else "its URL is wrong"
        raise ConfigError(
            f"The database {where} can't be used: {reason}."
            " Check that it is running, or that the file and its folder exist and are writable (ROLECALL_DATABASE)."
        ) from error


def _revisions() -> list[str]:
    """Return the revisions from the oldest to the newest: each file of the migrations begins with its number."""
    return sorted(file.name.partition("_")[0] for file in (_migrations() / "versions").glob("[0-9]*.py"))


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def _migrations() -> Path:
    return Path(__file__).parent / "migrations"
