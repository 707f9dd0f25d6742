"""InvitationService."""

from rolecall.acceptance import Acceptance
from rolecall.domain import Delivery, Invitation, InvitationState, now
from rolecall.errors import InvalidField
from rolecall.invitations import Invitations
from rolecall.mutations import Arrival
from rolecall.server import fields
from rolecall.server.calls import Call
from rolecall.v1 import invitation_pb2 as pb

__all__ = ["InvitationService"]

_STATES = {state: pb.InvitationState.Value(f"INVITATION_STATE_{state.name}") for state in InvitationState}
_WANTED: dict[int, InvitationState] = {number: state for state, number in _STATES.items()}
_DELIVERIES = {state: pb.DeliveryState.Value(f"DELIVERY_STATE_{state.name}") for state in Delivery}


class InvitationService:
    """Invites people, and lets them in."""

    def __init__(self, invitations: Invitations, acceptance: Acceptance) -> None:
        self._invitations = invitations
        self._acceptance = acceptance

    def CreateInvitations(self, request: pb.CreateInvitationsRequest, call: Call) -> pb.CreateInvitationsResponse:
        """Invite people."""
        entries = [(item.email, item.role) for item in request.invitations]
        made = self._invitations.create(call.attempt(request), entries, validate_only=request.validate_only)
        return pb.CreateInvitationsResponse(
            invitations=[_invitation(item) for item in made.invitations], revision=made.revision
        )

    def ListInvitations(self, request: pb.ListInvitationsRequest, call: Call) -> pb.ListInvitationsResponse:
        """List invitations."""
        if request.state != pb.INVITATION_STATE_UNSPECIFIED and request.state not in _WANTED:
            raise InvalidField("state is unknown: give pending, expired, accepted or deleted, or none.", field="state")
        role = fields.role(request.role) if request.role else ""
        state, text, page = _WANTED.get(request.state), fields.text(request), fields.page(request)
        found = self._invitations.list(call.caller_in(request.organization), state, role, text, page)
        return pb.ListInvitationsResponse(
            invitations=[_invitation(item) for item in found.invitations], next_page_token=found.next_page_token
        )

    def GetInvitation(self, request: pb.GetInvitationRequest, call: Call) -> pb.GetInvitationResponse:
        """Get one invitation."""
        invitation_id = _id(request.id)
        found = self._invitations.get(call.caller_in(request.organization), invitation_id)
        return pb.GetInvitationResponse(invitation=_invitation(found))

    def ResendInvitation(self, request: pb.ResendInvitationRequest, call: Call) -> pb.ResendInvitationResponse:
        """Mail a new secret."""
        renewed = self._invitations.resend(call.attempt(request), _id(request.id), request.etag)
        return pb.ResendInvitationResponse(invitation=_invitation(renewed.invitation), revision=renewed.revision)

    def DeleteInvitation(self, request: pb.DeleteInvitationRequest, call: Call) -> pb.DeleteInvitationResponse:
        """Withdraw an invitation."""
        deleted = self._invitations.delete(call.attempt(request), _id(request.id), request.etag)
        return pb.DeleteInvitationResponse(invitation=_invitation(deleted.invitation), revision=deleted.revision)

    def AcceptInvitation(self, request: pb.AcceptInvitationRequest, arrival: Arrival) -> pb.AcceptInvitationResponse:
        """Let somebody in."""
        name = fields.name(request.display_name, "display_name") if request.display_name else ""
        entered = self._acceptance.accept(
            arrival, fields.slug(request.organization), fields.secret(request.secret), name
        )
        return pb.AcceptInvitationResponse(
            organization=entered.member.organization,
            member=fields.member(entered.member),
            session=fields.session(entered),
            revision=entered.revision,
        )


def _id(text: str) -> str:
    if not fields.is_id(text):
        # Not repeated: it may be the whole secret.
        raise InvalidField("id is no invitation's: give it as ListInvitations shows it.", field="id")
    return text


def _invitation(value: Invitation) -> pb.Invitation:
    return pb.Invitation(
        id=value.id,
        email=value.email,
        role=value.role,
        state=_STATES[value.state(now())],
        inviter=value.inviter,
        create_time=fields.timestamp(value.create_time),
        expire_time=fields.timestamp(value.expire_time),
        etag=value.etag,
        delivery=_DELIVERIES[value.delivery] if value.delivery else pb.DELIVERY_STATE_UNSPECIFIED,
    )
