"""What a failed call told its client."""

from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

__all__ = ["Told", "told"]


@dataclass(frozen=True)
class Told:
    """The status, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str
    field: str
    metadata: dict[str, str]
    trailers: dict[str, str | bytes]
    # The type, subject and description of each precondition that isn't met.
    unmet: tuple[tuple[str, str, str], ...] = ()


def told(error: grpc.RpcError) -> Told:
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
    return Told(call.code(), call.details() or "", info.reason, field, dict(info.metadata), trailers, unmet)
