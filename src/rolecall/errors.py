"""Every deliberate failure: its category (a gRPC status by name), its reason, and what varies as metadata.

A message is one sentence that says what is wrong, followed by what to do next. It never holds a secret.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

__all__ = [
    "AlreadyMember",
    "AuditLogBroken",
    "BatchSize",
    "CallFailed",
    "ConfigError",
    "DuplicateInvitation",
    "EtagMismatch",
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
    "PolicyInvalid",
    "RateLimited",
    "RequestIdReused",
    "RevisionNotReached",
    "RoleBeyondCaller",
    "RolecallError",
    "ServiceUnknown",
    "Stale",
    "StorageUnavailable",
    "TokenNotFound",
    "UnauthenticatedCredential",
    "UnknownRoleName",
    "WriteConflict",
    "by_reason",
    "combined",
    "kinds",
]


class RolecallError(Exception):
    """A failure that a client is told about. `field` names what is at fault in its request, where something is.

    `subject`, of a FAILED_PRECONDITION: what isn't as it must be, as `organization:acme`. It never holds a secret.
    """

    status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "", subject: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.subject = subject
        self.metadata = metadata
        # Where several things are at fault, all of them; this error then speaks of the gravest.
        self.all: tuple[RolecallError, ...] = ()


class UnauthenticatedCredential(RolecallError):
    """One text for every cause, so that it tells a stranger nothing."""

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
    """The caller itself may not do this."""

    status, reason = "PERMISSION_DENIED", "PERMISSION_MISSING"


class RoleBeyondCaller(RolecallError):
    """A role, or what a token may do, goes beyond what the caller may do itself."""

    status, reason = "PERMISSION_DENIED", "ROLE_BEYOND_CALLER"


class PersonOnly(RolecallError):
    """An organization's token may not do this, whatever its role."""

    status, reason = "PERMISSION_DENIED", "PERSON_ONLY"


class OrganizationNotFound(RolecallError):
    """No such organization, or somebody else's: the two look the same."""

    status, reason = "NOT_FOUND", "ORGANIZATION_NOT_FOUND"

    @classmethod
    def named(cls, organization: str) -> Self:
        """The one answer to a request that names `organization`."""
        return cls(
            f"There is no organization `{organization}` here: check its name; where none is named, the credential's own"
            " is meant.",
            organization=organization,
        )


class MemberNotFound(RolecallError):
    """The organization has no such member."""

    status, reason = "NOT_FOUND", "MEMBER_NOT_FOUND"


class TokenNotFound(RolecallError):
    """The organization has no such token."""

    status, reason = "NOT_FOUND", "TOKEN_NOT_FOUND"


class InvitationNotFound(RolecallError):
    """The organization has no such invitation, or a secret is none that works."""

    status, reason = "NOT_FOUND", "INVITATION_NOT_FOUND"


class ServiceUnknown(RolecallError):
    """The server has no such service, whose health is asked for."""

    status, reason = "NOT_FOUND", "SERVICE_UNKNOWN"


class OrganizationExists(RolecallError):
    """There is an organization of this name."""

    status, reason = "ALREADY_EXISTS", "ORGANIZATION_EXISTS"


class DuplicateInvitation(RolecallError):
    """The address is invited already."""

    status, reason = "ALREADY_EXISTS", "DUPLICATE_INVITATION"


class AlreadyMember(RolecallError):
    """The address is a member's."""

    status, reason = "ALREADY_EXISTS", "ALREADY_MEMBER"


class InvalidField(RolecallError):
    """A value that can't be right, whatever the state of things."""

    status, reason = "INVALID_ARGUMENT", "INVALID_FIELD"


class UnknownRoleName(RolecallError):
    """The policy has no such role."""

    status, reason = "INVALID_ARGUMENT", "UNKNOWN_ROLE_NAME"


class RequestIdReused(RolecallError):
    """A request_id stands for another request already."""

    status, reason = "INVALID_ARGUMENT", "REQUEST_ID_REUSED"


