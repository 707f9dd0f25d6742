"""Errors as google.rpc.Status: the category as the code, the reason as ErrorInfo, the field as BadRequest."""

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from rolecall.errors import RolecallError

__all__ = ["DOMAIN", "status_of"]

DOMAIN = "rolecall"


def status_of(error: RolecallError, request_id: str) -> status_pb2.Status:
    """What the client of the call `request_id` is told of `error`."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={**error.metadata, "request_id": request_id}
    )
    details = [_packed(info)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    code: int = getattr(StatusCode, error.status).value[0]
    return status_pb2.Status(code=code, message=error.message, details=details)


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
