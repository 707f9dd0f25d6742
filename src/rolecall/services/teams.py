"""Teams of members: create, list, change and delete them, and their members. See docs/concepts.md, rule 7."""

from collections.abc import Sequence
from dataclasses import dataclass

from rolecall.domain import (
    AssignmentQuery,
    Caller,
    Member,
    Page,
    Principal,
    PrincipalKind,
    RoleAssignment,
    Subject,
    Team,
)
from rolecall.errors import BatchSize, TeamExists, TooMany
from rolecall.formats import display_names
from rolecall.policy.reload import LivePolicy
from rolecall.services.assignment_rules import CREATE, DELETE, MAX_PER_PRINCIPAL, require_changeable
from rolecall.services.caller_permissions import may, require
from rolecall.services.pagination import Pagination
from rolecall.services.principals import find_members, team_not_found
from rolecall.services.unit_of_work import (
    Answer,
    ChangeContext,
    ChangeRequest,
    Outcome,
    Unchanged,
    UnitOfWork,
    Written,
    require_etag,
)
from rolecall.storage import Storage
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import teams as rows

__all__ = ["ChangedTeam", "TeamMemberPage", "TeamPage", "Teams", "require_batch"]

# Maximum members in one request.
MAX_BATCH = 200
# Maximum teams of one member: a cached member depends on each of them.
MAX_TEAMS = 100


@dataclass(frozen=True, slots=True)
class ChangedTeam(Answer):
    """Answer to a change of a team: the team, as it was before a deletion."""

    team: Team