class BatchSize(RolecallError):
    """A batch that is empty or too long."""

    status, reason = "INVALID_ARGUMENT", "BATCH_SIZE"


class PageToken(RolecallError):
    """A page token that this list did not give out."""

    status, reason = "INVALID_ARGUMENT", "PAGE_TOKEN"


class PolicyInvalid(RolecallError):
    """A policy has errors, or doesn't fit the members there are."""

    status, reason = "FAILED_PRECONDITION", "POLICY_INVALID"


class LastOwner(RolecallError):
    """The organization would be left without an owner."""

    status, reason = "FAILED_PRECONDITION", "LAST_OWNER"


class InvitationExpired(RolecallError):
    """The invitation's time is over."""

    status, reason = "FAILED_PRECONDITION", "INVITATION_EXPIRED"


class InvitationAccepted(RolecallError):
    """Somebody joined by the invitation already."""

    status, reason = "FAILED_PRECONDITION", "INVITATION_ACCEPTED"


class InviterLostRight(RolecallError):
    """Whoever invited may no longer invite to this role."""

    status, reason = "FAILED_PRECONDITION", "INVITER_LOST_RIGHT"


class RevisionNotReached(RolecallError):
    """The answer would not know of the revision asked for."""

    status, reason = "UNAVAILABLE", "REVISION_NOT_REACHED"


class StorageUnavailable(RolecallError):
    """The database doesn't answer."""

    status, reason = "UNAVAILABLE", "STORAGE_UNAVAILABLE"


class Stale(StorageUnavailable):
    """The database doesn't answer, and what is remembered is too old to decide by."""

    reason = "STALE"


class WriteConflict(RolecallError):
    """Other writers got in between, every time it was tried."""

    status, reason = "ABORTED", "WRITE_CONFLICT"


class EtagMismatch(RolecallError):
    """What was to be changed has changed since it was read."""

    status, reason = "ABORTED", "ETAG_MISMATCH"


class MessageSize(RolecallError):
    """A message that is too large."""

    status, reason = "RESOURCE_EXHAUSTED", "MESSAGE_SIZE"


class RateLimited(RolecallError):
    """Too many calls of this kind at once."""

    status, reason = "RESOURCE_EXHAUSTED", "RATE_LIMITED"


class Internal(RolecallError):
    """A defect. The log has its details, the client only the request id."""

    status, reason = "INTERNAL", "INTERNAL"


class AuditLogBroken(Internal):
    """An audit log has no valid end: nothing is changed until its operator has put that right."""


class ConfigError(RolecallError):
    """The program can't start like this: a setting, a file, a schema. Only the command line shows it."""

    status, reason = "FAILED_PRECONDITION", "CONFIG"


class CallFailed(RolecallError):
    """No answer of the service: it can't be reached, took too long, or broke off. Only the client library raises it."""

    status, reason = "UNAVAILABLE", "CALL_FAILED"


def combined(errors: Sequence[RolecallError]) -> RolecallError:
    """One error for all of them: of the category that is nearest to the request itself, with the rest in `all`."""
    order = ("INVALID_ARGUMENT", "PERMISSION_DENIED")
    # `min` keeps the first of several.
    gravest = min(errors, key=lambda error: order.index(error.status) if error.status in order else len(order))
    more = f" ({len(errors) - 1} more: see the details.)" if len(errors) > 1 else ""
    message = f"{gravest.field}: {gravest.message}{more}"
    found = type(gravest)(message, field=gravest.field, subject=gravest.subject, **gravest.metadata)
    found.all = tuple(errors)
    return found


def by_reason(reason: str) -> type[RolecallError] | None:
    """The class of the errors with this reason; None for one that this version doesn't know."""
    return next((error for error in kinds() if error.reason == reason), None)


def kinds() -> list[type[RolecallError]]:
    """Every class of errors; those that are kinds of others behind them."""
    direct = RolecallError.__subclasses__()
    return [*direct, *(special for error in direct for special in error.__subclasses__())]
