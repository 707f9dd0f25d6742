"""Database URLs: parsed strictly, as a part of a password that isn't percent-encoded could be shown as the host."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from urllib.parse import parse_qs, unquote

from sqlalchemy import URL, make_url

from rolecall.errors import ConfigError

__all__ = ["name_of", "parse"]

# The same parts as in a URI of PostgreSQL's own clients. Of the characters that separate parts, none may occur in one:
# SQLAlchemy takes the `w:rd@host/db` of `postgresql://u:p@ss/w:rd@host/db` for the name of the database.
_POSTGRESQL = re.compile(
    r"postgres(?:ql)?(?:\+\w+)?://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<host>\[[^\[\]@/?#]*\]|[^\[\]:@/?#]*)(?::(?P<port>[0-9]*))?"
    r"(?:/(?P<name>[^:@/?#]*))?"
    r"(?:\?(?P<query>[^@?#]*))?"
)
_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?:/.*)?", re.DOTALL)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

# No part of the URL: any could be a part of the password.
_MALFORMED = (
    "The database URL is malformed, or of another database: write `sqlite:///file` or"
    " `postgresql://user:password@host/name`. In user and password, percent-encode `@` as %40, `/` as %2F, `:` as %3A,"
    " `?` as %3F, `#` as %23, `%` as %25; or give the password as it is in the file that"
    " ROLECALL_DATABASE_PASSWORD_FILE names."
)


def parse(text: str, password: str = "") -> URL:
    """Parse the URL of a database. Raises `ConfigError`, without any part of the URL or of the password.

    `password`: one that is not in the URL, and not percent-encoded.
    """
    text = text.strip()
    try:
        # Text that isn't UTF-8 in the environment can't be passed on, and the driver would end a text at its first NUL.
        (text + password).encode()
        if "\0" in password:
            raise ConfigError(_MALFORMED)
        if _SQLITE.fullmatch(text):
            return _parse_sqlite(text, password)
        found = _POSTGRESQL.fullmatch(text)
        if found:
            return _parse_postgresql(found, password)
    except ValueError:
        pass
    raise ConfigError(_MALFORMED)


def name_of(url: URL) -> str:
    """Name the database for messages."""
    if url.get_backend_name() == "sqlite":
        return f"{url.database}"
    return " at ".join(filter(None, (url.database or url.username, url.host)))


def _parse_sqlite(text: str, password: str) -> URL:
    if password:
        raise ConfigError("An SQLite database has no password: unset `database_password` (ROLECALL_DATABASE_PASSWORD).")
    url = make_url(text)
    if _CONTROL_CHARACTER.search(url.database or ""):
        raise ValueError
    if url.database in (None, "", ":memory:") or str(url.database).startswith("file:"):
        # `file:...` names a file by SQLite's own rules, which bypass the checks of its mode and existence here.
        raise ConfigError("An SQLite database needs a file by its plain path: write `sqlite:///rolecall.db`.")
    return url.set(drivername="sqlite")


def _parse_postgresql(found: re.Match[str], password: str) -> URL:
    user, own_password, host, name = (_decode(found[part]) for part in ("user", "password", "host", "name"))
    query = _parse_query(found["query"]) if found["query"] else {}
    port = int(found["port"]) if found["port"] else None
    if port and port > 65_535:
        raise ValueError
    if password and (own_password or "password" in query):
        raise ConfigError(
            "The database URL has a password, and so has `database_password` (ROLECALL_DATABASE_PASSWORD): remove one."
        )
    return URL.create(
        "postgresql+psycopg",
        user,
        password or own_password,
        host and host.strip("[]"),
        port,
        name,
        query,
    )


def _parse_query(text: str) -> dict[str, str | Sequence[str]]:
    """Parse the parameters of a URL. Raises `ConfigError`, and `ValueError` for one that isn't `name=value`."""
    found = parse_qs(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    if _LONE_PERCENT.search(text) or any(map(_CONTROL_CHARACTER.search, chain(*found.values()))):
        raise ValueError
    if found.keys() - _known_parameters():
        raise ConfigError(
            "The database URL has a parameter that PostgreSQL doesn't know: remove it, or correct its name, after the"
            " `?`, by the list in https://www.postgresql.org/docs/current/libpq-connect.html."
        )
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _decode(part: str | None) -> str | None:
    """Decode a part of a URL; None for one that is missing or empty. Raises `ValueError`."""
    if not part:
        return None
    decoded = unquote(part, errors="strict")
    if _LONE_PERCENT.search(part) or _CONTROL_CHARACTER.search(decoded):
        raise ValueError
    return decoded


@cache
def _known_parameters() -> frozenset[str]:
    """Return the names of the parameters of a connection to PostgreSQL."""
    from psycopg import pq  # noqa: PLC0415 - a server on SQLite needs no driver

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
