"""Organizations, who is in them, and who is invited."""

from dataclasses import dataclass
from enum import StrEnum

from rolecall.domain.permissions import Restriction

__all__ = ["Delivery", "Invitation", "InvitationState", "Member", "MemberOrder", "Organization"]


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. `id` is its slug; `revision` counts its mutations, `changed` is the one that last changed it itself."""

    id: str
    display_name: str
    revision: int
    create_time: int
    changed: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the organization itself."""
        return f"{self.changed:x}"


@dataclass(frozen=True, slots=True)
class Member:
    """A person inside one organization. `email` is the address as written, not the normalised key."""

    organization: str
    user_id: str
    email: str
    display_name: str
    role: str
    create_time: int
    update_time: int

    @property
    def etag(self) -> str:
        """Changes with every change of the member."""
        return f"{self.update_time:x}"


class MemberOrder(StrEnum):
    """In which order members are listed."""

    EMAIL = "email"
    DISPLAY_NAME = "name"
    NEWEST = "newest"


class InvitationState(StrEnum):
    """Whether an invitation can be accepted."""

    PENDING = "pending"
    EXPIRED = "expired"
    ACCEPTED = "accepted"
    DELETED = "deleted"


class Delivery(StrEnum):
    """What became of a mail."""

    QUEUED = "queued"
    SENT = "sent"
    BOUNCED = "bounced"


@dataclass(frozen=True, slots=True)
class Invitation:
    """A person invited to a role. `email` is the address as written.

    `inviter` is the actor who vouches for it, with what their credential was cut down to; `generation` counts its
    secrets, of which the newest works. `stored` is the state but for the time that has passed. `changed` is the
    revision that last changed it. `delivery`: of the newest mail, None where there is none.
    """

    organization: str
    id: str
    email: str
    role: str
    inviter: str
    restriction: Restriction
    generation: int
    stored: InvitationState
    create_time: int
    expire_time: int
    changed: int
    delivery: Delivery | None = None

    @property
    def etag(self) -> str:
        """Changes with every change of the invitation; its mail's fate is none."""
        return f"{self.changed:x}"

    def state(self, at: int) -> InvitationState:
        """Its state at the moment `at`."""
        late = self.stored is InvitationState.PENDING and at >= self.expire_time
        return InvitationState.EXPIRED if late else self.stored
