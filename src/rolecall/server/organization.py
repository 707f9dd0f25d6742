"""OrganizationService."""

from rolecall.organizations import Organizations
from rolecall.server import fields
from rolecall.server.calls import Call
from rolecall.v1 import organization_pb2 as pb

__all__ = ["OrganizationService"]


class OrganizationService:
    """Shows and changes the organization itself."""

    def __init__(self, organizations: Organizations) -> None:
        self._organizations = organizations

    def GetOrganization(self, request: pb.GetOrganizationRequest, call: Call) -> pb.GetOrganizationResponse:
        """Get the organization."""
        found = self._organizations.get(call.caller_in(request.organization))
        return pb.GetOrganizationResponse(organization=fields.organization(found))

    def UpdateOrganization(self, request: pb.UpdateOrganizationRequest, call: Call) -> pb.UpdateOrganizationResponse:
        """Change the name to show."""
        display_name = fields.name(request.display_name, "display_name")
        updated = self._organizations.update(call.attempt(request), display_name, request.etag)
        return pb.UpdateOrganizationResponse(
            organization=fields.organization(updated), revision=updated.organization.revision
        )
