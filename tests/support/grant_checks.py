"""Calls of each RPC that creates credentials, grants or removes, with all credential kinds, compared with the rules."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from rolecall.domain import CredentialKind, Member
from rolecall.storage import organizations as organization_rows
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as member
from rolecall.v1 import token_pb2 as token
from support.credentials import DAY, id_of, put_credential, restriction
from support.environment import CI
from support.grants import RESTRICTIONS, ROLES, CredentialCase
from support.people import PeopleCalls, change_rows, inviting
from support.server_calls import DENIED, INVALID, NOT_FOUND, Failure, failure_of
from support.sites import Site, add_member

__all__ = ["CHECKS", "CREDENTIAL_CASES", "GrantChecks"]

PERSONAL, PROGRAM, SESSION = CredentialKind.PERSONAL, CredentialKind.ORGANIZATION, CredentialKind.SESSION
# Every restriction for strong roles; for sessions only some of them, outside CI. No program has an owner's role.
CREDENTIAL_CASES = [
    CredentialCase(kind, role, restriction_name)
    for kind, role in (
        (PERSONAL, "OWNER"),
        (SESSION, "OWNER"),
        (PERSONAL, "ADMIN"),
        (PROGRAM, "ADMIN"),
        (PERSONAL, "CONTRIBUTOR"),
    )
    for restriction_name in (list(RESTRICTIONS)[::3] if kind is SESSION and not CI else RESTRICTIONS)
] + [CredentialCase(kind, role, "nothing is cut") for kind in (PERSONAL, PROGRAM) for role in ROLES[3:]]


@dataclass
class GrantChecks:
    """Calls with credentials; collects the results that differ from the rules in `wrong`."""

    calls: PeopleCalls
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    people: dict[str, Member] = field(default_factory=dict)
    invitations: dict[str, invitation.Invitation] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """The site of the calls."""
        return self.calls.site

    def present(self, presenter: CredentialCase) -> str:
        """Create such a credential; return its text."""
        user = self.site.members[presenter.role].user_id if presenter.is_person else None
        role = None if presenter.is_person else presenter.role
        return put_credential(self.site, user, kind=presenter.kind, role=role, only=presenter.only)

    def check_request(self, presenter: CredentialCase, text: str, request: Message, *, allowed: bool) -> bool:
        """Send the request; return whether it succeeded. `allowed`: whether it should, by the rules."""
        return self.check_call(presenter, request, lambda: self.calls.send(text, request), DENIED, allowed=allowed)

    def check_call(
        self,
        presenter: CredentialCase,
        request: Message,
        do: Callable[[], Any],
        *refusals: grpc.StatusCode,
        allowed: bool,
    ) -> bool:
        """Make a call; return whether it succeeded. A refusal must have one of these codes, and change nothing."""
        before, failure = self.revision(), None
        try:
            do()
        except grpc.RpcError as error:
            failure = failure_of(error)
            assert failure.code in (*refusals, INVALID, NOT_FOUND), (presenter, request, failure)
            assert self.revision() == before, (presenter, request)
        self.outcomes["refused" if failure else "done"] += 1
        if (failure is None) != allowed:
            self.wrong.append((presenter, type(request).__name__, str(request), _reason(failure)))
        return failure is None

    def revision(self) -> int:
        """Return the revision of the organization."""
        return self.site.storage.read(lambda tx: organization_rows.revision_of(tx, "acme"))

    def target(self, role: str) -> Member:
        """Return a member with this role who presents no credential."""
        if role not in self.people:
            self.people[role] = add_member(self.site.storage, "acme", self.address(), role)
        return self.people[role]

    def invited(self, role: str) -> invitation.Invitation:
        """Return a pending invitation to this role."""
        if role not in self.invitations:
            [self.invitations[role]] = self.calls.invite("OWNER", (self.address(), role))
        return self.invitations[role]

    def address(self) -> str:
        """Return a new address."""
        self.outcomes["addresses"] += 1
        return f"somebody{self.outcomes['addresses']}@acme.io"


def _reason(failure: Failure | None) -> str:
    return failure.reason if failure else "done"


# For each RPC: the requests, and whether the rules allow them. Every credential finds the same state.


def create_personal_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Create personal tokens with every restriction."""
    for only in RESTRICTIONS.values():
        wanted = None if only is None else restriction(*only)
        request = token.CreatePersonalTokenRequest(display_name="x", restriction=wanted)
        may = (
            presenter.is_person
            and presenter.can("personal-tokens", "create")
            and presenter.may_restrict_to(only, presenter.role)
        )
        checks.check_request(presenter, text, request, allowed=may)


