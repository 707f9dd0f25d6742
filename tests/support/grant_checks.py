"""Calls of each RPC that creates credentials, grants or removes, with all credential kinds, compared with the rules."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from rolecall.credentials import token_format
from rolecall.domain import NEVER, CredentialKind, Member, Principal, PrincipalKind, RoleAssignment, Team, now
from rolecall.storage import Transaction, tables
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import teams as team_rows
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as member
from rolecall.v1 import shared_pb2 as shared
from rolecall.v1 import token_pb2 as token
from support.credentials import DAY, id_of, put_credential, restriction
from support.environment import CI
from support.grants import HOUR, RESTRICTIONS, ROLES, SCOPES, CredentialCase, Held, Pairs
from support.people import PeopleCalls, change_rows, inviting
from support.server_calls import DENIED, INVALID, NOT_FOUND, Failure, failure_of
from support.sites import Site, add_member

__all__ = ["CHECKS", "CREDENTIAL_CASES", "PERSONAL", "PROGRAM", "GrantChecks"]

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
# Restricted to a scope, of which some are resources that people are handled by.
CREDENTIAL_CASES += [
    CredentialCase(PERSONAL, "OWNER", restriction_name, scope)
    for restriction_name in ("nothing is cut", "as an admin")
    for scope in ("projects/1", "members", "owners")
]
# What the holders of credentials are assigned besides their roles.
_ASSIGNED: tuple[tuple[str, tuple[Held, ...]], ...] = (
    ("VIEWER", (Held("ADMIN"),)),
    ("VIEWER", (Held("ADMIN", by_team=True),)),
    ("VIEWER", (Held("ADMIN", life=HOUR),)),
    ("VIEWER", (Held("ADMIN", "projects/1"),)),
    ("ADMIN", (Held("BARRED"),)),
    ("ADMIN", (Held("GUARD", "projects/2", by_team=True),)),
    ("CONTRIBUTOR", (Held("ADMIN", "members"), Held("ADMIN", "organization-tokens"))),
)
CREDENTIAL_CASES += [CredentialCase(PERSONAL, role, "nothing is cut", "", held) for role, held in _ASSIGNED]
CREDENTIAL_CASES += [CredentialCase(PERSONAL, role, "as an admin", "", held) for role, held in _ASSIGNED[:2]]
CREDENTIAL_CASES += [CredentialCase(PERSONAL, "VIEWER", "nothing is cut", "projects/1", _ASSIGNED[3][1])]
CREDENTIAL_CASES += [CredentialCase(PROGRAM, "VIEWER", "nothing is cut", "", _ASSIGNED[0][1])]


@dataclass
class GrantChecks:
    """Calls with credentials; collects the results that differ from the rules in `wrong`."""

    calls: PeopleCalls
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    people: dict[str, Member] = field(default_factory=dict)
    holders: dict[tuple[str, tuple[Held, ...]], Member] = field(default_factory=dict)
    # Of the checks of assignments.
    targets: list[Any] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    invitations: dict[str, invitation.Invitation] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """The site of the calls."""
        return self.calls.site

    def present(self, presenter: CredentialCase) -> str:
        """Create such a credential; return its text."""
        user = self.holder(presenter).user_id if presenter.is_person else None
        role = None if presenter.is_person else presenter.role
        only, scope = presenter.only, presenter.scope
        text = put_credential(self.site, user, kind=presenter.kind, role=role, only=only, scope=scope)
        if not presenter.is_person:
            self.assign(Principal(PrincipalKind.TOKEN, id_of(text)), presenter.assigned)
        return text

    def holder(self, presenter: CredentialCase) -> Member:
        """Return the person who holds such a credential."""
        if not presenter.assigned:
            return self.site.members[presenter.role]
        key = (presenter.role, presenter.assigned)
        if key not in self.holders:
            self.holders[key] = self.add_person(presenter.role, presenter.assigned)
        return self.holders[key]

    def add_person(self, role: str, assigned: tuple[Held, ...] = ()) -> Member:
        """Add a member with a role, and what it is assigned."""
        added = add_member(self.site.storage, "acme", self.address(), role)
        self.assign(Principal(PrincipalKind.USER, added.user_id), assigned)
        return added

    def assign(self, principal: Principal, assigned: tuple[Held, ...]) -> list[RoleAssignment]:
        """Assign roles directly in the database, some by a new team; return the assignments."""

        def work(tx: Transaction) -> list[RoleAssignment]:
            at = now()
            made = []
            for held in assigned:
                to = principal
                if held.by_team:
                    to = Principal(PrincipalKind.TEAM, f"team-{token_format.new_id().lower()}")
                    team = Team("acme", to.id, to.id, at, tx.revision)
                    team_rows.add(tx, team)
                    team_rows.add_members(tx, team, [principal.id])
                end = NEVER if held.life is None else at + held.life
                values = (held.role, held.scope, "operator", at, end, "", tx.revision)
                made.append(RoleAssignment("acme", token_format.new_id(), to, *values))
            if made:
                assignment_rows.add(tx, made)
            return made

        return self.site.storage.mutate("acme", work) if assigned else []

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

    def assigned_person(self, held: tuple[Held, ...]) -> Member:
        """Return a VIEWER who is assigned these roles, and presents no credential."""
        key = ("VIEWER other", held)
        if key not in self.holders:
            self.holders[key] = self.add_person("VIEWER", held)
        return self.holders[key]

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
    """Create personal tokens with every restriction, and at every scope."""
    restricted = [(only, "") for only in RESTRICTIONS.values()]
    restricted += [(only, scope) for only in (None, (("secrets", "view"),), presenter.only) for scope in SCOPES]
    for only, scope in restricted:
        request = token.CreatePersonalTokenRequest(display_name="x", restriction=_restriction(only, scope))
        may = (
            presenter.is_person
            and presenter.can("personal-tokens", "create")
            and presenter.may_restrict_to(only, "", scope)
        )
        checks.check_request(presenter, text, request, allowed=may)


def _restriction(only: Pairs | None, scope: str) -> shared.Restriction | None:
    """The restriction in a request; None for none."""
    return restriction(*(only or ()), scope=scope) if only is not None or scope else None


def create_organization_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Create tokens of every role, more and less restricted, at every scope."""
    for role in (*ROLES, "GUARD"):
        restricted: list[tuple[Pairs | None, str]] = [(None, scope) for scope in SCOPES]
        restricted += [(presenter.only, ""), ((("secrets", "view"),), ""), ((("secrets", "view"),), "projects/1")]
        restricted += [((("members", "view"), ("secrets/prod*", "view")), "")]
        for only, scope in restricted:
            request = token.CreateOrganizationTokenRequest(
                display_name="x", role=role, restriction=_restriction(only, scope)
            )
            may = presenter.may_create_program_token(role, scope) and presenter.may_restrict_to(only, role, scope)
            checks.check_request(presenter, text, request, allowed=may)


