"""Model of tokens with their secrets, which rotations end."""

from dataclasses import dataclass, field

from rolecall.domain import now
from stateful.credential_model import Credential

__all__ = ["DAY", "HOUR", "SECOND", "ModelCredential", "Secret"]

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


@dataclass(eq=False)
class ModelCredential(Credential):
    """A token or session with all secrets that it ever had."""

    name: str = field(kw_only=True)
    create_time: int = field(kw_only=True)
    secrets: "list[Secret]" = field(default_factory=list)

    @property
    def state(self) -> str:
        """The state as the API names it."""
        return "DELETED" if self.deleted else "EXPIRED" if self.expired else "ACTIVE"


@dataclass(eq=False)
class Secret:
    """One text of a credential. `until`: when a rotation ends it."""

    cred: ModelCredential
    text: str
    until: int | None = None

    @property
    def rotated(self) -> bool:
        """Whether a rotation ended it."""
        return self.until is not None and self.until <= now()

    @property
    def misuse(self) -> str:
        """The action of the audit entry that its use leaves; empty where it leaves none."""
        if self.cred.gone:
            return ""
        if self.cred.deleted:
            return "PresentDeletedToken"
        return "PresentRotatedSecret" if self.rotated and self.end < self.cred.expire_time else ""

    @property
    def live(self) -> bool:
        """Whether it works."""
        return self.cred.live and not self.rotated

    @property
    def end(self) -> int:
        """The time at which it expires at the latest; tokens that it creates expire no later."""
        return min(self.cred.expire_time, self.until or self.cred.expire_time)