def create_organization_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Create tokens of every role, more and less restricted."""
    for role in ROLES:
        for only in (None, presenter.only, (("secrets", "view"),), (("members", "view"), ("secrets/prod*", "view"))):
            wanted = None if only is None else restriction(*only)
            request = token.CreateOrganizationTokenRequest(display_name="x", role=role, restriction=wanted)
            checks.check_request(
                presenter,
                text,
                request,
                allowed=presenter.may_create_program_token(role) and presenter.may_restrict_to(only, role),
            )


def _tokens(checks: GrantChecks, presenter: CredentialCase) -> Iterator[tuple[str, str, bool]]:
    """Create tokens of the presenter's holder and of programs; yield id, a program's role, and whether it may more."""
    for restriction_name in sorted({"nothing is cut", presenter.restriction_name, "check", "mint"}):
        only, free = RESTRICTIONS[restriction_name], not presenter.restricts_at_least(RESTRICTIONS[restriction_name])
        if presenter.is_person:
            user = checks.site.members[presenter.role].user_id
            yield id_of(put_credential(checks.site, user, only=only, life=9 * DAY)), "", free
        for role in ("ADMIN", "VIEWER"):
            made = put_credential(checks.site, None, kind=PROGRAM, role=role, only=only, life=9 * DAY)
            yield id_of(made), role, free


def rotate_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Rotate the holder's own tokens and programs', more and less restricted."""
    for token_id, role, free in _tokens(checks, presenter):
        may = not free and (not role or presenter.may_create_program_token(role))
        checks.check_request(presenter, text, token.RotateTokenRequest(id=token_id), allowed=may)


def delete_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Delete the holder's own tokens, programs', and those of people of every role."""
    for token_id, role, free in _tokens(checks, presenter):
        may = presenter.can("organization-tokens", "delete") if role else not free
        checks.check_request(presenter, text, token.DeleteTokenRequest(id=token_id), allowed=may)
    for role in ROLES:
        theirs = put_credential(checks.site, checks.target(role).user_id)
        may = presenter.can("member-tokens", "delete") and (
            presenter.covers_role(role) or presenter.can("owners", "update")
        )
        checks.check_request(presenter, text, token.DeleteTokenRequest(id=id_of(theirs)), allowed=may)


def change_member_role(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Change from and to every role, and to the same role, which needs the same permission."""
    for old, new in {pair for role in ROLES for pair in ((role, "VIEWER"), ("VIEWER", role), (role, role))}:
        target = checks.target(old)
        request = member.ChangeMemberRoleRequest(user_id=target.user_id, role=new)
        if checks.check_request(presenter, text, request, allowed=presenter.handles("update", old, new)):
            change_rows(checks.site, tables.members, target.user_id, role=old)


