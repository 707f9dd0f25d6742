"""Reading entries as people want them: personal values in their places."""

import json
from typing import Any

from rolecall.domain import AuditEntry, AuditFilter
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage.audit import Stored

__all__ = ["commitments", "list_entries", "read_entries"]

ERASED = "[erased]"
# What stands in stored details for a personal value.
PLACEHOLDER = {"private", "person", "sha256"}


def list_entries(
    tx: Transaction, organization: str, wanted: AuditFilter, below: int | None, limit: int
) -> list[AuditEntry]:
    """At most `limit` entries from the newest to the oldest, those before the sequence number `below`."""
    return _readable(tx, organization, rows.page(tx, organization, wanted, below, limit))


def read_entries(tx: Transaction, organization: str, wanted: AuditFilter, above: int, limit: int) -> list[AuditEntry]:
    """At most `limit` entries from the oldest to the newest, those behind the sequence number `above`."""
    return _readable(tx, organization, rows.oldest_since(tx, organization, wanted, above, limit))


def _readable(tx: Transaction, organization: str, stored: list[Stored]) -> list[AuditEntry]:
    found = rows.values_of(tx, organization, [entry.sequence for entry in stored])
    values = {(value.sequence, value.number): value.value for value in found}
    return [_entry(entry, values) for entry in stored]


def _entry(stored: Stored, values: dict[tuple[int, int], str]) -> AuditEntry:
    """The entry with each commitment replaced by what it stands for."""

    def filled(part: dict[str, Any]) -> Any:
        if part.keys() == PLACEHOLDER:
            return values.get((stored.sequence, part["private"]), ERASED)
        return part

    details = json.loads(stored.details, object_hook=filled)
    return AuditEntry(**{**stored._asdict(), "details": details})


def commitments(details: str) -> dict[int, tuple[str, str]]:
    """Whose each personal value in an entry's stored details is, and the commitment to it, by its number."""
    found: dict[int, tuple[str, str]] = {}

    def note(part: dict[str, Any]) -> None:
        if part.keys() == PLACEHOLDER:
            found[part["private"]] = (part["person"], part["sha256"])

    # Most entries are about nobody.
    if '"sha256"' in details:
        json.loads(details, object_hook=note)
    return found
