"""Domain values to response messages."""

from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.domain import (
    NEVER,
    CheckResult,
    CredentialKind,
    Effect,
    Explanation,
    ItemError,
    Member,
    Permission,
    Reason,
    ResourcePlan,
    RoleAssignment,
    Team,
    Token,
    TokenState,
    now,
)
from rolecall.formats.networks import format_networks
from rolecall.services.authorization import BatchAnswer, PermissionsAnswer, ResourcesAnswer, SubjectsAnswer
from rolecall.services.organizations import OrganizationView
from rolecall.services.sessions import OpenedSession
from rolecall.v1 import assignment_pb2, organization_pb2, session_pb2, shared_pb2, team_pb2, token_pb2
from rolecall.v1 import authorization_pb2 as pb

__all__ = [
    "KINDS",
    "assignment",
    "batch_response",
    "check_response",
    "member",
    "organization",
    "permission",
    "permissions_response",
    "plan_response",
    "resources_response",
    "session",
    "subjects_response",
    "team",
    "timestamp",
    "token",
]

MAX_ANSWERS = 4096
_DECISIONS = {Effect.ALLOW: pb.DECISION_ALLOW, Effect.DENY: pb.DECISION_DENY}
_REASONS = {reason: pb.Reason.Value(f"REASON_{reason.name}") for reason in Reason}


def _part(result: pb.BatchCheckResult) -> bytes:
    return pb.BatchCheckResponse(results=[result]).SerializeToString()


# The serialized result in a batch, by reason.
_RESULTS = {
    reason: _part(pb.BatchCheckResult(decision=_DECISIONS[CheckResult(reason).decision], reason=number))
    for reason, number in _REASONS.items()
}
KINDS = {
    CredentialKind.PERSONAL: shared_pb2.CREDENTIAL_KIND_PERSONAL_TOKEN,
    CredentialKind.ORGANIZATION: shared_pb2.CREDENTIAL_KIND_ORGANIZATION_TOKEN,
    CredentialKind.SESSION: shared_pb2.CREDENTIAL_KIND_SESSION,
}
_EFFECTS = {Effect.ALLOW: shared_pb2.EFFECT_ALLOW, Effect.DENY: shared_pb2.EFFECT_DENY}
_STATES = {state: token_pb2.TokenState.Value(f"TOKEN_STATE_{state.name}") for state in TokenState}


def check_response(result: CheckResult) -> bytes:
    """Serialize the answer to one question."""
    plain = _check_response(result.reason, result.role, result.revision, result.policy_version, result.assignment_id)
    if result.explanation is None:
        return plain
    # A message is the concatenation of its parts.
    return plain + pb.CheckResponse(explanation=_explanation(result.explanation)).SerializeToString()


@lru_cache(MAX_ANSWERS)
def _check_response(reason: Reason, role: str, revision: int, policy_version: str, assignment_id: str) -> bytes:
    """Serialize a response; between two changes, few differ."""
    decision = _DECISIONS[CheckResult(reason).decision]
    answer = pb.CheckResponse(
        decision=decision,
        reason=_REASONS[reason],
        role=role,
        revision=revision,
        policy_version=policy_version,
        assignment_id=assignment_id,
    )
    return answer.SerializeToString()


def batch_response(answer: BatchAnswer, malformed: dict[int, ItemError]) -> bytes:
    """Serialize the answers in the order of the questions. `malformed`: errors by index; such a question is denied.

    A message is the concatenation of its parts, so the parts that recur are serialized once.
    """
    parts = [_RESULTS[reason] for reason in answer.reasons]
    for index in sorted(malformed):
        parts.insert(index, _batch_error(malformed[index]))
    rest = pb.BatchCheckResponse(revision=answer.revision, policy_version=answer.policy_version)
    return b"".join([*parts, rest.SerializeToString()])


def permissions_response(answer: PermissionsAnswer) -> pb.ListPermissionsResponse:
    """A page of permissions as a message."""
    return pb.ListPermissionsResponse(
        role=answer.role,
        permissions=[permission(item) for item in answer.permissions],
        revision=answer.revision,
        policy_version=answer.policy_version,
        next_page_token=answer.next_page_token,
    )


def plan_response(plan: ResourcePlan) -> pb.PlanResourcesResponse:
    """A plan as a message."""
    return pb.PlanResourcesResponse(
        kind=pb.PlanKind.Value(f"PLAN_KIND_{plan.kind.name}"),
        include=plan.include,
        exclude=plan.exclude,
        role=plan.role,
        revision=plan.revision,
        policy_version=plan.policy_version,
        conditions=plan.conditions,
    )


