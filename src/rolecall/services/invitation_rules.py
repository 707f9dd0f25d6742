"""Rules on who can be invited to which role, and whether the inviter could still invite (docs/concepts.md, rule 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rolecall import email_address
from rolecall.domain import Caller, CredentialKind, Invitation, TokenState
from rolecall.email_address import Address
from rolecall.errors import (
    AlreadyMember,
    BatchSize,
    DuplicateInvitation,
    InvalidField,
    InviterLostRight,
    PermissionMissing,
    RolecallError,
    combine,
)
from rolecall.policy import Policy
from rolecall.services.caller_permissions import require_any, require_handling, require_known
from rolecall.services.unit_of_work import ChangeContext
from rolecall.storage import Transaction
from rolecall.storage import invitations as rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = ["InvitationBatch", "Invitee", "parse_batch", "require_invitable", "require_inviter"]

# Maximum people in one request; above it the request gets BATCH_SIZE.
MAX_INVITEES = 200
# Maximum characters of a role's name.
MAX_ROLE = 64


@dataclass(frozen=True, slots=True)
class Invitee:
    """Person to invite. `field` is the path of their entry in the request, for errors."""

    field: str
    address: Address
    role: str


@dataclass(frozen=True, slots=True)
class InvitationBatch:
    """Parsed entries of a request: the people with valid addresses, the valid roles by field path, and the errors."""

    invitees: list[Invitee] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    malformed: list[RolecallError] = field(default_factory=list)


def parse_batch(entries: Sequence[tuple[str, str]]) -> InvitationBatch:
    """Parse (address, role) pairs. Raises `BatchSize`; malformed entries are collected in the batch."""
    if not 1 <= len(entries) <= MAX_INVITEES:
        raise BatchSize(
            f"invitations has {len(entries)} people; it must have 1 to {MAX_INVITEES}: split the list, or add people.",
            field="invitations",
            size=str(len(entries)),
            maximum=str(MAX_INVITEES),
        )
    batch = InvitationBatch()
    for number, (email, role) in enumerate(entries):
        place = f"invitations[{number}]"
        if 1 <= len(role) <= MAX_ROLE:
            batch.roles[f"{place}.role"] = role
        else:
            message = f"role has {len(role)} characters: name one of the policy's roles, as ListRoles shows them."
            batch.malformed.append(InvalidField(message, field=f"{place}.role"))
        try:
            address = email_address.parse(email, f"{place}.email")
        except InvalidField as error:
            batch.malformed.append(error)
        else:
            batch.invitees.append(Invitee(place, address, role))
    return batch


def require_invitable(context: ChangeContext, batch: InvitationBatch) -> None:
    """Raise unless the caller may invite all of the batch now; the error combines the problems of all entries.

    A caller who may invite nobody does not learn who is a member or invited.
    """
    try:
        require_any(context.policy, context.caller, "invite")
    except PermissionMissing as missing:
        raise (combine(batch.malformed) if batch.malformed else missing) from None
    problems = [*batch.malformed, *_role_errors(context, batch.roles), *_address_errors(context, batch.invitees)]
    if problems:
        raise combine(sorted(problems, key=_entry_number))


def _role_errors(context: ChangeContext, roles: Mapping[str, str]) -> list[RolecallError]:
    """Return an error for each field whose role the caller may not invite to."""
    errors = {role: _role_error(context, role) for role in set(roles.values())}
    return [_with_field(error, field) for field, role in roles.items() if (error := errors[role])]


def _role_error(context: ChangeContext, role: str) -> RolecallError | None:
    try:
        require_known(context.policy, role, "role")
        require_handling(context.policy, context.caller, "invite", role)
    except RolecallError as error:
        return error
    return None


def _address_errors(context: ChangeContext, invitees: Sequence[Invitee]) -> list[RolecallError]:
    """Return an error for each address that is a member's, is invited already, or occurs twice in the batch."""
    organization = context.caller.organization
    keys = [invitee.address.key for invitee in invitees]
    members = member_rows.by_emails(context.tx, organization, keys)
    invited = rows.pending(context.tx, organization, keys, context.at)
    first: dict[str, str] = {}
    problems: list[RolecallError] = []
    for invitee in invitees:
        key, field, shown = invitee.address.key, f"{invitee.field}.email", invitee.address.display
        if key in members:
            message = f"{shown} is a member already: see GetMember; ChangeMemberRole gives another role."
            problems.append(AlreadyMember(message, field=field, user_id=members[key]))
        elif key in invited:
            message = f"{shown} is invited already: ResendInvitation sends the mail again."
            problems.append(DuplicateInvitation(message, field=field, id=invited[key]))
        elif key in first:
            message = f"{shown} is the same address as that of {first[key]}: leave one out."
            problems.append(DuplicateInvitation(message, field=field))
        first.setdefault(key, invitee.field)
    return problems


def require_inviter(tx: Transaction, policy: Policy, invitation: Invitation, at: int, field: str) -> None:
    """Raise `InviterLostRight` for `field` unless the inviter could create the invitation now."""
    subject = f"invitation:{invitation.id}"
    if invitation.role not in policy.roles:
        raise InviterLostRight(
            f"The role {invitation.role} no longer exists: ask somebody of {invitation.organization} to invite you to"
            " another role.",
            field=field,
            subject=subject,
        )
    inviter = _inviter(tx, invitation, at)
    try:
        if inviter is not None:
            require_handling(policy, inviter, "invite", invitation.role)
            return
    except RolecallError:
        # The error is about the inviter's permissions, which the invited person can't change.
        pass
    raise InviterLostRight(
        f"Your inviter may no longer invite to the role {invitation.role}: ask somebody of"
        f" {invitation.organization} to send the invitation again.",
        field=field,
        subject=subject,
    )


def _inviter(tx: Transaction, invitation: Invitation, at: int) -> Caller | None:
    """Return the inviter as it is now, with its credential's restriction of then; None if the inviter is gone."""
    kind, _, identifier = invitation.creator.partition(":")
    if kind == "user":
        member = member_rows.get(tx, invitation.organization, identifier)
        role = member.role if member else None
    else:
        token = token_rows.get(tx, invitation.organization, identifier)
        role = token.role if token and token.state(at) is TokenState.ACTIVE else None
    if role is None:
        return None
    return Caller(
        invitation.organization, "", CredentialKind.SESSION, identifier, "", role, restriction=invitation.restriction
    )


def _with_field(error: RolecallError, field: str) -> RolecallError:
    """Return a copy of the error for another field."""
    return type(error)(error.message, field=field, subject=error.subject, **error.metadata)


def _entry_number(error: RolecallError) -> int:
    return int(error.field.partition("[")[2].partition("]")[0])
