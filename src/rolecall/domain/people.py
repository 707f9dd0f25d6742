"""Organizations, their members and their invitations."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rolecall.domain.permissions import Restriction

__all__ = ["Delivery", "Invitation", "InvitationState", "Invitee", "Member", "MemberOrder", "Organization"]


@dataclass(frozen=True, slots=True)
class Organization:
    """Tenant. `id` is its slug, `revision` counts its changes, `changed` is the revision that last changed itself."""

    id: str
    display_name: str
    revision: int
    create_time: int
    changed: int = 1

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the organization itself."""
        return f"{self.changed:x}"


@dataclass(frozen=True, slots=True)
class Member:
    """Person inside one organization. `email` is the address as written, not the normalised key.

    `external_id`, empty for none, is the person's id in an identity provider or another database.
    """

    organization: str
    user_id: str
    email: str
    display_name: str
    role: str
    create_time: int
    update_time: int
    external_id: str = ""

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the member."""
        return f"{self.update_time:x}"


class MemberOrder(StrEnum):
    """Order of a list of members."""

    EMAIL = "email"
    DISPLAY_NAME = "name"
    NEWEST = "newest"


class InvitationState(StrEnum):
    """State of an invitation; only a PENDING one can be accepted."""

    PENDING = "pending"
    EXPIRED = "expired"
    ACCEPTED = "accepted"
    DELETED = "deleted"


class Delivery(StrEnum):
    """Delivery state of a mail."""

    QUEUED = "queued"
    SENT = "sent"
    BOUNCED = "bounced"


class Invitee(NamedTuple):
    """Person to be invited. Without a `display_name`, the address up to its `@` stands for it."""

    email: str
    role: str
    display_name: str = ""
    external_id: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Invitation of a person to a role. `email` is the address as written.

    `creator` is the actor whose rights the invitation depends on, and `restriction` that of the credential it was made
    with; `generation` counts its secrets, of which only the newest works. `stored` is the state without regard to the
    expiry. `changed` is the revision that last changed it. `delivery` is that of the newest mail, None without a mail.
    `display_name` and `external_id` are those that the person will have, empty for none; with its acceptance, the
    external id becomes the member's alone.
    """

    organization: str
    id: str
    email: str
    role: str
    creator: str
    restriction: Restriction | None
    generation: int
    stored: InvitationState
    create_time: int
    expire_time: int
    changed: int
    delivery: Delivery | None = None
    display_name: str = ""
    external_id: str = ""

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the invitation, but not with the delivery of its mail."""
        return f"{self.changed:x}"

    def state(self, at: int) -> InvitationState:
        """Return the state at the time `at`."""
        late = self.stored is InvitationState.PENDING and at >= self.expire_time
        return InvitationState.EXPIRED if late else self.stored
