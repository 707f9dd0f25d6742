"""Races: the actions of the two participants, the allowed results, and the state that must result."""

from abc import abstractmethod
from typing import ClassVar

from sqlalchemy import select

from races.participants import DONE, Action, Result
from races.racing import Race, RaceDatabase, session
from rolecall.credentials import token_format
from rolecall.domain import LinkKind, Member, now
from rolecall.services.sessions import GENERATION, LINK_LIFE
from rolecall.storage import Transaction, tables
from rolecall.storage import members as member_rows
from rolecall.storage import outbox as mail_rows
from rolecall.storage.outbox import SignInRequest
from support.environment import CI

__all__ = ["RACES"]


class OwnersRace(Race):
    """Race of two owners who take the ownership from each other (`crossed`) or from themselves."""

    what: ClassVar[str]
    crossed: ClassVar[bool]
    lower: ClassVar[tuple[str, ...]] = ()

    def __init__(self, database: RaceDatabase) -> None:
        super().__init__(database)
        self.pair = [self.ann, self.write(lambda tx: self.join(tx, "bob@acme.io", "OWNER"))]
        self.secrets: list[str] = []

    def actions(self, number: int) -> tuple[Action, Action]:
        self.write(lambda tx: self._restore(tx, number))
        targets = self.pair[::-1] if self.crossed else self.pair
        all_arguments = [
            () if self.what == "LeaveOrganization" else (member.user_id, *self.lower) for member in targets
        ]
        return Action(self.what, self.secrets[0], all_arguments[0]), Action(
            self.what, self.secrets[1], all_arguments[1]
        )

    def _restore(self, tx: Transaction, number: int) -> None:
        """Make both owners again; a new member replaces one who was removed."""
        for index, member in enumerate(self.pair):
            if member_rows.get(tx, self.name, member.user_id):
                member_rows.change_role(tx, member, "OWNER", now())
            else:
                self.pair[index] = self.join(tx, f"p{number}@acme.io", "OWNER")
        self.secrets = [session(tx, member) for member in self.pair]

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        lost = 0 if (one.status == DONE) is not self.crossed else 1
        roles = [member_rows.roles_by_id(tx, self.name, [member.user_id]) for member in self.pair]
        assert [role for role, _ in roles[1 - lost].values()] == ["OWNER"]
        assert [role for role, _ in roles[lost].values()] == list(self.lower)
        gone = set() if self.lower else {self.secrets[lost]}
        assert not gone or not self.held(tx, self.pair[lost].user_id)
        return set(self.secrets) - gone, gone


class DemoteEachOther(OwnersRace):
    """Two owners give each other a lower role: the second isn't an owner any more."""

    name, what, crossed, lower = "demotion", "ChangeMemberRole", True, ("CONTRIBUTOR",)
    allowed_results: ClassVar = {(DONE, "PERMISSION_MISSING"), ("PERMISSION_MISSING", DONE)}


class DemoteThemselves(OwnersRace):
    """Two owners give themselves a lower role: the second is the last."""

    name, what, crossed, lower = "stepping-down", "ChangeMemberRole", False, ("ADMIN",)
    rounds = 50 if CI else 10
    allowed_results: ClassVar = {(DONE, "LAST_OWNER"), ("LAST_OWNER", DONE)}


class RemoveEachOther(OwnersRace):
    """Two owners remove each other: the second isn't a member any more."""

    name, what, crossed = "removal", "RemoveMember", True
    rounds = 50 if CI else 10
    allowed_results: ClassVar = {(DONE, "UNAUTHENTICATED_CREDENTIAL"), ("UNAUTHENTICATED_CREDENTIAL", DONE)}


class BothLeave(OwnersRace):
    """Two owners leave: the second is the last."""

    name, what, crossed = "leaving", "LeaveOrganization", False
    allowed_results: ClassVar = {(DONE, "LAST_OWNER"), ("LAST_OWNER", DONE)}


class InvitationRace(Race):
    """Race about an invitation that one participant accepts. `secret` is the mailed secret."""

    # The state of an invitation that is not accepted.
    unaccepted: ClassVar[str] = ""

    def __init__(self, database: RaceDatabase) -> None:
        super().__init__(database)
        self.run("CreateInvitations", self.owner, *(f"p{number}@acme.io" for number in range(self.rounds)))
        rows = tables.invitations
        query = select(rows.c.id).where(rows.c.organization == self.name)
        self.invitations = database.observer.read(lambda tx: tx.connection.scalars(query).all())

    def actions(self, number: int) -> tuple[Action, Action]:
        self.invitation = self.invitations[number]
        self.secret = self.database.participant.links.secret(LinkKind.INVITATION, self.invitation, 1)
        return self.other(), Action("AcceptInvitation", self.secret)

    @abstractmethod
    def other(self) -> Action:
        """Return the action of the other participant."""

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        joined_by = [result for result in (one, other) if result.secret]
        assert self.members_invited_by(tx, self.invitation) == [result.user_id for result in joined_by]
        assert self.state(tx, self.invitation) == ("accepted" if joined_by else self.unaccepted)
        assert all(self.held(tx, result.user_id) == 1 for result in joined_by)
        return {result.secret for result in joined_by}, set()


