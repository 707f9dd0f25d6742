"""The log of every change and every refused attempt: hash-chained, signed with the server's key, erasable by person."""

from rolecall.audit.denials import Denials
from rolecall.audit.export import AuditFormat, export_lines
from rolecall.audit.log import OPERATOR, AuditLog, Event, Private
from rolecall.audit.reading import list_entries, read_entries
from rolecall.audit.upkeep import begin_first, check_key, erase, prune, restart
from rolecall.audit.verify import Mark, Verdict, verify

__all__ = [
    "OPERATOR",
    "AuditFormat",
    "AuditLog",
    "Denials",
    "Event",
    "Mark",
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
