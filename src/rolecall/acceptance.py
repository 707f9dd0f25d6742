"""Acceptance: whoever has the newest secret of an invitation becomes a member, once."""

from rolecall import credentials
from rolecall.domain import Invitation, InvitationState, LinkKind, Member
from rolecall.errors import AlreadyMember, InvitationExpired, InvitationNotFound
from rolecall.invitation_rules import require_inviter
from rolecall.limits import Limit
from rolecall.links import Links
from rolecall.members import described
from rolecall.mutations import Arrival, Entered, Mutations
from rolecall.policy import Policy
from rolecall.sessions import Entrance, open_session
from rolecall.storage import Storage, Transaction
from rolecall.storage import invitations as rows
from rolecall.storage import members as member_rows

__all__ = ["Acceptance"]

# As long as a name may be that somebody gives.
MAX_NAME = 64


class Acceptance:
    """Lets people in. Threads may share it."""

    def __init__(self, mutations: Mutations, storage: Storage, links: Links) -> None:
        self._mutations = mutations
        self._storage = storage
        self._links = links
        # What none of the early generations is may be forged, and costs a look-up.
        self._peers = Limit("secrets that open no invitation", rate=20, burst=200)

    def accept(self, arrival: Arrival, organization: str, secret: str, display_name: str) -> Entrance:
        """Make whoever has the mailed secret a member, and open a session.

        `organization` is empty, or where the invitation must lead; an empty `display_name` makes it the address up to
        its `@`. Raises `InvitationNotFound`, `InvitationExpired`, `InviterLostRight`, `RateLimited`.
        """
        link = credentials.parse_link(secret)
        # What this server made is never held up by what others forge, who may come through the same gateway.
        forged = link is None or not self._links.is_made_here(secret, LinkKind.INVITATION, link[1])
        if forged:
            self._peers.require(arrival.peer)
        found = self._storage.read(lambda tx: rows.find(tx, link[1])) if link else None
        if found is None or organization not in ("", found[0].organization) or not self._opens(secret, found[0]):
            if forged:
                self._peers.count(arrival.peer)
            if link and link[0] is LinkKind.SIGN_IN:
                raise InvitationNotFound("That is the secret of a mail to sign in: use SignIn.", field="secret")
            raise _no_secret()
        invitation_id = found[0].id

        def effect(tx: Transaction, policy: Policy, at: int) -> Entered[Entrance]:
            invitation, email_key = rows.find(tx, invitation_id) or found
            state = invitation.state(at)
            if state in (InvitationState.ACCEPTED, InvitationState.DELETED) or not self._opens(secret, invitation):
                raise _no_secret()
            if state is InvitationState.EXPIRED:
                raise InvitationExpired(
                    f"The invitation to {invitation.organization} is over: ask whoever invited you for another one.",
                    field="secret",
                    subject=f"invitation:{invitation.id}",
                )
            require_inviter(tx, policy, invitation, at, "secret")
            if member_rows.by_email(tx, invitation.organization, email_key):
                raise AlreadyMember(
                    f"You are a member of {invitation.organization} already: sign in with RequestSignIn.",
                    field="secret",
                )
            name = display_name or invitation.email.partition("@")[0]
            new = (invitation.email, name[:MAX_NAME], invitation.role, at, at)
            member = Member(invitation.organization, credentials.new_id(), *new)
            member_rows.add(tx, member, email_key)
            rows.accept(tx, invitation, member.user_id)
            entrance = open_session(tx, member, at)
            details = {"user": member.user_id, "after": described(member)}
            return Entered(entrance, f"invitation:{invitation.id}", details, member.user_id, entrance.session.id)

        return self._mutations.enter(arrival, found[0].organization, effect)

    def _opens(self, secret: str, invitation: Invitation) -> bool:
        return self._links.opens(secret, LinkKind.INVITATION, invitation.id, invitation.generation)


def _no_secret() -> InvitationNotFound:
    return InvitationNotFound(
        "The secret opens no invitation: it was used already (then sign in with RequestSignIn), is not"
        " that of the newest mail, was withdrawn, or is not whole.",
        field="secret",
    )
