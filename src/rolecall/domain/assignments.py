"""Role assignments, teams, and the roles that a subject holds by them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rolecall.domain.scopes import covering_scopes, covers

__all__ = [
    "NEVER",
    "NOTHING_ASSIGNED",
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


@dataclass(frozen=True, slots=True)
class AssignedRoles:
    """Roles that a subject is assigned, those that have ended included. False where there are none.

    `teams` are the ids of its teams. `until`: the time at which the first of the roles ends.
    """

    roles: tuple[AssignedRole, ...] = ()
    teams: tuple[str, ...] = ()
    until: int = field(init=False, compare=False, repr=False)
    _by_scope: dict[str, list[AssignedRole]] = field(init=False, compare=False, repr=False)

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

    def applicable(self, scope: str, resource: str, at: int) -> list[AssignedRole]:
        """Return the roles that apply at the time `at` to a question with this scope and resource.

        Those whose scope covers the resource come first, and among them those of wider scopes.
        """
        paths = dict.fromkeys(covering_scopes(resource))
        if scope:
            paths.update(dict.fromkeys(covering_scopes(scope)))
        by_scope = self._by_scope
        found = [each for path in paths if path in by_scope for each in by_scope[path]]
        return found if at < self.until else [each for each in found if at < each.expire_time]

    def covering(self, scope: str, until: int) -> Iterator[AssignedRole]:
        """Yield the roles that hold at all of `scope`, at least until the time `until`."""
        return (each for each in self.roles if covers(each.scope, scope) and until <= each.expire_time)


NOTHING_ASSIGNED = AssignedRoles()
