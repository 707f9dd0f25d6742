"""Audit log of changes and denied attempts: hash-chained, signed with the server's key, erasable by person."""

from rolecall.audit.activations import ActivationEntries
from rolecall.audit.denials import Denials
from rolecall.audit.entries import AuditFormat, export_lines, list_entries, read_entries
from rolecall.audit.log import OPERATOR, AuditLog, Event, Private
from rolecall.audit.maintenance import begin_first, check_key, erase, prune, restart
from rolecall.audit.verify import EntryHash, Verdict, verify

__all__ = [
    "OPERATOR",
    "ActivationEntries",
    "AuditFormat",
    "AuditLog",
    "Denials",
    "EntryHash",
    "Event",
    "Private",
    "Verdict",
    "begin_first",
    "check_key",
    "erase",
    "export_lines",
    "list_entries",
    "prune",
    "read_entries",
    "restart",
    "verify",
]
