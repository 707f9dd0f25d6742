"""AssignmentService."""

from rolecall.domain import NEVER
from rolecall.errors import InvalidField, RolecallError, combine
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.assignments import NewAssignment, RoleAssignments, require_batch
from rolecall.v1 import assignment_pb2 as pb

__all__ = ["AssignmentService"]

_MUTABLE = ("expire_time", "note")


class AssignmentService:
    """Assigns roles at scopes to members, teams and organization tokens."""

    def __init__(self, assignments: RoleAssignments) -> None:
        self._assignments = assignments

    def CreateRoleAssignments(
        self, request: pb.CreateRoleAssignmentsRequest, call: Call
    ) -> pb.CreateRoleAssignmentsResponse:
        """Assign roles."""
        wanted = _new_assignments(request)
        change = call.change_request(request)
        created = self._assignments.create(change, wanted, validate_only=request.validate_only)
        return pb.CreateRoleAssignmentsResponse(
            assignments=[responses.assignment(each) for each in created.assignments], revision=created.revision
        )

    def GetRoleAssignment(self, request: pb.GetRoleAssignmentRequest, call: Call) -> pb.GetRoleAssignmentResponse:
        """Get one assignment."""
        found = self._assignments.get(call.caller_in(request.organization), _id(request.id))
        return pb.GetRoleAssignmentResponse(assignment=responses.assignment(found))

    def ListRoleAssignments(self, request: pb.ListRoleAssignmentsRequest, call: Call) -> pb.ListRoleAssignmentsResponse:
        """List assignments."""
        principal = requests.principal(request.principal, "principal") if request.principal else None
        role = requests.role(request.role) if request.role else ""
        scope, page = requests.scope(request.scope), requests.page(request)
        found = self._assignments.list(call.caller_in(request.organization), principal, role, scope, page)
        return pb.ListRoleAssignmentsResponse(
            assignments=[responses.assignment(each) for each in found.assignments],
            next_page_token=found.next_page_token,
        )

    def UpdateRoleAssignment(
        self, request: pb.UpdateRoleAssignmentRequest, call: Call
    ) -> pb.UpdateRoleAssignmentResponse:
        """Change an assignment's end or note."""
        new = request.assignment
        assignment_id = _id(new.id, "assignment.id")
        expire_time, note = _changes(request)
        changed = self._assignments.update(call.change_request(request), assignment_id, expire_time, note, new.etag)
        return pb.UpdateRoleAssignmentResponse(
            assignment=responses.assignment(changed.assignment), revision=changed.revision
        )

    def DeleteRoleAssignment(
        self, request: pb.DeleteRoleAssignmentRequest, call: Call
    ) -> pb.DeleteRoleAssignmentResponse:
        """End an assignment."""
        deleted = self._assignments.delete(call.change_request(request), _id(request.id), request.etag)
        return pb.DeleteRoleAssignmentResponse(
            assignment=responses.assignment(deleted.assignment), revision=deleted.revision
        )


def _new_assignments(request: pb.CreateRoleAssignmentsRequest) -> list[NewAssignment]:
    """Return the assignments that are wanted. Raises `BatchSize`, and one error that combines those of all entries."""
    require_batch(len(request.assignments))
    wanted: list[NewAssignment] = []
    problems: list[RolecallError] = []
    for number, message in enumerate(request.assignments):
        try:
            wanted.append(_new_assignment(message, f"assignments[{number}]"))
        except RolecallError as error:
            problems.append(error)
    if problems:
        raise combine(problems)
    return wanted


def _new_assignment(message: pb.NewRoleAssignment, field: str) -> NewAssignment:
    expiry = message.WhichOneof("expiry")
    return NewAssignment(
        requests.principal(message.principal, f"{field}.principal"),
        requests.role(message.role, f"{field}.role"),
        requests.scope(message.scope, f"{field}.scope"),
        requests.timestamp(message.expire_time, f"{field}.expire_time") if expiry == "expire_time" else None,
        requests.duration(message.ttl, f"{field}.ttl") if expiry == "ttl" else None,
        requests.note(message.note, f"{field}.note"),
    )


def _changes(request: pb.UpdateRoleAssignmentRequest) -> tuple[int | None, str | None]:
    """Return the new end and note, None for one that stays. Raises `InvalidField`."""
    new = request.assignment
    is_ending = new.HasField("expire_time")
    fields = requests.mask_paths(request.update_mask, _MUTABLE)
    if not fields:
        fields = tuple(name for name, is_set in zip(_MUTABLE, (is_ending, bool(new.note)), strict=True) if is_set)
    if not fields:
        raise InvalidField(
            "The request changes nothing: set an expire_time or a note, or name one in the mask.", field="assignment"
        )
    expire_time: int | None = None
    if "expire_time" in fields:
        expire_time = requests.timestamp(new.expire_time, "assignment.expire_time") if is_ending else NEVER
    return expire_time, requests.note(new.note, "assignment.note") if "note" in fields else None


def _id(text: str, field: str = "id") -> str:
    if not requests.is_id(text):
        raise InvalidField(f"{field} is no role assignment's: give it as ListRoleAssignments shows it.", field=field)
    return text
