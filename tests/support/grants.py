"""Permissions, and roles a credential may manage: computed from `permissions.csv` and the rules, not by the server."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass

from rolecall.domain import CredentialKind
from support.environment import PERMISSIONS_FILE

__all__ = [
    "EXTRA_ROLES",
    "HOUR",
    "RESTRICTIONS",
    "ROLES",
    "SCOPES",
    "UNIVERSE",
    "CredentialCase",
    "Held",
    "Pairs",
    "allows",
    "bound",
    "denies",
    "extra_rows",
    "is_beneath",
    "is_owner",
    "powers",
]

Pairs = tuple[tuple[str, str], ...]
Points = frozenset[tuple[str, str]]

with PERMISSIONS_FILE.open(encoding="utf-8") as _file:
    _ROWS = list(csv.DictReader(_file))
ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")
# Concrete questions that distinguish all patterns used here; `zzz` is a name that no policy has.
_RESOURCES = sorted(
    {row["resource"] for row in _ROWS} | {"secrets/prod", "secrets/prod/db", "secrets/production", "projects/1", "zzz"}
)
_ACTIONS = sorted({row["action"] for row in _ROWS} | {"zzz"})
UNIVERSE = frozenset((resource, action) for resource in _RESOURCES for action in _ACTIONS)


def _held(role: str) -> Pairs:
    return tuple((row["resource"], row["action"]) for row in _ROWS if row[role] == "1")


# Roles besides those of the matrix, of the policy in the tests: what each allows, and what it denies.
EXTRA_ROLES: dict[str, tuple[Pairs, Pairs]] = {
    "BARRED": ((), (("secrets", "view"),)),
    "GUARD": ((("audit-logs", "view"), ("secrets", "view")), (("secrets/prod", "view"),)),
    "CLERK": (
        (*((kind, verb) for kind in ("assignments", "teams") for verb in ("create", "update", "delete", "view")),),
        (),
    ),
    # Never assigned, as a role with any rule on `owners update`.
    "UNOWNER": ((("templates", "view"),), (("owners", "update"),)),
}
# Scopes of assignments and restrictions: the organization, one beneath another, one beside it, and one that is a
# resource too.
SCOPES = ("", "projects/1", "projects/1/a", "projects/2", "secrets/prod")
# In microseconds.
HOUR = 3_600_000_000


def extra_rows() -> str:
    """Return the rows of the additional roles for `policy.csv`."""
    rows = [
        f"p, {role}, {resource}, {action}, {effect}"
        for role, (allowed, denied) in EXTRA_ROLES.items()
        for effect, pairs in (("allow", allowed), ("deny", denied))
        for resource, action in pairs
    ]
    return "".join(f"{row}\n" for row in rows)


_PEOPLE = (("members", "*"), ("owners", "*"))
_MINTING = (("personal-tokens", "create"), ("organization-tokens", "create"))

# Restrictions of the presented credentials.
RESTRICTIONS: dict[str, Pairs | None] = {
    "nothing is cut": None,
    "all": (("*", "*"),),
    "check": (("authorization", "check"),),
    "people": _PEOPLE,
    "members": (("members", "*"),),
    "owners": (("owners", "*"),),
    "owners update": (("members", "update"), ("owners", "update")),
    "invite": (("members", "invite"), *_held("VIEWERNOSECRETS")),
    "as a viewer": (*_PEOPLE[:1], *_held("VIEWER")),
    "as a contributor": (*_PEOPLE[:1], *_MINTING, ("member-tokens", "*"), *_held("CONTRIBUTOR")),
    "as an admin": _held("ADMIN"),
    "mint": (*_MINTING, ("secrets", "view")),
    "mint beneath": (*_MINTING, ("secrets/prod*", "view"), ("organization-tokens", "delete")),
    "view": (*_MINTING, ("*", "view")),
    "assign": (("assignments", "*"), ("teams", "*"), *_held("VIEWER")),
    "only assign": (("assignments", "create"), ("assignments", "view"), *_held("VIEWER")),
    "end tokens": (("member-tokens", "delete"), ("owners", "update"), ("secrets/prod", "*")),
}


def _covers(pattern: str, resource: str) -> bool:
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def bound(only: Iterable[tuple[str, str]] | None) -> Points:
    """Return the questions that a restriction permits."""
    if only is None:
        return UNIVERSE
    patterns = list(only)
    return frozenset(
        (resource, action)
        for resource, action in UNIVERSE
        if any(verb in (action, "*") and _covers(pattern, resource) for pattern, verb in patterns)
    )


_POWERS = {role: bound(_held(role)) for role in ROLES}
_ALLOWS = {**_POWERS, **{role: bound(allowed) for role, (allowed, _) in EXTRA_ROLES.items()}}
_DENIES = {role: bound(denied) for role, (_, denied) in EXTRA_ROLES.items()}


def powers(role: str) -> Points:
    """Return the questions that the matrix grants a role."""
    return _POWERS[role]


def allows(role: str) -> Points:
    """Return the questions that an allow rule of a role covers."""
    return _ALLOWS[role]


def denies(role: str) -> Points:
    """Return the questions that a deny rule of a role covers."""
    return _DENIES.get(role, frozenset())


def is_owner(role: str) -> bool:
    """Whether a role is an owner's."""
    return ("owners", "update") in allows(role)


