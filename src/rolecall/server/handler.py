"""The steps around every RPC, whichever transport it comes by: authenticate, parse, run, respond or map the error."""

import hashlib
import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from rolecall.audit import Denials, Event
from rolecall.credentials import token_format
from rolecall.domain import Caller, Refusal
from rolecall.errors import (
    Internal,
    InvalidField,
    InvitationNotFound,
    MessageSize,
    OrganizationNotFound,
    RolecallError,
    StorageUnavailable,
    UnauthenticatedCredential,
)
from rolecall.formats.networks import peer_network
from rolecall.identity.authentication import Authenticator
from rolecall.identity.batch_loader import Miss
from rolecall.server import requests
from rolecall.server.error_status import status_of
from rolecall.services.unit_of_work import ChangeRequest, UnauthenticatedCall

__all__ = ["CALL_ID", "MAX_MESSAGE_BYTES", "Call", "CallCancelled", "CallHandler", "Metadata", "Method"]

# The header and trailer that name a call in logs and errors; `request_id` in a message is the idempotency key.
CALL_ID = "x-request-id"

# Larger ones are refused before they are parsed; from twice as many bytes on by grpc, in its own words.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

# During an outage of the database, it is logged once in this time.
OUTAGE_LOG_SECONDS = 5.0

_MAX_ORGANIZATION = 63
_SCHEME = "bearer "
_CALL_ID_SHAPE = re.compile(r"[!-~]{1,128}")
_log = structlog.get_logger("rolecall.calls")

# Objects that requests name: the service, the field, and the kind of the object in the audit log.
_NAMED = (
    ("TokenService", "id", "token"),
    ("InvitationService", "id", "invitation"),
    ("MemberService", "user_id", "user"),
)

T = TypeVar("T")
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `run` returns a message, a serialized one, or for a streaming RPC an iterator of messages.

    `run_cached`, where there is one, never blocks: it returns the serialized response, a miss, or None where `run` is
    to be called in an executor. `managing`: refusals go into the audit log. `open`: the RPC takes no credential, and
    `run` an `UnauthenticatedCall`.
    """

    name: str
    request_type: type[Message]
    run: Callable[[Any, Any], Any]
    managing: bool
    open: bool = False
    run_cached: Callable[[Any, Any], bytes | Miss[bytes] | None] | None = None
    streaming: bool = False
    action: str = field(init=False)

    def __post_init__(self) -> None:
        """Take the RPC's own name for the action."""
        object.__setattr__(self, "action", self.name.rpartition("/")[2])


class CallCancelled(grpc.RpcError):
    """The client cancelled the call, or its deadline is over."""


class Call:
    """A call; each transport has a class of its own. `caller` is set once the call is authenticated.

    `authorization` is the header of that name, empty where there isn't exactly one.
    """

    __slots__ = ("action", "authorization", "call_id", "caller")

    caller: Caller

    def __init__(self, action: str, call_id: str, authorization: str) -> None:
        self.action = action
        self.call_id = call_id
        self.authorization = authorization

    def message(self) -> bytes | None:
        """The serialized request, waited for if need be; None where the client sends none."""
        raise NotImplementedError

    def peer(self) -> str:
        """The other end of the connection, as grpc names it: `ipv4:192.0.2.7:4711`."""
        raise NotImplementedError

    def confirm(self) -> None:
        """Raise `CallCancelled` where the client cancelled, or the deadline is over."""
        raise NotImplementedError

    def caller_in(self, organization: str, field: str = "organization") -> Caller:
        """The caller, for a request that names `organization` in `field`; empty is the credential's own.

        Raises `OrganizationNotFound` for any other, whether it exists or not.
        """
        if organization and organization != self.caller.organization:
            if len(organization) > _MAX_ORGANIZATION:
                message = f"{field} has {len(organization)} characters, more than {_MAX_ORGANIZATION}: name yours."
                raise InvalidField(message, field=field)
            raise OrganizationNotFound.named(organization)
        return self.caller

    def change_request(self, request: Any) -> ChangeRequest:
        """The change that `request` asks for. Raises `InvalidField`, `OrganizationNotFound`."""
        named = request.organization
        # An update has the organization itself as a message, whose id names it.
        is_name = isinstance(named, str)
        caller = self.caller_in(named) if is_name else self.caller_in(named.id, "organization.id")
        if "request_id" not in request.DESCRIPTOR.fields_by_name:
            return ChangeRequest(caller, self.action, self.call_id, confirm=self.confirm)
        key = requests.request_id(request.request_id)
        # The content alone, however the organization and the key are written.
        content = type(request)()
        content.CopyFrom(request)
        if is_name:
            content.ClearField("organization")
        else:
            content.organization.ClearField("id")
        content.ClearField("request_id")
        body = hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
        return ChangeRequest(caller, self.action, self.call_id, key, body, self.confirm)


