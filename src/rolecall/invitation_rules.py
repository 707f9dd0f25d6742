"""Who can be invited to what, and whether an invitation still has somebody to vouch for it (requirements, rule 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

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

__all__ = ["Invitee", "read", "require_invitable", "require_inviter"]

MAX_INVITEES = 200
MAX_ROLE = 64


@dataclass(frozen=True, slots=True)
class Invitee:
    """Somebody to be invited. `field` is where they stand in the request."""

    field: str
    address: Address
    role: str


def read(entries: Sequence[tuple[str, str]]) -> tuple[list[Invitee], list[RolecallError]]:
    """The people in (address, role) pairs, and what is malformed. Raises `BatchSize`."""
    if not 1 <= len(entries) <= MAX_INVITEES:
        raise BatchSize(
            f"invitations has {len(entries)} people; it must have 1 to {MAX_INVITEES}: split it, or invite somebody.",
            field="invitations",
            size=str(len(entries)),
            maximum=str(MAX_INVITEES),
        )
    invitees: list[Invitee] = []
    malformed: list[RolecallError] = []
    for number, (email, role) in enumerate(entries):
        field = f"invitations[{number}]"
        well_formed = 1 <= len(role) <= MAX_ROLE
        if not well_formed:
            message = f"role has {len(role)} characters: name one of the policy's roles, as ListRoles shows them."
            malformed.append(InvalidField(message, field=f"{field}.role"))
        try:
            address = addresses.parse(email, f"{field}.email")
        except InvalidField as error:
            malformed.append(error)
        else:
            if well_formed:
                invitees.append(Invitee(field, address, role))
    return invitees, malformed


def require_invitable(moment: Moment, invitees: Sequence[Invitee], malformed: Sequence[RolecallError]) -> None:
    """Raise unless the caller may invite all of them now, with everything that is in the way of any of them.

    Whoever may not invite at all isn't told who is a member or invited.
    """
    try:
        require_any(moment.policy, moment.caller, "invite")
    except PermissionMissing as missing:
        raise (combined(malformed) if malformed else missing) from None
    problems = [*malformed, *_beyond(moment, invitees), *_taken(moment, invitees)]
    if problems:
        raise combined(sorted(problems, key=_place))


def _beyond(moment: Moment, invitees: Sequence[Invitee]) -> list[RolecallError]:
    """What speaks against their roles."""
    judged = {role: _judged(moment, role) for role in {invitee.role for invitee in invitees}}
    found = ((judged[invitee.role], invitee) for invitee in invitees)
    return [_at(error, f"{invitee.field}.role") for error, invitee in found if error]


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


def require_inviter(tx: Transaction, policy: Policy, invitation: Invitation, at: int) -> None:
    """Raise `InviterLostRight` unless whoever vouches for the invitation could make it now."""
    inviter = _inviter(tx, invitation, at)
    try:
        if inviter is not None:
            require_known(policy, invitation.role, "role")
            require_handling(policy, inviter, "invite", invitation.role)
            return
    except RolecallError:
        # It is the inviter's right that is missing, and nothing that the invited person could mend.
        pass
    raise InviterLostRight(
        f"Whoever invited you may no longer invite to the role {invitation.role}: ask somebody of"
        f" {invitation.organization} to send the invitation again."
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
    return type(error)(error.message, field=field, **error.metadata)


def _place(error: RolecallError) -> int:
    return int(error.field.partition("[")[2].partition("]")[0])
