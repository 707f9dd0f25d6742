"""What happens around every RPC, whichever lane it comes in on: authenticate, parse, run, answer or say why not."""

import hashlib
import ipaddress
import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from rolecall import credentials
from rolecall.audit import Denials, Event
from rolecall.directory import Directory
from rolecall.domain import Caller
from rolecall.errors import (
    Internal,
    InvalidField,
    MessageSize,
    OrganizationNotFound,
    RolecallError,
    StorageUnavailable,
    UnauthenticatedCredential,
)
from rolecall.mutations import Arrival, Attempt
from rolecall.server import fields
from rolecall.server.status import status_of
from rolecall.storage import WouldWait

__all__ = ["MAX_MESSAGE_BYTES", "REQUEST_ID", "Call", "Calls", "GivenUp", "Metadata", "Method", "peer_of"]

REQUEST_ID = "x-request-id"

# Larger ones are refused before they are parsed; from twice as many bytes on by grpc, in its own words.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# During an outage of the database, one line of the log stands for so many seconds.
OUTAGE_LOG_SECONDS = 5.0

_MAX_ORGANIZATION = 63
_SCHEME = "bearer "
_REQUEST_ID_SHAPE = re.compile(r"[!-~]{1,128}")
_log = structlog.get_logger("rolecall.calls")

# What requests name: in which service, by which field, and as what.
_NAMED = (
    ("TokenService", "id", "token"),
    ("InvitationService", "id", "invitation"),
    ("MemberService", "user_id", "user"),
)

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `run` answers a message, or a serialized one, or for a streaming one an iterator of messages.

    `managing`: refusals go into the audit log. `open`: it takes no credential, and `run` an `Arrival`. `at_once`: it is
    mostly answered from what is in memory, and nothing is done before what must be waited for. `streaming`: it
    answers with many messages.
    """

    name: str
    request_type: type[Message]
    run: Callable[[Any, Any], Any]
    managing: bool
    open: bool = False
    at_once: bool = False
    streaming: bool = False
    action: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the RPC's own name for the action."""
        object.__setattr__(self, "action", self.name.rpartition("/")[2])


class GivenUp(grpc.RpcError):
    """The client waits no longer."""


class Call:
    """A call as it comes in; each lane has a kind of its own. `caller` is set once it is let in.

    `authorization` is the header of that name, empty where there isn't exactly one.
    """

    __slots__ = ("action", "authorization", "caller", "request_id")

    caller: Caller

    def __init__(self, action: str, request_id: str, authorization: str) -> None:
        self.action = action
        self.request_id = request_id
        self.authorization = authorization

    def message(self) -> bytes | None:
        """Its message, once it is there; None where there is none."""
        raise NotImplementedError

    def peer(self) -> str:
        """Where it comes from, as `peer_of` tells it."""
        raise NotImplementedError

    def confirm(self) -> None:
        """Raise `GivenUp` where the client waits no longer."""
        raise NotImplementedError

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

    def attempt(self, request: Any) -> Attempt:
        """The change that `request` asks for. Raises `InvalidField`, `OrganizationNotFound`."""
        caller = self.caller_in(request.organization)
        if "request_id" not in request.DESCRIPTOR.fields_by_name:
            return Attempt(caller, self.action, self.request_id, confirm=self.confirm)
        repeatable = fields.request_id(request.request_id)
        # What it asks for, however its organization and its id are written.
        asked = type(request)()
        asked.CopyFrom(request)
        asked.ClearField("organization")
        asked.ClearField("request_id")
        body = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
        return Attempt(caller, self.action, self.request_id, repeatable, body, self.confirm)


