"""The parts of a client for tokens, sessions, the organization and its audit log."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from rolecall.client import convert
from rolecall.client.connection import Connection, choose
from rolecall.errors import CallFailed
from rolecall.v1 import audit_pb2, organization_pb2, session_pb2, shared_pb2, token_pb2
from rolecall.v1.audit_pb2_grpc import AuditServiceStub
from rolecall.v1.organization_pb2_grpc import OrganizationServiceStub
from rolecall.v1.session_pb2_grpc import SessionServiceStub
from rolecall.v1.token_pb2_grpc import TokenServiceStub

__all__ = ["AuditClient", "OrganizationClient", "SessionClient", "TokenClient", "audit_filter"]

# Times that an export is resumed after it broke off, without an entry in between.
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
    "active": token_pb2.TOKEN_STATE_ACTIVE,
    "expired": token_pb2.TOKEN_STATE_EXPIRED,
    "deleted": token_pb2.TOKEN_STATE_DELETED,
}
_OUTCOMES = {
    "": audit_pb2.AUDIT_OUTCOME_UNSPECIFIED,
    "succeeded": audit_pb2.AUDIT_OUTCOME_SUCCEEDED,
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
        display_name: str,
        *,
        expires: datetime | timedelta | None = None,
        restriction: Iterable[tuple[str, str]] | None = None,
        restriction_scope: str = "",
        networks: Iterable[str] = (),
    ) -> token_pb2.CreatePersonalTokenResponse:
        """Create a token for the caller.

        `expires`: when, or after how long. `restriction`: (resource, action) patterns; None for all that the role may.
        `restriction_scope`: the path at which, and beneath which, the token may act only, as `projects/billing`.
        `networks`: from which it may be used, as `10.0.0.0/8`; empty for any.
        """
        request = token_pb2.CreatePersonalTokenRequest(
            organization=self._connection.organization, display_name=display_name, networks=networks
        )
        _limit(request, expires, restriction, restriction_scope)
        return self._connection.change(self._stub.CreatePersonalToken, request)

    def create_organization(
        self,
        display_name: str,
        role: str,
        *,
        expires: datetime | timedelta | None = None,
        restriction: Iterable[tuple[str, str]] | None = None,
        restriction_scope: str = "",
        networks: Iterable[str] = (),
    ) -> token_pb2.CreateOrganizationTokenResponse:
        """Create a token for a program, with a role of its own; the rest as for `create_personal`."""
        request = token_pb2.CreateOrganizationTokenRequest(
            organization=self._connection.organization, display_name=display_name, role=role, networks=networks
        )
        _limit(request, expires, restriction, restriction_scope)
        return self._connection.change(self._stub.CreateOrganizationToken, request)

    def list(
        self,
        *,
        kind: str = "",
        user_id: str = "",
        state: str = "",
        show_deleted: bool = False,
        expires_within: timedelta | None = None,
    ) -> Iterator[token_pb2.Token]:
        """List the tokens that match the filters, the newest first, fetched page by page.

        `kind`: personal or organization; `state`: active, expired or deleted; empty matches any. Without a
        `state`, deleted tokens are left out unless `show_deleted`. `expires_within`: only active ones that expire
        within this time.
        """
        request = token_pb2.ListTokensRequest(
            organization=self._connection.organization,
            kind=choose(_KINDS, kind, "kind"),
            user_id=user_id,
            state=choose(_STATES, state, "state"),
            show_deleted=show_deleted,
            page_size=self._connection.page_size,
            expires_within=None if expires_within is None else convert.duration(expires_within),
        )
        for page in self._connection.pages(self._stub.ListTokens, request):
            yield from page.tokens

    def rotate(
        self, token_id: str, *, overlap: timedelta = timedelta(0), etag: str = ""
    ) -> token_pb2.RotateTokenResponse:
        """Give a token a new secret; the old one keeps working for `overlap`, at most 24 hours."""
        request = token_pb2.RotateTokenRequest(
            organization=self._connection.organization, id=token_id, overlap=convert.duration(overlap), etag=etag
        )
        return self._connection.change(self._stub.RotateToken, request)

    def delete(self, token_id: str, *, etag: str = "") -> token_pb2.DeleteTokenResponse:
        """Delete a token; it stops working at once."""
        request = token_pb2.DeleteTokenRequest(organization=self._connection.organization, id=token_id, etag=etag)
        return self._connection.change(self._stub.DeleteToken, request)


class SessionClient:
    """`Client.session`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = SessionServiceStub(connection.channel)

    def who_am_i(self) -> session_pb2.WhoAmIResponse:
        """Describe the holder of the presented credential, and its permissions."""
        request = session_pb2.WhoAmIRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.WhoAmI, request)

    def sign_out(self) -> session_pb2.SignOutResponse:
        """Delete the presented credential."""
        request = session_pb2.SignOutRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.SignOut, request)


class OrganizationClient:
    """`Client.organization`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = OrganizationServiceStub(connection.channel)

    def get(self) -> organization_pb2.Organization:
        """Return the organization, with warnings about its state."""
        request = organization_pb2.GetOrganizationRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.GetOrganization, request).organization

    def update(self, display_name: str, *, etag: str = "") -> organization_pb2.Organization:
        """Change the display name."""
        request = organization_pb2.UpdateOrganizationRequest(
            organization=organization_pb2.Organization(
                id=self._connection.organization, display_name=display_name, etag=etag
            ),
            update_mask=FieldMask(paths=["display_name"]),
        )
        return self._connection.change(self._stub.UpdateOrganization, request).organization


class AuditClient:
    """`Client.audit`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = AuditServiceStub(connection.channel)

    def list(self, wanted: audit_pb2.AuditFilter | None = None) -> Iterator[audit_pb2.AuditEntry]:
        """List the entries that match the filter, the newest first, fetched page by page."""
        request = audit_pb2.ListAuditEntriesRequest(
            organization=self._connection.organization, filter=wanted, page_size=self._connection.page_size
        )
        for page in self._connection.pages(self._stub.ListAuditEntries, request):
            yield from page.entries

    def export(self, form: str, wanted: audit_pb2.AuditFilter | None = None) -> Iterator[bytes]:
        """Yield the entries as chunks of a csv or jsonl file, the oldest first. Resumes an export that breaks off."""
        request = audit_pb2.ExportAuditEntriesRequest(
            organization=self._connection.organization, filter=wanted, format=choose(_FORMATS, form, "form")
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
        """Verify the log; `known` is the sequence number and hash of an entry that were stored elsewhere."""
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
    object_name: str = "",
    outcome: str = "",
) -> audit_pb2.AuditFilter:
    """Which entries are wanted; what is empty takes any. `outcome`: succeeded or denied."""
    return audit_pb2.AuditFilter(
        start_time=convert.timestamp(since) if since else None,
        end_time=convert.timestamp(until) if until else None,
        actor=actor,
        action=action,
        object=object_name,
        outcome=choose(_OUTCOMES, outcome, "outcome"),
    )


def _limit(
    request: Any,
    expires: datetime | timedelta | None,
    restriction: Iterable[tuple[str, str]] | None,
    restriction_scope: str,
) -> None:
    convert.set_expiry(request, expires)
    if restriction is not None or restriction_scope:
        request.restriction.SetInParent()
        request.restriction.scope = restriction_scope
        for resource, action in restriction or ():
            request.restriction.permissions.add(resource=resource, action=action)