class AcceptTwice(InvitationRace):
    """One secret is accepted twice: one joins, once."""

    name = "acceptance"
    allowed_results: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_NOT_FOUND", DONE)}

    def other(self) -> Action:
        return Action("AcceptInvitation", self.secret)


class DeleteDuringAcceptance(InvitationRace):
    """An invitation is deleted while it is accepted: the person becomes a member, or the invitation is deleted."""

    name, unaccepted = "withdrawal", "deleted"
    allowed_results: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_ACCEPTED", DONE)}

    def other(self) -> Action:
        return Action("DeleteInvitation", self.owner, (self.invitation,))


class ResendDuringAcceptance(InvitationRace):
    """An invitation is resent while its older secret is accepted: the person is a member, or that secret is invalid."""

    name, unaccepted = "resending", "pending"
    allowed_results: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_ACCEPTED", DONE)}

    def other(self) -> Action:
        return Action("ResendInvitation", self.owner, (self.invitation,))

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        mails = tables.mails
        sent = set(tx.connection.scalars(select(mails.c.generation).where(mails.c.about == self.invitation)))
        assert sent == ({1, 2} if one.status == DONE else {1})
        if one.status == DONE:
            # Only the newest opens.
            again = self.database.participant.ready(Action("AcceptInvitation", self.secret))()
            assert again.status == "INVITATION_NOT_FOUND"
        return super().check(tx, one, other)


class InviteOneAddress(Race):
    """Two administrators invite one address, each in a batch: exactly one batch is created."""

    name = "inviting"
    allowed_results: ClassVar = {(DONE, "DUPLICATE_INVITATION"), ("DUPLICATE_INVITATION", DONE)}

    def __init__(self, database: RaceDatabase) -> None:
        super().__init__(database)
        admins = self.write(lambda tx: [self.join(tx, f"{name}@acme.io", "ADMIN") for name in ("bob", "eve")])
        self.admins = self.write(lambda tx: [session(tx, admin) for admin in admins])

    def actions(self, number: int) -> tuple[Action, Action]:
        self.number = number
        one, other = (f"a{number}@acme.io", f"p{number}@acme.io"), (f"b{number}@acme.io", f"P{number}@Acme.IO")
        return Action("CreateInvitations", self.admins[0], one), Action("CreateInvitations", self.admins[1], other)

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        rows = tables.invitations
        wanted = [f"{name}{self.number}@acme.io" for name in "abp"]
        query = select(rows.c.email_key).where(rows.c.organization == self.name, rows.c.email_key.in_(wanted))
        found = sorted(tx.connection.scalars(query.where(rows.c.state == "pending")))
        assert found == [wanted[0 if one.status == DONE else 1], wanted[2]]
        return set(), set()


class RemoveDuringTokenCreation(Race):
    """A member is removed while they create a token: it is not created, or deleted with the member."""

    name = "expulsion"
    allowed_results: ClassVar = {(DONE, DONE), (DONE, "UNAUTHENTICATED_CREDENTIAL")}

    def actions(self, number: int) -> tuple[Action, Action]:
        def work(tx: Transaction) -> tuple[Member, str]:
            member = self.join(tx, f"p{number}@acme.io", "CONTRIBUTOR")
            return member, session(tx, member)

        self.member, self.secret = self.write(work)
        remove = Action("RemoveMember", self.owner, (self.member.user_id,))
        return remove, Action("CreatePersonalToken", self.secret)

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        assert member_rows.get(tx, self.name, self.member.user_id) is None
        assert self.held(tx, self.member.user_id) == 0
        return set(), {self.secret, *([other.secret] if other.secret else [])}


class SignInTwice(Race):
    """A link to sign in is used twice: it opens one session."""

    name = "signing-in"
    allowed_results: ClassVar = {(DONE, "UNAUTHENTICATED_CREDENTIAL"), ("UNAUTHENTICATED_CREDENTIAL", DONE)}

    def actions(self, number: int) -> tuple[Action, Action]:
        def work(tx: Transaction) -> tuple[Member, str]:
            member = self.join(tx, f"p{number}@acme.io", "VIEWER")
            request = SignInRequest(token_format.new_id(), self.name, member.email, now() + LINK_LIFE)
            mail_rows.add_sign_in(tx, request)
            mail_rows.set_recipient(tx, request.id, member.user_id)
            return member, self.database.participant.links.secret(LinkKind.SIGN_IN, request.id, GENERATION)

        self.member, secret = self.write(work)
        return Action("SignIn", secret), Action("SignIn", secret)

    def check(self, tx: Transaction, one: Result, other: Result) -> tuple[set[str], set[str]]:
        assert self.held(tx, self.member.user_id) == 1
        return {one.secret or other.secret}, set()


RACES: tuple[type[Race], ...] = (
    DemoteEachOther,
    DemoteThemselves,
    RemoveEachOther,
    BothLeave,
    AcceptTwice,
    DeleteDuringAcceptance,
    ResendDuringAcceptance,
    InviteOneAddress,
    RemoveDuringTokenCreation,
    SignInTwice,
)
