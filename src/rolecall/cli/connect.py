"""Connections of the commands: clients of a server, and for the operator the database itself."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall import config
from rolecall.cli import output
from rolecall.credentials import server_key

if TYPE_CHECKING:
    from rolecall.audit import AuditLog
    from rolecall.client import Client, UnauthenticatedClient
    from rolecall.storage import Storage

__all__ = [
    "ConfigFile",
    "Database",
    "Json",
    "KeyFile",
    "Organization",
    "open_client",
    "open_database",
    "open_probe",
    "open_unauthenticated_client",
    "parse_end",
    "parse_span",
    "parse_time",
    "to_dict",
]

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")]
Database = Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")]
KeyFile = Annotated[Path | None, typer.Option(help="File with the server's key, created by init.")]
Organization = Annotated[str, typer.Option(help="The organization's id.")]
# A time span, and its units.
_SPAN = re.compile(r"([0-9]{1,9})([mhdw])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}

# More than any time that the server takes, and little enough to be added to the clock.
MAX_SPAN = timedelta(days=36_500)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def open_client() -> "Client":
    """Return a client of the server at ROLECALL_ADDRESS, with ROLECALL_TOKEN. Raises `ConfigError`."""
    output.silence_grpc_logs()
    from rolecall.client import Client

    return Client()


def open_unauthenticated_client(organization: str = "") -> "UnauthenticatedClient":
    """Return a client of the server at ROLECALL_ADDRESS without a credential. Raises `ConfigError`."""
    output.silence_grpc_logs()
    from rolecall.client import UnauthenticatedClient

    return UnauthenticatedClient(organization=organization or None)


def open_probe(
    address: str, ca_file: Path | None, server_name: str, timeout: float, *, plaintext: bool | None
) -> "UnauthenticatedClient":
    """Return a client that asks a server about its health. Raises `ConfigError`."""
    output.silence_grpc_logs()
    from rolecall.client import UnauthenticatedClient

    return UnauthenticatedClient(
        address, ca_file=ca_file, server_name=server_name, timeout=timeout, plaintext=plaintext
    )


def to_dict(message: Any) -> dict[str, Any]:
    """Convert a response of the client to plain values."""
    from rolecall.client import to_dict as convert

    return convert(message)


@contextmanager
def open_database(
    config_file: Path | None, database: str | None, key_file: Path | None, *, intact: bool = True
) -> Iterator[tuple["Storage", "AuditLog"]]:
    """Open the database and its audit log, and close them at the end. Raises `ConfigError`.

    `intact`: raise it also where audit logs are signed with another key, and warn of those without an end.
    """
    from rolecall.audit import AuditLog, check_key
    from rolecall.storage import Storage

    settings = config.load(config_file, database=database, key_file=key_file)
    storage = Storage(settings.database, password=settings.database_password)
    try:
        storage.check()
        log = AuditLog(server_key.read(settings.key_file))
        if intact and (warning := check_key(storage, log)):
            output.say(f"warning: {warning}")
        yield storage, log
    finally:
        storage.close()


def parse_time(text: str) -> datetime:
    """Parse an ISO 8601 date or time, UTC where it names no zone, or a time ago, as in `7d`. Raises `BadParameter`."""
    try:
        ago = _span(text)
        return _time(text) if ago is None else datetime.now(UTC) - ago
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            "Write it as 2027-01-31 or 2027-01-31T12:00:00Z, or as 30m, 12h, 7d or 4w for a time ago."
        ) from None


def parse_end(text: str) -> datetime:
    """Parse an ISO 8601 date or time, UTC where it names no zone. Raises `BadParameter`."""
    try:
        return _time(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter("Write it as 2027-01-31 or 2027-01-31T12:00:00Z.") from None


def parse_span(text: str) -> timedelta:
    """Parse a time span of at most 100 years, as in `14d`. Raises `BadParameter`."""
    try:
        span = _span(text)
    except OverflowError:
        span = None
    if span is None or span > MAX_SPAN:
        raise typer.BadParameter("Write it as 30m, 12h, 14d or 4w.")
    return span


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _span(text: str) -> timedelta | None:
    found = _SPAN.fullmatch(text)
    return int(found[1]) * _UNITS[found[2]] if found else None
