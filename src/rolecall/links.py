"""Secrets that are mailed: computed from the server's key whenever they are needed, and stored nowhere."""

import hmac
import json

from rolecall import credentials
from rolecall.domain import LinkKind
from rolecall.keys import ServerKey

__all__ = ["Links"]

# Few invitations are mailed more often.
EARLY_GENERATIONS = 16


class Links:
    """Makes and checks the secrets of invitations and of links to sign in."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("mail")

    def secret(self, kind: LinkKind, about: str, generation: int) -> str:
        """The secret of the invitation or request `about`; another one for each generation (design, section 6)."""
        message = json.dumps([kind, about, generation]).encode()
        return credentials.text_of(kind, about, hmac.digest(self._key, message, "sha256"))

    def is_made_here(self, presented: str, kind: LinkKind, about: str) -> bool:
        """Whether `presented` is one of the first sixteen generations' secrets; asks no database."""
        return any(self.opens(presented, kind, about, generation) for generation in range(1, EARLY_GENERATIONS + 1))

    def opens(self, presented: str, kind: LinkKind, about: str, generation: int) -> bool:
        """Whether `presented` is that secret."""
        return hmac.compare_digest(presented.encode(), self.secret(kind, about, generation).encode())
