"""Calls of a server over gRPC, and the statuses and details of those that fail."""

from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from support.sites import Site


@dataclass(frozen=True)
class Failure:
    """Status of a failed call, with its details."""

    code: grpc.StatusCode
    message: str
    reason: str
    field: str
    metadata: dict[str, str]
    trailers: dict[str, str | bytes]
    # The type, subject and description of each precondition that isn't met.
    unmet: tuple[tuple[str, str, str], ...] = ()


def failure_of(error: grpc.RpcError) -> Failure:
    """The status of `error` with its details."""
    call = cast("grpc.Call", error)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    failure = error_details_pb2.PreconditionFailure()
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        for message in (info, bad_request, failure):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    field = bad_request.field_violations[0].field if bad_request.field_violations else ""
    trailers = dict(call.trailing_metadata() or ())
    unmet = tuple((item.type, item.subject, item.description) for item in failure.violations)
    return Failure(call.code(), call.details() or "", info.reason, field, dict(info.metadata), trailers, unmet)


OK = grpc.StatusCode.OK
DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


class SiteCalls:
    """Calls to a site over one connection; the type of the request selects the RPC."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.channel = site.channel()

    def send(self, token: str, request: Message) -> Any:
        """Send a request with `token`, or as the demo member with the role `token`; return the answer."""
        method = method_for(type(request))
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = GetMessageClass(method.output_type)
        call = self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
        presented = self.site.tokens.get(token, token)
        return call(request, timeout=20, metadata=(("authorization", f"Bearer {presented}"),))

    def refused(self, token: str, request: Message) -> Failure:
        """Send a request that must fail; return the failure."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(token, request)
        return failure_of(caught.value)

    def code(self, token: str, request: Message) -> grpc.StatusCode:
        """Send a request; return the status code."""
        try:
            self.send(token, request)
        except grpc.RpcError as error:
            return failure_of(error).code
        return OK


def method_for(request: type[Message]) -> Any:
    """Return the RPC with this type of request."""
    descriptor = request.DESCRIPTOR
    for service in descriptor.file.services_by_name.values():
        for method in service.methods:
            if method.input_type is descriptor:
                return method
    raise AssertionError(descriptor.full_name)


# Trailers that a client accepts by default: 8 KB, with 32 bytes for each header besides its text.
TRAILERS = 8192
UNMET = grpc.StatusCode.FAILED_PRECONDITION
ABORTED = grpc.StatusCode.ABORTED
EXISTS = grpc.StatusCode.ALREADY_EXISTS


def trailer_bytes(failure: Failure) -> int:
    """Return the size of the trailers, as HTTP/2 counts it."""
    headers = {"grpc-status": "16", "grpc-message": failure.message, **failure.trailers}
    return sum(32 + len(key) + _encoded_bytes(value) for key, value in headers.items())


def _encoded_bytes(value: str | bytes) -> int:
    """Return the size of a value: binary ones are sent as base64, other non-ASCII characters percent-encoded."""
    if isinstance(value, bytes):
        return -(-len(value) * 4 // 3)
    return sum(1 if " " <= character <= "~" else 3 * len(character.encode()) for character in value)
