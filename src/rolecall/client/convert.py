"""Conversion of messages to domain values, failed calls to errors, and times to messages.

Unknown or contradictory answers are denies.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from rolecall import errors
from rolecall.client.channel import Endpoint, explain_failure
from rolecall.domain import (
    CheckResult,
    Effect,
    Explanation,
    ItemError,
    Member,
    Permission,
    PlanKind,
    Reason,
    ResourcePlan,
    RoleExplanation,
)
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import shared_pb2

__all__ = [
    "batch_result",
    "duration",
    "error",
    "member",
    "permission",
    "plan",
    "result",
    "set_expiry",
    "structs",
    "timestamp",
]

_REASONS = {pb.Reason.Value(f"REASON_{reason.name}"): reason for reason in Reason}
_PLAN_KINDS = {pb.PlanKind.Value(f"PLAN_KIND_{kind.name}"): kind for kind in PlanKind}


def result(response: pb.CheckResponse) -> CheckResult:
    """Convert the response to one check."""
    explanation = None
    if response.HasField("explanation"):
        said = response.explanation
        explanation = Explanation(
            said.summary,
            said.rule,
            said.file,
            said.line,
            tuple(said.role_chain),
            said.nearest_miss,
            said.nearest_miss_line,
            tuple(said.roles_that_pass),
            tuple(_role(item) for item in said.roles),
            said.condition,
            tuple(said.missing_values),
        )
    return CheckResult(
        _reason(response),
        response.role,
        response.revision,
        response.policy_version,
        explanation,
        assignment_id=response.assignment_id,
    )


def batch_result(item: pb.BatchCheckResult, response: pb.BatchCheckResponse) -> CheckResult:
    """Convert the result of one check of a batch."""
    wrong = ItemError(item.error.field, item.error.message) if item.HasField("error") else None
    reason = Reason.NOT_GRANTED if wrong else _reason(item)
    return CheckResult(reason, "", response.revision, response.policy_version, error=wrong)


def plan(response: pb.PlanResourcesResponse, resource_type: str) -> ResourcePlan:
    """Convert a plan. One of an unknown kind covers nothing."""
    return ResourcePlan(
        _PLAN_KINDS.get(response.kind, PlanKind.NEVER),
        resource_type,
        tuple(response.include),
        tuple(response.exclude),
        response.role,
        response.revision,
        response.policy_version,
        tuple(response.conditions),
    )


def structs(
    context: Mapping[str, object] | None,
    resource_properties: Mapping[str, object] | None,
    action_properties: Mapping[str, object] | None,
    subject_properties: Mapping[str, object] | None,
) -> dict[str, Any]:
    """Return the fields of a check that hold the values of conditions. Raises `InvalidField` for one beyond JSON."""
    given = {
        "context": context,
        "resource_properties": resource_properties,
        "action_properties": action_properties,
        "subject_properties": subject_properties,
    }
    found: dict[str, Any] = {}
    for field, values in given.items():
        if values is None:
            continue
        try:
            found[field] = json_format.ParseDict(dict(values), Struct())
        except (json_format.ParseError, TypeError, ValueError, RecursionError) as wrong:
            message = f"{field} is no JSON object: give names with texts, numbers, booleans, None, lists and objects."
            raise errors.InvalidField(message, field=field) from wrong
    return found


def permission(message: shared_pb2.Permission) -> Permission:
    """Convert a rule."""
    effect = Effect.ALLOW if message.effect == shared_pb2.EFFECT_ALLOW else Effect.DENY
    return Permission(message.resource, message.action, effect, message.condition)


def member(message: shared_pb2.Member, organization: str) -> Member:
    """Convert a member of `organization`."""
    return Member(
        organization,
        message.user_id,
        message.email,
        message.display_name,
        message.role,
        _microseconds(message.create_time),
        _microseconds(message.update_time),
        message.external_id,
    )


def set_expiry(message: Any, expires: datetime | timedelta | None) -> None:
    """Set a request's `expire_time` or `ttl`; neither for None. Raises `ValueError` for a time that none can hold."""
    if isinstance(expires, datetime):
        message.expire_time.CopyFrom(timestamp(expires))
    elif expires is not None:
        message.ttl.CopyFrom(duration(expires))


def timestamp(value: datetime) -> Timestamp:
    """Convert a time, UTC where it has no zone. Raises `ValueError`."""
    found = Timestamp()
    found.FromDatetime(value)
    return found


def duration(value: timedelta) -> Duration:
    """Convert a time span. Raises `ValueError`."""
    found = Duration()
    found.FromTimedelta(value)
    return found


def error(failure: grpc.RpcError, endpoint: Endpoint) -> errors.RolecallError:
    """Return the server's error; `CallFailed` if the call did not reach the server, or broke off."""
    info = error_details_pb2.ErrorInfo()
    violations = error_details_pb2.BadRequest()
    unmet = error_details_pb2.PreconditionFailure()
    retry = error_details_pb2.RetryInfo()
    try:
        status = _status(failure)
        for detail in status.details if status else ():
            for message in (info, violations, unmet, retry):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
    except DecodeError:
        status = None
    kind = errors.by_reason(info.reason)
    if status is None or kind is None:
        code = failure.code()
        hint = ""
        if code is grpc.StatusCode.UNAVAILABLE:
            hint = explain_failure(endpoint, failure.details() or "")
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            hint = "it didn't answer in time; give it longer, or look at its log."
        return errors.CallFailed(
            f"The call to {endpoint.address} failed: {hint} {code.name}: {failure.details()}", code=code.name
        )
    field = violations.field_violations[0].field if violations.field_violations else ""
    subject = unmet.violations[0].subject if unmet.violations else ""
    meant = kind(status.message, field=field, subject=subject)
    meant.metadata.update(info.metadata)
    if retry.HasField("retry_delay"):
        meant.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    if len(violations.field_violations) > 1:
        meant.all = tuple(_violation(item) for item in violations.field_violations)
    return meant


def _role(message: pb.RoleExplanation) -> RoleExplanation:
    """Convert a role of an explanation. A reason of a later version is NOT_GRANTED."""
    reason = _REASONS.get(message.reason, Reason.NOT_GRANTED) if message.applies else None
    return RoleExplanation(message.role, message.assignment_id, message.scope, message.applies, reason, message.summary)


def _status(failure: grpc.RpcError) -> status_pb2.Status | None:
    """Return the server's google.rpc.Status; None if it sent none, or if a proxy replaced the call's status."""
    for entry in failure.trailing_metadata() or ():
        if entry.key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(entry.value)
            intact = (status.code, status.message) == (failure.code().value[0], failure.details())
            return status if intact else None
    return None


def _violation(item: error_details_pb2.BadRequest.FieldViolation) -> errors.RolecallError:
    return (errors.by_reason(item.reason) or errors.InvalidField)(item.description, field=item.field)


def _reason(answer: pb.CheckResponse | pb.BatchCheckResult) -> Reason:
    """Return the reason; NOT_GRANTED if it comes from a later version, or contradicts the decision."""
    known = _REASONS.get(answer.reason, Reason.NOT_GRANTED)
    if (known is Reason.GRANTED) != (answer.decision == pb.DECISION_ALLOW):
        return Reason.NOT_GRANTED
    return known


def _microseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1000
