"""Errors: every deliberate failure, with its status (a gRPC code by name), its reason, and metadata for what varies.

A message is one sentence that says what is wrong, followed by what to do next. It never contains a secret.
"""

import re
from collections.abc import Sequence
from typing import ClassVar, Self

__all__ = [
    "AlreadyMember",
    "AssignmentExists",
    "AssignmentNotFound",
    "AuditLogBroken",
    "BatchSize",
    "CallFailed",
    "ConfigError",
    "DuplicateInvitation",
    "EtagMismatch",
    "ExternalIdTaken",
    "Internal",
    "InvalidField",
    "InvitationAccepted",
    "InvitationExpired",
    "InvitationNotFound",
    "InviterLostRight",
    "LastOwner",
    "MemberNotFound",
    "MessageSize",
    "OrganizationExists",
    "OrganizationNotFound",
    "PageToken",
    "PermissionMissing",
    "PersonOnly",
    "PlanSize",
    "PolicyInvalid",
    "RateLimited",
    "RequestIdReused",
    "RevisionNotReached",
    "RoleBeyondCaller",
    "RolecallError",
    "ServiceUnknown",
    "Stale",
    "StorageUnavailable",
    "TeamExists",
    "TeamNotFound",
    "TokenNotFound",
    "TooMany",
    "UnauthenticatedCredential",
    "UnknownRoleName",
    "WriteConflict",
    "by_reason",
    "combine",
    "error_classes",
]

# What is wrong, up to the first colon or full stop that isn't quoted; then what to do.
_MESSAGE = re.compile(r"(?:`[^`]*`|[^`])+?(?:: |[.!?]\s+)(.+)", re.DOTALL)


