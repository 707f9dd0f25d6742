"""Requests of callers in the state machine of people, each with the model's result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rolecall.domain import CredentialKind, Effect, Invitee, LinkKind, Permission, Restriction
from rolecall.services.token_rules import TokenSpec
from rolecall.services.unit_of_work import ChangeRequest
from stateful.credential_model import Pattern
from stateful.people_model import ModelCredential, ModelInvitation, ModelOrganization, Rules, primary_reason
from stateful.people_site import PeopleSite

__all__ = ["ModelRequest", "ModelRequests"]


@dataclass(frozen=True)
class ModelRequest:
    """A request that a caller may try, with the model's verdict.

    `rights`: why a credential may not; `state`: why it can't be done as things are; `idle`: whether nothing is left to
    do; `done` has the model do it, and answers what it was done to. `kept`: the answer to the same request repeated.
    `problems`: all that is wrong, as (field, reason). `about`: in words. `checked`: it is only to be checked, and
    nothing of it remembered.
    """

    action: str
    work: Callable[[ChangeRequest], Any]
    rights: Callable[[ModelCredential], str]
    done: Callable[[ModelCredential, Any], str]
    state: Callable[[ModelCredential], str] = lambda _: ""
    idle: Callable[[], bool] = lambda: False
    kept: Callable[[Any], Any] = lambda answer: answer
    problems: Callable[[ModelCredential], list[tuple[str, str]]] | None = None
    about: str = ""
    checked: bool = False


def permissions(restriction: tuple[Pattern, ...] | None) -> Restriction | None:
    """Convert a restriction to the service's type."""
    if restriction is None:
        return None
    return Restriction(tuple(Permission(resource, action, Effect.ALLOW) for resource, action in restriction))


