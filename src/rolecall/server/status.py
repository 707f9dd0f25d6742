"""Errors as google.rpc.Status: the category as the code, the reason as ErrorInfo, the field as BadRequest.

What isn't as it must be stands in PreconditionFailure.
"""

from collections.abc import Sequence

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from rolecall import credentials
from rolecall.errors import RolecallError

__all__ = ["DOMAIN", "status_of"]

DOMAIN = "rolecall"

# Bytes of the trailers that single violations may take.
ROOM = 2500


def status_of(error: RolecallError, request_id: str) -> status_pb2.Status:
    """What the client of the call `request_id` is told of `error`: nothing that is a credential, wherever it stood."""
    metadata = {name: credentials.redacted(value) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={**metadata, "request_id": request_id}
    )
    details = [_packed(info)]
    violations = _violations(error.all or (error,))
    if violations:
        details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    if error.status == StatusCode.FAILED_PRECONDITION.name:
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=error.subject, description=error.message
        )
        details.append(_packed(error_details_pb2.PreconditionFailure(violations=[unmet])))
    code: int = getattr(StatusCode, error.status).value[0]
    return status_pb2.Status(code=code, message=credentials.redacted(error.message), details=details)


def _violations(errors: Sequence[RolecallError]) -> list[error_details_pb2.BadRequest.FieldViolation]:
    """One for each error that names a field, as long as they fit into trailers; those beyond share one for each cause.

    So every bad entry of a batch is named, however many there are: clients take 8 KB of trailers.
    """
    found: list[error_details_pb2.BadRequest.FieldViolation] = []
    room = ROOM
    rest: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        if not error.field:
            continue
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=credentials.redacted(error.message), reason=error.reason
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
