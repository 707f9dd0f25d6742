"""What is tried with each RPC that mints, grants or takes away, by whatever is presented; and what the rules say."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
from conftest import CI, Site, add_member
from google.protobuf.message import Message
from grants import RESTRICTIONS, ROLES, Presenter
from grpc_errors import Told, told
from people import Office, change_rows, inviting
from test_tokens import DAY, DENIED, INVALID, NOT_FOUND, id_of, put_credential, restriction

from rolecall.domain import CredentialKind, Member
from rolecall.storage import organizations as organization_rows
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as member
from rolecall.v1 import token_pb2 as token

__all__ = ["PRESENTERS", "TABLE", "Trial"]

PERSONAL, PROGRAM, SESSION = CredentialKind.PERSONAL, CredentialKind.ORGANIZATION, CredentialKind.SESSION
# Every restriction for those who may much; some of them for sessions on a laptop. No program has an owner's role.
PRESENTERS = [
    Presenter(kind, role, cut)
    for kind, role in (
        (PERSONAL, "OWNER"),
        (SESSION, "OWNER"),
        (PERSONAL, "ADMIN"),
        (PROGRAM, "ADMIN"),
        (PERSONAL, "CONTRIBUTOR"),
    )
    for cut in (list(RESTRICTIONS)[::3] if kind is SESSION and not CI else RESTRICTIONS)
] + [Presenter(kind, role, "nothing is cut") for kind in (PERSONAL, PROGRAM) for role in ROLES[3:]]


@dataclass
class Trial:
    """Has presenters try, and notes what came out otherwise than the rules have it."""

    office: Office
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    people: dict[str, Member] = field(default_factory=dict)
    invitations: dict[str, invitation.Invitation] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """Where they try."""
        return self.office.site

    def present(self, presenter: Presenter) -> str:
        """The text of such a credential."""
        user = self.site.members[presenter.role].user_id if presenter.is_person else None
        role = None if presenter.is_person else presenter.role
        return put_credential(self.site, user, kind=presenter.kind, role=role, only=presenter.only)

    def hold(self, presenter: Presenter, text: str, request: Message, *, allowed: bool) -> bool:
        """Whether it was done; what the rules have it be is `allowed`. What is refused changes nothing."""
        return self.judge(presenter, request, lambda: self.office.send(text, request), DENIED, allowed=allowed)

    def judge(
        self, presenter: Presenter, request: Message, do: Callable[[], Any], *refusals: grpc.StatusCode, allowed: bool
    ) -> bool:
        """The same of whatever is done; a refusal has one of these codes, or one of no matter here."""
        before, said = self.revision(), None
        try:
            do()
        except grpc.RpcError as error:
            said = told(error)
            assert said.code in (*refusals, INVALID, NOT_FOUND), (presenter, request, said)
            assert self.revision() == before, (presenter, request)
        self.outcomes["refused" if said else "done"] += 1
        if (said is None) != allowed:
            self.wrong.append((presenter, type(request).__name__, str(request), _reason(said)))
        return said is None

    def revision(self) -> int:
        """How often anything was changed."""
        return self.site.storage.read(lambda tx: organization_rows.revision_of(tx, "acme"))

    def target(self, role: str) -> Member:
        """A member with this role besides those who present."""
        if role not in self.people:
            self.people[role] = add_member(self.site.storage, "acme", self.address(), role)
        return self.people[role]

    def invited(self, role: str) -> invitation.Invitation:
        """A pending invitation to this role."""
        if role not in self.invitations:
            [self.invitations[role]] = self.office.invite("OWNER", (self.address(), role))
        return self.invitations[role]

    def address(self) -> str:
        """A new one."""
        self.outcomes["addresses"] += 1
        return f"somebody{self.outcomes['addresses']}@acme.io"


def _reason(said: Told | None) -> str:
    return said.reason if said else "done"


# What each RPC is tried with, and who may. Each presenter finds all as the first did.


def create_personal_token(trial: Trial, by: Presenter, text: str) -> None:
    """Personal tokens with every restriction."""
    for only in RESTRICTIONS.values():
        wished = None if only is None else restriction(*only)
        request = token.CreatePersonalTokenRequest(name="x", restriction=wished)
        may = by.is_person and by.can("personal-tokens", "create") and by.hands_on(only, by.role)
        trial.hold(by, text, request, allowed=may)


def create_organization_token(trial: Trial, by: Presenter, text: str) -> None:
    """Tokens of every role, freer and less free."""
    for role in ROLES:
        for only in (None, by.only, (("secrets", "view"),), (("members", "view"), ("secrets/prod*", "view"))):
            wished = None if only is None else restriction(*only)
            request = token.CreateOrganizationTokenRequest(name="x", role=role, restriction=wished)
            trial.hold(by, text, request, allowed=by.gives(role) and by.hands_on(only, role))


def _tokens(trial: Trial, by: Presenter) -> Iterator[tuple[str, str, bool]]:
    """Tokens of the presenter's own holder and of programs: the id, the role of a program, and whether it is freer."""
    for cut in sorted({"nothing is cut", by.cut, "check", "mint"}):
        only, free = RESTRICTIONS[cut], not by.bounds(RESTRICTIONS[cut])
        if by.is_person:
            user = trial.site.members[by.role].user_id
            yield id_of(put_credential(trial.site, user, only=only, life=9 * DAY)), "", free
        for role in ("ADMIN", "VIEWER"):
            made = put_credential(trial.site, None, kind=PROGRAM, role=role, only=only, life=9 * DAY)
            yield id_of(made), role, free


