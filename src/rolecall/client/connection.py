"""One connection to a server: every call with its deadline, its credential, and the errors that the server meant."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from rolecall.client import convert
from rolecall.errors import CallFailed

__all__ = ["Connection"]

T = TypeVar("T")


class Connection:
    """What the parts of a `Client` share."""

    def __init__(self, channel: grpc.Channel, address: str, token: str, organization: str, timeout: float) -> None:
        self.channel = channel
        self.organization = organization
        self._address = address
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),)

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
