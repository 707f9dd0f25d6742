"""Invitations: made for many people at once, mailed, resent, withdrawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rolecall import credentials
from rolecall.audit import Private
from rolecall.domain import Caller, Delivery, Invitation, InvitationState, LinkKind, Page, now
from rolecall.errors import InvitationAccepted, InvitationExpired, InvitationNotFound
from rolecall.invitation_rules import Invitee, read, require_invitable
from rolecall.limits import Limit
from rolecall.live_policy import LivePolicy
from rolecall.mutations import Attempt, Done, Forgettable, Moment, Mutations, Unchanged, require_etag
from rolecall.pages import Pages
from rolecall.rights import require, require_any, require_handling, require_known
from rolecall.storage import Storage
from rolecall.storage import invitations as rows
from rolecall.storage import mails as mail_rows
from rolecall.storage.mails import Mail

__all__ = ["InvitationPage", "Invitations", "Invited", "Renewed"]

# Design, section 6.
INVITATION_LIFE = 7 * 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Invited:
    """New invitations; without ids where they were only to be checked."""

    invitations: tuple[Invitation, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """A changed invitation."""

    invitation: Invitation
    revision: int


@dataclass(frozen=True, slots=True)
class InvitationPage:
    """A page of invitations."""

    invitations: tuple[Invitation, ...]
    next_page_token: str


class Invitations:
    """What InvitationService does. Every method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, mutations: Mutations, storage: Storage, live: LivePolicy, pages: Pages) -> None:
        self._mutations = mutations
        self._storage = storage
        self._live = live
        self._pages = pages
        # Nobody's mailbox is to be flooded.
        self._resent = Limit("mails of one invitation", rate=1 / 60, burst=3)

    def create(self, attempt: Attempt, entries: Sequence[tuple[str, str]], *, validate_only: bool) -> Invited:
        """Invite (address, role) pairs, all or nobody. Raises `BatchSize`, or with all that is bad:

        `InvalidField`, `UnknownRoleName`, `PermissionMissing`, `RoleBeyondCaller`, `DuplicateInvitation`,
        `AlreadyMember`.
        """
        wanted = read(entries)

        def effect(moment: Moment, _: None) -> Done[Invited]:
            made = [_made(moment, invitee) for invitee in wanted.invitees]
            if validate_only:
                # The revision that this transaction made goes with it.
                unmade = (replace(invitation, id="", changed=0, delivery=None) for invitation in made)
                raise Forgettable(Invited(tuple(unmade), moment.tx.revision - 1))
            keys = [invitee.address.key for invitee in wanted.invitees]
            rows.expire(moment.tx, moment.caller.organization, keys, moment.at)
            rows.add(moment.tx, list(zip(keys, made, strict=True)))
            _mail(moment, made)
            done_to = f"invitation:{made[0].id}" if len(made) == 1 else f"organization:{moment.caller.organization}"
            details = {"after": [_described(invitation) for invitation in made]}
            return Done(Invited(tuple(made), moment.tx.revision), done_to, details)

        return self._mutations.run(attempt, Invited, lambda moment: require_invitable(moment, wanted), effect)

    def list(self, caller: Caller, state: InvitationState | None, role: str, text: str, page: Page) -> InvitationPage:
        """The invitations that pass the filters, the newest first. Empty takes any.

        Raises `PermissionMissing`, `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        require(self._live.in_force.policy, caller, "invite", "members")
        scope = ("ListInvitations", caller.organization, str(state), role, text)
        position = self._pages.position(scope, page)
        after = (int(position[0]), position[1]) if position else None
        found = self._storage.read(
            lambda tx: rows.page(tx, caller.organization, state, role, text, now(), after, size + 1)
        )
        last = found[size - 1] if len(found) > size else None
        token = self._pages.token(scope, [str(last.create_time), last.id]) if last else ""
        return InvitationPage(tuple(found[:size]), token)

    def get(self, caller: Caller, invitation_id: str) -> Invitation:
        """One invitation. Raises `PermissionMissing`, `InvitationNotFound`."""
        require(self._live.in_force.policy, caller, "invite", "members")
        found = self._storage.read(lambda tx: rows.get(tx, caller.organization, invitation_id))
        if found is None:
            raise _unknown(invitation_id)
        return found

    def resend(self, attempt: Attempt, invitation_id: str, etag: str) -> Renewed:
        """Mail a new secret with a new expiry; the caller vouches for it now.

        Raises `InvitationNotFound`, `InvitationAccepted`, `InvitationExpired`, `EtagMismatch`, `RateLimited`,
        `UnknownRoleName`, and as `create`.
        """

        def effect(moment: Moment, before: Invitation) -> Done[Renewed]:
            match before.state(moment.at):
                case InvitationState.ACCEPTED:
                    raise _accepted(before)
                case InvitationState.DELETED:
                    raise InvitationNotFound(
                        f"The invitation `{before.id}` is withdrawn, and stays so: invite the address anew.",
                        field="id",
                    )
                case InvitationState.EXPIRED:
                    raise InvitationExpired(
                        f"The time of the invitation `{before.id}` is over: invite the address anew, for which an"
                        " expired one is in nobody's way.",
                        field="id",
                        subject=f"invitation:{before.id}",
                    )
                case InvitationState.PENDING:
                    require_etag(etag, before.etag)
                    require_known(moment.policy, before.role, "id")
                    self._resent.require(before.id)
            renewed = replace(
                before,
                inviter=moment.caller.actor,
                restriction=moment.caller.restriction,
                generation=before.generation + 1,
                expire_time=moment.at + INVITATION_LIFE,
                changed=moment.tx.revision,
                delivery=Delivery.QUEUED,
            )
            rows.renew(moment.tx, renewed)
            _mail(moment, [renewed])
            self._resent.count(before.id)
            return Done(Renewed(renewed, moment.tx.revision), f"invitation:{before.id}", {"after": _described(renewed)})

        return self._mutations.run(attempt, Renewed, lambda moment: _handled(moment, invitation_id), effect)

    def delete(self, attempt: Attempt, invitation_id: str, etag: str) -> Renewed:
        """Withdraw an invitation; one that is withdrawn stays so. Raises as `resend`."""

        def effect(moment: Moment, before: Invitation) -> Done[Renewed]:
            if before.stored is InvitationState.ACCEPTED:
                raise _accepted(before)
            if before.stored is InvitationState.DELETED:
                raise Unchanged(Renewed(before, moment.tx.revision - 1))
            require_etag(etag, before.etag)
            rows.delete(moment.tx, before)
            deleted = replace(before, stored=InvitationState.DELETED, changed=moment.tx.revision)
            details = {"before": _described(before)}
            return Done(Renewed(deleted, moment.tx.revision), f"invitation:{before.id}", details)

        return self._mutations.run(attempt, Renewed, lambda moment: _handled(moment, invitation_id), effect)


def _made(moment: Moment, invitee: Invitee) -> Invitation:
    return Invitation(
        moment.caller.organization,
        credentials.new_id(),
        invitee.address.display,
        invitee.role,
        moment.caller.actor,
        moment.caller.restriction,
        generation=1,
        stored=InvitationState.PENDING,
        create_time=moment.at,
        expire_time=moment.at + INVITATION_LIFE,
        changed=moment.tx.revision,
        delivery=Delivery.QUEUED,
    )


def _mail(moment: Moment, invitations: Sequence[Invitation]) -> None:
    """Have their secrets mailed, in the transaction that made them."""
    mails = [
        Mail(credentials.new_id(), made.organization, LinkKind.INVITATION, made.id, made.generation)
        for made in invitations
    ]
    mail_rows.add(moment.tx, mails, moment.at)


def _handled(moment: Moment, invitation_id: str) -> Invitation:
    """The invitation, if the caller may invite to its role. Whoever may not at all learns of none."""
    require_any(moment.policy, moment.caller, "invite")
    found = rows.get(moment.tx, moment.caller.organization, invitation_id)
    if found is None:
        raise _unknown(invitation_id)
    require_handling(moment.policy, moment.caller, "invite", found.role, "id")
    return found


def _described(invitation: Invitation) -> dict[str, object]:
    """An invitation as the audit log tells of it. Until they join, the person is known by its id."""
    return {
        "invitation": invitation.id,
        "email": Private(invitation.id, invitation.email, "email"),
        "role": invitation.role,
    }


def _accepted(invitation: Invitation) -> InvitationAccepted:
    return InvitationAccepted(
        f"Somebody joined by the invitation `{invitation.id}` already: see ListMembers; RemoveMember undoes it.",
        field="id",
        subject=f"invitation:{invitation.id}",
    )


def _unknown(invitation_id: str) -> InvitationNotFound:
    return InvitationNotFound(
        f"There is no invitation `{invitation_id}` here: see which there are with ListInvitations.", field="id"
    )
