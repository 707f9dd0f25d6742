"""What people and programs present."""

from dataclasses import dataclass, field
from enum import StrEnum

from rolecall.domain.permissions import Restriction

__all__ = ["Caller", "CredentialKind", "LinkKind", "Token", "TokenState"]


class CredentialKind(StrEnum):
    """What sort of credential it is; the value is the prefix that its text begins with."""

    PERSONAL = "rcp"
    ORGANIZATION = "rco"
    SESSION = "rcs"


class LinkKind(StrEnum):
    """What a mailed secret is for; the value is the prefix that its text begins with."""

    INVITATION = "rci"
    SIGN_IN = "rcl"


@dataclass(frozen=True, slots=True)
class Caller:
    """The presented credential and its holder, as they stand now. An organization's token has no person behind it.

    `digest` is the SHA-256 of the text that was presented.
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

    @property
    def actor(self) -> str:
        """Who acts, as the audit log names them: the person, else the organization's token."""
        return f"user:{self.user_id}" if self.user_id else f"token:{self.credential_id}"


class TokenState(StrEnum):
    """Whether a token works."""

    LIVE = "live"
    EXPIRED = "expired"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Token:
    """A personal or an organization's token without its secret. `user_id` is empty for the organization's.

    `role` is a personal token's holder's present one, an organization token's own. `changed` is the revision that
    last changed it.
    """

    organization: str
    id: str
    kind: CredentialKind
    name: str
    user_id: str
    created_by: str
    role: str
    restriction: Restriction
    last_four: str
    create_time: int
    expire_time: int
    last_used_time: int | None
    revoke_time: int | None
    changed: int

    @property
    def etag(self) -> str:
        """Changes with every change of the token; its being used is none."""
        return f"{self.changed:x}"

    def state(self, at: int) -> TokenState:
        """Whether it works at the moment `at`."""
        if self.revoke_time is not None:
            return TokenState.DELETED
        return TokenState.LIVE if at < self.expire_time else TokenState.EXPIRED
