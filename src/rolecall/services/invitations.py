"""Invitations: create them for many people at once, list, change, resend, delete and accept them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rolecall.audit import Private
from rolecall.credentials import token_format
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import (
    Caller,
    Delivery,
    Invitation,
    InvitationState,
    Invitee,
    LinkKind,
    MailKind,
    Member,
    Page,
    now,
)
from rolecall.errors import AlreadyMember, InvitationAccepted, InvitationExpired, InvitationNotFound
from rolecall.formats import display_names
from rolecall.identity.rate_limit import RateLimiter
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.policy import Policy
from rolecall.policy.reload import LivePolicy
from rolecall.services.caller_permissions import require, require_any, require_handling, require_known
from rolecall.services.external_id_rules import take
from rolecall.services.invitation_rules import BatchEntry, parse_batch, require_invitable, require_inviter
from rolecall.services.members import audit_details
from rolecall.services.pagination import Pagination
from rolecall.services.sessions import OpenedSession, open_session
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    DryRun,
    Outcome,
    SignedIn,
    UnauthenticatedCall,
    Unchanged,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage, Transaction
from rolecall.storage import invitations as rows
from rolecall.storage import members as member_rows
from rolecall.storage import outbox as mail_rows
from rolecall.storage.outbox import Mail

__all__ = ["ChangedInvitation", "CreatedInvitations", "InvitationPage", "Invitations"]

# In microseconds: 7 days (docs/concepts.md, Credentials).
INVITATION_LIFE = 7 * 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class CreatedInvitations(Answer):
    """Answer to a creation: the new invitations; without ids if they were only validated."""

    invitations: tuple[Invitation, ...]


@dataclass(frozen=True, slots=True)
class ChangedInvitation(Answer):
    """Answer to a change, a resend or a deletion: the changed invitation."""

    invitation: Invitation


@dataclass(frozen=True, slots=True)
class InvitationPage:
    """Page of invitations."""

    invitations: tuple[Invitation, ...]
    next_page_token: str


class Invitations:
    """Use cases of InvitationService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(
        self,
        unit_of_work: UnitOfWork,
        storage: Storage,
        live: LivePolicy,
        pages: Pagination,
        links: MailedSecrets,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._pages = pages
        self._links = links
        # So that no mailbox is flooded.
        self._resend_limit = RateLimiter("mails of one invitation", limits.resends)
        # A secret of no early generation may be forged, and costs a query.
        self._accept_limit = RateLimiter("secrets that open no invitation", limits.guessed_invitations)

    def create(self, request: ChangeRequest, invitees: Sequence[Invitee], *, validate_only: bool) -> CreatedInvitations:
        """Invite people, all or none; with `validate_only`, only check whether that is possible.

        Raises `BatchSize`, or one error that combines the problems of all entries: `InvalidField`,
        `UnknownRoleName`, `PermissionMissing`, `RoleBeyondCaller`, `DuplicateInvitation`, `AlreadyMember`,
        `ExternalIdTaken`.
        """
        batch = parse_batch(invitees)

        def effect(context: ChangeContext, _: None) -> Outcome[CreatedInvitations]:
            created = [_new_invitation(context, entry) for entry in batch.entries]
            if validate_only:
                preview = (replace(invitation, id="", changed=0, delivery=None) for invitation in created)
                return DryRun(CreatedInvitations(tuple(preview)))
            keys, taken = [entry.address.key for entry in batch.entries], list(batch.external_ids.values())
            rows.expire(context.tx, context.caller.organization, context.at, email_keys=keys, external_ids=taken)
            rows.add(context.tx, list(zip(keys, created, strict=True)))
            _enqueue_mails(context, created)
            object_name = (
                f"invitation:{created[0].id}" if len(created) == 1 else f"organization:{context.caller.organization}"
            )
            details = {"after": [_audit_details(invitation) for invitation in created]}
            return Written(CreatedInvitations(tuple(created)), object_name, details)

        return self._unit_of_work.run(
            request, CreatedInvitations, lambda context: require_invitable(context, batch), effect
        )

    def list(
        self,
        caller: Caller,
        state: InvitationState | None,
        role: str,
        text: str,
        page: Page,
        *,
        external_id: str = "",
        show_deleted: bool = False,
    ) -> InvitationPage:
        """List the invitations that match the filters, the newest first; an empty filter matches all.

        Without a `state`, accepted and deleted ones are left out unless `show_deleted`.
        Raises `PermissionMissing`, `InvalidField`, `UnknownRoleName`, `PageToken`.
        """
        size = self._pages.size(page)
        policy = self._live.in_force.policy
        require(policy, caller, "invite", "members")
        scope = ("ListInvitations", caller.organization, str(state), str(show_deleted), role, text, external_id)
        position = self._pages.position(scope, page)
        after = (int(position[0]), position[1]) if position else None
        found = self._storage.read(
            lambda tx: rows.page(
                tx,
                caller.organization,
                state,
                role,
                text,
                external_id,
                now(),
                after,
                size + 1,
                show_deleted=show_deleted,
            )
        )
        if role and not found:
            # An earlier policy may have had it.
            require_known(policy, role, "role")
        last = found[size - 1] if len(found) > size else None
        token = self._pages.token(scope, [str(last.create_time), last.id]) if last else ""
        return InvitationPage(tuple(found[:size]), token)

    def get(self, caller: Caller, invitation_id: str) -> Invitation:
        """Get one invitation. Raises `PermissionMissing`, `InvitationNotFound`."""
        require(self._live.in_force.policy, caller, "invite", "members")
        found = self._storage.read(lambda tx: rows.get(tx, caller.organization, invitation_id))
        if found is None:
            raise _not_found(invitation_id)
        return found

    def update(
        self, request: ChangeRequest, invitation_id: str, changes: Mapping[str, str], etag: str
    ) -> ChangedInvitation:
        """Change `role`, `display_name` or `external_id`, and mail a new secret, as `resend` does.

        The present values change nothing. Raises as `resend`, and `ExternalIdTaken`.
        """

        def authorize(context: ChangeContext) -> Invitation:
            before = _require_invitation(context, invitation_id, "invitation.id")
            if role := changes.get("role"):
                require_known(context.policy, role, "invitation.role")
                require_handling(context.policy, context.caller, "invite", role, "invitation.role")
            return before

        def effect(context: ChangeContext, before: Invitation) -> Outcome[ChangedInvitation]:
            _require_pending(context, before, "invitation.id")
            require_etag(etag, before.etag, "invitation.etag")
            changed = replace(
                before,
                role=changes.get("role", before.role),
                display_name=changes.get("display_name", before.display_name),
                external_id=changes.get("external_id", before.external_id),
            )
            if changed == before:
                return Unchanged(ChangedInvitation(before))
            if changed.external_id != before.external_id:
                take(context, changed.external_id, "invitation.external_id")
            renewed = self._renew(context, changed, "invitation.id")
            details = {"before": _audit_details(before), "after": _audit_details(renewed)}
            return Written(ChangedInvitation(renewed), f"invitation:{before.id}", details)

        return self._unit_of_work.run(request, ChangedInvitation, authorize, effect)

    def resend(self, request: ChangeRequest, invitation_id: str, etag: str) -> ChangedInvitation:
        """Mail a new secret with a new expiry; the caller becomes the inviter.

        Raises `InvitationNotFound`, `InvitationAccepted`, `InvitationExpired`, `EtagMismatch`, `RateLimited`,
        `UnknownRoleName`, and as `create`.
        """

        def effect(context: ChangeContext, before: Invitation) -> Outcome[ChangedInvitation]:
            _require_pending(context, before, "id")
            require_etag(etag, before.etag)
            renewed = self._renew(context, before, "id")
            details = {"after": _audit_details(renewed)}
            return Written(ChangedInvitation(renewed), f"invitation:{before.id}", details)

        return self._unit_of_work.run(
            request, ChangedInvitation, lambda context: _require_invitation(context, invitation_id, "id"), effect
        )

    def delete(self, request: ChangeRequest, invitation_id: str, etag: str) -> ChangedInvitation:
        """Delete an invitation; a deleted one is left as it is. Raises as `resend`."""

        def effect(context: ChangeContext, before: Invitation) -> Outcome[ChangedInvitation]:
            if before.stored is InvitationState.ACCEPTED:
                raise _already_accepted(before, "id")
            if before.stored is InvitationState.DELETED:
                return Unchanged(ChangedInvitation(before))
            require_etag(etag, before.etag)
            rows.delete(context.tx, before)
            deleted = replace(before, stored=InvitationState.DELETED, changed=context.tx.revision)
            details = {"before": _audit_details(before)}
            return Written(ChangedInvitation(deleted), f"invitation:{before.id}", details)

        return self._unit_of_work.run(
            request, ChangedInvitation, lambda context: _require_invitation(context, invitation_id, "id"), effect
        )

    def accept(self, call: UnauthenticatedCall, organization: str, secret: str, display_name: str) -> OpenedSession:
        """Make the holder of the mailed secret a member, and open a session.

        `organization` is the one that the invitation must belong to; empty for any. An empty `display_name` stands for
        that of the invitation, or else for the part of the address before its `@`. Raises `InvitationNotFound`,
        `InvitationExpired`, `InviterLostRight`, `AlreadyMember`, `RateLimited`.
        """
        link = token_format.parse_link(secret)
        # Secrets made by this server are never rate-limited: forgers may call through the same gateway.
        may_be_forged = link is None or not self._links.matches_early_generation(secret, LinkKind.INVITATION, link[1])
        if may_be_forged:
            self._accept_limit.require(call.peer)
        found = self._storage.read(lambda tx: rows.find(tx, link[1])) if link else None
        if found is None or organization not in ("", found[0].organization) or not self._opens(secret, found[0]):
            if may_be_forged:
                self._accept_limit.count(call.peer)
            if link and link[0] is LinkKind.SIGN_IN:
                raise InvitationNotFound("The secret is for signing in: use SignIn.", field="secret")
            raise _unusable_secret()
        invitation_id = found[0].id

        def effect(tx: Transaction, policy: Policy, at: int) -> SignedIn[OpenedSession]:
            invitation, email_key = rows.find(tx, invitation_id) or found
            state = invitation.state(at)
            if state in (InvitationState.ACCEPTED, InvitationState.DELETED) or not self._opens(secret, invitation):
                raise _unusable_secret()
            if state is InvitationState.EXPIRED:
                raise InvitationExpired(
                    f"The invitation to {invitation.organization} has expired: ask your inviter for another one.",
                    field="secret",
                    subject=f"invitation:{invitation.id}",
                )
            require_inviter(tx, policy, invitation, at, "secret")
            if member_rows.by_email(tx, invitation.organization, email_key):
                raise AlreadyMember(
                    f"You are a member of {invitation.organization} already: sign in with RequestSignIn.",
                    field="secret",
                )
            # A name taken from an address is cut to fit.
            name = display_name or invitation.display_name or invitation.email.partition("@")[0]
            member = Member(
                invitation.organization,
                token_format.new_id(),
                invitation.email,
                name[: display_names.MAX_LENGTH],
                invitation.role,
                create_time=at,
                update_time=at,
                external_id=invitation.external_id,
            )
            member_rows.add(tx, member, email_key)
            rows.accept(tx, invitation, member.user_id)
            opened = open_session(tx, member, at)
            details = {"user": member.user_id, "after": audit_details(member)}
            return SignedIn(opened, f"invitation:{invitation.id}", details, member.user_id, opened.session.id)

        return self._unit_of_work.run_unauthenticated(call, found[0].organization, effect)

    def _renew(self, context: ChangeContext, invitation: Invitation, field: str) -> Invitation:
        """Store a pending invitation with a new secret and expiry, by this caller, and enqueue its mail.

        Raises `UnknownRoleName` for `field`, `RateLimited`.
        """
        require_known(context.policy, invitation.role, field)
        self._resend_limit.require(invitation.id)
        renewed = replace(
            invitation,
            creator=context.caller.actor,
            restriction=context.caller.restriction,
            generation=invitation.generation + 1,
            expire_time=context.at + INVITATION_LIFE,
            changed=context.tx.revision,
            delivery=Delivery.QUEUED,
        )
        rows.renew(context.tx, renewed)
        _enqueue_mails(context, [renewed])
        self._resend_limit.count(invitation.id)
        return renewed

    def _opens(self, secret: str, invitation: Invitation) -> bool:
        return self._links.opens(secret, LinkKind.INVITATION, invitation.id, invitation.generation)


def _new_invitation(context: ChangeContext, entry: BatchEntry) -> Invitation:
    return Invitation(
        context.caller.organization,
        token_format.new_id(),
        entry.address.display,
        entry.invitee.role,
        context.caller.actor,
        context.caller.restriction,
        generation=1,
        stored=InvitationState.PENDING,
        create_time=context.at,
        expire_time=context.at + INVITATION_LIFE,
        changed=context.tx.revision,
        delivery=Delivery.QUEUED,
        display_name=entry.invitee.display_name,
        external_id=entry.invitee.external_id,
    )


def _enqueue_mails(context: ChangeContext, invitations: Sequence[Invitation]) -> None:
    """Enqueue the mails with the secrets, in the transaction that writes the invitations."""
    mails = [
        Mail(token_format.new_id(), invitation.organization, MailKind.INVITATION, invitation.id, invitation.generation)
        for invitation in invitations
    ]
    mail_rows.add(context.tx, mails, context.at)


def _require_invitation(context: ChangeContext, invitation_id: str, field: str) -> Invitation:
    """Return the invitation that `field` names; raise unless the caller may invite to its role.

    A caller who may invite nobody does not learn whether the invitation exists.
    """
    require_any(context.policy, context.caller, "invite")
    found = rows.get(context.tx, context.caller.organization, invitation_id)
    if found is None:
        raise _not_found(invitation_id, field)
    require_handling(context.policy, context.caller, "invite", found.role, field)
    return found


def _require_pending(context: ChangeContext, invitation: Invitation, field: str) -> None:
    """Raise for `field`, which names the invitation, unless this can be accepted."""
    match invitation.state(context.at):
        case InvitationState.ACCEPTED:
            raise _already_accepted(invitation, field)
        case InvitationState.DELETED:
            raise InvitationNotFound(
                f"The invitation `{invitation.id}` was deleted: create another one for the address.", field=field
            )
        case InvitationState.EXPIRED:
            raise InvitationExpired(
                f"The invitation `{invitation.id}` has expired and does not prevent a new one: create another one for"
                " the address.",
                field=field,
                subject=f"invitation:{invitation.id}",
            )
        case InvitationState.PENDING:
            pass


def _audit_details(invitation: Invitation) -> dict[str, object]:
    """Details of an invitation for the audit log. Until the person joins, the invitation's id stands for them."""
    details: dict[str, object] = {
        "invitation": invitation.id,
        "email": Private(invitation.id, invitation.email, "email"),
        "role": invitation.role,
    }
    if invitation.display_name:
        details["display_name"] = Private(invitation.id, invitation.display_name)
    if invitation.external_id:
        details["external_id"] = Private(invitation.id, invitation.external_id, "external_id")
    return details


def _already_accepted(invitation: Invitation, field: str) -> InvitationAccepted:
    return InvitationAccepted(
        f"The invitation `{invitation.id}` was accepted already: see ListMembers, and use RemoveMember to undo it.",
        field=field,
        subject=f"invitation:{invitation.id}",
    )


def _not_found(invitation_id: str, field: str = "id") -> InvitationNotFound:
    return InvitationNotFound(
        f"The organization has no invitation `{invitation_id}`: find the id with ListInvitations.", field=field
    )


def _unusable_secret() -> InvitationNotFound:
    return InvitationNotFound(
        "The secret opens no invitation: it was used already (then sign in with RequestSignIn), is not that of the"
        " newest mail, is incomplete, or the invitation was deleted.",
        field="secret",
    )
