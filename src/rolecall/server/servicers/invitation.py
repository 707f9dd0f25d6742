"""InvitationService."""

from rolecall.domain import Delivery, Invitation, InvitationState, Invitee, now
from rolecall.errors import InvalidField
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.invitations import Invitations
from rolecall.services.unit_of_work import UnauthenticatedCall
from rolecall.v1 import invitation_pb2 as pb

__all__ = ["InvitationService"]

_STATES = {state: pb.InvitationState.Value(f"INVITATION_STATE_{state.name}") for state in InvitationState}
_STATES_BY_NUMBER: dict[int, InvitationState] = {number: state for state, number in _STATES.items()}
_DELIVERIES = {state: pb.DeliveryState.Value(f"DELIVERY_STATE_{state.name}") for state in Delivery}
_MUTABLE = ("role", "display_name", "external_id")


class InvitationService:
    """Creates, lists, changes, resends, deletes and accepts invitations."""

    def __init__(self, invitations: Invitations) -> None:
        self._invitations = invitations

    def CreateInvitations(self, request: pb.CreateInvitationsRequest, call: Call) -> pb.CreateInvitationsResponse:
        """Create invitations, and enqueue their mails."""
        invitees = [Invitee(each.email, each.role, each.display_name, each.external_id) for each in request.invitations]
        made = self._invitations.create(call.change_request(request), invitees, validate_only=request.validate_only)
        return pb.CreateInvitationsResponse(
            invitations=[_invitation(item) for item in made.invitations], revision=made.revision
        )

    def ListInvitations(self, request: pb.ListInvitationsRequest, call: Call) -> pb.ListInvitationsResponse:
        """List invitations."""
        if request.state != pb.INVITATION_STATE_UNSPECIFIED and request.state not in _STATES_BY_NUMBER:
            raise InvalidField("state is unknown: give pending, expired, accepted or deleted, or none.", field="state")
        role = requests.role(request.role) if request.role else ""
        state, text, page = _STATES_BY_NUMBER.get(request.state), requests.text(request), requests.page(request)
        external_id, caller = requests.external_id(request.external_id), call.caller_in(request.organization)
        found = self._invitations.list(
            caller, state, role, text, page, external_id=external_id, show_deleted=request.show_deleted
        )
        return pb.ListInvitationsResponse(
            invitations=[_invitation(item) for item in found.invitations], next_page_token=found.next_page_token
        )

    def GetInvitation(self, request: pb.GetInvitationRequest, call: Call) -> pb.GetInvitationResponse:
        """Get one invitation."""
        invitation_id = _id(request.id)
        found = self._invitations.get(call.caller_in(request.organization), invitation_id)
        return pb.GetInvitationResponse(invitation=_invitation(found))

    def UpdateInvitation(self, request: pb.UpdateInvitationRequest, call: Call) -> pb.UpdateInvitationResponse:
        """Change the fields that the mask names, and mail a new secret."""
        changed, changes = request.invitation, _changes(request)
        updated = self._invitations.update(
            call.change_request(request), _id(changed.id, "invitation.id"), changes, changed.etag
        )
        return pb.UpdateInvitationResponse(invitation=_invitation(updated.invitation), revision=updated.revision)

    def ResendInvitation(self, request: pb.ResendInvitationRequest, call: Call) -> pb.ResendInvitationResponse:
        """Mail a new secret."""
        renewed = self._invitations.resend(call.change_request(request), _id(request.id), request.etag)
        return pb.ResendInvitationResponse(invitation=_invitation(renewed.invitation), revision=renewed.revision)

    def DeleteInvitation(self, request: pb.DeleteInvitationRequest, call: Call) -> pb.DeleteInvitationResponse:
        """Delete an invitation; its secret no longer works."""
        deleted = self._invitations.delete(call.change_request(request), _id(request.id), request.etag)
        return pb.DeleteInvitationResponse(invitation=_invitation(deleted.invitation), revision=deleted.revision)

    def AcceptInvitation(
        self, request: pb.AcceptInvitationRequest, call: UnauthenticatedCall
    ) -> pb.AcceptInvitationResponse:
        """Accept an invitation by its secret; opens a session."""
        display_name = requests.display_name(request.display_name)
        accepted = self._invitations.accept(
            call, requests.slug(request.organization), requests.secret(request.secret), display_name
        )
        return pb.AcceptInvitationResponse(
            organization=accepted.member.organization,
            member=responses.member(accepted.member),
            session=responses.session(accepted),
            revision=accepted.revision,
        )


def _id(text: str, field: str = "id") -> str:
    if not requests.is_id(text):
        # Not repeated: it may be the whole secret.
        raise InvalidField("id is no invitation's: give it as ListInvitations shows it.", field=field)
    return text


def _changes(request: pb.UpdateInvitationRequest) -> dict[str, str]:
    """Return the new values of the fields that are to be changed. Raises `InvalidField`."""
    new = request.invitation
    paths = requests.mask_paths(request.update_mask, _MUTABLE)
    fields = paths or tuple(field for field in _MUTABLE if getattr(new, field))
    if not fields:
        raise InvalidField(
            "The request changes nothing: set a role, a display_name or an external_id.", field="invitation"
        )
    changes: dict[str, str] = {}
    if "role" in fields:
        changes["role"] = requests.role(new.role, "invitation.role")
    if "display_name" in fields:
        changes["display_name"] = requests.display_name(new.display_name, "invitation.display_name")
    if "external_id" in fields:
        changes["external_id"] = requests.external_id(new.external_id, "invitation.external_id")
    return changes


def _invitation(value: Invitation) -> pb.Invitation:
    return pb.Invitation(
        id=value.id,
        email=value.email,
        role=value.role,
        state=_STATES[value.state(now())],
        creator=value.creator,
        create_time=responses.timestamp(value.create_time),
        expire_time=responses.timestamp(value.expire_time),
        etag=value.etag,
        delivery=_DELIVERIES[value.delivery] if value.delivery else pb.DELIVERY_STATE_UNSPECIFIED,
        display_name=value.display_name,
        external_id=value.external_id,
    )
