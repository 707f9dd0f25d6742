"""OrganizationService."""

from google.protobuf.field_mask_pb2 import FieldMask

from rolecall.errors import InvalidField
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.organizations import Organizations
from rolecall.v1 import organization_pb2 as pb

__all__ = ["OrganizationService"]

# Paths that an update mask may have; `*` stands for all mutable fields.
_MUTABLE = ("*", "display_name")


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
        _require_mutable(request.update_mask)
        changed = request.organization
        display_name = requests.name(changed.display_name, "organization.display_name")
        updated = self._organizations.update(call.change_request(request), display_name, changed.etag)
        return pb.UpdateOrganizationResponse(
            organization=responses.organization(updated.view), revision=updated.revision
        )


def _require_mutable(mask: FieldMask) -> None:
    """Raise `InvalidField` unless every path of the mask is a mutable field."""
    if any(path not in _MUTABLE for path in mask.paths):
        raise InvalidField(
            "update_mask names a field that is unknown or can't be changed: give `display_name` or `*`, or leave the"
            " mask out.",
            field="update_mask",
        )
