"""What callers of the machine of people may try, each with what the model says of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from people_model import Cred, Invite, Org, Pattern, Rules, gravest
from people_site import PeopleSite

from rolecall.domain import CredentialKind, Effect, LinkKind, Permission
from rolecall.mutations import Attempt
from rolecall.token_rules import Wish

__all__ = ["Deed", "Deeds"]


@dataclass(frozen=True)
class Deed:
    """Something that a caller may try, and what the model says of it.

    `rights`: why a credential may not; `state`: why it can't be done as things are; `idle`: whether nothing is left to
    do; `done` has the model do it, and answers what it was done to. `kept`: the answer to the same request repeated.
    `problems`: all that is wrong, as (field, reason). `about`: in words. `checked`: it is only to be checked, and
    nothing of it remembered.
    """

    action: str
    work: Callable[[Attempt], Any]
    rights: Callable[[Cred], str]
    done: Callable[[Cred, Any], str]
    state: Callable[[Cred], str] = lambda _: ""
    idle: Callable[[], bool] = lambda: False
    kept: Callable[[Any], Any] = lambda answer: answer
    problems: Callable[[Cred], list[tuple[str, str]]] | None = None
    about: str = ""
    checked: bool = False


def permissions(restriction: tuple[Pattern, ...] | None) -> tuple[Permission, ...] | None:
    """A restriction as the service takes it."""
    if restriction is None:
        return None
    return tuple(Permission(resource, action, Effect.ALLOW) for resource, action in restriction)


class Deeds:
    """Makes deeds in one site."""

    def __init__(self, site: PeopleSite, rules: Rules) -> None:
        self.site = site
        self.rules = rules

    def change_role(self, org: Org, user_id: str, role: str, etag: str) -> Deed:
        """Give a member another role."""
        rules = self.rules

        def rights(by: Cred) -> str:
            if reason := rules.handles_any(by, "update"):
                return reason
            target = org.person(user_id)
            if target is None:
                return "MEMBER_NOT_FOUND"
            if reason := rules.handles(rules.held(by), "update", target.role):
                return reason
            return rules.handles(rules.held(by), "update", role) if role in rules.may else "UNKNOWN_ROLE_NAME"

        def state(_: Cred) -> str:
            target = org.person(user_id)
            assert target is not None
            if etag not in ("", target.etag):
                return "ETAG_MISMATCH"
            return "LAST_OWNER" if role not in rules.owners and rules.is_last_owner(org, target) else ""

        def done(_: Cred, answer: Any) -> str:
            target = org.person(user_id)
            assert target is not None
            assert answer.member.etag != target.etag
            target.role, target.etag = role, answer.member.etag
            assert (answer.member.user_id, answer.member.role) == (user_id, role)
            return f"user:{user_id}"

        def idle() -> bool:
            target = org.person(user_id)
            return target is not None and target.role == role

        return Deed(
            "ChangeMemberRole",
            lambda attempt: self.site.members.change_role(attempt, user_id, role, etag),
            rights,
            done,
            state,
            idle,
            about=f"{user_id} to {role} etag={etag!r}",
        )

    def remove(self, org: Org, user_id: str, etag: str) -> Deed:
        """Remove a member."""
        rules = self.rules

        def rights(by: Cred) -> str:
            if reason := rules.handles_any(by, "remove"):
                return reason
            target = org.person(user_id)
            if target is None:
                return "MEMBER_NOT_FOUND"
            if reason := rules.handles(rules.held(by), "remove", target.role):
                return reason
            if target is by.person:
                return "LAST_OWNER" if rules.is_last_owner(org, target) else "INVALID_FIELD"
            return ""

        def state(_: Cred) -> str:
            target = org.person(user_id)
            assert target is not None
            if etag not in ("", target.etag):
                return "ETAG_MISMATCH"
            return "LAST_OWNER" if rules.is_last_owner(org, target) else ""

        def done(_: Cred, answer: Any) -> str:
            target = org.person(user_id)
            assert target is not None
            target.present = False
            left = {cred.id for cred in org.live if cred.person is None and cred.made_by == user_id}
            assert {token.id for token in answer.organization_tokens} == left
            assert answer.member.user_id == user_id
            return f"user:{user_id}"

        return Deed(
            "RemoveMember",
            lambda attempt: self.site.members.remove(attempt, user_id, etag),
            rights,
            done,
            state,
            about=f"{user_id} etag={etag!r}",
        )

    def leave(self, org: Org) -> Deed:
        """Leave."""

        def rights(by: Cred) -> str:
            return self.rules.needs(by, "organization", "leave") if by.person else "PERSON_ONLY"

        def state(by: Cred) -> str:
            assert by.person is not None
            return "LAST_OWNER" if self.rules.is_last_owner(org, by.person) else ""

        def done(by: Cred, _: Any) -> str:
            assert by.person is not None
            by.person.present = False
            return f"user:{by.person.id}"

        return Deed("LeaveOrganization", self.site.members.leave, rights, done, state)

    def invite(self, org: Org, entries: list[tuple[str, str]], *, checked: bool) -> Deed:
        """Invite (address, role) pairs, or only check whether that could be."""
        rules = self.rules

        def problems(by: Cred) -> list[tuple[str, str]]:
            return rules.invites(org, by, entries)

        def rights(by: Cred) -> str:
            taken = ("ALREADY_MEMBER", "DUPLICATE_INVITATION")
            return gravest([problem for problem in problems(by) if problem[1] not in taken])

        def done(by: Cred, answer: Any) -> str:
            assert len(answer.invitations) == len(entries)
            for (email, role), made in zip(entries, answer.invitations, strict=True):
                for invite in org.invites:
                    if invite.key == email.lower() and invite.late and invite.state == "pending":
                        invite.state, invite.etag = "expired", f"{org.revision + 1:x}"
                assert (made.email.lower(), made.role) == (email.lower(), role)
                assert made.restriction == permissions(by.restriction)
                text = self.site.links.secret(LinkKind.INVITATION, made.id, 1)
                times = (made.expire_time, made.create_time)
                new = Invite(made.id, made.email, role, by.person or by, by.restriction, *times, [text], made.etag)
                org.invites.append(new)
                org.mails[made.id, 1] = "queued"
            if len(entries) == 1:
                return f"invitation:{answer.invitations[0].id}"
            return f"organization:{org.name}"

        return Deed(
            "CreateInvitations",
            lambda attempt: self.site.invitations.create(attempt, entries, validate_only=checked),
            rights,
            done,
            lambda by: gravest(problems(by)),
            lambda: checked,
            problems=problems,
            about=f"{entries} checked={checked}",
            checked=checked,
        )

    def resend(self, org: Org, invitation_id: str, etag: str) -> Deed:
        """Have an invitation mailed again."""

        def state(_: Cred) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            match invite.shown:
                case "accepted":
                    return "INVITATION_ACCEPTED"
                case "deleted":
                    return "INVITATION_NOT_FOUND"
                case "expired":
                    return "INVITATION_EXPIRED"
                case _:
                    return "" if etag in ("", invite.etag) else "ETAG_MISMATCH"

        def done(by: Cred, answer: Any) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            made = answer.invitation
            assert made.etag != invite.etag
            invite.voucher, invite.restriction = by.person or by, by.restriction
            invite.texts.append(self.site.links.secret(LinkKind.INVITATION, invite.id, len(invite.texts) + 1))
            invite.expire_time, invite.etag = made.expire_time, made.etag
            assert (made.generation, made.inviter, made.role) == (len(invite.texts), invite.inviter, invite.role)
            org.mails[invite.id, len(invite.texts)] = "queued"
            return f"invitation:{invite.id}"

        return Deed(
            "ResendInvitation",
            lambda attempt: self.site.invitations.resend(attempt, invitation_id, etag),
            lambda by: self._handles_invitation(org, by, invitation_id),
            done,
            state,
            about=f"{invitation_id} etag={etag!r}",
        )

    def withdraw(self, org: Org, invitation_id: str, etag: str) -> Deed:
        """Delete an invitation."""

        def idle() -> bool:
            invite = org.invite(invitation_id)
            return invite is not None and invite.state == "deleted"

        def state(_: Cred) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            if invite.state == "accepted":
                return "INVITATION_ACCEPTED"
            return "" if idle() or etag in ("", invite.etag) else "ETAG_MISMATCH"

        def done(_: Cred, answer: Any) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            assert answer.invitation.etag != invite.etag
            invite.state, invite.etag = "deleted", answer.invitation.etag
            return f"invitation:{invite.id}"

        return Deed(
            "DeleteInvitation",
            lambda attempt: self.site.invitations.delete(attempt, invitation_id, etag),
            lambda by: self._handles_invitation(org, by, invitation_id),
            done,
            state,
            idle,
            about=f"{invitation_id} etag={etag!r}",
        )

    def create(self, org: Org, role: str | None, restriction: tuple[Pattern, ...] | None, name: str) -> Deed:
        """Make a token: personal, or with a role for a program."""
        rules = self.rules
        wish = Wish(name, restriction=permissions(restriction))

        def rights(by: Cred) -> str:
            if role is not None:
                return rules.gives(by, role) or rules.restricts(by, restriction, role)
            if by.person is None:
                return "PERSON_ONLY"
            return rules.needs(by, "personal-tokens", "create") or rules.restricts(by, restriction, by.role)

        def work(attempt: Attempt) -> Any:
            if role is None:
                return self.site.tokens.create_personal(attempt, wish)
            return self.site.tokens.create_organization(attempt, wish, role)

        def done(by: Cred, answer: Any) -> str:
            token = answer.token
            assert by.person is not None
            assert by.is_session or token.expire_time <= by.expire_time
            kind = CredentialKind.PERSONAL if role is None else CredentialKind.ORGANIZATION
            person = by.person if role is None else None
            whose = (person, role or "", restriction, by.person.id)
            made = Cred(token.id, kind, answer.secret, *whose, token.expire_time, token.etag)
            assert (token.kind, token.role, token.restriction) == (kind, made.role, wish.restriction)
            org.creds.append(made)
            return f"token:{token.id}"

        return Deed(
            "CreatePersonalToken" if role is None else "CreateOrganizationToken",
            work,
            rights,
            done,
            kept=lambda answer: replace(answer, secret="", secret_lost=True),
            about=f"{role} {restriction}",
        )

    def delete(self, org: Org, token_id: str, etag: str) -> Deed:
        """Delete a token."""

        def idle() -> bool:
            token = org.token(token_id)
            return token is not None and token.deleted

        def state(_: Cred) -> str:
            token = org.token(token_id)
            assert token is not None
            return "" if idle() or etag in ("", token.etag) else "ETAG_MISMATCH"

        def done(_: Cred, answer: Any) -> str:
            token = org.token(token_id)
            assert token is not None
            token.deleted, token.etag = True, answer.token.etag
            return f"token:{token_id}"

        return Deed(
            "DeleteToken",
            lambda attempt: self.site.tokens.delete(attempt, token_id, etag),
            lambda by: self.rules.deletes(org, by, token_id),
            done,
            state,
            idle,
            about=f"{token_id} etag={etag!r}",
        )

    def sign_out(self) -> Deed:
        """End the credential that one presents."""

        def done(by: Cred, _: Any) -> str:
            by.deleted = True
            return f"token:{by.id}"

        return Deed("SignOut", self.site.sessions.sign_out, lambda _: "", done)

    def _handles_invitation(self, org: Org, by: Cred, invitation_id: str) -> str:
        if reason := self.rules.handles_any(by, "invite"):
            return reason
        invite = org.invite(invitation_id)
        if invite is None:
            return "INVITATION_NOT_FOUND"
        return self.rules.handles(self.rules.held(by), "invite", invite.role)
