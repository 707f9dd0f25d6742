"""The environment of a process: its variables, files, addresses, and installed packages.

Imports only the standard library.
"""

import gc
import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "CLIENT_VARIABLES",
    "PREFIX",
    "SERVER_EXTRA_MISSING",
    "SERVER_MODULES",
    "importing",
    "is_loopback",
    "is_service_variable",
    "lacks_server_extra",
    "read_secret",
    "socket_path",
    "split_address",
]

PREFIX = "ROLECALL_"
MAX_SOCKET_PATH = 100

CLIENT_VARIABLES = frozenset({"CONFIG", "ADDRESS", "TOKEN", "TOKEN_FILE", "ORGANIZATION", "CA_FILE"})
"""Variables, without the prefix, that only the client and the command line read: valid, but no settings of a server."""

# Kubernetes gives each container variables for every Service of its namespace. Of a Service `rolecall` they begin with
# ROLECALL_, of a Service `rolecall-smtp` with ROLECALL_SMTP_, which makes ROLECALL_SMTP_PORT=tcp://10.0.0.1:25.
_SERVICE_VARIABLE = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)_(?:ADDR|PORT|PROTO))"
)
_SERVICE_URL_VARIABLE = re.compile(r"(?:\w+_)?PORT(?:_\d+_(?:TCP|UDP|SCTP))?")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://\S+")

MAX_SECRET_BYTES = 65_536
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")

SERVER_MODULES = (
    "alembic",
    "casbin",
    "cel_expr_python",
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
    "yaml",
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


def is_service_variable(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable for a Service; `name` is without the prefix. It is no setting then."""
    has_url = _SERVICE_URL.fullmatch(value) and _SERVICE_URL_VARIABLE.fullmatch(name)
    return bool(has_url or _SERVICE_VARIABLE.fullmatch(name))


def read_secret(file: Path) -> str:
    """Read a secret from a file that holds nothing else, but for line breaks at its end.

    Raises `ValueError` with what is wrong, never with what the file holds.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the file {file} can't be read: {error.strerror}") from error
    try:
        secret = raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        secret = ""
    if not secret or len(raw) > MAX_SECRET_BYTES or _CONTROL_CHARACTER.search(secret):
        # Not chained: the text of a decoding error holds the content.
        raise ValueError(f"the file {file} doesn't hold a secret alone, on one line of UTF-8 text")
    return secret


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
        host, colon, port = address, ":", str(default_port)
    else:
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
