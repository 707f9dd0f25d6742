"""Who can be invited to what, and whether an invitation still has somebody to vouch for it (requirements, rule 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rolecall import addresses
from rolecall.addresses import Address
from rolecall.domain import Caller, CredentialKind, Invitation, TokenState
from rolecall.errors import (
    AlreadyMember,
    BatchSize,
    DuplicateInvitation,
    InvalidField,
    InviterLostRight,
    PermissionMissing,
    RolecallError,
    combined,
)
from rolecall.mutations import Moment
from rolecall.policy import Policy
from rolecall.rights import require_any, require_handling, require_known
from rolecall.storage import Transaction
from rolecall.storage import invitations as rows
from rolecall.storage import members as member_rows
from rolecall.storage import tokens as token_rows

__all__ = ["Invitee", "Wanted", "read", "require_invitable", "require_inviter"]

MAX_INVITEES = 200
MAX_ROLE = 64


@dataclass(frozen=True, slots=True)
class Invitee:
    """Somebody to be invited. `field` is where they stand in the request."""

    field: str
    address: Address
    role: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: the people, the well-formed roles by the field in which each stands, and what is malformed."""

    invitees: list[Invitee] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    malformed: list[RolecallError] = field(default_factory=list)


def read(entries: Sequence[tuple[str, str]]) -> Wanted:
    """The people in (address, role) pairs. Raises `BatchSize`."""
    if not 1 <= len(entries) <= MAX_INVITEES:
        raise BatchSize(
            f"invitations has {len(entries)} people; it must have 1 to {MAX_INVITEES}: split it, or invite somebody.",
            field="invitations",
            size=str(len(entries)),
            maximum=str(MAX_INVITEES),
        )
    wanted = Wanted()
    for number, (email, role) in enumerate(entries):
        place = f"invitations[{number}]"
        if 1 <= len(role) <= MAX_ROLE:
            wanted.roles[f"{place}.role"] = role
        else:
            message = f"role has {len(role)} characters: name one of the policy's roles, as ListRoles shows them."
            wanted.malformed.append(InvalidField(message, field=f"{place}.role"))
        try:
            address = addresses.parse(email, f"{place}.email")
        except InvalidField as error:
            wanted.malformed.append(error)
        else:
            wanted.invitees.append(Invitee(place, address, role))
    return wanted


def require_invitable(moment: Moment, wanted: Wanted) -> None:
    """Raise unless the caller may invite all of them now, with everything that is in the way of any of them.

    Whoever may not invite at all isn't told who is a member or invited.
    """
    try:
        require_any(moment.policy, moment.caller, "invite")
    except PermissionMissing as missing:
        raise (combined(wanted.malformed) if wanted.malformed else missing) from None
    problems = [*wanted.malformed, *_beyond(moment, wanted.roles), *_taken(moment, wanted.invitees)]
    if problems:
        raise combined(sorted(problems, key=_place))


def _beyond(moment: Moment, roles: Mapping[str, str]) -> list[RolecallError]:
    """What speaks against the roles, by the field in which each stands."""
    judged = {role: _judged(moment, role) for role in set(roles.values())}
    return [_at(error, field) for field, role in roles.items() if (error := judged[role])]


def _judged(moment: Moment, role: str) -> RolecallError | None:
    try:
        require_known(moment.policy, role, "role")
        require_handling(moment.policy, moment.caller, "invite", role)
    except RolecallError as error:
        return error
    return None


def _taken(moment: Moment, invitees: Sequence[Invitee]) -> list[RolecallError]:
    """Who is a member or invited already, or stands there twice."""
    organization = moment.caller.organization
    keys = [invitee.address.key for invitee in invitees]
    members = member_rows.by_emails(moment.tx, organization, keys)
    invited = rows.pending(moment.tx, organization, keys, moment.at)
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
    """Raise `InviterLostRight` for `field` unless whoever vouches for the invitation could make it now."""
    subject = f"invitation:{invitation.id}"
    if invitation.role not in policy.roles:
        raise InviterLostRight(
            f"There is no role {invitation.role} any more: ask somebody of {invitation.organization} to invite you to"
            " another one.",
            field=field,
            subject=subject,
        )
    inviter = _inviter(tx, invitation, at)
    try:
        if inviter is not None:
            require_handling(policy, inviter, "invite", invitation.role)
            return
    except RolecallError:
        # It is the inviter's right that is missing, and nothing that the invited person could mend.
        pass
    raise InviterLostRight(
        f"Whoever invited you may no longer invite to the role {invitation.role}: ask somebody of"
        f" {invitation.organization} to send the invitation again.",
        field=field,
        subject=subject,
    )


def _inviter(tx: Transaction, invitation: Invitation, at: int) -> Caller | None:
    """The inviter as it stands now, cut down to what its credential was then; None where it is gone."""
    kind, _, identifier = invitation.inviter.partition(":")
    if kind == "user":
        member = member_rows.get(tx, invitation.organization, identifier)
        role = member.role if member else None
    else:
        token = token_rows.get(tx, invitation.organization, identifier)
        role = token.role if token and token.state(at) is TokenState.LIVE else None
    if role is None:
        return None
    return Caller(
        invitation.organization, "", CredentialKind.SESSION, identifier, "", role, restriction=invitation.restriction
    )


def _at(error: RolecallError, field: str) -> RolecallError:
    """The same error about another field."""
    return type(error)(error.message, field=field, subject=error.subject, **error.metadata)


def _place(error: RolecallError) -> int:
    return int(error.field.partition("[")[2].partition("]")[0])
