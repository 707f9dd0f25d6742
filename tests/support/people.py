"""Calls about people: invite, accept, sign in; and the errors of refused callers."""

from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import Table, select, update

from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import LinkKind
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as member
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import shared_pb2 as shared
from support.environment import ROOT
from support.server_calls import Failure, SiteCalls, failure_of, method_for
from support.sites import Site

__all__ = ["PeopleCalls", "change_rows", "expected", "inviting", "last_entry", "outcome"]

Grants = dict[str, set[tuple[str, str]]]


class PeopleCalls(SiteCalls):
    """Calls to a site that sends mails only when a test calls `deliver`, so that no row changes by itself."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.sender = site.core.sender
        self.sender.stop()
        # Its thread has ended; `deliver` sends instead.
        self.sender._thread.stopping.clear()
        self.links = MailedSecrets(server_key.read(site.settings.key_file))

    def send_unauthenticated(self, request: Message) -> Any:
        """Send a request without a credential; return the answer."""
        method = method_for(type(request))
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = GetMessageClass(method.output_type)
        return self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)(request, timeout=20)

    def refused_unauthenticated(self, request: Message) -> Failure:
        """Send a request without a credential, which must fail; return the failure."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send_unauthenticated(request)
        return failure_of(caught.value)

    def violations(self, token: str, request: Message) -> list[tuple[str, str, str]]:
        """Send a request that must fail; return field, reason and description of each violation."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(token, request)
        status = rpc_status.from_call(cast("grpc.Call", caught.value))
        found = error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if detail.Is(found.DESCRIPTOR):
                detail.Unpack(found)
        return [(item.field, item.reason, item.description) for item in found.field_violations]

    def invite(self, token: str, *people: tuple[str, str]) -> list[invitation.Invitation]:
        """Invite (address, role) pairs; return the invitations."""
        return list(self.send(token, inviting(*people)).invitations)

    def secret(self, made: invitation.Invitation, generation: int = 1) -> str:
        """Return the secret in the mail of this generation."""
        return self.links.secret(LinkKind.INVITATION, made.id, generation)

    def accept(self, made: invitation.Invitation, generation: int = 1) -> Any:
        """Accept the invitation; return the answer."""
        return self.send_unauthenticated(invitation.AcceptInvitationRequest(secret=self.secret(made, generation)))

    def join(self, email: str, role: str) -> Any:
        """Invite the address as the owner, and accept; return the answer."""
        return self.accept(self.invite("OWNER", (email, role))[0])

    def deliver(self) -> None:
        """Send all mails that are due."""
        while self.sender.send_due():
            pass

    def ask(self, email: str, organization: str = "acme") -> str:
        """Request a sign-in; return the secret that its mail will hold, if one is sent."""
        before = self.asked()
        self.send_unauthenticated(session.RequestSignInRequest(organization=organization, email=email))
        (new,) = self.asked() - before
        return self.links.secret(LinkKind.SIGN_IN, new, 1)

    def asked(self) -> set[str]:
        """The ids of the requests to sign in."""
        return self.site.storage.read(lambda tx: set(tx.connection.scalars(select(tables.sign_ins.c.id))))

    def members(self, token: str = "OWNER", **asked: Any) -> list[shared.Member]:
        """List the members that match the filter, in one page."""
        return list(self.send(token, member.ListMembersRequest(page_size=1000, **asked)).members)


def inviting(*people: tuple[str, str], **more: Any) -> invitation.CreateInvitationsRequest:
    """Make a request to invite (address, role) pairs."""
    invitees = [invitation.Invitee(email=email, role=role) for email, role in people]
    return invitation.CreateInvitationsRequest(invitations=invitees, **more)


def change_rows(site: Site, table: Table, named: str, **values: object) -> None:
    """Change the row of `table` whose id is `named` directly in the database."""
    column = table.c.user_id if table is tables.members else table.c.id
    site.storage.write(lambda tx: tx.connection.execute(update(table).where(column == named).values(**values)))
    site.forget()


def last_entry(site: Site) -> Any:
    """The newest entry of the audit log of `acme`."""
    entries = tables.audit_entries
    query = select(entries).where(entries.c.organization == "acme").order_by(entries.c.sequence.desc()).limit(1)
    return site.storage.read(lambda tx: tx.connection.execute(query).one())


def _grants() -> Grants:
    """The permissions of each role of the shipped policy, read from its file: allow rules and inheritance only."""
    found: Grants = {}
    inherits = []
    for line in (ROOT / "policies" / "policy.csv").read_text(encoding="utf-8").splitlines():
        words = [word.strip() for word in line.split(",")]
        if words[0] == "p":
            assert words[4] == "allow"
            assert "*" not in line
            found.setdefault(words[1], set()).add((words[2], words[3]))
        elif words[0] == "g":
            inherits.append((words[1], words[2]))
    for _ in inherits:
        for role, base in inherits:
            found[role] = found.get(role, set()) | found[base]
    return found


_GRANTS = _grants()


def expected(caller: str, verb: str, *roles: str) -> str:
    """Return the expected result when a caller with the role `caller` would `verb` people of `roles` (rule 1)."""
    may = _GRANTS[caller]
    if ("owners", verb) not in may and ("members", verb) not in may:
        return "PERMISSION_MISSING"
    for role in roles:
        beyond = ("owners", "update") in _GRANTS[role] or not _GRANTS[role] <= may
        if (("owners" if beyond else "members"), verb) not in may:
            return "ROLE_BEYOND_CALLER" if beyond else "PERMISSION_MISSING"
    return "OK"


def outcome(calls: PeopleCalls, token: str, request: Message) -> str:
    """`OK`, or the reason for which the call is refused."""
    try:
        calls.send(token, request)
    except grpc.RpcError as error:
        return failure_of(error).reason
    return "OK"