def rotate_token(trial: Trial, by: Presenter, text: str) -> None:
    """New secrets of one's own tokens and of programs', freer and less free."""
    for token_id, role, free in _tokens(trial, by):
        may = not free and (not role or by.gives(role))
        trial.hold(by, text, token.RotateTokenRequest(id=token_id), allowed=may)


def delete_token(trial: Trial, by: Presenter, text: str) -> None:
    """One's own tokens, programs', and those of people of every role."""
    for token_id, role, free in _tokens(trial, by):
        may = by.can("organization-tokens", "delete") if role else not free
        trial.hold(by, text, token.DeleteTokenRequest(id=token_id), allowed=may)
    for role in ROLES:
        theirs = put_credential(trial.site, trial.target(role).user_id)
        may = by.can("member-tokens", "delete") and (by.reaches(role) or by.can("owners", "update"))
        trial.hold(by, text, token.DeleteTokenRequest(id=id_of(theirs)), allowed=may)


def change_member_role(trial: Trial, by: Presenter, text: str) -> None:
    """From and to every role; to the same one too, which needs as much."""
    for old, new in {pair for role in ROLES for pair in ((role, "VIEWER"), ("VIEWER", role), (role, role))}:
        target = trial.target(old)
        request = member.ChangeMemberRoleRequest(user_id=target.user_id, role=new)
        if trial.hold(by, text, request, allowed=by.handles("update", old, new)):
            change_rows(trial.site, tables.members, target.user_id, role=old)


def remove_member(trial: Trial, by: Presenter, text: str) -> None:
    """People of every role."""
    for role in ROLES:
        request = member.RemoveMemberRequest(user_id=trial.target(role).user_id)
        if trial.hold(by, text, request, allowed=by.handles("remove", role)):
            del trial.people[role]


def create_invitations(trial: Trial, by: Presenter, text: str) -> None:
    """To every role: alone, beside the humblest, and only to see whether it could be."""
    for role in ROLES:
        may, humble = by.handles("invite", role), by.handles("invite", "VIEWERNOSECRETS")
        trial.hold(by, text, inviting((trial.address(), role), validate_only=True), allowed=may)
        trial.hold(by, text, inviting((trial.address(), role)), allowed=may)
        both = inviting((trial.address(), "VIEWERNOSECRETS"), (trial.address(), role))
        trial.hold(by, text, both, allowed=may and humble)


def resend_invitation(trial: Trial, by: Presenter, text: str) -> None:
    """To every role, whoever invited before."""
    for role in ROLES:
        request = invitation.ResendInvitationRequest(id=trial.invited(role).id)
        trial.hold(by, text, request, allowed=by.handles("invite", role))


def delete_invitation(trial: Trial, by: Presenter, text: str) -> None:
    """To every role."""
    for role in ROLES:
        request = invitation.DeleteInvitationRequest(id=trial.invited(role).id)
        if trial.hold(by, text, request, allowed=by.handles("invite", role)):
            del trial.invitations[role]


def accept_invitation(trial: Trial, by: Presenter, text: str) -> None:
    """By the present role of who invited, and what the credential was cut down to with which they did."""
    holder = trial.site.members[by.role].user_id
    only = None if by.only is None else json.dumps(by.only)
    actor = f"user:{holder}" if by.is_person else f"token:{id_of(text)}"
    for role in ROLES:
        made = trial.invited(role)
        request = invitation.AcceptInvitationRequest(secret=trial.office.secret(made))
        # As the presenter would have left it, who may not have been able to.
        change_rows(trial.site, tables.invitations, made.id, inviter=actor, restriction=only)
        for present in ("VIEWER", "ADMIN", "OWNER") if by.is_person and by.role == "OWNER" else (by.role,):
            if by.is_person:
                change_rows(trial.site, tables.members, holder, role=present)
            may = replace(by, role=present).handles("invite", role)
            knock = partial(trial.office.knock, request)
            if trial.judge(by, request, knock, grpc.StatusCode.FAILED_PRECONDITION, allowed=may):
                del trial.invitations[role]
                break
        if by.is_person:
            change_rows(trial.site, tables.members, holder, role=by.role)


TABLE: dict[str, Callable[[Trial, Presenter, str], None]] = {
    "AcceptInvitation": accept_invitation,
    "ChangeMemberRole": change_member_role,
    "CreateInvitations": create_invitations,
    "CreateOrganizationToken": create_organization_token,
    "CreatePersonalToken": create_personal_token,
    "ResendInvitation": resend_invitation,
    "RotateToken": rotate_token,
    # These take away; whom from, rule 1 says too, and for tokens rule 3.
    "DeleteInvitation": delete_invitation,
    "DeleteToken": delete_token,
    "RemoveMember": remove_member,
}
