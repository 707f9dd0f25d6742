"""One connection to a server: every call with its deadline, its credential, and the errors that the server meant."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from rolecall.client import convert
from rolecall.client.channel import open_channel
from rolecall.config import PREFIX, unknown_variables
from rolecall.errors import CallFailed, ConfigError, InvalidField

__all__ = ["PAGE_SIZE", "Connected", "Connection", "connect", "pick"]

PAGE_SIZE = 1000
DEFAULT_ADDRESS = "127.0.0.1:50051"

T = TypeVar("T")


class Connection:
    """What the parts of a `Client` share. Without a token, no credential is presented."""

    def __init__(self, channel: grpc.Channel, address: str, token: str, organization: str, timeout: float) -> None:
        self.channel = channel
        self.organization = organization
        self._address = address
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: Callable[..., T], request: object, *, at_least: float = 0.0) -> T:
        """The answer to one call, which may take so many seconds at least. Raises `RolecallError`."""
        try:
            return method(request, timeout=max(self._timeout, at_least), metadata=self._metadata)
        except grpc.RpcError as error:
            raise convert.error(error, self._address) from error
        except ValueError as error:
            raise CallFailed("The client is closed: make a new one.") from error

    def change(self, method: Callable[..., T], request: Any) -> T:
        """The answer to a call that changes something. It may be sent again: its request_id sees to one effect."""
        request.request_id = str(uuid.uuid4())
        return self.call(method, request)

    def pages(self, method: Callable[..., T], request: Any) -> Iterator[T]:
        """Every page of a list."""
        while True:
            page: Any = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, method: Callable[..., Iterator[T]], request: object) -> Iterator[T]:
        """The answers of a streaming call; it may take as long as it does. Raises `RolecallError`."""
        try:
            yield from method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise convert.error(error, self._address) from error


class Connected:
    """What holds a connection; `with` closes it at the end."""

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
) -> Connection:
    """A connection as `Client` describes it; what is None comes from the environment. Raises `ConfigError`."""
    if problems := unknown_variables():
        raise ConfigError("\n".join(problems))
    address = address or os.environ.get(f"{PREFIX}ADDRESS", DEFAULT_ADDRESS)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("The token is malformed: it holds a blank, a line break or another stray character.")
    organization = organization or os.environ.get(f"{PREFIX}ORGANIZATION", "")
    channel = open_channel(address, ca_file or os.environ.get(f"{PREFIX}CA_FILE"), plaintext=plaintext)
    return Connection(channel, address, token, organization, timeout)


def pick(known: dict[str, T], word: str, field: str) -> T:
    """What `word` stands for. Raises `InvalidField`."""
    if word not in known:
        raise InvalidField(f"{field} is `{word}`: give one of {', '.join(filter(None, known))}.", field=field)
    return known[word]
