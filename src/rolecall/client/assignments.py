"""The parts of a client for role assignments and teams: `Client.assignments` and `Client.teams`."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf.field_mask_pb2 import FieldMask

from rolecall.client import convert
from rolecall.client.connection import Connection
from rolecall.domain import Member
from rolecall.errors import InvalidField
from rolecall.v1 import assignment_pb2, team_pb2
from rolecall.v1.assignment_pb2_grpc import AssignmentServiceStub
from rolecall.v1.team_pb2_grpc import TeamServiceStub

__all__ = ["AssignmentClient", "NewAssignment", "TeamClient"]


class NewAssignment(NamedTuple):
    """Role that is to be assigned at `scope`, empty for the whole organization.

    `principal`: `user:ID`, an address, `team:ID` or `token:ID`. `expires`: when it ends, or after how long; None if it
    doesn't end by itself.
    """

    principal: str
    role: str
    scope: str = ""
    expires: datetime | timedelta | None = None
    note: str = ""


class AssignmentClient:
    """Role assignments, as `Client.assignments`.

    Each method raises `RolecallError`, and `ValueError` for what no message can hold.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = AssignmentServiceStub(connection.channel)

    def create(
        self,
        assignments: Iterable[NewAssignment | tuple[str, str]],
        *,
        validate_only: bool = False,
    ) -> assignment_pb2.CreateRoleAssignmentsResponse:
        """Assign 1 to 200 roles, all or none: each a (principal, role), or a `NewAssignment`.

        The error lists every invalid one in `all`. `validate_only` checks them without assigning anything.
        """
        request = assignment_pb2.CreateRoleAssignmentsRequest(
            organization=self._connection.organization, validate_only=validate_only
        )
        for assignment in assignments:
            principal, role, scope, expires, note = NewAssignment(*assignment)
            added = request.assignments.add(principal=principal, role=role, scope=scope, note=note)
            convert.set_expiry(added, expires)
        return self._connection.change(self._stub.CreateRoleAssignments, request)

    def list(self, *, principal: str = "", role: str = "", scope: str = "") -> Iterator[assignment_pb2.RoleAssignment]:
        """List the assignments that match the filters, the newest first, fetched page by page.

        `principal`: as in `NewAssignment`; a member's assignments are without those of its teams. `scope`: this one and
        all beneath it. An assignment that has ended is listed for up to 30 days.
        """
        request = assignment_pb2.ListRoleAssignmentsRequest(
            organization=self._connection.organization,
            principal=principal,
            role=role,
            scope=scope,
            page_size=self._connection.page_size,
        )
        for page in self._connection.pages(self._stub.ListRoleAssignments, request):
            yield from page.assignments

    def get(self, assignment_id: str) -> assignment_pb2.RoleAssignment:
        """Return one assignment."""
        request = assignment_pb2.GetRoleAssignmentRequest(organization=self._connection.organization, id=assignment_id)
        return self._connection.call(self._stub.GetRoleAssignment, request).assignment

    def update(
        self,
        assignment_id: str,
        *,
        expires: datetime | timedelta | None = None,
        no_end: bool = False,
        note: str | None = None,
        etag: str = "",
    ) -> assignment_pb2.UpdateRoleAssignmentResponse:
        """Change what is given.

        `expires`: when the assignment ends, or after how long; with `no_end` it doesn't end by itself any more. A time
        span is added to this machine's clock. An empty note stands for none. `etag` as for `MemberClient.change_role`.
        Raises `InvalidField` if `expires` and `no_end` are both given.
        """
        if expires is not None and no_end:
            raise InvalidField("expires and no_end contradict each other: leave one out.", field="expires")
        changed = assignment_pb2.RoleAssignment(id=assignment_id, note=note or "", etag=etag)
        if isinstance(expires, timedelta):
            expires = datetime.now(UTC) + expires
        if expires is not None:
            changed.expire_time.CopyFrom(convert.timestamp(expires))
        given = {"expire_time": expires is not None or no_end, "note": note is not None}
        request = assignment_pb2.UpdateRoleAssignmentRequest(
            organization=self._connection.organization,
            assignment=changed,
            update_mask=FieldMask(paths=[field for field, is_given in given.items() if is_given]),
        )
        return self._connection.change(self._stub.UpdateRoleAssignment, request)

    def delete(self, assignment_id: str, *, etag: str = "") -> assignment_pb2.DeleteRoleAssignmentResponse:
        """End an assignment at once. `etag` as for `MemberClient.change_role`."""
        request = assignment_pb2.DeleteRoleAssignmentRequest(
            organization=self._connection.organization, id=assignment_id, etag=etag
        )
        return self._connection.change(self._stub.DeleteRoleAssignment, request)


