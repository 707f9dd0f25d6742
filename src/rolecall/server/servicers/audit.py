"""AuditService."""

import binascii
from collections.abc import Iterator, Mapping

from google.protobuf.struct_pb2 import Struct

from rolecall.audit import AuditFormat, EntryHash
from rolecall.domain import AuditEntry, AuditFilter
from rolecall.errors import InvalidField
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.audit import AuditLogs
from rolecall.v1 import audit_pb2 as pb

__all__ = ["AuditService"]

MAX_TEXT = 128
# Of `user:` and an address.
MAX_ADDRESS = 259

_FORMATS = {pb.AUDIT_FORMAT_CSV: AuditFormat.CSV, pb.AUDIT_FORMAT_JSON_LINES: AuditFormat.JSON_LINES}
_OUTCOMES = {pb.AUDIT_OUTCOME_UNSPECIFIED: None, pb.AUDIT_OUTCOME_SUCCEEDED: False, pb.AUDIT_OUTCOME_DENIED: True}


class AuditService:
    """Lists, exports and verifies the audit log."""

    def __init__(self, auditing: AuditLogs) -> None:
        self._auditing = auditing

    def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, call: Call) -> pb.ListAuditEntriesResponse:
        """List entries, the newest first."""
        wanted = _filter(request.filter)
        page = self._auditing.entries(call.caller_in(request.organization), wanted, requests.page(request))
        return pb.ListAuditEntriesResponse(
            entries=[_entry(entry, page.addresses) for entry in page.entries], next_page_token=page.next_page_token
        )

    def ExportAuditEntries(
        self, request: pb.ExportAuditEntriesRequest, call: Call
    ) -> Iterator[pb.ExportAuditEntriesResponse]:
        """Stream entries as lines of a file."""
        form = _FORMATS.get(request.format)
        if form is None:
            raise InvalidField("format is not set, or unknown: give AUDIT_FORMAT_CSV or _JSON_LINES.", field="format")
        wanted, after = _filter(request.filter), _sequence(request.after_sequence, "after_sequence")
        for chunk in self._auditing.export(call.caller_in(request.organization), wanted, form, after):
            yield pb.ExportAuditEntriesResponse(data=chunk.text.encode(), last_sequence=chunk.last_sequence)

    def VerifyAuditLog(self, request: pb.VerifyAuditLogRequest, call: Call) -> pb.VerifyAuditLogResponse:
        """Verify the hash chain and the signatures."""
        first = _sequence(request.first_sequence, "first_sequence")
        last = _sequence(request.last_sequence, "last_sequence")
        known = _mark(request.known) if request.HasField("known") else None
        verdict = self._auditing.verify(call.caller_in(request.organization), first, last, known, call.confirm)
        head = verdict.head
        return pb.VerifyAuditLogResponse(
            verdict=pb.AUDIT_VERDICT_INTACT if verdict.intact else pb.AUDIT_VERDICT_TAMPERED,
            first_bad_sequence=verdict.first_bad,
            problem=verdict.problem,
            entry_count=verdict.entries,
            head=pb.AuditMark(sequence=head.sequence, hash=head.hash.hex()) if head else None,
        )


def _filter(message: pb.AuditFilter) -> AuditFilter:
    """Convert the filter. Raises `InvalidField`."""
    for name, maximum in (("actor", MAX_ADDRESS), ("action", MAX_TEXT), ("object", MAX_ADDRESS)):
        text: str = getattr(message, name)
        if len(text) > (maximum if "@" in text else MAX_TEXT) or not text.isprintable():
            raise InvalidField(
                f"filter.{name} has more than {MAX_TEXT} characters, or an invisible one: give it as entries show it.",
                field=f"filter.{name}",
            )
    if message.outcome not in _OUTCOMES:
        raise InvalidField("filter.outcome is unknown: give succeeded or denied, or none.", field="filter.outcome")
    start = requests.timestamp(message.start_time, "filter.start_time") if message.HasField("start_time") else None
    end = requests.timestamp(message.end_time, "filter.end_time") if message.HasField("end_time") else None
    actors, objects = ((text,) if text else () for text in (message.actor, message.object))
    return AuditFilter(start, end, actors, message.action, objects, _OUTCOMES[message.outcome])


def _sequence(number: int, field: str) -> int:
    if number < 0:
        raise InvalidField(f"{field} is {number}: give an entry's sequence number, or 0.", field=field)
    return number


def _mark(message: pb.AuditMark) -> EntryHash:
    try:
        digest = binascii.unhexlify(message.hash)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 32 or message.sequence < 1:
        raise InvalidField(
            "known is no mark: give an entry's sequence number and its hash in 64 hexadecimal digits.", field="known"
        )
    return EntryHash(message.sequence, digest)


def _entry(value: AuditEntry, addresses: Mapping[str, str]) -> pb.AuditEntry:
    details = Struct()
    details.update(value.details)
    return pb.AuditEntry(
        sequence=value.sequence,
        time=responses.timestamp(value.time),
        actor=value.actor,
        credential_id=value.credential_id,
        action=value.action,
        object=value.object,
        outcome=pb.AUDIT_OUTCOME_DENIED if value.reason else pb.AUDIT_OUTCOME_SUCCEEDED,
        reason=value.reason,
        details=details,
        call_id=value.call_id,
        previous_hash=value.previous_hash.hex(),
        hash=value.hash.hex(),
        actor_email=addresses.get(value.actor, ""),
        object_email=addresses.get(value.object, ""),
    )
