"""Readable entries: with the personal values in place of their commitments, as objects, CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from rolecall.domain import AuditEntry, AuditFilter, rfc3339
from rolecall.storage import Transaction
from rolecall.storage import audit as rows
from rolecall.storage.audit import StoredEntry

__all__ = ["AuditFormat", "commitments", "export_lines", "list_entries", "read_entries"]

ERASED = "[erased]"
# Keys of the object that replaces a personal value in stored details.
PLACEHOLDER = {"private", "person", "sha256"}


def list_entries(
    tx: Transaction, organization: str, wanted: AuditFilter, below: int | None, limit: int
) -> list[AuditEntry]:
    """Return at most `limit` entries, newest first, with sequence numbers below `below`."""
    return _readable(tx, organization, rows.page(tx, organization, wanted, below, limit))


def read_entries(tx: Transaction, organization: str, wanted: AuditFilter, above: int, limit: int) -> list[AuditEntry]:
    """Return at most `limit` entries, oldest first, with sequence numbers above `above`."""
    return _readable(tx, organization, rows.oldest_since(tx, organization, wanted, above, limit))


def _readable(tx: Transaction, organization: str, stored: list[StoredEntry]) -> list[AuditEntry]:
    found = rows.values_of(tx, organization, [entry.sequence for entry in stored])
    values = {(value.sequence, value.number): value.value for value in found}
    return [_entry(entry, values) for entry in stored]


def _entry(stored: StoredEntry, values: dict[tuple[int, int], str]) -> AuditEntry:
    """Return the entry with each commitment replaced by its personal value, or `[erased]`."""

    def filled(part: dict[str, Any]) -> Any:
        if part.keys() == PLACEHOLDER:
            return values.get((stored.sequence, part["private"]), ERASED)
        return part

    details = json.loads(stored.details, object_hook=filled)
    return AuditEntry(**{**stored._asdict(), "details": details})


def commitments(details: str) -> dict[int, tuple[str, str]]:
    """Return the person and the commitment of each personal value in an entry's stored details, by its number."""
    found: dict[int, tuple[str, str]] = {}

    def note(part: dict[str, Any]) -> None:
        if part.keys() == PLACEHOLDER:
            found[part["private"]] = (part["person"], part["sha256"])

    # Most entries hold no personal value.
    if '"sha256"' in details:
        json.loads(details, object_hook=note)
    return found


# First characters of cells that spreadsheets evaluate as formulas.
_FORMULA = ("=", "+", "-", "@")


class AuditFormat(StrEnum):
    """File format of exported entries."""

    CSV = "csv"
    JSON_LINES = "jsonl"


_COLUMNS = (
    "sequence",
    "time",
    "actor",
    "credential_id",
    "action",
    "object",
    "outcome",
    "reason",
    "details",
    "call_id",
    "previous_hash",
    "hash",
)


def export_lines(entries: Iterable[AuditEntry], form: AuditFormat, *, header: bool) -> str:
    """Format the entries as complete lines; with `header`, CSV's header line first."""
    if form is AuditFormat.JSON_LINES:
        return "".join(f"{json.dumps(_values(entry), ensure_ascii=False)}\n" for entry in entries)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(_COLUMNS)
    writer.writerows([_cell(value) for value in _values(entry).values()] for entry in entries)
    return file.getvalue()


def _values(entry: AuditEntry) -> dict[str, Any]:
    values = (
        entry.sequence,
        rfc3339(entry.time),
        entry.actor,
        entry.credential_id,
        entry.action,
        entry.object,
        "denied" if entry.reason else "succeeded",
        entry.reason,
        entry.details,
        entry.call_id,
        entry.previous_hash.hex(),
        entry.hash.hex(),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
