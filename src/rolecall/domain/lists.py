"""Parts of lists, and the entries of the audit log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AuditEntry", "AuditFilter", "Page"]


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: at most `size` entries after the one that `token` names."""

    size: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change, or refused attempts at one. `reason` is empty for a change that was made.

    `details` are as people read them: values of persons in their places, `[erased]` where they were erased.
    """

    sequence: int
    time: int
    actor: str
    credential_id: str
    action: str
    object: str
    reason: str
    details: Mapping[str, Any]
    request_id: str
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; what is empty or None takes any. `denied`: those with a reason, or those without."""

    start_time: int | None = None
    end_time: int | None = None
    actor: str = ""
    action: str = ""
    object: str = ""
    denied: bool | None = None
