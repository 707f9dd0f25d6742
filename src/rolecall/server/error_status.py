"""Errors as google.rpc.Status: the category as the code, the reason as ErrorInfo, the field as BadRequest.

PreconditionFailure names what is not in the needed state; RetryInfo says when a retry may succeed.
"""

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from rolecall.credentials import token_format
from rolecall.errors import RolecallError

__all__ = ["DOMAIN", "status_of"]

# The domain of every ErrorInfo: it distinguishes the reasons from those of other services.
DOMAIN = "rolecall.dev"

# Maximum bytes of the trailers for violations that are listed one by one.
MAX_VIOLATION_BYTES = 2500


def status_of(error: RolecallError, call_id: str) -> status_pb2.Status:
    """Return the status that the client of the call `call_id` gets for `error`. Credentials in it are redacted."""
    metadata = {name: token_format.redact(value) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={**metadata, "call_id": call_id})
    details = [_packed(info)]
    violations = _violations(error.all or (error,))
    if violations:
        details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    if error.status == StatusCode.FAILED_PRECONDITION.name:
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=error.subject, description=error.message
        )
        details.append(_packed(error_details_pb2.PreconditionFailure(violations=[unmet])))
    if error.retry_seconds:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=error.retry_seconds))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = getattr(StatusCode, error.status).value[0]
    return status_pb2.Status(code=code, message=token_format.redact(error.message), details=details)


def _violations(errors: Sequence[RolecallError]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """Return a violation for each error that names a field; those that don't fit into trailers share one per cause.

    So every bad entry of a batch is named, for any number of them: clients accept 8 KB of trailers.
    """
    found: list[error_details_pb2.BadRequest.FieldViolation] = []
    room = MAX_VIOLATION_BYTES
    rest: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        if not error.field:
            continue
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=token_format.redact(error.message), reason=error.reason
        )
        room -= violation.ByteSize()
        if room >= 0:
            found.append(violation)
            continue
        if "[" not in error.field:
            found.append(error_details_pb2.BadRequest.FieldViolation(field=error.field, reason=error.reason))
            continue
        batch, _, place = error.field.partition("[")
        number, _, leaf = place.partition("]")
        rest.setdefault((f"{batch}[%s]{leaf}", error.reason), []).append(number)
    for (field, reason), numbers in rest.items():
        description = f"{len(numbers)} more of this kind."
        found.append(
            error_details_pb2.BadRequest.FieldViolation(
                field=field % ",".join(numbers), description=description, reason=reason
            )
        )
    return found


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
