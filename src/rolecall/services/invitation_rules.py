"""Rules on who can be invited to which role, and whether the inviter could still invite (docs/concepts.md, rule 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rolecall.domain import Caller, CredentialKind, Invitation, Invitee, Principal, TokenState
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
from rolecall.formats import display_names, email_address, external_ids
from rolecall.formats.email_address import Address
from rolecall.policy import Policy
from rolecall.services.caller_permissions import require_any, require_handling, require_known
from rolecall.services.external_id_rules import taken_errors
from rolecall.services.unit_of_work import ChangeContext
from rolecall.storage import Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import invitations as rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = ["BatchEntry", "InvitationBatch", "parse_batch", "require_invitable", "require_inviter"]

# Maximum people in one request; above it the request gets BATCH_SIZE.
MAX_INVITEES = 200
# Maximum characters of a role's name.
MAX_ROLE = 64


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """Person to invite whose address is valid. `field` is the path of their entry in the request, for errors."""

    field: str
    address: Address
    invitee: Invitee


@dataclass(frozen=True, slots=True)
class InvitationBatch:
    """Parsed entries of a request: those with valid addresses, the valid roles and external ids, and the errors.

    Roles and external ids are kept by the path of their field.
    """

    entries: list[BatchEntry] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    external_ids: dict[str, str] = field(default_factory=dict)
    malformed: list[RolecallError] = field(default_factory=list)


def parse_batch(invitees: Sequence[Invitee]) -> InvitationBatch:
    """Parse the people of a request. Raises `BatchSize`; malformed entries are collected in the batch."""
    if not 1 <= len(invitees) <= MAX_INVITEES:
        raise BatchSize(
            f"invitations has {len(invitees)} people; it must have 1 to {MAX_INVITEES}: split the list, or add people.",
            field="invitations",
            size=str(len(invitees)),
            maximum=str(MAX_INVITEES),
        )
    batch = InvitationBatch()
    for number, invitee in enumerate(invitees):
        place, role = f"invitations[{number}]", invitee.role
        if 1 <= len(role) <= MAX_ROLE:
            batch.roles[f"{place}.role"] = role
        else:
            message = f"role has {len(role)} characters: name one of the policy's roles, as ListRoles shows them."
            batch.malformed.append(InvalidField(message, field=f"{place}.role"))
        try:
            address = email_address.parse(invitee.email, f"{place}.email")
        except InvalidField as error:
            batch.malformed.append(error)
        else:
            batch.entries.append(BatchEntry(place, address, invitee))
        try:
            if invitee.display_name:
                display_names.parse(invitee.display_name, "display_name")
        except InvalidField as error:
            batch.malformed.append(error.with_field(f"{place}.display_name"))
        try:
            if invitee.external_id:
                batch.external_ids[f"{place}.external_id"] = external_ids.parse(invitee.external_id, "external_id")
        except InvalidField as error:
            batch.malformed.append(error.with_field(f"{place}.external_id"))
    return batch


def require_invitable(context: ChangeContext, batch: InvitationBatch) -> None:
    """Raise unless the caller may invite all of the batch now; the error combines the problems of all entries.

    A caller who may invite nobody does not learn who is a member or invited.
    """
    try:
        require_any(context.policy, context.caller, "invite")
    except PermissionMissing as missing:
        raise (combine(batch.malformed) if batch.malformed else missing) from None
    problems = [
        *batch.malformed,
        *_role_errors(context, batch.roles),
        *_address_errors(context, batch.entries),
        *taken_errors(context, batch.external_ids),
    ]
    if problems:
        raise combine(sorted(problems, key=_entry_number))


def _role_errors(context: ChangeContext, roles: Mapping[str, str]) -> list[RolecallError]:
    """Return an error for each field whose role the caller may not invite to."""
    errors = {role: _role_error(context, role) for role in set(roles.values())}
    return [error.with_field(field) for field, role in roles.items() if (error := errors[role])]


def _role_error(context: ChangeContext, role: str) -> RolecallError | None:
    try:
        require_known(context.policy, role, "role")
        require_handling(context.policy, context.caller, "invite", role)
    except RolecallError as error:
        return error
    return None


def _address_errors(context: ChangeContext, entries: Sequence[BatchEntry]) -> list[RolecallError]:
    """Return an error for each address that is a member's, is invited already, or occurs twice in the batch."""
    organization = context.caller.organization
    keys = [entry.address.key for entry in entries]
    members = member_rows.by_emails(context.tx, organization, keys)
    invited = rows.pending(context.tx, organization, keys, context.at)
    first: dict[str, str] = {}
    problems: list[RolecallError] = []
    for entry in entries:
        key, field, shown = entry.address.key, f"{entry.field}.email", entry.address.display
        if key in members:
            message = f"{shown} is a member already: see GetMember; ChangeMemberRole gives another role."
            problems.append(AlreadyMember(message, field=field, user_id=members[key]))
        elif key in invited:
            message = f"{shown} is invited already: ResendInvitation sends the mail again."
            problems.append(DuplicateInvitation(message, field=field, id=invited[key]))
        elif key in first:
            message = f"{shown} is the same address as that of {first[key]}: leave one out."
            problems.append(DuplicateInvitation(message, field=field))
        first.setdefault(key, entry.field)
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
    principal = Principal.of(invitation.creator)
    assigned = assignment_rows.assigned(tx, invitation.organization, [principal])[principal]
    return Caller(
        invitation.organization,
        "",
        CredentialKind.SESSION,
        identifier,
        "",
        role,
        restriction=invitation.restriction,
        assigned=assigned,
    )


def _entry_number(error: RolecallError) -> int:
    return int(error.field.partition("[")[2].partition("]")[0])
