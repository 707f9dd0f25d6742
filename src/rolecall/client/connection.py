"""A connection to a server: each call with its deadline and credential; failures as the server's errors."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from rolecall.client import convert
from rolecall.client.channel import Endpoint, find_endpoint, open_channel
from rolecall.domain.spelling import suggest
from rolecall.environment import PREFIX, read_secret
from rolecall.errors import CallFailed, ConfigError, InvalidField

__all__ = ["MAX_PAGE_SIZE", "ClientBase", "Connection", "choose", "connect", "token_of_environment"]

# Most entries in a page of a list (docs/concepts.md); the server cuts larger sizes down to it.
MAX_PAGE_SIZE = 1000
DEFAULT_ADDRESS = "127.0.0.1:50051"

T = TypeVar("T")


class Connection:
    """Channel, credential, timeout and page size, shared by the parts of a `Client`.

    An empty token presents no credential.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: str,
        organization: str,
        timeout: float,
        page_size: int,
        server_name: str,
    ) -> None:
        self.channel = open_channel(endpoint, server_name)
        self.organization = organization
        self.page_size = page_size
        self._endpoint = endpoint
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: Callable[..., T], request: object, *, at_least: float = 0.0) -> T:
        """Return the response to one call. Its timeout, in seconds, is at least `at_least`. Raises `RolecallError`."""
        try:
            return method(request, timeout=max(self._timeout, at_least), metadata=self._metadata)
        except grpc.RpcError as error:
            raise convert.error(error, self._endpoint) from error
        except ValueError as error:
            raise CallFailed("The client is closed: make a new one.") from error

    def change(self, method: Callable[..., T], request: Any) -> T:
        """Return the response to a call that changes something. Safe to retry: its request_id gives it one effect.

        Raises `RolecallError`.
        """
        request.request_id = str(uuid.uuid4())
        return self.call(method, request)

    def pages(self, method: Callable[..., T], request: Any) -> Iterator[T]:
        """Fetch the pages of a list, each when it is needed. Raises `RolecallError`."""
        while True:
            page: Any = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, method: Callable[..., Iterator[T]], request: object) -> Iterator[T]:
        """Yield the responses of a streaming call, which has no deadline. Raises `RolecallError`."""
        try:
            yield from method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise convert.error(error, self._endpoint) from error


class ClientBase:
    """Base of the clients: owns a connection, and closes it at the end of a `with` block."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.channel.close()


def connect(
    address: str | None,
    token: str,
    organization: str | None,
    *,
    timeout: float,
    ca_file: Path | str | None,
    plaintext: bool | None,
    page_size: int = MAX_PAGE_SIZE,
    server_name: str = "",
) -> Connection:
    """Make a connection as `Client` describes it; arguments that are None come from the environment.

    Raises `ConfigError`.
    """
    address = address or os.environ.get(f"{PREFIX}ADDRESS", DEFAULT_ADDRESS)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("The token is malformed: it holds a blank, a line break or another stray character.")
    organization = organization or os.environ.get(f"{PREFIX}ORGANIZATION", "")
    endpoint = find_endpoint(address, ca_file or os.environ.get(f"{PREFIX}CA_FILE"), plaintext=plaintext)
    return Connection(endpoint, token, organization, timeout, page_size, server_name)


def token_of_environment() -> str:
    """Return the token in ROLECALL_TOKEN, or in the file that ROLECALL_TOKEN_FILE names. Raises `ConfigError`."""
    token, file = (os.environ.get(f"{PREFIX}{name}", "") for name in ("TOKEN", "TOKEN_FILE"))
    if token and file:
        raise ConfigError("ROLECALL_TOKEN and ROLECALL_TOKEN_FILE are both set: unset one of them.")
    if not token and not file:
        raise ConfigError(
            "There is no token to present: set ROLECALL_TOKEN to one, or ROLECALL_TOKEN_FILE to its file."
        )
    try:
        return token or read_secret(Path(file))
    except ValueError as error:
        raise ConfigError(f"ROLECALL_TOKEN_FILE is wrong: {error}.") from error


def choose(known: dict[str, T], word: str, field: str) -> T:
    """Return the value of `word` in `known`. Raises `InvalidField` for `field` if it has none."""
    if word not in known:
        advice = suggest(word, known, f"give one of {', '.join(filter(None, known))}.")
        raise InvalidField(f"{field} is `{word}`: {advice}", field=field)
    return known[word]
