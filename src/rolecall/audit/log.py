"""Writing entries, in the transaction of the change that they are about."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import structlog

from rolecall.audit.chain import NO_HASH, Seal, commitment, hash_of, text_of
from rolecall.domain import now
from rolecall.errors import AuditLogBroken
from rolecall.keys import ServerKey
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage.audit import Checkpoint, Head, Stored, Value

__all__ = ["CHECKPOINT_EVERY", "ERASE", "OPERATOR", "AuditLog", "Event", "Private"]

# Who acts where somebody works on the database itself.
OPERATOR = "operator"

# The action by which an operator erases a person's values.
ERASE = "EraseAuditValues"

CHECKPOINT_EVERY = 100
SALT_BYTES = 16

_log = structlog.get_logger("rolecall.audit")


@dataclass(frozen=True, slots=True)
class Private:
    """An address or name in the details of an event, of the person with this user id: it can be erased later."""

    person: str
    value: str
    kind: Literal["name", "email"] = "name"


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. `details` are JSON values, and `Private` ones; never a secret. `reason`: why it was denied."""

    organization: str
    actor: str
    action: str
    object: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    credential_id: str = ""
    request_id: str = ""
    reason: str = ""


class AuditLog:
    """Writes the logs of all organizations."""

    def __init__(self, key: ServerKey) -> None:
        self.seal = Seal(key)

    def begin(self, tx: Transaction, organization: str) -> None:
        """Start the log of a new organization."""
        sign = partial(self.seal.sign, organization=organization, sequence=0, digest=NO_HASH)
        rows.add_head(tx, Head(organization, 0, NO_HASH, sign("head"), 0, NO_HASH, sign("start"), self.seal.key_id))

    def locked_head(self, tx: Transaction, organization: str) -> Head:
        """The end of the log; nobody else writes to it until the transaction ends.

        Raises `AuditLogBroken` where it isn't what this server signed: to go on would sign what somebody forged.
        """
        head = rows.head(tx, organization, locked=True)
        if head is None or not self.seal.holds_head(head) or not self.seal.holds_start(head):
            raise AuditLogBroken(
                f"The audit log of {organization} has no valid end, so nothing can be changed there: somebody tampered"
                " with it. Its operator can restore the database, or begin anew with `rolecall audit restart`.",
                organization=organization,
            )
        return head

    def record(self, tx: Transaction, event: Event) -> None:
        """Append an entry. It is there once the transaction is committed, as are the changes it tells of."""
        head = self.locked_head(tx, event.organization)
        sequence = head.sequence + 1
        values: list[Value] = []
        entry = Stored(
            sequence=sequence,
            time=now(),
            actor=event.actor,
            credential_id=event.credential_id,
            action=event.action,
            object=event.object,
            reason=event.reason,
            details=text_of(_committed(event.details, sequence, values)),
            request_id=event.request_id,
            previous_hash=head.hash,
            hash=b"",
        )
        entry = entry._replace(hash=hash_of(event.organization, entry))
        rows.add(tx, event.organization, entry)
        if values:
            rows.add_values(tx, event.organization, values)
        signature = self.seal.sign("head", event.organization, sequence, entry.hash)
        rows.move_head(
            tx, replace(head, sequence=sequence, hash=entry.hash, signature=signature, key_id=self.seal.key_id)
        )
        if sequence % CHECKPOINT_EVERY == 0:
            self._checkpoint(tx, event.organization, entry)

    def _checkpoint(self, tx: Transaction, organization: str, entry: Stored) -> None:
        """Keep a signed mark in the table, and one in the server's log, which other people may look after."""
        signature = self.seal.sign("checkpoint", organization, entry.sequence, entry.hash)
        rows.add_checkpoint(tx, Checkpoint(organization, entry.sequence, entry.hash, self.seal.key_id, signature))
        told = {"organization": organization, "sequence": entry.sequence, "hash": entry.hash.hex()}
        tx.afterwards.append(partial(_log.info, "audit checkpoint", **told, signature=signature.hex()))


def _committed(value: Any, sequence: int, values: list[Value]) -> Any:
    """The details with a commitment in the place of each personal value; those are added to `values`."""
    match value:
        case Private():
            kept = Value(sequence, len(values), value.person, value.kind, os.urandom(SALT_BYTES), value.value)
            values.append(kept)
            sealed = commitment(kept.salt, kept.person, kept.kind, kept.value)
            return {"private": kept.number, "person": kept.person, "sha256": sealed}
        case Mapping():
            return {key: _committed(item, sequence, values) for key, item in value.items()}
        case list() | tuple():
            return [_committed(item, sequence, values) for item in value]
        case _:
            return value
