"""Credentials, which people and programs present, and the callers behind them."""

from dataclasses import dataclass, field
from enum import StrEnum

from rolecall.domain.permissions import Restriction

__all__ = ["Caller", "CredentialKind", "LinkKind", "Token", "TokenState"]


class CredentialKind(StrEnum):
    """Kind of a credential; the value is the prefix of its text."""

    PERSONAL = "rcp"
    ORGANIZATION = "rco"
    SESSION = "rcs"


class LinkKind(StrEnum):
    """Purpose of a mailed secret; the value is the prefix of its text."""

    INVITATION = "rci"
    SIGN_IN = "rcl"


@dataclass(frozen=True, slots=True)
class Caller:
    """Principal of a call: the presented credential and its holder's present role.

    An organization token has no person behind it: `user_id`, `email_key` and `external_id` are empty. `digest` is the
    SHA-256 of the presented text.
    """

    organization: str
    credential_id: str
    kind: CredentialKind
    user_id: str
    email_key: str
    role: str
    restriction: Restriction = None
    expire_time: int = 0
    digest: bytes = field(default=b"", repr=False)
    external_id: str = ""

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
    restriction: Restriction
    last_four: str
    create_time: int
    expire_time: int
    last_use_time: int | None
    revoke_time: int | None
    changed: int

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the token, but not with its use."""
        return f"{self.changed:x}"

    def state(self, at: int) -> TokenState:
        """Return the state at the time `at`."""
        if self.revoke_time is not None:
            return TokenState.DELETED
        return TokenState.ACTIVE if at < self.expire_time else TokenState.EXPIRED