def resources_response(answer: ResourcesAnswer) -> pb.ListResourcesResponse:
    """A page of resources as a message."""
    return pb.ListResourcesResponse(
        resources=answer.resources,
        revision=answer.revision,
        policy_version=answer.policy_version,
        next_page_token=answer.next_page_token,
    )


def subjects_response(answer: SubjectsAnswer) -> pb.ListSubjectsResponse:
    """A page of members as a message."""
    return pb.ListSubjectsResponse(
        members=[member(item) for item in answer.members],
        conditional_members=[
            pb.ConditionalMember(member=member(item), conditions=conditions) for item, conditions in answer.conditional
        ],
        revision=answer.revision,
        policy_version=answer.policy_version,
        next_page_token=answer.next_page_token,
    )


def _batch_error(item: ItemError) -> bytes:
    error = pb.CheckError(field=item.field, message=item.message)
    return _part(pb.BatchCheckResult(decision=pb.DECISION_DENY, error=error))


def _explanation(value: Explanation) -> pb.Explanation:
    return pb.Explanation(
        summary=value.summary,
        rule=value.rule,
        file=value.file,
        line=value.line,
        role_chain=value.role_chain,
        nearest_miss=value.nearest_miss,
        nearest_miss_line=value.nearest_miss_line,
        roles_that_pass=value.roles_that_pass,
        roles=[
            pb.RoleExplanation(
                role=each.role,
                assignment_id=each.assignment_id,
                scope=each.scope,
                applies=each.applies,
                reason=_REASONS[each.reason] if each.reason else pb.REASON_UNSPECIFIED,
                summary=each.summary,
            )
            for each in value.roles
        ],
        condition=value.condition,
        missing_values=value.missing_values,
    )


def session(value: OpenedSession) -> session_pb2.Session:
    """A new session as a message."""
    return session_pb2.Session(secret=value.session.text, expire_time=timestamp(value.expire_time))


def timestamp(microseconds: int) -> Timestamp:
    """A time as a message."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def permission(value: Permission) -> shared_pb2.Permission:
    """A rule as a message."""
    return shared_pb2.Permission(
        resource=value.resource, action=value.action, effect=_EFFECTS[value.effect], condition=value.condition
    )


def member(value: Member) -> shared_pb2.Member:
    """A member as a message."""
    return shared_pb2.Member(
        user_id=value.user_id,
        email=value.email,
        display_name=value.display_name,
        role=value.role,
        etag=value.etag,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        external_id=value.external_id,
    )


def assignment(value: RoleAssignment) -> assignment_pb2.RoleAssignment:
    """A role assignment as a message."""
    return assignment_pb2.RoleAssignment(
        id=value.id,
        principal=value.principal.text,
        role=value.role,
        scope=value.scope,
        create_time=timestamp(value.create_time),
        creator=value.creator,
        expire_time=None if value.expire_time == NEVER else timestamp(value.expire_time),
        note=value.note,
        etag=value.etag,
        principal_name=value.name,
    )


def team(value: Team) -> team_pb2.Team:
    """A team as a message."""
    return team_pb2.Team(
        id=value.id,
        display_name=value.display_name,
        create_time=timestamp(value.create_time),
        member_count=value.member_count,
        etag=value.etag,
    )


def organization(value: OrganizationView) -> organization_pb2.Organization:
    """An organization as a message."""
    return organization_pb2.Organization(
        id=value.organization.id,
        display_name=value.organization.display_name,
        create_time=timestamp(value.organization.create_time),
        revision=value.organization.revision,
        etag=value.organization.etag,
        warnings=value.warnings,
    )


def token(value: Token) -> token_pb2.Token:
    """A token as a message, in the state that it is in now."""
    restriction_ = None
    if value.restriction is not None:
        permissions = [permission(item) for item in value.restriction.permissions or ()]
        restriction_ = shared_pb2.Restriction(permissions=permissions, scope=value.restriction.scope)
    used = value.last_use_time
    return token_pb2.Token(
        id=value.id,
        kind=KINDS[value.kind],
        display_name=value.display_name,
        user_id=value.user_id,
        creator=value.creator,
        role=value.role,
        restriction=restriction_,
        prefix=value.kind.value,
        last_four=value.last_four,
        create_time=timestamp(value.create_time),
        expire_time=timestamp(value.expire_time),
        last_use_time=None if used is None else timestamp(used),
        state=_STATES[value.state(now())],
        etag=value.etag,
        networks=format_networks(value.networks),
    )
