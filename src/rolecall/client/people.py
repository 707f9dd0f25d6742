"""The parts of a client for members and invitations: `Client.members` and `Client.invitations`."""

from collections.abc import Iterable, Iterator

from google.protobuf.field_mask_pb2 import FieldMask

from rolecall.client import convert
from rolecall.client.connection import Connection, choose
from rolecall.domain import Invitee, Member
from rolecall.v1 import invitation_pb2, member_pb2
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
    """Members, as `Client.members`. Each method raises `RolecallError`, and `ValueError` for what no message can hold.

    The `organization` of a member is the one that the client names, empty for the token's own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = MemberServiceStub(connection.channel)

    def list(self, *, role: str = "", text: str = "", external_id: str = "", order: str = "email") -> Iterator[Member]:
        """List the members that match the filters, fetched page by page; `order`: email, name or newest."""
        request = member_pb2.ListMembersRequest(
            organization=self._connection.organization,
            role=role,
            text=text,
            external_id=external_id,
            order=choose(_ORDERS, order, "order"),
            page_size=self._connection.page_size,
        )
        for page in self._connection.pages(self._stub.ListMembers, request):
            yield from (convert.member(member, self._connection.organization) for member in page.members)

    def get(self, user_id: str) -> Member:
        """Return one member."""
        request = member_pb2.GetMemberRequest(organization=self._connection.organization, user_id=user_id)
        member = self._connection.call(self._stub.GetMember, request).member
        return convert.member(member, self._connection.organization)

    def change_role(self, user_id: str, role: str, *, etag: str = "") -> member_pb2.ChangeMemberRoleResponse:
        """Give a member another role. With an `etag`, fails with `EtagMismatch` if the member has changed since."""
        request = member_pb2.ChangeMemberRoleRequest(
            organization=self._connection.organization, user_id=user_id, role=role, etag=etag
        )
        return self._connection.change(self._stub.ChangeMemberRole, request)

    def change_external_id(
        self, user_id: str, external_id: str, *, etag: str = ""
    ) -> member_pb2.ChangeMemberExternalIdResponse:
        """Give a member another external id, or with an empty one none. `etag` as for `change_role`."""
        request = member_pb2.ChangeMemberExternalIdRequest(
            organization=self._connection.organization, user_id=user_id, external_id=external_id, etag=etag
        )
        return self._connection.change(self._stub.ChangeMemberExternalId, request)

    def move(
        self, from_role: str, to_role: str, *, etag: str = "", validate_only: bool = False
    ) -> member_pb2.MoveMembersResponse:
        """Give all members with one role another, all or nobody; `validate_only` counts them, with their etag."""
        request = member_pb2.MoveMembersRequest(
            organization=self._connection.organization,
            from_role=from_role,
            to_role=to_role,
            etag=etag,
            validate_only=validate_only,
        )
        return self._connection.change(self._stub.MoveMembers, request)

    def remove(self, user_id: str, *, etag: str = "") -> member_pb2.RemoveMemberResponse:
        """Remove a member; its tokens and sessions stop working at once. `etag` as for `change_role`."""
        request = member_pb2.RemoveMemberRequest(organization=self._connection.organization, user_id=user_id, etag=etag)
        return self._connection.change(self._stub.RemoveMember, request)

    def leave(self) -> member_pb2.LeaveOrganizationResponse:
        """Remove the caller from the organization; its tokens and sessions stop working at once."""
        request = member_pb2.LeaveOrganizationRequest(organization=self._connection.organization)
        return self._connection.call(self._stub.LeaveOrganization, request)


class InvitationClient:
    """Invitations, as `Client.invitations`.

    Each method raises `RolecallError`, and `ValueError` for what no message can hold.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = InvitationServiceStub(connection.channel)

    def create(
        self, people: Iterable[Invitee | tuple[str, str]], *, validate_only: bool = False
    ) -> invitation_pb2.CreateInvitationsResponse:
        """Invite 1 to 200 people, all or nobody: each an (address, role), or a `rolecall.domain.Invitee`.

        The error lists every invalid one in `all`. `validate_only` checks them without inviting anybody.
        """
        request = invitation_pb2.CreateInvitationsRequest(
            organization=self._connection.organization,
            invitations=[invitation_pb2.Invitee(**Invitee(*person)._asdict()) for person in people],
            validate_only=validate_only,
        )
        return self._connection.change(self._stub.CreateInvitations, request)

    def list(
        self, *, state: str = "", role: str = "", text: str = "", external_id: str = "", show_deleted: bool = False
    ) -> Iterator[invitation_pb2.Invitation]:
        """List the invitations that match the filters, the newest first, fetched page by page.

        `state`: pending, expired, accepted or deleted; empty matches any. Without a `state`, accepted and deleted
        invitations are left out unless `show_deleted`.
        """
        request = invitation_pb2.ListInvitationsRequest(
            organization=self._connection.organization,
            state=choose(_STATES, state, "state"),
            show_deleted=show_deleted,
            role=role,
            text=text,
            external_id=external_id,
            page_size=self._connection.page_size,
        )
        for page in self._connection.pages(self._stub.ListInvitations, request):
            yield from page.invitations

    def get(self, invitation_id: str) -> invitation_pb2.Invitation:
        """Return one invitation."""
        request = invitation_pb2.GetInvitationRequest(organization=self._connection.organization, id=invitation_id)
        return self._connection.call(self._stub.GetInvitation, request).invitation

    def update(
        self,
        invitation_id: str,
        *,
        role: str | None = None,
        display_name: str | None = None,
        external_id: str | None = None,
        etag: str = "",
    ) -> invitation_pb2.UpdateInvitationResponse:
        """Change what is given, and mail a new secret; the older one stops working.

        An empty name or external id stands for none. `etag` as for `MemberClient.change_role`.
        """
        changed = invitation_pb2.Invitation(
            id=invitation_id,
            role=role or "",
            display_name=display_name or "",
            external_id=external_id or "",
            etag=etag,
        )
        given = {"role": role, "display_name": display_name, "external_id": external_id}
        request = invitation_pb2.UpdateInvitationRequest(
            organization=self._connection.organization,
            invitation=changed,
            update_mask=FieldMask(paths=[field for field, value in given.items() if value is not None]),
        )
        return self._connection.change(self._stub.UpdateInvitation, request)

    def resend(self, invitation_id: str, *, etag: str = "") -> invitation_pb2.ResendInvitationResponse:
        """Mail a new secret; the older one stops working. `etag` as for `MemberClient.change_role`."""
        request = invitation_pb2.ResendInvitationRequest(
            organization=self._connection.organization, id=invitation_id, etag=etag
        )
        return self._connection.change(self._stub.ResendInvitation, request)

    def delete(self, invitation_id: str, *, etag: str = "") -> invitation_pb2.DeleteInvitationResponse:
        """Delete an invitation; its secret stops working. `etag` as for `MemberClient.change_role`."""
        request = invitation_pb2.DeleteInvitationRequest(
            organization=self._connection.organization, id=invitation_id, etag=etag
        )
        return self._connection.change(self._stub.DeleteInvitation, request)
