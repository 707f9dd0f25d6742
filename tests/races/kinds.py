"""The races: what each of the two does, what they may be told, and what must have come of it."""

from abc import abstractmethod
from typing import ClassVar

from actors import DONE, Deed, Outcome
from conftest import CI
from racing import Court, Race, session
from sqlalchemy import select

from rolecall import credentials
from rolecall.domain import LinkKind, Member, now
from rolecall.sessions import GENERATION, LINK_LIFE
from rolecall.storage import Transaction, tables
from rolecall.storage import mails as mail_rows
from rolecall.storage import members as member_rows
from rolecall.storage.mails import SignInRequest

__all__ = ["RACES"]


class OwnersRace(Race):
    """Two owners at once take the ownership from each other (`crossed`) or from themselves."""

    what: ClassVar[str]
    crossed: ClassVar[bool]
    lower: ClassVar[tuple[str, ...]] = ()

    def __init__(self, court: Court) -> None:
        super().__init__(court)
        self.pair = [self.ann, self.put(lambda tx: self.join(tx, "bob@acme.io", "OWNER"))]
        self.secrets: list[str] = []

    def deeds(self, number: int) -> tuple[Deed, Deed]:
        self.put(lambda tx: self._restore(tx, number))
        whom = self.pair[::-1] if self.crossed else self.pair
        abouts = [() if self.what == "LeaveOrganization" else (member.user_id, *self.lower) for member in whom]
        return Deed(self.what, self.secrets[0], abouts[0]), Deed(self.what, self.secrets[1], abouts[1])

    def _restore(self, tx: Transaction, number: int) -> None:
        """Make them owners again, or let somebody in instead of one who is gone."""
        for place, member in enumerate(self.pair):
            if member_rows.get(tx, self.name, member.user_id):
                member_rows.change_role(tx, member, "OWNER", now())
            else:
                self.pair[place] = self.join(tx, f"p{number}@acme.io", "OWNER")
        self.secrets = [session(tx, member) for member in self.pair]

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        hit = 0 if (one.said == DONE) is not self.crossed else 1
        roles = [member_rows.roles_by_id(tx, self.name, [member.user_id]) for member in self.pair]
        assert list(roles[1 - hit].values()) == ["OWNER"]
        assert list(roles[hit].values()) == list(self.lower)
        gone = set() if self.lower else {self.secrets[hit]}
        assert not gone or not self.held(tx, self.pair[hit].user_id)
        return set(self.secrets) - gone, gone


class Demotion(OwnersRace):
    """Two owners give each other a lower role: whoever comes second isn't one any more."""

    name, what, crossed, lower = "demotion", "ChangeMemberRole", True, ("CONTRIBUTOR",)
    endings: ClassVar = {(DONE, "PERMISSION_MISSING"), ("PERMISSION_MISSING", DONE)}


class SteppingDown(OwnersRace):
    """Two owners give themselves a lower role: whoever comes second is the last."""

    name, what, crossed, lower = "stepping-down", "ChangeMemberRole", False, ("ADMIN",)
    rounds = 50 if CI else 10
    endings: ClassVar = {(DONE, "LAST_OWNER"), ("LAST_OWNER", DONE)}


class Removal(OwnersRace):
    """Two owners remove each other: whoever comes second isn't there any more."""

    name, what, crossed = "removal", "RemoveMember", True
    rounds = 50 if CI else 10
    endings: ClassVar = {(DONE, "UNAUTHENTICATED_CREDENTIAL"), ("UNAUTHENTICATED_CREDENTIAL", DONE)}


class Leaving(OwnersRace):
    """Two owners leave: whoever comes second is the last."""

    name, what, crossed = "leaving", "LeaveOrganization", False
    endings: ClassVar = {(DONE, "LAST_OWNER"), ("LAST_OWNER", DONE)}


class InvitationRace(Race):
    """About an invitation, which somebody accepts. `secret` is what was mailed of it."""

    # What becomes of one that nobody accepts.
    unaccepted: ClassVar[str] = ""

    def __init__(self, court: Court) -> None:
        super().__init__(court)
        self.act("CreateInvitations", self.owner, *(f"p{number}@acme.io" for number in range(self.rounds)))
        rows = tables.invitations
        query = select(rows.c.id).where(rows.c.organization == self.name)
        self.invitations = court.onlooker.read(lambda tx: tx.connection.scalars(query).all())

    def deeds(self, number: int) -> tuple[Deed, Deed]:
        self.invitation = self.invitations[number]
        self.secret = self.court.actor.links.secret(LinkKind.INVITATION, self.invitation, 1)
        return self.other(), Deed("AcceptInvitation", self.secret)

    @abstractmethod
    def other(self) -> Deed:
        """What is done beside accepting it."""

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        entered = [outcome for outcome in (one, other) if outcome.secret]
        assert self.joined(tx, self.invitation) == [outcome.user_id for outcome in entered]
        assert self.state(tx, self.invitation) == ("accepted" if entered else self.unaccepted)
        assert all(self.held(tx, outcome.user_id) == 1 for outcome in entered)
        return {outcome.secret for outcome in entered}, set()