class ModelRequests:
    """Makes the requests to one site."""

    def __init__(self, site: PeopleSite, rules: Rules) -> None:
        self.site = site
        self.rules = rules

    def change_role(self, org: ModelOrganization, user_id: str, role: str, etag: str) -> ModelRequest:
        """Give a member another role."""
        rules = self.rules

        def rights(by: ModelCredential) -> str:
            if reason := rules.handles_any(by, "update"):
                return reason
            target = org.person(user_id)
            if target is None:
                return "MEMBER_NOT_FOUND"
            if reason := rules.handles(rules.held(by), "update", target.role):
                return reason
            return rules.handles(rules.held(by), "update", role) if role in rules.may else "UNKNOWN_ROLE_NAME"

        def state(_: ModelCredential) -> str:
            target = org.person(user_id)
            assert target is not None
            if etag not in ("", target.etag):
                return "ETAG_MISMATCH"
            return "LAST_OWNER" if role not in rules.owners and rules.is_last_owner(org, target) else ""

        def done(_: ModelCredential, answer: Any) -> str:
            target = org.person(user_id)
            assert target is not None
            assert answer.member.etag != target.etag
            target.role, target.etag = role, answer.member.etag
            assert (answer.member.user_id, answer.member.role) == (user_id, role)
            return f"user:{user_id}"

        def idle() -> bool:
            target = org.person(user_id)
            return target is not None and target.role == role

        return ModelRequest(
            "ChangeMemberRole",
            lambda change: self.site.members.change_role(change, user_id, role, etag),
            rights,
            done,
            state,
            idle,
            about=f"{user_id} to {role} etag={etag!r}",
        )

    def remove(self, org: ModelOrganization, user_id: str, etag: str) -> ModelRequest:
        """Remove a member."""
        rules = self.rules

        def rights(by: ModelCredential) -> str:
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

        def state(_: ModelCredential) -> str:
            target = org.person(user_id)
            assert target is not None
            if etag not in ("", target.etag):
                return "ETAG_MISMATCH"
            return "LAST_OWNER" if rules.is_last_owner(org, target) else ""

        def done(_: ModelCredential, answer: Any) -> str:
            target = org.person(user_id)
            assert target is not None
            target.present = False
            left = {cred.id for cred in org.live if cred.person is None and cred.creator == user_id}
            assert {token.id for token in answer.organization_tokens} == left
            assert answer.member.user_id == user_id
            return f"user:{user_id}"

        return ModelRequest(
            "RemoveMember",
            lambda change: self.site.members.remove(change, user_id, etag),
            rights,
            done,
            state,
            about=f"{user_id} etag={etag!r}",
        )

    def leave(self, org: ModelOrganization) -> ModelRequest:
        """Leave the organization."""

        def rights(by: ModelCredential) -> str:
            return self.rules.needs(by, "organization", "leave") if by.person else "PERSON_ONLY"

        def state(by: ModelCredential) -> str:
            assert by.person is not None
            return "LAST_OWNER" if self.rules.is_last_owner(org, by.person) else ""

        def done(by: ModelCredential, _: Any) -> str:
            assert by.person is not None
            by.person.present = False
            return f"user:{by.person.id}"

        return ModelRequest("LeaveOrganization", self.site.members.leave, rights, done, state)

    def invite(self, org: ModelOrganization, entries: list[tuple[str, str]], *, checked: bool) -> ModelRequest:
        """Invite (address, role) pairs; `checked`: only validate."""
        rules = self.rules

        def problems(by: ModelCredential) -> list[tuple[str, str]]:
            return rules.invites(org, by, entries)

        def rights(by: ModelCredential) -> str:
            in_use = ("ALREADY_MEMBER", "DUPLICATE_INVITATION")
            return primary_reason([problem for problem in problems(by) if problem[1] not in in_use])

        def done(by: ModelCredential, answer: Any) -> str:
            assert len(answer.invitations) == len(entries)
            for (email, role), made in zip(entries, answer.invitations, strict=True):
                for invite in org.invites:
                    if invite.key == email.lower() and invite.late and invite.state == "pending":
                        invite.state, invite.etag = "expired", f"{org.revision + 1:x}"
                assert (made.email.lower(), made.role) == (email.lower(), role)
                assert made.restriction == permissions(by.restriction)
                text = self.site.links.secret(LinkKind.INVITATION, made.id, 1)
                times = (made.expire_time, made.create_time)
                new = ModelInvitation(
                    made.id, made.email, role, by.person or by, by.restriction, *times, [text], made.etag
                )
                org.invites.append(new)
                org.mails[made.id, 1] = "queued"
            if len(entries) == 1:
                return f"invitation:{answer.invitations[0].id}"
            return f"organization:{org.name}"

        invitees = [Invitee(*entry) for entry in entries]
        return ModelRequest(
            "CreateInvitations",
            lambda change: self.site.invitations.create(change, invitees, validate_only=checked),
            rights,
            done,
            lambda by: primary_reason(problems(by)),
            lambda: checked,
            problems=problems,
            about=f"{entries} checked={checked}",
            checked=checked,
        )

    def resend(self, org: ModelOrganization, invitation_id: str, etag: str) -> ModelRequest:
        """Resend an invitation."""

        def state(_: ModelCredential) -> str:
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

        def done(by: ModelCredential, answer: Any) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            made = answer.invitation
            assert made.etag != invite.etag
            invite.inviting_party, invite.restriction = by.person or by, by.restriction
            invite.texts.append(self.site.links.secret(LinkKind.INVITATION, invite.id, len(invite.texts) + 1))
            invite.expire_time, invite.etag = made.expire_time, made.etag
            assert (made.generation, made.creator, made.role) == (len(invite.texts), invite.inviter, invite.role)
            org.mails[invite.id, len(invite.texts)] = "queued"
            return f"invitation:{invite.id}"

        return ModelRequest(
            "ResendInvitation",
            lambda change: self.site.invitations.resend(change, invitation_id, etag),
            lambda by: self._handles_invitation(org, by, invitation_id),
            done,
            state,
            about=f"{invitation_id} etag={etag!r}",
        )

    def withdraw(self, org: ModelOrganization, invitation_id: str, etag: str) -> ModelRequest:
        """Delete an invitation."""

        def idle() -> bool:
            invite = org.invite(invitation_id)
            return invite is not None and invite.state == "deleted"

        def state(_: ModelCredential) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            if invite.state == "accepted":
                return "INVITATION_ACCEPTED"
            return "" if idle() or etag in ("", invite.etag) else "ETAG_MISMATCH"

        def done(_: ModelCredential, answer: Any) -> str:
            invite = org.invite(invitation_id)
            assert invite is not None
            assert answer.invitation.etag != invite.etag
            invite.state, invite.etag = "deleted", answer.invitation.etag
            return f"invitation:{invite.id}"

        return ModelRequest(
            "DeleteInvitation",
            lambda change: self.site.invitations.delete(change, invitation_id, etag),
            lambda by: self._handles_invitation(org, by, invitation_id),
            done,
            state,
            idle,
            about=f"{invitation_id} etag={etag!r}",
        )

    def create(
        self, org: ModelOrganization, role: str | None, restriction: tuple[Pattern, ...] | None, name: str
    ) -> ModelRequest:
        """Create a personal token, or one with a role for a program."""
        rules = self.rules
        wish = TokenSpec(name, restriction=permissions(restriction))

        def rights(by: ModelCredential) -> str:
            if role is not None:
                return rules.gives(by, role) or rules.restricts(by, restriction, role)
            return rules.makes_personal(by, restriction)

        def work(change: ChangeRequest) -> Any:
            if role is None:
                return self.site.tokens.create_personal(change, wish)
            return self.site.tokens.create_organization(change, wish, role)

        def done(by: ModelCredential, answer: Any) -> str:
            token = answer.token
            assert by.person is not None
            assert by.is_session or token.expire_time <= by.expire_time
            kind = CredentialKind.PERSONAL if role is None else CredentialKind.ORGANIZATION
            person = by.person if role is None else None
            whose = (person, role or "", restriction, by.person.id)
            made = ModelCredential(token.id, kind, *whose, token.expire_time, token.etag, text=answer.secret)
            assert (token.kind, token.role, token.restriction) == (kind, made.role, wish.restriction)
            org.creds.append(made)
            return f"token:{token.id}"

        return ModelRequest(
            "CreatePersonalToken" if role is None else "CreateOrganizationToken",
            work,
            rights,
            done,
            kept=lambda answer: replace(answer, secret="", secret_lost=True),
            about=f"{role} {restriction}",
        )

    def delete(self, org: ModelOrganization, token_id: str, etag: str) -> ModelRequest:
        """Delete a token."""

        def idle() -> bool:
            token = org.token(token_id)
            return token is not None and token.deleted

        def state(_: ModelCredential) -> str:
            token = org.token(token_id)
            assert token is not None
            return "" if idle() or etag in ("", token.etag) else "ETAG_MISMATCH"

        def done(_: ModelCredential, answer: Any) -> str:
            token = org.token(token_id)
            assert token is not None
            token.deleted, token.etag = True, answer.token.etag
            return f"token:{token_id}"

        return ModelRequest(
            "DeleteToken",
            lambda change: self.site.tokens.delete(change, token_id, etag),
            lambda by: self.rules.deletes(by, org.token(token_id)),
            done,
            state,
            idle,
            about=f"{token_id} etag={etag!r}",
        )

    def sign_out(self) -> ModelRequest:
        """Sign the presented credential out."""

        def done(by: ModelCredential, _: Any) -> str:
            by.deleted = True
            return f"token:{by.id}"

        return ModelRequest("SignOut", self.site.sessions.sign_out, lambda _: "", done)

    def _handles_invitation(self, org: ModelOrganization, by: ModelCredential, invitation_id: str) -> str:
        if reason := self.rules.handles_any(by, "invite"):
            return reason
        invite = org.invite(invitation_id)
        if invite is None:
            return "INVITATION_NOT_FOUND"
        return self.rules.handles(self.rules.held(by), "invite", invite.role)
