"""Credentials, which people and programs present, and the callers behind them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

from rolecall.domain.assignments import NOTHING_ASSIGNED, AssignedRoles
from rolecall.domain.permissions import Restriction

__all__ = [
    "Address",
    "Caller",
    "CredentialKind",
    "LinkKind",
    "MailKind",
    "Networks",
    "Refusal",
    "Token",
    "TokenState",
    "Validity",
]

Address: TypeAlias = IPv4Address | IPv6Address
# The networks from which a token may be used; empty for any.
Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]


class CredentialKind(StrEnum):
    """Kind of a credential; the value is the prefix of its text."""

    PERSONAL = "rcp"
    ORGANIZATION = "rco"
    SESSION = "rcs"


class LinkKind(StrEnum):
    """Purpose of a mailed secret; the value is the prefix of its text."""

    INVITATION = "rci"
    SIGN_IN = "rcl"


class MailKind(StrEnum):
    """Purpose of a mail; one that holds a secret has the secret's kind as its value."""

    INVITATION = LinkKind.INVITATION.value
    SIGN_IN = LinkKind.SIGN_IN.value
    TOKEN_EXPIRY = "token_expiry"  # noqa: S105 - a kind, not a secret


class Refusal(StrEnum):
    """Cause of a failed authentication, for the operator. Callers get one text for every cause."""

    MISSING = "no credential"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    ROTATED = "rotated"
    DELETED = "deleted"
    OUTSIDE_NETWORKS = "outside its networks"
    ENDED = "ended during the call"
    RATE_LIMITED = "rate limited"
    MAILED_SECRET = "mailed secret"  # noqa: S105 - a cause, not a secret


@dataclass(frozen=True, slots=True)
class Validity:
    """Bounds of a secret: the time until which it works, and the networks from which, where it has any.

    It depends on the clock of each moment, so that a clock that is set right again has an effect at once.
    `is_rotated`: the secret is not the credential's newest, and `until` is the end of the rotation's overlap.
    `everywhere_until`: the time until which it works from everywhere, with no more to be evaluated; 0 for none.
    """

    until: int
    networks: Networks = ()
    is_rotated: bool = False
    is_deleted: bool = False
    everywhere_until: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Derive `everywhere_until`."""
        object.__setattr__(self, "everywhere_until", 0 if self.networks or self.is_deleted else self.until)

    def ended(self, at: int) -> Refusal | None:
        """Return why the secret doesn't work at the time `at`, wherever it is used; None where it does."""
        if self.is_deleted:
            return Refusal.DELETED
        if at < self.until:
            return None
        return Refusal.ROTATED if self.is_rotated else Refusal.EXPIRED

    def refusal(self, at: int, address: Callable[[], Address | None]) -> Refusal | None:
        """Return why the secret doesn't work at the time `at` from `address`; None where it does.

        `address` is called only where it matters; without an address, a secret with networks doesn't work.
        """
        if ended := self.ended(at):
            return ended
        if not self.networks:
            return None
        used_from = address()
        if used_from is not None and any(used_from in network for network in self.networks):
            return None
        return Refusal.OUTSIDE_NETWORKS


@dataclass(frozen=True, slots=True)
class Caller:
    """Principal of a call: the presented credential, its holder's present role, and the roles assigned to the holder.

    An organization token has no person behind it: `user_id`, `email_key` and `external_id` are empty. `digest` is the
    SHA-256 of the presented text.
    """

    organization: str
    credential_id: str
    kind: CredentialKind
    user_id: str
    email_key: str
    role: str
    restriction: Restriction | None = None
    expire_time: int = 0
    digest: bytes = field(default=b"", repr=False)
    networks: Networks = ()
    external_id: str = ""
    assigned: AssignedRoles = NOTHING_ASSIGNED

    @property
    def actor(self) -> str:
        """The actor as the audit log names it: the person, or the organization token."""
        return f"user:{self.user_id}" if self.user_id else f"token:{self.credential_id}"


class TokenState(StrEnum):
    """State of a token."""

    ACTIVE = "active"
    EXPIRED = "expired"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Token:
    """Personal or organization token, without its secret. `user_id` is empty for an organization token.

    `role` is the holder's present role for a personal token, the token's own role for an organization token. `changed`
    is the revision that last changed the token.
    """

    organization: str
    id: str
    kind: CredentialKind
    display_name: str
    user_id: str
    creator: str
    role: str
    restriction: Restriction | None
    last_four: str
    create_time: int
    expire_time: int
    last_use_time: int | None
    revoke_time: int | None
    changed: int
    networks: Networks = ()

    @property
    def resource(self) -> str:
        """The resource whose `view` lets other members see the token."""
        return "member-tokens" if self.user_id else "organization-tokens"

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the token, but not with its use."""
        return f"{self.changed:x}"

    def state(self, at: int) -> TokenState:
        """Return the state at the time `at`."""
        if self.revoke_time is not None:
            return TokenState.DELETED
        return TokenState.ACTIVE if at < self.expire_time else TokenState.EXPIRED