class AcceptanceTwice(InvitationRace):
    """One secret is accepted twice: one joins, once."""

    name = "acceptance"
    endings: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_NOT_FOUND", DONE)}

    def other(self) -> Deed:
        return Deed("AcceptInvitation", self.secret)


class Withdrawal(InvitationRace):
    """An invitation is withdrawn while it is accepted: there is a member, or it is withdrawn."""

    name, unaccepted = "withdrawal", "deleted"
    endings: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_ACCEPTED", DONE)}

    def other(self) -> Deed:
        return Deed("DeleteInvitation", self.owner, (self.invitation,))


class Resending(InvitationRace):
    """An invitation is resent while its older secret is accepted: there is a member, or that secret is dead."""

    name, unaccepted = "resending", "pending"
    endings: ClassVar = {(DONE, "INVITATION_NOT_FOUND"), ("INVITATION_ACCEPTED", DONE)}

    def other(self) -> Deed:
        return Deed("ResendInvitation", self.owner, (self.invitation,))

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        mails = tables.mails
        sent = set(tx.connection.scalars(select(mails.c.generation).where(mails.c.about == self.invitation)))
        assert sent == ({1, 2} if one.said == DONE else {1})
        if one.said == DONE:
            # Only the newest opens.
            again = self.court.actor.ready(Deed("AcceptInvitation", self.secret))()
            assert again.said == "INVITATION_NOT_FOUND"
        return super().judge(tx, one, other)


class Inviting(Race):
    """Two administrators invite one address, each in a batch of their own: one batch is there as a whole."""

    name = "inviting"
    endings: ClassVar = {(DONE, "DUPLICATE_INVITATION"), ("DUPLICATE_INVITATION", DONE)}

    def __init__(self, court: Court) -> None:
        super().__init__(court)
        admins = self.put(lambda tx: [self.join(tx, f"{name}@acme.io", "ADMIN") for name in ("bob", "eve")])
        self.admins = self.put(lambda tx: [session(tx, admin) for admin in admins])

    def deeds(self, number: int) -> tuple[Deed, Deed]:
        self.number = number
        one, other = (f"a{number}@acme.io", f"p{number}@acme.io"), (f"b{number}@acme.io", f"P{number}@Acme.IO")
        return Deed("CreateInvitations", self.admins[0], one), Deed("CreateInvitations", self.admins[1], other)

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        rows = tables.invitations
        wanted = [f"{name}{self.number}@acme.io" for name in "abp"]
        query = select(rows.c.email_key).where(rows.c.organization == self.name, rows.c.email_key.in_(wanted))
        found = sorted(tx.connection.scalars(query.where(rows.c.state == "pending")))
        assert found == [wanted[0 if one.said == DONE else 1], wanted[2]]
        return set(), set()


class Expulsion(Race):
    """A member is removed while they make a token: it never comes to be, or is dead with them."""

    name = "expulsion"
    endings: ClassVar = {(DONE, DONE), (DONE, "UNAUTHENTICATED_CREDENTIAL")}

    def deeds(self, number: int) -> tuple[Deed, Deed]:
        def work(tx: Transaction) -> tuple[Member, str]:
            member = self.join(tx, f"p{number}@acme.io", "CONTRIBUTOR")
            return member, session(tx, member)

        self.member, self.secret = self.put(work)
        remove = Deed("RemoveMember", self.owner, (self.member.user_id,))
        return remove, Deed("CreatePersonalToken", self.secret)

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        assert member_rows.get(tx, self.name, self.member.user_id) is None
        assert self.held(tx, self.member.user_id) == 0
        return set(), {self.secret, *([other.secret] if other.secret else [])}


class SigningIn(Race):
    """A link to sign in is used twice: it opens one session."""

    name = "signing-in"
    endings: ClassVar = {(DONE, "UNAUTHENTICATED_CREDENTIAL"), ("UNAUTHENTICATED_CREDENTIAL", DONE)}

    def deeds(self, number: int) -> tuple[Deed, Deed]:
        def work(tx: Transaction) -> tuple[Member, str]:
            member = self.join(tx, f"p{number}@acme.io", "VIEWER")
            request = SignInRequest(credentials.new_id(), self.name, member.email, now() + LINK_LIFE)
            mail_rows.add_sign_in(tx, request)
            mail_rows.name_person(tx, request.id, member.user_id)
            return member, self.court.actor.links.secret(LinkKind.SIGN_IN, request.id, GENERATION)

        self.member, secret = self.put(work)
        return Deed("SignIn", secret), Deed("SignIn", secret)

    def judge(self, tx: Transaction, one: Outcome, other: Outcome) -> tuple[set[str], set[str]]:
        assert self.held(tx, self.member.user_id) == 1
        return {one.secret or other.secret}, set()


RACES: tuple[type[Race], ...] = (
    Demotion,
    SteppingDown,
    Removal,
    Leaving,
    AcceptanceTwice,
    Withdrawal,
    Resending,
    Inviting,
    Expulsion,
    SigningIn,
)