class RolecallError(Exception):
    """Base of all errors that reach a client. `field` is the field of the request that is at fault, if any.

    `subject`, of a FAILED_PRECONDITION, is the thing that isn't in the needed state, as `organization:acme`. It never
    contains a secret.
    """

    status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    # Seconds after which the same call may succeed; 0 where repeating it does not help.
    retry_seconds: float = 0.0

    def __init__(self, message: str, *, field: str = "", subject: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.subject = subject
        self.metadata = metadata
        # All errors of a batch that has several; this error is then the most important of them.
        self.all: tuple[RolecallError, ...] = ()

    @property
    def fix(self) -> str:
        """Advice at the end of the message: what to do next. After what the system says, its cause."""
        found = _MESSAGE.fullmatch(self.message.removeprefix(f"{self.field}: ") if self.field else self.message)
        return found[1] if found else ""

    def with_field(self, field: str) -> Self:
        """Return a copy of the error for another field."""
        return type(self)(self.message, field=field, subject=self.subject, **self.metadata)


class UnauthenticatedCredential(RolecallError):
    """Caller without exactly one live credential: one text for every cause, so that it reveals nothing."""

    status, reason = "UNAUTHENTICATED", "UNAUTHENTICATED_CREDENTIAL"

    def __init__(
        self,
        message: str = "No valid credential was presented: send exactly one `authorization: Bearer TOKEN`"
        " with a token that is live.",
        *,
        field: str = "",
        **metadata: str,
    ) -> None:
        super().__init__(message, field=field, **metadata)


class PermissionMissing(RolecallError):
    """Permission that the caller lacks."""

    status, reason = "PERMISSION_DENIED", "PERMISSION_MISSING"


class RoleBeyondCaller(RolecallError):
    """Role or token permission beyond what the caller may do itself: docs/concepts.md, rules 1 and 3."""

    status, reason = "PERMISSION_DENIED", "ROLE_BEYOND_CALLER"


class PersonOnly(RolecallError):
    """Call that only a person may make, by an organization token; its role doesn't matter."""

    status, reason = "PERMISSION_DENIED", "PERSON_ONLY"


class OrganizationNotFound(RolecallError):
    """Organization that is missing or not the caller's: the two look the same."""

    status, reason = "NOT_FOUND", "ORGANIZATION_NOT_FOUND"

    @classmethod
    def named(cls, organization: str) -> Self:
        """Make the error for a request that names `organization`."""
        return cls(
            f"There is no organization `{organization}` here: check the name, or leave it empty for the credential's"
            " own.",
            organization=organization,
        )


class MemberNotFound(RolecallError):
    """Member that the organization doesn't have."""

    status, reason = "NOT_FOUND", "MEMBER_NOT_FOUND"


class TokenNotFound(RolecallError):
    """Token that the organization doesn't have."""

    status, reason = "NOT_FOUND", "TOKEN_NOT_FOUND"


class InvitationNotFound(RolecallError):
    """Invitation that the organization doesn't have, or the secret of an invitation that doesn't work."""

    status, reason = "NOT_FOUND", "INVITATION_NOT_FOUND"


class ServiceUnknown(RolecallError):
    """Service in a health check that the server doesn't have."""

    status, reason = "NOT_FOUND", "SERVICE_UNKNOWN"


class OrganizationExists(RolecallError):
    """Name of a new organization that is in use."""

    status, reason = "ALREADY_EXISTS", "ORGANIZATION_EXISTS"


class DuplicateInvitation(RolecallError):
    """Address that is already invited."""

    status, reason = "ALREADY_EXISTS", "DUPLICATE_INVITATION"


class AlreadyMember(RolecallError):
    """Address that is already a member's."""

    status, reason = "ALREADY_EXISTS", "ALREADY_MEMBER"


class ExternalIdTaken(RolecallError):
    """External id that a member or a pending invitation has."""

    status, reason = "ALREADY_EXISTS", "EXTERNAL_ID_TAKEN"


class AssignmentNotFound(RolecallError):
    """Role assignment that the organization doesn't have, or that the caller may not see: the two look the same."""

    status, reason = "NOT_FOUND", "ASSIGNMENT_NOT_FOUND"


class AssignmentExists(RolecallError):
    """Role that the principal has at the scope already."""

    status, reason = "ALREADY_EXISTS", "ASSIGNMENT_EXISTS"


class TeamNotFound(RolecallError):
    """Team that the organization doesn't have, or that the caller may not see: the two look the same."""

    status, reason = "NOT_FOUND", "TEAM_NOT_FOUND"


class TeamExists(RolecallError):
    """Id of a new team that is in use."""

    status, reason = "ALREADY_EXISTS", "TEAM_EXISTS"


class TooMany(RolecallError):
    """More role assignments of a principal, or teams of a member, than there may be."""

    status, reason = "FAILED_PRECONDITION", "TOO_MANY"


class InvalidField(RolecallError):
    """Field whose value is not valid in any state of the organization."""

    status, reason = "INVALID_ARGUMENT", "INVALID_FIELD"


class UnknownRoleName(RolecallError):
    """Role that the policy doesn't define."""

    status, reason = "INVALID_ARGUMENT", "UNKNOWN_ROLE_NAME"


class RequestIdReused(RolecallError):
    """A request_id that was already used for another request."""

    status, reason = "INVALID_ARGUMENT", "REQUEST_ID_REUSED"


class BatchSize(RolecallError):
    """Batch that is empty or too long."""

    status, reason = "INVALID_ARGUMENT", "BATCH_SIZE"


class PageToken(RolecallError):
    """Page token that this list did not return."""

    status, reason = "INVALID_ARGUMENT", "PAGE_TOKEN"


class PolicyInvalid(RolecallError):
    """Policy that has errors, or doesn't fit the members and tokens."""

    status, reason = "FAILED_PRECONDITION", "POLICY_INVALID"


class PlanSize(RolecallError):
    """Plan of more patterns than a query can filter by."""

    status, reason = "FAILED_PRECONDITION", "PLAN_SIZE"


class LastOwner(RolecallError):
    """Change that would leave the organization without an owner: docs/concepts.md, rule 2."""

    status, reason = "FAILED_PRECONDITION", "LAST_OWNER"


class InvitationExpired(RolecallError):
    """Invitation that has expired."""

    status, reason = "FAILED_PRECONDITION", "INVITATION_EXPIRED"


class InvitationAccepted(RolecallError):
    """Invitation that was already accepted."""

    status, reason = "FAILED_PRECONDITION", "INVITATION_ACCEPTED"


class InviterLostRight(RolecallError):
    """Invitation whose inviter may no longer invite to its role."""

    status, reason = "FAILED_PRECONDITION", "INVITER_LOST_RIGHT"


class RevisionNotReached(RolecallError):
    """Requested revision that the organization has not reached."""

    status, reason = "UNAVAILABLE", "REVISION_NOT_REACHED"
    retry_seconds = 1.0


class StorageUnavailable(RolecallError):
    """Database that can't be reached or is too busy."""

    status, reason = "UNAVAILABLE", "STORAGE_UNAVAILABLE"
    retry_seconds = 1.0


class Stale(StorageUnavailable):
    """Database that can't be reached, while the cache is too old for a decision."""

    reason = "STALE"


class WriteConflict(RolecallError):
    """Conflict with other writers in every attempt."""

    status, reason = "ABORTED", "WRITE_CONFLICT"


class EtagMismatch(RolecallError):
    """Resource that has changed since the request's etag was read."""

    status, reason = "ABORTED", "ETAG_MISMATCH"


class MessageSize(RolecallError):
    """Message that is too large. The only RESOURCE_EXHAUSTED that no retry helps: the same message stays too large."""

    status, reason = "RESOURCE_EXHAUSTED", "MESSAGE_SIZE"


class RateLimited(RolecallError):
    """Too many calls of one kind at once."""

    status, reason = "RESOURCE_EXHAUSTED", "RATE_LIMITED"
    retry_seconds = 1.0


class Internal(RolecallError):
    """Defect of the server. The log has its details, the client only the call's id."""

    status, reason = "INTERNAL", "INTERNAL"


class AuditLogBroken(Internal):
    """Audit log without a valid head: the organization accepts no changes until an operator has repaired it."""


class ConfigError(RolecallError):
    """Setting, file or schema with which the program can't start. Only the command line shows it."""

    status, reason = "FAILED_PRECONDITION", "CONFIG"


class CallFailed(RolecallError):
    """Call without an answer: the server can't be reached, timed out, or broke off. Raised by the client only."""

    status, reason = "UNAVAILABLE", "CALL_FAILED"


def combine(errors: Sequence[RolecallError]) -> RolecallError:
    """Combine the errors of a batch into one: the most important, with all of them in `all`.

    INVALID_ARGUMENT comes first, then PERMISSION_DENIED: the errors that the request itself causes.
    """
    order = ("INVALID_ARGUMENT", "PERMISSION_DENIED")
    # `min` keeps the first of several.
    primary = min(errors, key=lambda error: order.index(error.status) if error.status in order else len(order))
    more = f" ({len(errors) - 1} more: see the details.)" if len(errors) > 1 else ""
    message = f"{primary.field}: {primary.message}{more}"
    found = type(primary)(message, field=primary.field, subject=primary.subject, **primary.metadata)
    found.retry_seconds = primary.retry_seconds
    found.all = tuple(errors)
    return found


def by_reason(reason: str) -> type[RolecallError] | None:
    """Return the class of the errors with this reason; None for a reason that this version doesn't know."""
    return next((error for error in error_classes() if error.reason == reason), None)


def error_classes() -> list[type[RolecallError]]:
    """Return every class of errors, subclasses after their bases."""
    direct = RolecallError.__subclasses__()
    return [*direct, *(special for error in direct for special in error.__subclasses__())]
