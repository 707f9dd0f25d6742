"""How commands get at what they work on: a server, or for the operator the database itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall import config, keys
from rolecall.cli.output import quiet_grpc

if TYPE_CHECKING:
    from rolecall.audit import AuditLog
    from rolecall.client import Client, Guest
    from rolecall.storage import Storage

__all__ = [
    "ConfigFile",
    "Database",
    "Json",
    "KeyFile",
    "Organization",
    "moment",
    "open_client",
    "open_database",
    "open_guest",
    "plain",
]

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")]
Database = Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")]
KeyFile = Annotated[Path | None, typer.Option(help="The server's key, made by init.")]
Organization = Annotated[str, typer.Option(help="The organization's name.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


def open_client() -> "Client":
    """A client of the server at ROLECALL_ADDRESS, with ROLECALL_TOKEN. Raises `ConfigError`."""
    quiet_grpc()
    from rolecall.client import Client

    return Client()


def open_guest(organization: str = "") -> "Guest":
    """A client of the server at ROLECALL_ADDRESS that presents nothing. Raises `ConfigError`."""
    quiet_grpc()
    from rolecall.client import Guest

    return Guest(organization=organization or None)


def plain(message: Any) -> dict[str, Any]:
    """An answer of the client's as plain values."""
    from rolecall.client import plain as convert

    return convert(message)


@contextmanager
def open_database(
    config_file: Path | None, database: str | None, key_file: Path | None, *, sound: bool = True
) -> Iterator[tuple["Storage", "AuditLog"]]:
    """The database, and the log of whatever is changed there. Raises `ConfigError`.

    With `sound`, where the audit logs have no valid end, too.
    """
    from rolecall.audit import AuditLog, check_key
    from rolecall.storage import Storage

    settings = config.load(config_file, database=database, key_file=key_file)
    storage = Storage(settings.database)
    try:
        storage.check()
        log = AuditLog(keys.read(settings.key_file))
        if sound:
            check_key(storage, log)
        yield storage, log
    finally:
        storage.close()


def moment(text: str) -> datetime:
    """The moment that `text` names; UTC where it doesn't say."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter("Write it as 2027-01-31 or 2027-01-31T12:00:00Z.") from None