class CallHandler:
    """Authenticates and answers calls. Threads may share it.

    `authenticate_cached` and `answer_cached` never block; the others may.
    """

    def __init__(self, authenticator: Authenticator, denials: Denials) -> None:
        self._authenticator = authenticator
        self._denials = denials
        # A counter behind a random prefix: unique enough to search a log for, and cheap to make.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._quiet_until = 0.0

    def read_metadata(self, metadata: Metadata) -> tuple[str, str]:
        """A call's id, and its header `authorization`, empty where there isn't exactly one.

        The id is the client's `x-request-id`, where that is printable and no credential; else a new one.
        """
        call_id = authorization = ""
        times = 0
        for key, value in metadata:
            if key == "authorization":
                times += 1
                authorization = value if isinstance(value, str) else ""
            elif key == CALL_ID and not call_id:
                call_id = _call_id(value)
        return call_id or f"{self._prefix}-{next(self._numbers)}", authorization if times == 1 else ""

    def authenticate_cached(self, method: Method, call: Call) -> Status | Miss[Status | None] | None:
        """None where the call is authenticated, a status that refuses it, or a miss. Raises nothing."""
        if method.open:
            return None
        presented = call.authorization
        if presented[: len(_SCHEME)].lower() != _SCHEME:
            self._note_failed(call, Refusal.MISSING)
            return self._admit(method, call, None)
        try:
            caller = self._authenticator.authenticate_cached(presented[len(_SCHEME) :], call.peer)
            if isinstance(caller, Miss):
                return caller.then(lambda loaded: self._admit(method, call, loaded))
        except Exception as error:  # noqa: BLE001 - the client must not see its text, nor wait for ever
            return self.fail(method, call, error)
        return self._admit(method, call, caller)

    def authenticate(self, method: Method, call: Call) -> Status | None:
        """Return what `authenticate_cached` does, but wait for the database on a miss."""
        refused = self.authenticate_cached(method, call)
        if not isinstance(refused, Miss):
            return refused
        try:
            return refused.wait()
        except Exception as error:  # noqa: BLE001 - as above
            return self.fail(method, call, error)

    def answer_cached(self, method: Method, call: Call) -> bytes | Status | Miss[bytes] | None:
        """The serialized response or a status; a miss; None where only `answer` can. Raises nothing."""
        if method.run_cached is None:
            return None
        try:
            request = _parse(method, call.message())
            return method.run_cached(request, call)
        except Exception as error:  # noqa: BLE001 - as above
            return self.fail(method, call, error)

    def answer(self, method: Method, call: Call) -> bytes | Status:
        """The serialized response to an authenticated unary call, or the status to end it with. Raises nothing."""
        request = None
        try:
            request = _parse(method, call.message())
            response = method.run(request, _unauthenticated(call) if method.open else call)
            return response if isinstance(response, bytes) else bytes(response.SerializeToString())
        except Exception as error:  # noqa: BLE001 - as above
            return self.fail(method, call, error, request)

    def finish(self, method: Method, call: Call, miss: Miss[T], loaded: Future[Any]) -> T | Status:
        """The answer to a miss whose query is done, or the status to end the call with. Raises nothing."""
        try:
            return miss.finish(loaded.result(0))
        except Exception as error:  # noqa: BLE001 - as above
            return self.fail(method, call, error)

    def stream(self, method: Method, call: Call) -> Iterator[bytes | Status]:
        """The serialized responses to an authenticated call; the last may be the status that ends it early."""
        request = None
        try:
            request = _parse(method, call.message())
            for message in method.run(request, call):
                yield message.SerializeToString()
        except Exception as error:  # noqa: BLE001 - as above
            yield self.fail(method, call, error, request)

    def _admit(self, method: Method, call: Call, caller: Caller | None) -> Status | None:
        if caller is None:
            return self.fail(method, call, UnauthenticatedCredential())
        call.caller = caller
        return None

    def fail(self, method: Method, call: Call, error: Exception, request: Message | None = None) -> Status:
        """The status that the client gets for `error`; what matters to the operator is logged, a refusal audited."""
        call_id = call.call_id
        if isinstance(error, grpc.RpcError):
            # The client went away before its message came, or before a change was committed.
            return Status(code=grpc.StatusCode.CANCELLED.value[0])
        if not isinstance(error, RolecallError):
            _log.error("failed", method=method.name, call_id=call_id, exc_info=error)
            error = Internal(f"The server failed: its log says more under the call id {call_id}.")
        elif isinstance(error, StorageUnavailable | Internal):
            self._log_outage(error, call_id)
        elif method.managing and not method.open and request is not None:
            # Of several errors, a refusal is recorded even where another one comes first in the status.
            for denial in [each for each in (error, *error.all) if each.status == "PERMISSION_DENIED"][:1]:
                self._denials.note(_denied(method, call, request, denial))
        # Before there was a request, a failure was noted with its cause.
        if request is not None and method.open and isinstance(error, UnauthenticatedCredential | InvitationNotFound):
            self._note_failed(call, Refusal.MAILED_SECRET)
        elif request is not None and isinstance(error, UnauthenticatedCredential):
            self._note_failed(call, Refusal.ENDED, call.caller.credential_id)
        _log.debug("refused", method=method.name, call_id=call_id, reason=error.reason)
        return status_of(error, call_id)

    def _note_failed(self, call: Call, cause: Refusal, credential_id: str = "") -> None:
        self._authenticator.failed.note(peer_network(call.peer()), cause, credential_id)

    def _log_outage(self, error: StorageUnavailable | Internal, call_id: str) -> None:
        """Log an outage for the operator, once in 5 s: during an outage every call fails."""
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + OUTAGE_LOG_SECONDS
            cause = str(getattr(error.__cause__, "orig", None) or error.__cause__ or "").strip().partition("\n")[0]
            event = "database unavailable" if isinstance(error, StorageUnavailable) else "audit log broken"
            _log.error(event, call_id=call_id, error=error.message, cause=cause)


def _call_id(value: str | bytes) -> str:
    """Return the client's name of the call; empty where it isn't printable, or is a credential."""
    fits = isinstance(value, str) and _CALL_ID_SHAPE.fullmatch(value) and not token_format.contains_credential(value)
    return str(value) if fits else ""


def _unauthenticated(call: Call) -> UnauthenticatedCall:
    """The parts of a call without a credential that its service needs."""
    return UnauthenticatedCall(call.action, call.call_id, peer_network(call.peer()), call.confirm)


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
    # The id is well-formed: the request was validated before the refusal.
    object_name = ""
    for service, name, kind in _NAMED:
        if service in method.name and (value := getattr(request, name, "")):
            object_name = f"{kind}:{value}"
    return Event(
        call.caller.organization,
        call.caller.actor,
        method.action,
        object_name,
        details=error.metadata,
        credential_id=call.caller.credential_id,
        call_id=call.call_id,
        reason=error.reason,
    )