class TeamClient:
    """Teams, as `Client.teams`. Each method raises `RolecallError`, and `ValueError` for what no message can hold.

    A member is named by `user:ID` or an address.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = TeamServiceStub(connection.channel)

    def create(self, team_id: str, *, display_name: str = "") -> team_pb2.CreateTeamResponse:
        """Create a team without members. Without a display name, it has its id for one."""
        request = team_pb2.CreateTeamRequest(
            organization=self._connection.organization, id=team_id, display_name=display_name
        )
        return self._connection.change(self._stub.CreateTeam, request)

    def list(self, *, user_id: str = "") -> Iterator[team_pb2.Team]:
        """List the teams by id, or only those of one member, fetched page by page."""
        request = team_pb2.ListTeamsRequest(
            organization=self._connection.organization, user_id=user_id, page_size=self._connection.page_size
        )
        for page in self._connection.pages(self._stub.ListTeams, request):
            yield from page.teams

    def get(self, team_id: str) -> team_pb2.Team:
        """Return one team."""
        request = team_pb2.GetTeamRequest(organization=self._connection.organization, id=team_id)
        return self._connection.call(self._stub.GetTeam, request).team

    def update(self, team_id: str, display_name: str, *, etag: str = "") -> team_pb2.UpdateTeamResponse:
        """Change the display name. With an `etag`, fails with `EtagMismatch` if the team has changed since."""
        request = team_pb2.UpdateTeamRequest(
            organization=self._connection.organization,
            team=team_pb2.Team(id=team_id, display_name=display_name, etag=etag),
            update_mask=FieldMask(paths=["display_name"]),
        )
        return self._connection.change(self._stub.UpdateTeam, request)

    def delete(self, team_id: str, *, etag: str = "") -> team_pb2.DeleteTeamResponse:
        """Delete a team and what is assigned to it. `etag` as for `update`."""
        request = team_pb2.DeleteTeamRequest(organization=self._connection.organization, id=team_id, etag=etag)
        return self._connection.change(self._stub.DeleteTeam, request)

    def add_members(self, team_id: str, members: Iterable[str]) -> team_pb2.AddTeamMembersResponse:
        """Add 1 to 200 members, all or none; those who are in the team already stay."""
        request = team_pb2.AddTeamMembersRequest(
            organization=self._connection.organization, id=team_id, members=members
        )
        return self._connection.change(self._stub.AddTeamMembers, request)

    def remove_members(self, team_id: str, members: Iterable[str]) -> team_pb2.RemoveTeamMembersResponse:
        """Remove 1 to 200 members, all or none; those who aren't in the team are ignored."""
        request = team_pb2.RemoveTeamMembersRequest(
            organization=self._connection.organization, id=team_id, members=members
        )
        return self._connection.change(self._stub.RemoveTeamMembers, request)

    def members(self, team_id: str) -> Iterator[Member]:
        """List the members of a team by address, fetched page by page, as `MemberClient.list` returns them."""
        request = team_pb2.ListTeamMembersRequest(
            organization=self._connection.organization, id=team_id, page_size=self._connection.page_size
        )
        for page in self._connection.pages(self._stub.ListTeamMembers, request):
            yield from (convert.member(member, self._connection.organization) for member in page.members)