@dataclass(frozen=True)
class _Token:
    """Token of the presenter's holder, or of a program with this role. `free`: it is restricted less."""

    id: str
    role: str
    scope: str
    free: bool
    assigned: tuple[Held, ...] = ()


def _tokens(checks: GrantChecks, presenter: CredentialCase) -> Iterator[_Token]:
    """Create tokens of the presenter's holder and of programs, more and less restricted, at scopes and not."""
    restricted = [(name, "") for name in sorted({"nothing is cut", presenter.restriction_name, "check", "mint"})]
    restricted += [("nothing is cut", "projects/1"), (presenter.restriction_name, presenter.scope)]
    for restriction_name, scope in dict.fromkeys(restricted):
        only = RESTRICTIONS[restriction_name]
        free = not presenter.restricts_at_least(only, scope)
        if presenter.is_person:
            user = checks.holder(presenter).user_id
            yield _Token(id_of(put_credential(checks.site, user, only=only, scope=scope, life=9 * DAY)), "", "", free)
        for role in ("ADMIN", "VIEWER"):
            made = put_credential(checks.site, None, kind=PROGRAM, role=role, only=only, scope=scope, life=9 * DAY)
            yield _Token(id_of(made), role, scope, free)
    for held in (Held("CONTRIBUTOR"), Held("ADMIN", "projects/2"), Held("ADMIN", life=HOUR // 2), Held("GUARD")):
        made = put_credential(checks.site, None, kind=PROGRAM, role="VIEWER", life=9 * DAY)
        checks.assign(Principal(PrincipalKind.TOKEN, id_of(made)), (held,))
        yield _Token(id_of(made), "VIEWER", "", not presenter.restricts_at_least(None), (held,))


def rotate_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Rotate the holder's own tokens and programs', more and less restricted, and some that are assigned roles."""
    for each in _tokens(checks, presenter):
        may = not each.free
        if each.role:
            may &= presenter.can("organization-tokens", "create")
            may &= presenter.may_create_program_token(each.role, each.scope)
            # The new secret gives what the token is assigned too.
            may &= all(presenter.covers_role(held.role, held.scope, held.life) for held in each.assigned)
        checks.check_request(presenter, text, token.RotateTokenRequest(id=each.id), allowed=may)


def delete_token(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Delete the holder's own tokens, programs', and those of people of every role."""
    for each in _tokens(checks, presenter):
        may = presenter.can("organization-tokens", "delete") if each.role else not each.free
        checks.check_request(presenter, text, token.DeleteTokenRequest(id=each.id), allowed=may)
    for role in ROLES:
        theirs = put_credential(checks.site, checks.target(role).user_id)
        may = presenter.can("member-tokens", "delete") and (
            presenter.covers_role(role) or presenter.can("owners", "update")
        )
        checks.check_request(presenter, text, token.DeleteTokenRequest(id=id_of(theirs)), allowed=may)


# What some of the people are assigned whose external ids change, or who are removed.
_OTHERS: tuple[tuple[Held, ...], ...] = (
    (),
    (Held("CONTRIBUTOR"),),
    (Held("ADMIN", "projects/1"),),
    (Held("ADMIN", life=HOUR // 2, by_team=True),),
)


def change_member_role(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Change from and to every role, and to the same role, which needs the same permission."""
    for old, new in {pair for role in ROLES for pair in ((role, "VIEWER"), ("VIEWER", role), (role, role))}:
        target = checks.target(old)
        request = member.ChangeMemberRoleRequest(user_id=target.user_id, role=new)
        if checks.check_request(presenter, text, request, allowed=presenter.handles("update", old, new)):
            change_rows(checks.site, tables.members, target.user_id, role=old)


def change_member_external_id(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Give people of every role another external id: its holder gets the role in the eyes of other services."""
    people: list[tuple[Member, tuple[Held, ...]]] = [(checks.target(role), ()) for role in ROLES]
    people += [(checks.assigned_person(held), held) for held in _OTHERS]
    for person, held in people:
        new = f"idp:{checks.address().partition('@')[0]}"
        request = member.ChangeMemberExternalIdRequest(user_id=person.user_id, external_id=new)
        may = presenter.handles_person("update", person.role, held)
        checks.check_request(presenter, text, request, allowed=may)


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
    for held in _OTHERS:
        request = member.RemoveMemberRequest(user_id=checks.assigned_person(held).user_id)
        may = presenter.handles_person("remove", "VIEWER", held)
        if checks.check_request(presenter, text, request, allowed=may):
            del checks.holders["VIEWER other", held]


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
    holder = checks.holder(presenter).user_id
    only = None if presenter.only is None else json.dumps(presenter.only)
    if presenter.scope:
        only = json.dumps({"permissions": presenter.only, "scope": presenter.scope})
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