class Calls:
    """Answers calls. Threads may share it."""

    def __init__(self, directory: Directory, denials: Denials) -> None:
        self._directory = directory
        self._denials = denials
        # A counter behind a random prefix: unique enough to search a log for, and cheap to make.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._quiet_until = 0.0

    def read(self, metadata: Metadata) -> tuple[str, str]:
        """A call's id, and its header `authorization`, empty where there isn't exactly one.

        The id is what the client gave, where that is printable and no credential; else a new one.
        """
        request_id = authorization = ""
        times = 0
        for key, value in metadata:
            if key == "authorization":
                times += 1
                authorization = value if isinstance(value, str) else ""
            elif key == REQUEST_ID and not request_id:
                request_id = _request_id(value)
        return request_id or f"{self._prefix}-{next(self._numbers)}", authorization if times == 1 else ""

    def admit(self, method: Method, call: Call) -> status_pb2.Status | None:
        """The status that says why a call isn't let in; None where it is, and its caller known. Raises as `answer`."""
        try:
            if not method.open:
                call.caller = self._authenticate(call)
        except WouldWait:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must not see its text, nor wait for ever
            return self._status(method, call, None, error)
        return None

    def answer(self, method: Method, call: Call) -> bytes | status_pb2.Status:
        """The serialized answer to a unary call that was admitted, or the status that says why there is none.

        Raises nothing but `WouldWait`, and that only in a thread that is spared.
        """
        request = None
        try:
            request = _parse(method, call.message())
            answer = method.run(request, _arrival(call) if method.open else call)
            return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())
        except WouldWait:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return self._status(method, call, request, error)

    def remember(self, lacking: list[Any]) -> None:
        """Read what calls lacked that raised `WouldWait`, for all of them at once. Raises whatever fails."""
        self._directory.remember(lacking)

    def fail(self, method: Method, call: Call, error: Exception) -> status_pb2.Status:
        """What the client of an admitted call is told where something failed that it needs."""
        return self._status(method, call, None, error)

    def stream(self, method: Method, call: Call) -> Iterator[bytes | status_pb2.Status]:
        """The serialized answers to an admitted call, one by one; the last may be a status: why there are no more."""
        request = None
        try:
            request = _parse(method, call.message())
            for message in method.run(request, call):
                yield message.SerializeToString()
        except Exception as error:  # noqa: BLE001 - as above
            yield self._status(method, call, request, error)

    def _authenticate(self, call: Call) -> Caller:
        """The caller behind the one credential presented. Raises `UnauthenticatedCredential`."""
        presented = call.authorization
        if presented[: len(_SCHEME)].lower() == _SCHEME:
            caller = self._directory.caller(presented[len(_SCHEME) :], call.peer)
            if caller is not None:
                return caller
        raise UnauthenticatedCredential

    def _status(self, method: Method, call: Call, request: Message | None, error: Exception) -> status_pb2.Status:
        """What the client is told of `error`; the operator is told what matters to them."""
        request_id = call.request_id
        if isinstance(error, grpc.RpcError):
            # The client went away before its message came, or before a change was committed.
            return status_pb2.Status(code=grpc.StatusCode.CANCELLED.value[0])
        if not isinstance(error, RolecallError):
            _log.error("failed", method=method.name, request_id=request_id, exc_info=error)
            error = Internal(f"The server failed: its log says more under the request id {request_id}.")
        elif isinstance(error, StorageUnavailable | Internal):
            self._log_outage(error, request_id)
        elif method.managing and not method.open and request is not None:
            # Of several things at fault, a refusal is noted though the client is told of another one first.
            for denial in [each for each in (error, *error.all) if each.status == "PERMISSION_DENIED"][:1]:
                self._denials.note(_denied(method, call, request, denial))
        _log.debug("refused", method=method.name, request_id=request_id, reason=error.reason)
        return status_of(error, request_id)

    def _log_outage(self, error: StorageUnavailable | Internal, request_id: str) -> None:
        """Tell the operator; not for every call, as every call fails."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + OUTAGE_LOG_SECONDS
            cause = str(getattr(error.__cause__, "orig", None) or error.__cause__ or "").strip().partition("\n")[0]
            event = "database unavailable" if isinstance(error, StorageUnavailable) else "audit log broken"
            _log.error(event, request_id=request_id, error=error.message, cause=cause)


def peer_of(address: str) -> str:
    """Whom a peer's address stands for: the machine, or the network that an IPv6 machine has to itself."""
    kind, _, rest = unquote(address).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    if kind == "ipv6":
        try:
            return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
        except ValueError:
            return host
    return host


def _request_id(value: str | bytes) -> str:
    """What the client calls the call; empty where that isn't printable, or a credential."""
    fits = isinstance(value, str) and _REQUEST_ID_SHAPE.fullmatch(value) and not credentials.holds_one(value)
    return str(value) if fits else ""


def _arrival(call: Call) -> Arrival:
    """What is told of a call that takes no credential."""
    return Arrival(call.action, call.request_id, call.peer(), call.confirm)


def _parse(method: Method, raw: bytes | None) -> Message:
    kind = method.request_type
    if raw is None:
        raise InvalidField(f"There is no message: send one {kind.DESCRIPTOR.full_name}.", field="")
    if len(raw) > MAX_MESSAGE_BYTES:
        raise MessageSize(
            f"The message has {len(raw)} bytes, more than {MAX_MESSAGE_BYTES}: split what it asks for.",
            size=str(len(raw)),
            maximum=str(MAX_MESSAGE_BYTES),
        )
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidField(f"The message is no {name}: send one in protobuf's binary form.", field="") from error


def _denied(method: Method, call: Call, request: Message, error: RolecallError) -> Event:
    # Whoever is refused a permission has named one that is well-formed.
    done_to = ""
    for service, name, kind in _NAMED:
        if service in method.name and (value := getattr(request, name, "")):
            done_to = f"{kind}:{value}"
    return Event(
        call.caller.organization,
        call.caller.actor,
        method.action,
        done_to,
        details=error.metadata,
        credential_id=call.caller.credential_id,
        request_id=call.request_id,
        reason=error.reason,
    )
