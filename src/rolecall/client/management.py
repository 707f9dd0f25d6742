"""Tokens, the organization and its audit log, through the client library."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.client.connection import PAGE_SIZE, Connection, pick
from rolecall.errors import CallFailed
from rolecall.v1 import audit_pb2, organization_pb2, session_pb2, shared_pb2, token_pb2
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from rolecall.v1.organization_pb2_grpc import OrganizationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub
from rolecall.v1.token_pb2_grpc import TokenServiceStub

__all__ = ["AuditClient", "OrganizationClient", "SessionClient", "TokenClient", "audit_filter"]

# A stream that breaks off is taken up again where it was; not for ever, if nothing comes.
RESUMES = 5
# A log of a million entries takes some ten to thirty seconds.
VERIFY_SECONDS = 600.0

_KINDS = {
    "": shared_pb2.CREDENTIAL_KIND_UNSPECIFIED,
    "personal": shared_pb2.CREDENTIAL_KIND_PERSONAL_TOKEN,
    "organization": shared_pb2.CREDENTIAL_KIND_ORGANIZATION_TOKEN,
}
_STATES = {
    "": token_pb2.TOKEN_STATE_UNSPECIFIED,
    "live": token_pb2.TOKEN_STATE_LIVE,
    "expired": token_pb2.TOKEN_STATE_EXPIRED,
    "deleted": token_pb2.TOKEN_STATE_DELETED,
}
_OUTCOMES = {
    "": audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
    "done": audit_pb2.AUDIT_OUTCOME_DONE,
    "denied": audit_pb2.AUDIT_OUTCOME_DENIED,
}
_FORMATS = {"csv": audit_pb2.AUDIT_FORMAT_CSV, "jsonl": audit_pb2.AUDIT_FORMAT_JSON_LINES}


class TokenClient:
    """`Client.tokens`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = TokenServiceStub(connection.channel)

    def create_personal(
        self,
        name: str,
        *,
        expires: datetime | timedelta | None = None,
        restriction: Iterable[tuple[str, str]] | None = None,
    ) -> token_pb2.CreatePersonalTokenResponse:
        """Create a token for oneself.

        `expires`: when, or after how long. `restriction`: (resource, action) patterns.
        """
        request = token_pb2.CreatePersonalTokenRequest(organization=self._connection.organization, name=name)
        _bound(request, expires, restriction)
        return self._connection.change(self._stub.CreatePersonalToken, request)

    def create_organization(
        self,
        name: str,
        role: str,
        *,
        expires: datetime | timedelta | None = None,
        restriction: Iterable[tuple[str, str]] | None = None,
    ) -> token_pb2.CreateOrganizationTokenResponse:
        """Create a token for a program, with a role of its own; the rest as for `create_personal`."""
        request = token_pb2.CreateOrganizationTokenRequest(
            organization=self._connection.organization, name=name, role=role
        )
        _bound(request, expires, restriction)
        return self._connection.change(self._stub.CreateOrganizationToken, request)

    def list(
        self,
        *,
        kind: str = "",
        user_id: str = "",
        state: str = "",
    ) -> Iterator[token_pb2.Token]:
        """The tokens that pass the filters, the newest first, page by page.

        `kind`: personal or organization; `state`: live, expired or deleted; empty takes any.
        """
        request = token_pb2.ListTokensRequest(
            organization=self._connection.organization,
            kind=pick(_KINDS, kind, "kind"),
            user_id=user_id,
            state=pick(_STATES, state, "state"),
            page_size=PAGE_SIZE,
        )
        for page in self._connection.pages(self._stub.ListTokens, request):
            yield from page.tokens

    def rotate(
        self, token_id: str, *, overlap: timedelta = timedelta(0), etag: str = ""
    ) -> token_pb2.RotateTokenResponse:
        """Give a token a new secret; the old one works for `overlap` yet, at most 24 hours."""
        request = token_pb2.RotateTokenRequest(
            organization=self._connection.organization, id=token_id, overlap=_span(overlap), etag=etag
        )
        return self._connection.change(self._stub.RotateToken, request)

    def delete(self, token_id: str, *, etag: str = "") -> token_pb2.DeleteTokenResponse:
        """Kill a token, at once and for ever."""
        request = token_pb2.DeleteTokenRequest(organization=self._connection.organization, id=token_id, etag=etag)
        return self._connection.change(self._stub.DeleteToken, request)


