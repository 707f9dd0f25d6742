"""What makes tampering show: the hash of an entry, the commitment to a personal value, the signature of a mark.

Each entry's hash covers the one before. Whoever rewrites entries must rewrite all behind them too, and then meets a
mark that only the server's key can sign.
"""

import hashlib
import hmac
import json

from rolecall.keys import ServerKey
from rolecall.storage.audit import Checkpoint, Head, Stored

__all__ = ["NO_HASH", "Seal", "commitment", "hash_of", "text_of"]

# What stands before the first entry.
NO_HASH = bytes(32)


def text_of(details: object) -> str:
    """The one way to write details down."""
    return json.dumps(details, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def hash_of(organization: str, entry: Stored) -> bytes:
    """The hash of an entry from all that it holds but the hash itself."""
    text = json.dumps([organization, *entry[:9]], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(entry.previous_hash + text.encode()).digest()


def commitment(salt: bytes, person: str, kind: str, value: str) -> str:
    """What the chain holds of a personal value: its proof while it is there, nothing once it and the salt are gone."""
    return hashlib.sha256(salt + json.dumps([person, kind, value]).encode()).hexdigest()


class Seal:
    """Signs marks with the server's key. Each sort has its own meaning, so that none can stand in for another."""

    def __init__(self, key: ServerKey) -> None:
        self._key = key.derive("checkpoints")
        self.key_id = key.id

    def sign(self, sort: str, organization: str, sequence: int, digest: bytes) -> bytes:
        """The signature of a mark of the sort `head`, `start` or `checkpoint`."""
        message = json.dumps([sort, organization, sequence, digest.hex(), self.key_id]).encode()
        return hmac.digest(self._key, message, "sha256")

    def holds_head(self, head: Head) -> bool:
        """Whether the end of the log is what this key signed."""
        return self._holds("head", head.organization, head.sequence, head.hash, head.key_id, head.signature)

    def holds_start(self, head: Head) -> bool:
        """Whether the beginning of the log is what this key signed."""
        mark = (head.organization, head.start_sequence, head.start_hash, head.key_id)
        return self._holds("start", *mark, head.start_signature)

    def holds_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is what this key signed."""
        mark = (checkpoint.organization, checkpoint.sequence, checkpoint.hash, checkpoint.key_id)
        return self._holds("checkpoint", *mark, checkpoint.signature)

    def _holds(
        self, sort: str, organization: str, sequence: int, digest: object, key_id: str, signature: object
    ) -> bool:
        # SQLite stores text in a column for bytes, if somebody puts it there.
        if key_id != self.key_id or not isinstance(digest, bytes) or not isinstance(signature, bytes):
            return False
        return hmac.compare_digest(self.sign(sort, organization, sequence, digest), signature)
