"""TeamService."""

from collections.abc import Iterable

from rolecall.domain import Subject
from rolecall.errors import RolecallError, combine
from rolecall.formats import slugs
from rolecall.server import requests, responses
from rolecall.server.handler import Call
from rolecall.services.teams import Teams, require_batch
from rolecall.v1 import team_pb2 as pb

__all__ = ["TeamService"]


class TeamService:
    """Keeps teams of members."""

    def __init__(self, teams: Teams) -> None:
        self._teams = teams

    def CreateTeam(self, request: pb.CreateTeamRequest, call: Call) -> pb.CreateTeamResponse:
        """Create a team."""
        created = self._teams.create(call.change_request(request), _id(request.id), request.display_name)
        return pb.CreateTeamResponse(team=responses.team(created.team), revision=created.revision)

    def GetTeam(self, request: pb.GetTeamRequest, call: Call) -> pb.GetTeamResponse:
        """Get one team."""
        found = self._teams.get(call.caller_in(request.organization), _id(request.id))
        return pb.GetTeamResponse(team=responses.team(found))

    def ListTeams(self, request: pb.ListTeamsRequest, call: Call) -> pb.ListTeamsResponse:
        """List teams."""
        user_id, page = requests.user_id(request.user_id), requests.page(request)
        found = self._teams.list(call.caller_in(request.organization), user_id, page)
        return pb.ListTeamsResponse(
            teams=[responses.team(team) for team in found.teams], next_page_token=found.next_page_token
        )

    def UpdateTeam(self, request: pb.UpdateTeamRequest, call: Call) -> pb.UpdateTeamResponse:
        """Change a team's display name."""
        new = request.team
        team_id = _id(new.id, "team.id")
        requests.mask_paths(request.update_mask, ("display_name",))
        changed = self._teams.update(call.change_request(request), team_id, new.display_name, new.etag)
        return pb.UpdateTeamResponse(team=responses.team(changed.team), revision=changed.revision)

    def DeleteTeam(self, request: pb.DeleteTeamRequest, call: Call) -> pb.DeleteTeamResponse:
        """Delete a team."""
        deleted = self._teams.delete(call.change_request(request), _id(request.id), request.etag)
        return pb.DeleteTeamResponse(team=responses.team(deleted.team), revision=deleted.revision)

    def AddTeamMembers(self, request: pb.AddTeamMembersRequest, call: Call) -> pb.AddTeamMembersResponse:
        """Add members to a team."""
        team_id, members = _id(request.id), _members(request.members)
        changed = self._teams.add_members(call.change_request(request), team_id, members)
        return pb.AddTeamMembersResponse(team=responses.team(changed.team), revision=changed.revision)

    def RemoveTeamMembers(self, request: pb.RemoveTeamMembersRequest, call: Call) -> pb.RemoveTeamMembersResponse:
        """Remove members from a team."""
        team_id, members = _id(request.id), _members(request.members)
        changed = self._teams.remove_members(call.change_request(request), team_id, members)
        return pb.RemoveTeamMembersResponse(team=responses.team(changed.team), revision=changed.revision)

    def ListTeamMembers(self, request: pb.ListTeamMembersRequest, call: Call) -> pb.ListTeamMembersResponse:
        """List a team's members."""
        team_id, page = _id(request.id), requests.page(request)
        found = self._teams.list_members(call.caller_in(request.organization), team_id, page)
        return pb.ListTeamMembersResponse(
            members=[responses.member(member) for member in found.members], next_page_token=found.next_page_token
        )


def _id(text: str, field: str = "id") -> str:
    return slugs.parse(text, field, "a team's id")


def _members(texts: Iterable[str]) -> list[Subject]:
    """Return the members that are named. Raises `BatchSize`, and one error that combines those of all entries."""
    named = list(texts)
    require_batch(len(named))
    found: list[Subject] = []
    problems: list[RolecallError] = []
    for number, text in enumerate(named):
        try:
            found.append(requests.member(text, f"members[{number}]"))
        except RolecallError as error:
            problems.append(error)
    if problems:
        raise combine(problems)
    return found