class SessionClient:
    """`Client.session`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = SessionServiceStub(connection.channel)

    def who_am_i(self) -> session_pb2.WhoAmIResponse:
        """Whose the presented credential is, and what it may do."""
        request = session_pb2.WhoAmIRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.WhoAmI, request)

    def sign_out(self) -> session_pb2.SignOutResponse:
        """Kill the presented credential."""
        request = session_pb2.SignOutRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.SignOut, request)


class OrganizationClient:
    """`Client.organization`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = OrganizationServiceStub(connection.channel)

    def get(self) -> organization_pb2.Organization:
        """The organization, with what should be looked after."""
        request = organization_pb2.GetOrganizationRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.GetOrganization, request).organization

    def update(self, display_name: str, *, etag: str = "") -> organization_pb2.Organization:
        """Give the organization another name to show."""
        request = organization_pb2.UpdateOrganizationRequest(
            organization=self._connection.organization, display_name=display_name, etag=etag
        )
        return self._connection.change(self._stub.UpdateOrganization, request).organization


class AuditClient:
    """`Client.audit`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = AuditServiceStub(connection.channel)

    def list(self, wanted: audit_pb2.AuditFilter | None = None) -> Iterator[audit_pb2.AuditEntry]:
        """The entries that pass the filter, the newest first, page by page."""
        request = audit_pb2.ListAuditEntriesRequest(
            organization=self._connection.organization, filter=wanted, page_size=PAGE_SIZE
        )
        for page in self._connection.pages(self._stub.ListAuditEntries, request):
            yield from page.entries

    def export(self, form: str, wanted: audit_pb2.AuditFilter | None = None) -> Iterator[bytes]:
        """The entries as pieces of a file, csv or jsonl, the oldest first. What breaks off is taken up again."""
        request = audit_pb2.ExportAuditEntriesRequest(
            organization=self._connection.organization, filter=wanted, format=pick(_FORMATS, form, "form")
        )
        idle = 0
        while True:
            try:
                for part in self._connection.stream(self._stub.ExportAuditEntries, request):
                    yield part.data
                    request.after_sequence = part.last_sequence
                    idle = 0
            except CallFailed:
                idle += 1
                if idle > RESUMES or not request.after_sequence:
                    raise
            else:
                return

    def verify(
        self, *, first: int = 0, last: int = 0, known: tuple[int, str] | None = None
    ) -> audit_pb2.VerifyAuditLogResponse:
        """Whether the log is whole; `known` is an entry's sequence number and hash that were kept elsewhere."""
        mark = audit_pb2.AuditMark(sequence=known[0], hash=known[1]) if known else None
        request = audit_pb2.VerifyAuditLogRequest(
            organization=self._connection.organization, first_sequence=first, last_sequence=last, known=mark
        )
        return self._connection.call(self._stub.VerifyAuditLog, request, at_least=VERIFY_SECONDS)


def audit_filter(
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    actor: str = "",
    action: str = "",
    done_to: str = "",
    outcome: str = "",
) -> audit_pb2.AuditFilter:
    """Which entries are wanted; what is empty takes any. `outcome`: done or denied."""
    return audit_pb2.AuditFilter(
        start_time=_time(since) if since else None,
        end_time=_time(until) if until else None,
        actor=actor,
        action=action,
        object=done_to,
        outcome=pick(_OUTCOMES, outcome, "outcome"),
    )


def _bound(request: Any, expires: datetime | timedelta | None, restriction: Iterable[tuple[str, str]] | None) -> None:
    if isinstance(expires, datetime):
        request.expire_time.CopyFrom(_time(expires))
    elif expires is not None:
        request.ttl.CopyFrom(_span(expires))
    if restriction is not None:
        request.restriction.SetInParent()
        for resource, action in restriction:
            request.restriction.permissions.add(resource=resource, action=action)


def _time(value: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(value)
    return found


def _span(value: timedelta) -> Duration:
    found = Duration()
    found.FromTimedelta(value)
    return found
