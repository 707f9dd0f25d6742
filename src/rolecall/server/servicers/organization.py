"""OrganizationService."""

from rolecall.formats import display_names
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.organizations import Organizations
from rolecall.v1 import organization_pb2 as pb

__all__ = ["OrganizationService"]

_MUTABLE = ("display_name",)


class OrganizationService:
    """Shows and changes the organization itself."""

    def __init__(self, organizations: Organizations) -> None:
        self._organizations = organizations

    def GetOrganization(self, request: pb.GetOrganizationRequest, call: Call) -> pb.GetOrganizationResponse:
        """Get the organization."""
        found = self._organizations.get(call.caller_in(request.organization))
        return pb.GetOrganizationResponse(organization=responses.organization(found))

    def UpdateOrganization(self, request: pb.UpdateOrganizationRequest, call: Call) -> pb.UpdateOrganizationResponse:
        """Change the fields that the mask names."""
        requests.mask_paths(request.update_mask, _MUTABLE)
        changed = request.organization
        display_name = display_names.parse(changed.display_name, "organization.display_name")
        updated = self._organizations.update(call.change_request(request), display_name, changed.etag)
        return pb.UpdateOrganizationResponse(
            organization=responses.organization(updated.view), revision=updated.revision
        )
