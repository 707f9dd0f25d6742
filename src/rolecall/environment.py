"""The environment of a process: its variables, addresses, and installed packages. Imports only the standard library."""

import ipaddress
import os
from importlib.util import find_spec

__all__ = [
    "CLIENT_VARIABLES",
    "PREFIX",
    "SERVER_EXTRA_MISSING",
    "SERVER_MODULES",
    "SETTINGS",
    "is_loopback",
    "lacks_server_extra",
    "socket_path",
    "split_address",
    "unknown_variables",
]

PREFIX = "ROLECALL_"
MAX_SOCKET_PATH = 100

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
        "socket_mode",
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


def unknown_variables() -> list[str]:
    """Return a sentence for each unknown ROLECALL_ variable: a mistyped one would have no effect, silently."""
    known = {name.upper() for name in SETTINGS} | CLIENT_VARIABLES
    return [
        f"The variable {name} is unknown. Known: {', '.join(PREFIX + key for key in sorted(known))}."
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known
    ]


def socket_path(address: str) -> str:
    """Path of a Unix socket, `unix:path` or `unix:///path`; empty for another address. Raises `ValueError`."""
    if address.startswith("unix-abstract:"):
        raise ValueError(f"`{address}` has no file mode that restricts who may connect: use unix:/path")
    if not address.startswith("unix:"):
        return ""
    path = address.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"`{address}` names a host: write unix:/path or unix:///path")
    if not path or path.endswith("/") or "\0" in path:
        raise ValueError(f"`{address}` names no file, as unix:/run/rolecall/rolecall.sock does")
    # The longest path that the kernel accepts, with room for the number of a worker.
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes")
    return path


def split_address(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of `host:port` or `[ipv6]:port`. Raises `ValueError` with what is wrong.

    With a `default_port`, the port may be left out.
    """
    if "://" in address:
        raise ValueError(f"`{address}` is a URL: write only its host and port, as in auth.example.com:443")
    if default_port is not None and (":" not in address or (address.startswith("[") and address.endswith("]"))):
        address = f"{address}:{default_port}"
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
