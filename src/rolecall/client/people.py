"""Members and invitations, through the client library."""

from collections.abc import Iterable, Iterator

from rolecall.client.connection import PAGE_SIZE, Connection, pick
from rolecall.v1 import invitation_pb2, member_pb2, shared_pb2
from rolecall.v1.invitation_pb2_grpc import InvitationServiceStub
from rolecall.v1.member_pb2_grpc import MemberServiceStub

__all__ = ["InvitationClient", "MemberClient"]

_ORDERS = {
    "email": member_pb2.MEMBER_ORDER_EMAIL,
    "name": member_pb2.MEMBER_ORDER_DISPLAY_NAME,
    "newest": member_pb2.MEMBER_ORDER_NEWEST,
}
_STATES = {
    "": invitation_pb2.INVITATION_STATE_UNSPECIFIED,
    "pending": invitation_pb2.INVITATION_STATE_PENDING,
    "expired": invitation_pb2.INVITATION_STATE_EXPIRED,
    "accepted": invitation_pb2.INVITATION_STATE_ACCEPTED,
    "deleted": invitation_pb2.INVITATION_STATE_DELETED,
}


class MemberClient:
    """`Client.members`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = MemberServiceStub(connection.channel)

    def list(self, *, role: str = "", text: str = "", order: str = "email") -> Iterator[shared_pb2.Member]:
        """The members that pass the filters, page by page; `order`: email, name or newest."""
        request = member_pb2.ListMembersRequest(
            organization=self._connection.organization,
            role=role,
            text=text,
            order=pick(_ORDERS, order, "order"),
            page_size=PAGE_SIZE,
        )
        for page in self._connection.pages(self._stub.ListMembers, request):
            yield from page.members

    def get(self, user_id: str) -> shared_pb2.Member:
        """One member."""
        request = member_pb2.GetMemberRequest(organization=self._connection.organization, user_id=user_id)
        return self._connection.call(self._stub.GetMember, request).member

    def change_role(self, user_id: str, role: str, *, etag: str = "") -> member_pb2.ChangeMemberRoleResponse:
        """Give a member another role."""
        request = member_pb2.ChangeMemberRoleRequest(
            organization=self._connection.organization, user_id=user_id, role=role, etag=etag
        )
        return self._connection.change(self._stub.ChangeMemberRole, request)

    def remove(self, user_id: str, *, etag: str = "") -> member_pb2.RemoveMemberResponse:
        """Remove a member, whose tokens and sessions are dead with it."""
        request = member_pb2.RemoveMemberRequest(organization=self._connection.organization, user_id=user_id, etag=etag)
        return self._connection.change(self._stub.RemoveMember, request)

    def leave(self) -> member_pb2.LeaveOrganizationResponse:
        """Remove oneself."""
        request = member_pb2.LeaveOrganizationRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.LeaveOrganization, request)


class InvitationClient:
    """`Client.invitations`. Every method raises `RolecallError`, and `ValueError` for what no message can hold."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = InvitationServiceStub(connection.channel)

    def create(
        self, people: Iterable[tuple[str, str]], *, validate_only: bool = False
    ) -> invitation_pb2.CreateInvitationsResponse:
        """Invite 1 to 200 (address, role), all or nobody. The error has every bad one in `all`."""
        request = invitation_pb2.CreateInvitationsRequest(
            organization=self._connection.organization,
            invitations=[invitation_pb2.Invitee(email=email, role=role) for email, role in people],
            validate_only=validate_only,
        )
        return self._connection.change(self._stub.CreateInvitations, request)

    def list(self, *, state: str = "", role: str = "", text: str = "") -> Iterator[invitation_pb2.Invitation]:
        """The invitations that pass the filters, the newest first, page by page.

        `state`: pending, expired, accepted or deleted; empty takes any.
        """
        request = invitation_pb2.ListInvitationsRequest(
            organization=self._connection.organization,
            state=pick(_STATES, state, "state"),
            role=role,
            text=text,
            page_size=PAGE_SIZE,
        )
        for page in self._connection.pages(self._stub.ListInvitations, request):
            yield from page.invitations

    def get(self, invitation_id: str) -> invitation_pb2.Invitation:
        """One invitation."""
        request = invitation_pb2.GetInvitationRequest(organization=self._connection.organization, id=invitation_id)
        return self._connection.call(self._stub.GetInvitation, request).invitation

    def resend(self, invitation_id: str, *, etag: str = "") -> invitation_pb2.ResendInvitationResponse:
        """Mail a new secret; the older link is dead then."""
        request = invitation_pb2.ResendInvitationRequest(
            organization=self._connection.organization, id=invitation_id, etag=etag
        )
        return self._connection.change(self._stub.ResendInvitation, request)

    def delete(self, invitation_id: str, *, etag: str = "") -> invitation_pb2.DeleteInvitationResponse:
        """Withdraw an invitation."""
        request = invitation_pb2.DeleteInvitationRequest(
            organization=self._connection.organization, id=invitation_id, etag=etag
        )
        return self._connection.change(self._stub.DeleteInvitation, request)
