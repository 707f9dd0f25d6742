"""People at a test site: invited, let in, signed in; and what those are told who are refused."""

from typing import Any, cast

import grpc
import pytest
from conftest import ROOT, Site
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_errors import Told, told
from grpc_status import rpc_status
from sqlalchemy import Table, select, update
from test_tokens import Desk, _method_for

from rolecall import keys
from rolecall.domain import LinkKind
from rolecall.links import Links
from rolecall.storage import tables
from rolecall.v1 import invitation_pb2 as invitation
from rolecall.v1 import member_pb2 as member
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import shared_pb2 as shared

__all__ = ["Office", "change_rows", "expected", "inviting", "last_entry"]

Grants = dict[str, set[tuple[str, str]]]


class Office(Desk):
    """A desk at a site that mails only when it is told to, so that nothing changes by itself."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.sender = site.server._core.sender
        self.sender.stop()
        # Its thread is gone; what it does is done when a test says so.
        self.sender._stopped.clear()
        self.links = Links(keys.read(site.settings.key_file))

    def knock(self, request: Message) -> Any:
        """The answer to whoever presents no credential."""
        method = _method_for(type(request))
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = GetMessageClass(method.output_type)
        return self.channel.unary_unary(path, type(request).SerializeToString, answer.FromString)(request, timeout=20)

    def turned_away(self, request: Message) -> Told:
        """What whoever presents no credential is told instead of an answer."""
        with pytest.raises(grpc.RpcError) as caught:
            self.knock(request)
        return told(caught.value)

    def faults(self, token: str, request: Message) -> list[tuple[str, str, str]]:
        """The field, reason and description of everything that is wrong with a request."""
        with pytest.raises(grpc.RpcError) as caught:
            self.send(token, request)
        status = rpc_status.from_call(cast("grpc.Call", caught.value))
        found = error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if detail.Is(found.DESCRIPTOR):
                detail.Unpack(found)
        return [(item.field, item.reason, item.description) for item in found.field_violations]

    def invite(self, token: str, *people: tuple[str, str]) -> list[invitation.Invitation]:
        """New invitations of (address, role) pairs."""
        return list(self.send(token, inviting(*people)).invitations)

    def secret(self, made: invitation.Invitation, generation: int = 1) -> str:
        """What a mail about this invitation holds."""
        return self.links.secret(LinkKind.INVITATION, made.id, generation)

    def accept(self, made: invitation.Invitation, generation: int = 1) -> Any:
        """What whoever accepts an invitation is answered."""
        return self.knock(invitation.AcceptInvitationRequest(secret=self.secret(made, generation)))

    def join(self, email: str, role: str) -> Any:
        """What somebody is answered whom the owner invites, and who accepts."""
        return self.accept(self.invite("OWNER", (email, role))[0])

    def deliver(self) -> None:
        """Have all mails sent that are due."""
        while self.sender.send_due():
            pass

    def ask(self, email: str, organization: str = "acme") -> str:
        """What the mail will hold, if one goes out, of the sign-in that is asked for here."""
        before = self.asked()
        self.knock(session.RequestSignInRequest(organization=organization, email=email))
        (new,) = self.asked() - before
        return self.links.secret(LinkKind.SIGN_IN, new, 1)

    def asked(self) -> set[str]:
        """The ids of the requests to sign in."""
        return self.site.storage.read(lambda tx: set(tx.connection.scalars(select(tables.sign_ins.c.id))))

    def members(self, token: str = "OWNER", **asked: Any) -> list[shared.Member]:
        """All members that are asked for, in one page."""
        return list(self.send(token, member.ListMembersRequest(page_size=1000, **asked)).members)


def inviting(*people: tuple[str, str], **more: Any) -> invitation.CreateInvitationsRequest:
    """A request to invite (address, role) pairs."""
    invitees = [invitation.Invitee(email=email, role=role) for email, role in people]
    return invitation.CreateInvitationsRequest(invitations=invitees, **more)


def change_rows(site: Site, table: Table, named: str, **values: object) -> None:
    """Give the row of `table` whose id is `named` other values, past the server."""
    column = table.c.user_id if table is tables.members else table.c.id
    site.storage.write(lambda tx: tx.connection.execute(update(table).where(column == named).values(**values)))
    site.forget()


def last_entry(site: Site) -> Any:
    """The newest entry of the audit log of `acme`."""
    entries = tables.audit_entries
    query = select(entries).where(entries.c.organization == "acme").order_by(entries.c.sequence.desc()).limit(1)
    return site.storage.read(lambda tx: tx.connection.execute(query).one())


def _grants() -> Grants:
    """What each role of the shipped policy may do, read from its file: it knows allow rules and inheritance only."""
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
    """What whoever has the role `caller` is told who would `verb` people of `roles`: `OK` or a reason (rule 1)."""
    may = _GRANTS[caller]
    if ("owners", verb) not in may and ("members", verb) not in may:
        return "PERMISSION_MISSING"
    for role in roles:
        beyond = ("owners", "update") in _GRANTS[role] or not _GRANTS[role] <= may
        if (("owners" if beyond else "members"), verb) not in may:
            return "ROLE_BEYOND_CALLER" if beyond else "PERMISSION_MISSING"
    return "OK"
