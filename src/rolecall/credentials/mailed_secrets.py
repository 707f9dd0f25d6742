"""Mailed secrets: derived from the server's key whenever they are needed, and stored nowhere."""

import hmac
import json

from rolecall.credentials import token_format
from rolecall.credentials.server_key import ServerKey
from rolecall.domain import LinkKind

__all__ = ["MailedSecrets"]

# Generations that are compared without a database access; few invitations are mailed more often.
EARLY_GENERATIONS = 16


class MailedSecrets:
    """Derives and verifies the secrets of invitations and of sign-in links."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("mail")

    def secret(self, kind: LinkKind, target_id: str, generation: int) -> str:
        """Secret of the invitation or request `target_id` in this generation (docs/concepts.md, Credentials)."""
        message = json.dumps([kind, target_id, generation]).encode()
        return token_format.format_credential(kind, target_id, hmac.digest(self._key, message, "sha256"))

    def matches_early_generation(self, presented: str, kind: LinkKind, target_id: str) -> bool:
        """Whether `presented` is the secret of one of the first 16 generations; doesn't access the database."""
        return any(self.opens(presented, kind, target_id, generation) for generation in range(1, EARLY_GENERATIONS + 1))

    def opens(self, presented: str, kind: LinkKind, target_id: str, generation: int) -> bool:
        """Whether `presented` is the secret of this generation, compared in constant time."""
        return hmac.compare_digest(presented.encode(), self.secret(kind, target_id, generation).encode())
