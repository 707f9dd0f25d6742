"""What happens around every RPC, whichever lane it comes in on: authenticate, parse, run, answer or say why not."""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from rolecall.directory import Directory
from rolecall.domain import Caller
from rolecall.errors import (
    Internal,
    InvalidField,
    OrganizationNotFound,
    RolecallError,
    StorageUnavailable,
    UnauthenticatedCredential,
)
from rolecall.server.status import status_of

__all__ = ["REQUEST_ID", "Call", "Calls", "Method"]

REQUEST_ID = "x-request-id"

# During an outage of the database, one line of the log stands for so many seconds.
OUTAGE_LOG_SECONDS = 5.0

_MAX_ORGANIZATION = 63
_BEARER = re.compile(r"bearer ([!-~]+)", re.IGNORECASE)
_REQUEST_ID_SHAPE = re.compile(r"[!-~]{1,128}")
_log = structlog.get_logger("rolecall.calls")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an authenticated caller."""

    caller: Caller
    request_id: str

    def caller_in(self, organization: str) -> Caller:
        """The caller, for a request that names `organization`; empty is the credential's own.

        Raises `OrganizationNotFound` for any other, whether it exists or not.
        """
        if organization and organization != self.caller.organization:
            if len(organization) > _MAX_ORGANIZATION:
                message = f"organization has {len(organization)} characters, more than {_MAX_ORGANIZATION}: name yours."
                raise InvalidField(message, field="organization")
            raise OrganizationNotFound.named(organization)
        return self.caller


@dataclass(frozen=True, slots=True)
class Method:
    """One unary RPC."""

    name: str
    request_type: type[Message]
    run: Callable[[Any, Call], Message]


class Calls:
    """Answers calls. Threads may share it."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        # A counter behind a random prefix: unique enough to search a log for, and cheap to make.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._quiet_until = 0.0

    def request_id(self, metadata: Metadata) -> str:
        """The id that the client gave the call, where it is printable; else a new one."""
        for key, value in metadata:
            if key == REQUEST_ID and isinstance(value, str) and _REQUEST_ID_SHAPE.fullmatch(value):
                return value
        return f"{self._prefix}-{next(self._numbers)}"

    def answer(
        self, method: Method, messages: Iterator[bytes], metadata: Metadata, request_id: str
    ) -> bytes | status_pb2.Status:
        """The serialized answer to the first of `messages`, or the status that says why there is none. Never raises.

        Nobody's message is waited for before its sender is known.
        """
        try:
            call = Call(self._authenticate(metadata), request_id)
            return method.run(_parse(method, next(messages, None)), call).SerializeToString()
        except grpc.RpcError:
            # The client went away before its message came.
            return status_pb2.Status(code=grpc.StatusCode.CANCELLED.value[0])
        except RolecallError as error:
            if isinstance(error, StorageUnavailable):
                self._log_outage(error, request_id)
            _log.debug("refused", method=method.name, request_id=request_id, reason=error.reason)
            return status_of(error, request_id)
        except Exception:  # noqa: BLE001 - whatever it is, the client must not see its text, nor wait for ever
            _log.exception("failed", method=method.name, request_id=request_id)
            message = f"The server failed: its log says more under the request id {request_id}."
            return status_of(Internal(message), request_id)

    def _log_outage(self, error: StorageUnavailable, request_id: str) -> None:
        """Tell the operator; not for every call, as every call fails."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + OUTAGE_LOG_SECONDS
            cause = str(getattr(error.__cause__, "orig", None) or error.__cause__ or "").strip().partition("\n")[0]
            _log.error("database unavailable", request_id=request_id, error=error.message, cause=cause)

    def _authenticate(self, metadata: Metadata) -> Caller:
        """The caller behind the one credential presented. Raises `UnauthenticatedCredential`."""
        presented = [value for key, value in metadata if key == "authorization"]
        if len(presented) != 1 or not isinstance(presented[0], str):
            raise UnauthenticatedCredential
        match = _BEARER.fullmatch(presented[0])
        caller = self._directory.caller(match[1]) if match else None
        if caller is None:
            raise UnauthenticatedCredential
        return caller


def _parse(method: Method, raw: bytes | None) -> Message:
    name = method.request_type.DESCRIPTOR.full_name
    if raw is None:
        raise InvalidField(f"There is no message: send one {name}.", field="")
    try:
        return method.request_type.FromString(raw)
    except DecodeError as error:
        raise InvalidField(f"The message is no {name}: send one in protobuf's binary form.", field="") from error
