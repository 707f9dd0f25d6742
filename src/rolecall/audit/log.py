"""Writer of audit entries, in the transaction of the change that they describe."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import structlog

from rolecall.audit.chain import NO_HASH, Signer, canonical_json, commitment, hash_of
from rolecall.credentials.server_key import ServerKey
from rolecall.domain import now, rfc3339
from rolecall.errors import AuditLogBroken
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage import policies as policy_rows
from rolecall.storage.audit import Checkpoint, Head, PersonalValue, StoredEntry

__all__ = ["ACTIVATE_POLICY", "CHECKPOINT_EVERY", "ERASE", "OPERATOR", "AuditLog", "Event", "Private"]

# Actor of changes made by commands at the database.
OPERATOR = "operator"

# Action of the entry that an operator's erasure of a person's values leaves.
ERASE = "EraseAuditValues"

# Action of the entry that each log has for each activation of a policy.
ACTIVATE_POLICY = "ActivatePolicy"

# Sequence number of a database's first activation.
FIRST_ACTIVATION = 1

# Entries between two checkpoints.
CHECKPOINT_EVERY = 100
SALT_BYTES = 16

_log = structlog.get_logger("rolecall.audit")


@dataclass(frozen=True, slots=True)
class Private:
    """Personal value in the details of an event, erasable later: an address, name or external id of this person."""

    person: str
    value: str
    kind: Literal["name", "email", "external_id"] = "name"


@dataclass(frozen=True, slots=True)
class Event:
    """Change or denied attempt. `details` holds JSON values and `Private` ones, never a secret.

    `reason` is empty for a change, else the reason of the denial.
    """

    organization: str
    actor: str
    action: str
    object: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    credential_id: str = ""
    call_id: str = ""
    reason: str = ""


class AuditLog:
    """Writes the audit logs of all organizations."""

    def __init__(self, key: ServerKey) -> None:
        self.signer = Signer(key)

    def begin(self, tx: Transaction, organization: str) -> None:
        """Start the log of a new organization. It records the activations of policies from now on."""
        sign = partial(self.signer.sign, organization=organization, sequence=0, digest=NO_HASH)
        end, start = sign("head"), sign("start")
        # The first policy of a database replaces none.
        in_force = max(policy_rows.sequence_in_force(tx), FIRST_ACTIVATION)
        rows.add_head(tx, Head(organization, 0, NO_HASH, end, 0, NO_HASH, start, self.signer.key_id, in_force))

    def locked_head(self, tx: Transaction, organization: str) -> Head:
        """Read and lock the end of the log: no other transaction writes to the log before this one ends.

        Raises `AuditLogBroken` where this server didn't sign it: appending would sign a forgery.
        """
        head = rows.head(tx, organization, locked=True)
        if head is None or not self.signer.is_head_signed(head) or not self.signer.is_start_signed(head):
            raise AuditLogBroken(
                f"The audit log of {organization} has no valid end, so nothing can be changed there: somebody tampered"
                " with it. Its operator can restore the database, or start a new log with"
                " `rolecall operator audit restart`.",
                organization=organization,
            )
        return head

    def record(self, tx: Transaction, event: Event) -> None:
        """Append an entry; it is committed together with the change that it describes.

        Before it come the activations of policies that the log doesn't record yet: what was judged under a policy
        stands after the entry about its activation.
        """
        self._append(tx, self._with_activations(tx, event.organization), event)

    def record_activations(self, tx: Transaction, organization: str) -> None:
        """Append an entry for each activation of a policy that the log doesn't record yet. Raises `AuditLogBroken`."""
        self._with_activations(tx, organization)

    def _with_activations(self, tx: Transaction, organization: str) -> Head:
        """Record the activations since the last that is recorded; return the locked end of the log after that."""
        head = self.locked_head(tx, organization)
        before = ""
        for activation in policy_rows.activations_from(tx, head.activation):
            if activation.sequence > head.activation:
                details = {
                    "before": {"policy_version": before},
                    "after": {"policy_version": activation.version},
                    "activation": activation.sequence,
                    "activator": activation.activator,
                    "activate_time": rfc3339(activation.time),
                }
                event = Event(organization, OPERATOR, ACTIVATE_POLICY, f"policy:{activation.version}", details)
                head = self._append(tx, replace(head, activation=activation.sequence), event)
            before = activation.version
        return head

    def _append(self, tx: Transaction, head: Head, event: Event) -> Head:
        """Append an entry after the locked end of the log; return the new end."""
        sequence = head.sequence + 1
        values: list[PersonalValue] = []
        entry = StoredEntry(
            sequence=sequence,
            time=now(),
            actor=event.actor,
            credential_id=event.credential_id,
            action=event.action,
            object=event.object,
            reason=event.reason,
            details=canonical_json(_committed(event.details, sequence, values)),
            call_id=event.call_id,
            previous_hash=head.hash,
            hash=b"",
        )
        entry = entry._replace(hash=hash_of(event.organization, entry))
        rows.add(tx, event.organization, entry)
        if values:
            rows.add_values(tx, event.organization, values)
        signature = self.signer.sign("head", event.organization, sequence, entry.hash)
        moved = replace(head, sequence=sequence, hash=entry.hash, signature=signature, key_id=self.signer.key_id)
        rows.move_head(tx, moved)
        if sequence % CHECKPOINT_EVERY == 0:
            self._checkpoint(tx, event.organization, entry)
        return moved

    def _checkpoint(self, tx: Transaction, organization: str, entry: StoredEntry) -> None:
        """Store a signed checkpoint, and log it: the server's log may be kept out of reach of an attacker."""
        signature = self.signer.sign("checkpoint", organization, entry.sequence, entry.hash)
        rows.add_checkpoint(tx, Checkpoint(organization, entry.sequence, entry.hash, self.signer.key_id, signature))
        named = {"organization": organization, "sequence": entry.sequence, "hash": entry.hash.hex()}
        tx.on_commit.append(partial(_log.info, "audit checkpoint", **named, signature=signature.hex()))


def _committed(value: Any, sequence: int, values: list[PersonalValue]) -> Any:
    """Return the details with a commitment in place of each personal value, which is added to `values`."""
    match value:
        case Private():
            stored = PersonalValue(sequence, len(values), value.person, value.kind, os.urandom(SALT_BYTES), value.value)
            values.append(stored)
            digest = commitment(stored.salt, stored.person, stored.kind, stored.value)
            return {"private": stored.number, "person": stored.person, "sha256": digest}
        case Mapping():
            return {key: _committed(item, sequence, values) for key, item in value.items()}
        case list() | tuple():
            return [_committed(item, sequence, values) for item in value]
        case _:
            return value