def is_beneath(path: str, scope: str) -> bool:
    """Whether a path is a scope or beneath it."""
    return not scope or f"{path}/".startswith(f"{scope}/")


@dataclass(frozen=True)
class Held:
    """Role that somebody is assigned, itself or by a team. `life`: microseconds until it ends; None if it doesn't."""

    role: str
    scope: str = ""
    life: int | None = None
    by_team: bool = False

    def lasts(self, until: int | None) -> bool:
        """Whether it lasts until a time, in microseconds from now; None for ever."""
        return self.life is None or (until is not None and until <= self.life)


@dataclass(frozen=True)
class CredentialCase:
    """Credential: its kind, its holder's role (a program's own), the name of its restriction, and the scope of that.

    `assigned`: what its holder is assigned besides.
    """

    kind: CredentialKind
    role: str
    restriction_name: str
    scope: str = ""
    assigned: tuple[Held, ...] = ()

    @property
    def only(self) -> Pairs | None:
        """The patterns that it is restricted to."""
        return RESTRICTIONS[self.restriction_name]

    @property
    def is_restricted(self) -> bool:
        """Whether it is restricted at all."""
        return self.only is not None or self.scope != ""

    @property
    def is_person(self) -> bool:
        """Whether a person is behind it."""
        return self.kind is not CredentialKind.ORGANIZATION

    def can(self, resource: str, action: str, scope: str = "") -> bool:
        """Whether it has the permission for questions in a scope: a deny of any role that applies beats any allow."""
        roles = [self.role]
        roles += [
            held.role for held in self.assigned if is_beneath(scope, held.scope) or is_beneath(resource, held.scope)
        ]
        point = (resource, action)
        reaches = is_beneath(scope, self.scope) or is_beneath(resource, self.scope)
        granted = any(point in allows(role) for role in roles) and not any(point in denies(role) for role in roles)
        return granted and reaches and point in bound(self.only)

    def covers_role(self, role: str, scope: str = "", until: int | None = None) -> bool:
        """Rules 1 and 7: whether a role is no owner's, and within what the credential may at all of a scope until then.

        Of its holder's roles, those allow that hold at the scope until then; all of them deny.
        """
        lasting = [held.role for held in self.assigned if is_beneath(scope, held.scope) and held.lasts(until)]
        allowed = frozenset[tuple[str, str]]().union(*map(allows, (self.role, *lasting))) & bound(self.only)
        if not is_beneath(scope, self.scope):
            allowed = frozenset()
        denied = frozenset[tuple[str, str]]().union(*map(denies, (self.role, *(held.role for held in self.assigned))))
        lacking = allows(role) & denied & bound(self.only)
        return not is_owner(role) and allows(role) <= allowed and lacking <= denies(role)

    def covers_person(self, role: str, assigned: Iterable[Held]) -> bool:
        """Whether all that somebody may lies within what the credential may."""
        return self.covers_role(role) and all(self.covers_role(held.role, held.scope, held.life) for held in assigned)

    def handles(self, verb: str, *roles: str) -> bool:
        """Rule 1: whether it may invite to, update from or to, or remove from each of the roles."""
        return all(self.can("members" if self.covers_role(role) else "owners", verb) for role in roles)

    def handles_person(self, verb: str, role: str, assigned: Iterable[Held]) -> bool:
        """Whether it may handle somebody with each role that this person has."""
        within = [self.covers_role(role), *(self.covers_role(held.role, held.scope, held.life) for held in assigned)]
        return all(self.can("members" if covered else "owners", verb) for covered in within)

    def assigns(self, verb: str, held: Held) -> bool:
        """Rule 7: whether it may `create` or `delete` an assignment, as far as its role and scope are concerned."""
        if self.can("owners", "update"):
            return True
        return self.can("assignments", verb, held.scope) and self.covers_role(held.role, held.scope, held.life)

    def may_restrict_to(self, wanted: Pairs | None, role: str, scope: str = "") -> bool:
        """Rule 3: whether it may create a token with this restriction, of `role`; empty for a personal token."""
        if wanted is None and not scope:
            return not self.is_restricted
        if not is_beneath(scope, self.scope) or (wanted is None and self.only is not None):
            return False
        roles = [self.role, *(held.role for held in self.assigned if is_beneath(scope, held.scope))]
        allowed = frozenset[tuple[str, str]]().union(*map(allows, roles)) & bound(self.only)
        denied = frozenset[tuple[str, str]]().union(*map(denies, (self.role, *(held.role for held in self.assigned))))
        if role:
            allowed, denied = allowed & allows(role), denied | denies(role)
        points = [bound([pair]) for pair in wanted or ()]
        return all(each <= allowed and not each <= denied for each in points)

    def restricts_at_least(self, only: Pairs | None, scope: str = "") -> bool:
        """Rule 3: whether this restriction is at least as strict as its own; none is not within `* *`."""
        if not self.is_restricted:
            return True
        patterns = self.only is None or (only is not None and bound(only) <= bound(self.only))
        return patterns and is_beneath(scope, self.scope)

    def may_create_program_token(self, role: str, scope: str = "", until: int = 24 * HOUR) -> bool:
        """Rule 4: whether it may make an organization's token with a role, restricted to a scope, until then."""
        may_create = self.is_person and self.can("organization-tokens", "create", scope)
        return may_create and self.covers_role(role, scope, until)