@dataclass(frozen=True, slots=True)
class TeamPage:
    """A page of teams."""

    teams: tuple[Team, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class TeamMemberPage:
    """A page of a team's members."""

    members: tuple[Member, ...]
    next_page_token: str


class Teams:
    """Use cases of TeamService. Each method raises `StorageUnavailable`, those that write `WriteConflict` too."""

    def __init__(self, unit_of_work: UnitOfWork, storage: Storage, live: LivePolicy, pages: Pagination) -> None:
        self._unit_of_work = unit_of_work
        self._storage = storage
        self._live = live
        self._pages = pages

    def create(self, request: ChangeRequest, team_id: str, display_name: str) -> ChangedTeam:
        """Create a team without members. Raises `PermissionMissing`, `InvalidField`, `TeamExists`."""
        if display_name:
            display_names.parse(display_name, "display_name")

        def authorize(context: ChangeContext) -> None:
            context.require("create", "teams")
            if rows.get(context.tx, context.caller.organization, team_id):
                raise TeamExists(f"The team `{team_id}` exists already: choose another id.", field="id")

        def effect(context: ChangeContext, _: None) -> Outcome[ChangedTeam]:
            team = Team(context.caller.organization, team_id, display_name or team_id, context.at, context.tx.revision)
            rows.add(context.tx, team)
            return Written(ChangedTeam(team), _object(team), {"after": {"display_name": team.display_name}})

        return self._unit_of_work.run(request, ChangedTeam, authorize, effect)

    def get(self, caller: Caller, team_id: str) -> Team:
        """Get one team. Raises `TeamNotFound`, also for one that the caller may not see."""
        found = self._storage.read(lambda tx: rows.get(tx, caller.organization, team_id))
        if found is None or not self._may_view(caller, team_id):
            raise team_not_found(team_id, "id")
        return found

    def list(self, caller: Caller, user_id: str, page: Page) -> TeamPage:
        """List the teams, by id, of a member, or all without a `user_id`.

        Raises `PermissionMissing`, `InvalidField`, `PageToken`.
        """
        size = self._pages.size(page)
        if not user_id or user_id != caller.user_id:
            require(self._live.in_force.policy, caller, "view", "teams")
        scope = ("ListTeams", caller.organization, user_id)
        position = self._pages.position(scope, page)
        after = position[0] if position else ""
        found = self._storage.read(lambda tx: rows.page(tx, caller.organization, user_id, after, size + 1))
        token = self._pages.token(scope, [found[size - 1].id]) if len(found) > size else ""
        return TeamPage(tuple(found[:size]), token)

    def update(self, request: ChangeRequest, team_id: str, display_name: str, etag: str) -> ChangedTeam:
        """Change a team's display name. Raises `PermissionMissing`, `TeamNotFound`, `InvalidField`, `EtagMismatch`."""
        display_names.parse(display_name, "team.display_name")

        def effect(context: ChangeContext, team: Team) -> Outcome[ChangedTeam]:
            require_etag(etag, team.etag, "team.etag")
            if team.display_name == display_name:
                return Unchanged(ChangedTeam(team))
            changed = rows.rename(context.tx, team, display_name)
            before, after = ({"display_name": each.display_name} for each in (team, changed))
            return Written(ChangedTeam(changed), _object(team), {"before": before, "after": after})

        return self._unit_of_work.run(
            request, ChangedTeam, lambda context: _require(context, "update", team_id, "team.id"), effect
        )

    def delete(self, request: ChangeRequest, team_id: str, etag: str) -> ChangedTeam:
        """Delete a team, and with it what is assigned to it.

        Raises `PermissionMissing`, `TeamNotFound`, `RoleBeyondCaller`, `EtagMismatch`.
        """

        def authorize(context: ChangeContext) -> Team:
            team = _require(context, "delete", team_id)
            require_changeable(context, DELETE, _assignments(context, team), [_principal(team)], "id")
            return team

        def effect(context: ChangeContext, team: Team) -> Outcome[ChangedTeam]:
            require_etag(etag, team.etag)
            ended = [f"{each.role} at {each.scope or 'the whole organization'}" for each in _assignments(context, team)]
            rows.remove(context.tx, team)
            before = {"display_name": team.display_name, "members": team.member_count, "assignments": ended}
            return Written(ChangedTeam(team), _object(team), {"before": before})

        return self._unit_of_work.run(request, ChangedTeam, authorize, effect)

    def add_members(self, request: ChangeRequest, team_id: str, named: Sequence[Subject]) -> ChangedTeam:
        """Add members to a team; those who are in it already stay.

        Raises `PermissionMissing`, `TeamNotFound`, `MemberNotFound`, `RoleBeyondCaller`, `BatchSize`, `TooMany`.
        """
        return self._change_members(request, CREATE, team_id, named)

    def remove_members(self, request: ChangeRequest, team_id: str, named: Sequence[Subject]) -> ChangedTeam:
        """Remove members from a team; others are ignored. Raises as `add_members`, but `TooMany`."""
        return self._change_members(request, DELETE, team_id, named)

    def list_members(self, caller: Caller, team_id: str, page: Page) -> TeamMemberPage:
        """List a team's members, by address. Raises `TeamNotFound`, `InvalidField`, `PageToken`."""
        size = self._pages.size(page)
        self.get(caller, team_id)
        scope = ("ListTeamMembers", caller.organization, team_id)
        position = self._pages.position(scope, page)
        after = position[0] if position else ""
        found = self._storage.read(lambda tx: rows.members_page(tx, caller.organization, team_id, after, size + 1))
        token = self._pages.token(scope, [found[size - 1][0]]) if len(found) > size else ""
        return TeamMemberPage(tuple(member for _, member in found[:size]), token)

    def _change_members(self, request: ChangeRequest, verb: str, team_id: str, named: Sequence[Subject]) -> ChangedTeam:
        """Add (`create`) or remove (`delete`) members of a team, as if its roles were assigned to them, or ended."""

        def authorize(context: ChangeContext) -> tuple[Team, list[str]]:
            tx, organization = context.tx, context.caller.organization
            team = _require(context, "update", team_id)
            found = find_members(tx, organization, named, "members")
            inside = rows.member_ids(tx, organization, team_id, list(found))
            changed = [user_id for user_id in found if (user_id in inside) is (verb == DELETE)]
            affected = [Principal(PrincipalKind.USER, user_id) for user_id in changed]
            require_changeable(context, verb, _assignments(context, team), affected, "members")
            return team, changed

        def effect(context: ChangeContext, authorized: tuple[Team, list[str]]) -> Outcome[ChangedTeam]:
            team, changed = authorized
            if not changed:
                return Unchanged(ChangedTeam(team))
            if verb == CREATE:
                _require_room(context, changed)
                rows.add_members(context.tx, team, changed)
            else:
                rows.remove_members(context.tx, team, changed)
            after = rows.get(context.tx, team.organization, team.id) or team
            return Written(ChangedTeam(after), _object(team), {"members": [f"user:{each}" for each in changed]})

        return self._unit_of_work.run(request, ChangedTeam, authorize, effect)

    def _may_view(self, caller: Caller, team_id: str) -> bool:
        return team_id in caller.assigned.teams or may(self._live.in_force.policy, caller, "view", "teams")


def require_batch(size: int) -> None:
    """Raise `BatchSize` unless a request may name `size` members."""
    if not 1 <= size <= MAX_BATCH:
        raise BatchSize(
            f"members has {size} people; it must have 1 to {MAX_BATCH}: split the list, or add people.",
            field="members",
            size=str(size),
            maximum=str(MAX_BATCH),
        )


def _require(context: ChangeContext, verb: str, team_id: str, field: str = "id") -> Team:
    """Return the team; raise unless the caller may `verb` (update, delete) teams."""
    context.require(verb, "teams")
    team = rows.get(context.tx, context.caller.organization, team_id)
    if team is None:
        raise team_not_found(team_id, field)
    return team


def _require_room(context: ChangeContext, user_ids: Sequence[str]) -> None:
    """Raise `TooMany` if a member would be in too many teams."""
    full = rows.full_members(context.tx, context.caller.organization, user_ids, MAX_TEAMS)
    if full:
        raise TooMany(
            f"user:{full[0]} is in {MAX_TEAMS} teams, and may be in no more: remove them from another team first.",
            field="members",
            subject=f"user:{full[0]}",
            maximum=str(MAX_TEAMS),
        )


def _assignments(context: ChangeContext, team: Team) -> list[RoleAssignment]:
    """Return what is assigned to a team and has not ended; at most 10,000, as many as there may be."""
    query = AssignmentQuery(_principal(team))
    found = assignment_rows.page(context.tx, team.organization, query, None, MAX_PER_PRINCIPAL)
    return [each for each in found if context.at < each.expire_time]


def _principal(team: Team) -> Principal:
    return Principal(PrincipalKind.TEAM, team.id)


def _object(team: Team) -> str:
    return f"team:{team.id}"