def change_member_external_id(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Give people of every role another external id: its holder gets the role in the eyes of other services."""
    for role in ROLES:
        new = f"idp:{checks.address().partition('@')[0]}"
        request = member.ChangeMemberExternalIdRequest(user_id=checks.target(role).user_id, external_id=new)
        checks.check_request(presenter, text, request, allowed=presenter.handles("update", role))


def move_members(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Move from and to every role, without effect, as presenters have these roles; the owners stay anyway."""
    for old, new in {pair for role in ROLES if role != "VIEWER" for pair in ((role, "VIEWER"), ("VIEWER", role))}:
        may = presenter.handles("update", old, new)
        if old != "OWNER" or not may:
            checks.target(old)
            request = member.MoveMembersRequest(from_role=old, to_role=new, validate_only=True)
            checks.check_request(presenter, text, request, allowed=may)


def remove_member(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Remove people of every role."""
    for role in ROLES:
        request = member.RemoveMemberRequest(user_id=checks.target(role).user_id)
        if checks.check_request(presenter, text, request, allowed=presenter.handles("remove", role)):
            del checks.people[role]


def create_invitations(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Invite to every role: alone, beside the lowest one, and with validate_only."""
    for role in ROLES:
        may, humble = presenter.handles("invite", role), presenter.handles("invite", "VIEWERNOSECRETS")
        checks.check_request(presenter, text, inviting((checks.address(), role), validate_only=True), allowed=may)
        checks.check_request(presenter, text, inviting((checks.address(), role)), allowed=may)
        both = inviting((checks.address(), "VIEWERNOSECRETS"), (checks.address(), role))
        checks.check_request(presenter, text, both, allowed=may and humble)


def update_invitation(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Change invitations from and to every role, and only their external ids."""
    for old, new in {pair for role in ROLES for pair in ((role, "VIEWER"), ("VIEWER", role))}:
        made = checks.invited(old)
        changed = invitation.Invitation(id=made.id, role=new)
        request = invitation.UpdateInvitationRequest(invitation=changed)
        if checks.check_request(presenter, text, request, allowed=presenter.handles("invite", old, new)):
            change_rows(checks.site, tables.invitations, made.id, role=old)
    for role in ROLES:
        changed = invitation.Invitation(id=checks.invited(role).id, external_id=checks.address().partition("@")[0])
        request = invitation.UpdateInvitationRequest(invitation=changed)
        checks.check_request(presenter, text, request, allowed=presenter.handles("invite", role))


def resend_invitation(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Resend invitations to every role, of any inviter."""
    for role in ROLES:
        request = invitation.ResendInvitationRequest(id=checks.invited(role).id)
        checks.check_request(presenter, text, request, allowed=presenter.handles("invite", role))


def delete_invitation(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Delete invitations to every role."""
    for role in ROLES:
        request = invitation.DeleteInvitationRequest(id=checks.invited(role).id)
        if checks.check_request(presenter, text, request, allowed=presenter.handles("invite", role)):
            del checks.invitations[role]


def accept_invitation(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Accept: the inviter's present role counts, and the restriction of the credential that was used to invite."""
    holder = checks.site.members[presenter.role].user_id
    only = None if presenter.only is None else json.dumps(presenter.only)
    actor = f"user:{holder}" if presenter.is_person else f"token:{id_of(text)}"
    for role in ROLES:
        made = checks.invited(role)
        request = invitation.AcceptInvitationRequest(secret=checks.calls.secret(made))
        # As if the presenter had created it, which the rules may forbid.
        change_rows(checks.site, tables.invitations, made.id, creator=actor, restriction=only)
        for present in (
            ("VIEWER", "ADMIN", "OWNER") if presenter.is_person and presenter.role == "OWNER" else (presenter.role,)
        ):
            if presenter.is_person:
                change_rows(checks.site, tables.members, holder, role=present)
            may = replace(presenter, role=present).handles("invite", role)
            send_unauthenticated = partial(checks.calls.send_unauthenticated, request)
            if checks.check_call(
                presenter, request, send_unauthenticated, grpc.StatusCode.FAILED_PRECONDITION, allowed=may
            ):
                del checks.invitations[role]
                break
        if presenter.is_person:
            change_rows(checks.site, tables.members, holder, role=presenter.role)


CHECKS: dict[str, Callable[[GrantChecks, CredentialCase, str], None]] = {
    "AcceptInvitation": accept_invitation,
    "ChangeMemberExternalId": change_member_external_id,
    "ChangeMemberRole": change_member_role,
    "MoveMembers": move_members,
    "CreateInvitations": create_invitations,
    "CreateOrganizationToken": create_organization_token,
    "CreatePersonalToken": create_personal_token,
    "ResendInvitation": resend_invitation,
    "RotateToken": rotate_token,
    "UpdateInvitation": update_invitation,
    # These remove; rule 1 applies to them too, and rule 3 to tokens.
    "DeleteInvitation": delete_invitation,
    "DeleteToken": delete_token,
    "RemoveMember": remove_member,
}
