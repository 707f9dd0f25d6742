"""The environment of a process: its variables, addresses, and installed packages. Imports only the standard library."""

import gc
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = [
    "CLIENT_VARIABLES",
    "PREFIX",
    "SERVER_EXTRA_MISSING",
    "SERVER_MODULES",
    "SETTINGS",
    "importing",
    "is_loopback",
    "lacks_server_extra",
    "split_address",
    "unknown_variables",
]

PREFIX = "ROLECALL_"

CLIENT_VARIABLES = frozenset({"CONFIG", "ADDRESS", "TOKEN", "ORGANIZATION", "CA_FILE"})
"""Variables, without the prefix, that only the client and the command line read: valid, but no settings of a server."""

SETTINGS = frozenset(
    {
        "connection_seconds",
        "database",
        "decision_log",
        "decision_log_file",
        "decision_log_files",
        "decision_log_megabytes",
        "key_file",
        "link_template",
        "listen",
        "log_format",
        "log_level",
        "mail_folder",
        "mail_from",
        "mail_templates",
        "max_staleness",
        "plaintext_exposes_tokens",
        "policy",
        "public_address",
        "reflection",
        "smtp_ca_file",
        "smtp_host",
        "smtp_password",
        "smtp_password_file",
        "smtp_port",
        "smtp_security",
        "smtp_user",
        "threads",
        "tls_cert",
        "tls_key",
        "transport",
        "workers",
    }
)
"""Names of the fields of `rolecall.config.Settings`, which a client can't import: it has no pydantic."""

SERVER_MODULES = (
    "alembic",
    "casbin",
    "email_validator",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "jinja2",
    "orjson",
    "psycopg",
    "pydantic_settings",
    "rich",
    "simpleeval",
    "sqlalchemy",
    "structlog",
    "typer",
)
"""Modules that the packages of the extra `server` provide, one for each package."""

SERVER_EXTRA_MISSING = "rolecall: the command and the server need more packages: pip install 'rolecall[server]'"


def lacks_server_extra() -> bool:
    """Whether a package of the extra `server` is not installed. Looks for them without importing them."""
    return any(find_spec(module) is None for module in SERVER_MODULES)


@contextmanager
def importing() -> Iterator[None]:
    """Import modules without looking for cyclic garbage, of which they make none: that takes an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def unknown_variables() -> list[str]:
    """Return a sentence for each unknown ROLECALL_ variable: a mistyped one would have no effect, silently."""
    known = {name.upper() for name in SETTINGS} | CLIENT_VARIABLES
    return [
        f"The variable {name} is unknown. Known: {', '.join(PREFIX + key for key in sorted(known))}."
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known
    ]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`. Raises `ValueError` with what is wrong."""
    host, colon, port = address.rpartition(":")
    if (
        "/" in address
        or not colon
        or host in ("", "[]")
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
    ):
        raise ValueError(f"`{address}` is not host:port, as in 127.0.0.1:50051")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"`{address}` needs brackets around its host, as in [::1]:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
