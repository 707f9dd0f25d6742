"""MemberService."""

from rolecall.domain import MemberOrder
from rolecall.errors import InvalidField
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.members import Members
from rolecall.v1 import member_pb2 as pb

__all__ = ["MemberService"]

_ORDERS: dict[int, MemberOrder] = {
    pb.MEMBER_ORDER_UNSPECIFIED: MemberOrder.EMAIL,
    pb.MEMBER_ORDER_EMAIL: MemberOrder.EMAIL,
    pb.MEMBER_ORDER_DISPLAY_NAME: MemberOrder.DISPLAY_NAME,
    pb.MEMBER_ORDER_NEWEST: MemberOrder.NEWEST,
}


class MemberService:
    """Lists members, changes their roles and external ids, and removes them."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def ListMembers(self, request: pb.ListMembersRequest, call: Call) -> pb.ListMembersResponse:
        """List members."""
        if request.order not in _ORDERS:
            raise InvalidField("order is unknown: give email, display name or newest, or none.", field="order")
        role = requests.role(request.role) if request.role else ""
        text, order, page = requests.text(request), _ORDERS[request.order], requests.page(request)
        external_id, caller = requests.external_id(request.external_id), call.caller_in(request.organization)
        found = self._members.list(caller, role, text, order, page, external_id=external_id)
        return pb.ListMembersResponse(
            members=[responses.member(member) for member in found.members], next_page_token=found.next_page_token
        )

    def GetMember(self, request: pb.GetMemberRequest, call: Call) -> pb.GetMemberResponse:
        """Get one member."""
        user_id = _required(request.user_id)
        found = self._members.get(call.caller_in(request.organization), user_id)
        return pb.GetMemberResponse(member=responses.member(found))

    def ChangeMemberRole(self, request: pb.ChangeMemberRoleRequest, call: Call) -> pb.ChangeMemberRoleResponse:
        """Give a member another role."""
        user_id, role = _required(request.user_id), requests.role(request.role)
        changed = self._members.change_role(call.change_request(request), user_id, role, request.etag)
        return pb.ChangeMemberRoleResponse(member=responses.member(changed.member), revision=changed.revision)

    def ChangeMemberExternalId(
        self, request: pb.ChangeMemberExternalIdRequest, call: Call
    ) -> pb.ChangeMemberExternalIdResponse:
        """Give a member another external id, or none."""
        user_id, external_id = _required(request.user_id), requests.external_id(request.external_id)
        changed = self._members.change_external_id(call.change_request(request), user_id, external_id, request.etag)
        return pb.ChangeMemberExternalIdResponse(member=responses.member(changed.member), revision=changed.revision)

    def MoveMembers(self, request: pb.MoveMembersRequest, call: Call) -> pb.MoveMembersResponse:
        """Give all members with one role another."""
        from_role, to_role = requests.role(request.from_role, "from_role"), requests.role(request.to_role, "to_role")
        change = call.change_request(request)
        moved = self._members.move(change, from_role, to_role, request.etag, validate_only=request.validate_only)
        return pb.MoveMembersResponse(
            member_count=moved.count,
            etag=moved.etag,
            organization_token_count=moved.organization_tokens,
            invitation_count=moved.invitations,
            revision=moved.revision,
            assignment_count=moved.assignments,
        )

    def RemoveMember(self, request: pb.RemoveMemberRequest, call: Call) -> pb.RemoveMemberResponse:
        """Remove a member."""
        user_id = _required(request.user_id)
        removed = self._members.remove(call.change_request(request), user_id, request.etag)
        return pb.RemoveMemberResponse(
            member=responses.member(removed.member),
            organization_tokens=[responses.token(token) for token in removed.organization_tokens],
            revision=removed.revision,
        )

    def LeaveOrganization(self, request: pb.LeaveOrganizationRequest, call: Call) -> pb.LeaveOrganizationResponse:
        """Remove the caller."""
        return pb.LeaveOrganizationResponse(revision=self._members.leave(call.change_request(request)))


def _required(text: str) -> str:
    if not text:
        raise InvalidField("user_id is not set: give it as ListMembers shows it.", field="user_id")
    return requests.user_id(text)
