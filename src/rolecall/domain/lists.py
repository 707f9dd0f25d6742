"""Pages of lists, and entries of the audit log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AuditEntry", "AuditFilter", "Page"]


@dataclass(frozen=True, slots=True)
class Page:
    """Request for a page: at most `size` entries (0: the default) after the position in `token` (empty: the start)."""

    size: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Entry of the audit log: one change, or refused attempts at one. `reason` is empty for a change that was made.

    `details` contain the personal values themselves, and `[erased]` for those that were erased.
    """

    sequence: int
    time: int
    actor: str
    credential_id: str
    action: str
    object: str
    reason: str
    details: Mapping[str, Any]
    call_id: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Filter of audit entries; fields that are empty or None match any. `denied`: entries with a reason, or without.

    An entry matches if its actor and its object are among those that are listed.
    """

    start_time: int | None = None
    end_time: int | None = None
    actors: tuple[str, ...] = ()
    action: str = ""
    objects: tuple[str, ...] = ()
    denied: bool | None = None
