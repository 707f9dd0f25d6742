"""Role assignments, teams, and the roles that a subject holds by them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from rolecall.domain.scopes import ORGANIZATION, covers

__all__ = [
    "NEVER",
    "NOTHING_ASSIGNED",
    "ApplicableRoles",
    "AssignedRole",
    "AssignedRoles",
    "AssignmentQuery",
    "Principal",
    "PrincipalKind",
    "RoleAssignment",
    "Team",
]

# The end of an assignment that doesn't end by itself; BIGINT holds it.
NEVER = 2**62
# Maximum questions whose applicable roles are cached; scope and resource have at most 2,048 characters together.
CACHED_APPLICABLE = 8192


class PrincipalKind(StrEnum):
    """Kind of a principal; the value is the prefix of its text."""

    USER = "user"
    TEAM = "team"
    TOKEN = "token"  # noqa: S105 - a kind, not a secret


class Principal(NamedTuple):
    """Member, team or organization token to which roles are assigned."""

    kind: PrincipalKind
    id: str

    @property
    def text(self) -> str:
        """The principal as text, as in `user:ID`."""
        return f"{self.kind.value}:{self.id}"

    @classmethod
    def of(cls, text: str) -> "Principal":
        """Parse what `text` makes. Raises `ValueError` for anything else."""
        kind, _, identifier = text.partition(":")
        return cls(PrincipalKind(kind), identifier)


@dataclass(frozen=True, slots=True)
class RoleAssignment:
    """Role that a principal has at a scope, until `expire_time`.

    `name` is the member's address, or the display name of the team or token. `changed` is the revision that last
    changed the assignment.
    """

    organization: str
    id: str
    principal: Principal
    role: str
    scope: str
    creator: str
    create_time: int
    expire_time: int
    note: str
    changed: int
    name: str = ""

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the assignment."""
        return f"{self.changed:x}"


@dataclass(frozen=True, slots=True)
class AssignmentQuery:
    """Filter of assignments; an empty field matches any. `scope`: this one and all beneath it."""

    principal: Principal | None = None
    role: str = ""
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Team:
    """Team of members. `changed` is the revision that last changed its display name or its members."""

    organization: str
    id: str
    display_name: str
    create_time: int
    changed: int
    member_count: int = 0

    @property
    def etag(self) -> str:
        """The etag, which changes with every change of the team."""
        return f"{self.changed:x}"


class AssignedRole(NamedTuple):
    """Role that a subject is assigned, itself or through a team. `principal` names which, as in `team:payments`."""

    role: str
    scope: str
    expire_time: int
    assignment_id: str
    principal: str


class ApplicableRoles(NamedTuple):
    """Assigned roles that apply to a question, and their names, in the same order."""

    names: tuple[str, ...]
    roles: tuple[AssignedRole, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AssignedRoles:
    """Roles that a subject is assigned, those that have ended included. False where there are none.

    `teams` are the ids of its teams. `until`: the time at which the first of the roles ends. Compared by identity, as
    they are the key of a cache.
    """

    roles: tuple[AssignedRole, ...] = ()
    teams: tuple[str, ...] = ()
    until: int = field(init=False, repr=False)
    _by_scope: dict[str, list[AssignedRole]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Order the roles, and index them by scope."""
        ordered = tuple(sorted(self.roles, key=lambda each: (each.scope, each.role, each.assignment_id)))
        object.__setattr__(self, "roles", ordered)
        object.__setattr__(self, "until", min((each.expire_time for each in ordered), default=NEVER))
        by_scope: dict[str, list[AssignedRole]] = {}
        for each in ordered:
            by_scope.setdefault(each.scope, []).append(each)
        object.__setattr__(self, "_by_scope", by_scope)

    def __bool__(self) -> bool:
        """Return whether any role is assigned."""
        return bool(self.roles)

    def at(self, time: int) -> "AssignedRoles":
        """Return the roles that have not ended at `time`."""
        if time < self.until:
            return self
        return AssignedRoles(tuple(each for each in self.roles if time < each.expire_time), self.teams)

    def applicable(self, scope: str, resource: str, at: int) -> ApplicableRoles:
        """Return the roles that apply at the time `at` to a question with this scope and resource.

        Those of the whole organization come first, then those whose scope covers the resource, then those whose scope
        covers the scope only; of these, narrower scopes first.
        """
        found = _applicable(self, scope, resource)
        if at < self.until:
            return found
        roles = tuple(each for each in found.roles if at < each.expire_time)
        return ApplicableRoles(tuple(each.role for each in roles), roles)

    def _find_applicable(self, scope: str, resource: str) -> ApplicableRoles:
        by_scope = self._by_scope
        found = list(by_scope.get(ORGANIZATION, ()))
        path = resource
        while path:
            found += by_scope.get(path, ())
            path = path[: max(path.rfind("/"), 0)]
        path = scope
        while path:
            if not covers(path, resource):
                found += by_scope.get(path, ())
            path = path[: max(path.rfind("/"), 0)]
        return ApplicableRoles(tuple(each.role for each in found), tuple(found))

    def covering(self, scope: str, until: int) -> Iterator[AssignedRole]:
        """Yield the roles that hold at all of `scope`, at least until the time `until`."""
        return (each for each in self.roles if covers(each.scope, scope) and until <= each.expire_time)


@lru_cache(CACHED_APPLICABLE)
def _applicable(assigned: AssignedRoles, scope: str, resource: str) -> ApplicableRoles:
    return assigned._find_applicable(scope, resource)  # noqa: SLF001 - the class's own method


NOTHING_ASSIGNED = AssignedRoles()
