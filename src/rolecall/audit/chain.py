"""Tamper evidence: the hash of an entry, the commitment to a personal value, the signature of a position.

Each entry's hash covers the hash of the entry before. An attacker who rewrites entries must rewrite all later ones too,
up to a position in the log whose hash only the server's key can sign.
"""

import hashlib
import hmac
import json

from rolecall.credentials.server_key import ServerKey
from rolecall.storage.audit import Checkpoint, Head, StoredEntry

__all__ = ["NO_HASH", "Signer", "canonical_json", "commitment", "hash_of"]

# The previous hash of the first entry.
NO_HASH = bytes(32)


def canonical_json(details: object) -> str:
    """Return the details as canonical JSON: the hash needs the same text each time."""
    return json.dumps(details, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def hash_of(organization: str, entry: StoredEntry) -> bytes:
    """Compute the hash of an entry from its other fields."""
    text = json.dumps([organization, *entry[:9]], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(entry.previous_hash + text.encode()).digest()


def commitment(salt: bytes, person: str, kind: str, value: str) -> str:
    """Compute the commitment that the chain holds to a personal value.

    It proves the value while that is stored, and discloses nothing once the value and the salt are erased.
    """
    return hashlib.sha256(salt + json.dumps([person, kind, value]).encode()).hexdigest()


class Signer:
    """Signs positions in a log with the server's key.

    A signature covers the kind of position (`head`, `start` or `checkpoint`): one kind can't stand in for another.
    """

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("checkpoints")
        self.key_id = key.id

    def sign(self, kind: str, organization: str, sequence: int, digest: bytes) -> bytes:
        """Sign a position of the kind `head`, `start` or `checkpoint`."""
        message = json.dumps([kind, organization, sequence, digest.hex(), self.key_id]).encode()
        return hmac.digest(self._key, message, "sha256")

    def is_head_signed(self, head: Head) -> bool:
        """Whether this key signed the end of the log."""
        return self._is_signed("head", head.organization, head.sequence, head.hash, head.key_id, head.signature)

    def is_start_signed(self, head: Head) -> bool:
        """Whether this key signed the beginning of the log."""
        position = (head.organization, head.start_sequence, head.start_hash, head.key_id)
        return self._is_signed("start", *position, head.start_signature)

    def is_checkpoint_signed(self, checkpoint: Checkpoint) -> bool:
        """Whether this key signed the checkpoint."""
        position = (checkpoint.organization, checkpoint.sequence, checkpoint.hash, checkpoint.key_id)
        return self._is_signed("checkpoint", *position, checkpoint.signature)

    def _is_signed(
        self, kind: str, organization: str, sequence: int, digest: object, key_id: str, signature: object
    ) -> bool:
        # A tampered SQLite row may hold text in a column for bytes.
        if key_id != self.key_id or not isinstance(digest, bytes) or not isinstance(signature, bytes):
            return False
        return hmac.compare_digest(self.sign(kind, organization, sequence, digest), signature)
