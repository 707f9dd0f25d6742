"""Entries as lines of a file: CSV or JSON Lines."""

import csv
import io
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from rolecall.domain import AuditEntry, rfc3339

__all__ = ["AuditFormat", "export_lines"]

# Spreadsheets take a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@")


class AuditFormat(StrEnum):
    """How entries are written."""

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
    "request_id",
    "previous_hash",
    "hash",
)


def export_lines(entries: Iterable[AuditEntry], form: AuditFormat, *, header: bool) -> str:
    """The entries as whole lines; with `header`, CSV's first line before them."""
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
        "denied" if entry.reason else "done",
        entry.reason,
        entry.details,
        entry.request_id,
        entry.previous_hash.hex(),
        entry.hash.hex(),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
