"""Permissions, and roles a credential may manage: computed from `permissions.csv` and the rules, not by the server."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass

from rolecall.domain import CredentialKind
from support.environment import PERMISSIONS_FILE

__all__ = ["RESTRICTIONS", "ROLES", "UNIVERSE", "CredentialCase", "Pairs", "bound", "is_owner", "powers"]

Pairs = tuple[tuple[str, str], ...]
Points = frozenset[tuple[str, str]]

with PERMISSIONS_FILE.open(encoding="utf-8") as _file:
    _ROWS = list(csv.DictReader(_file))
ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")
# Concrete questions that distinguish all patterns used here; `zzz` is a name that no policy has.
_RESOURCES = sorted({row["resource"] for row in _ROWS} | {"secrets/prod", "secrets/prod/db", "projects/1", "zzz"})
_ACTIONS = sorted({row["action"] for row in _ROWS} | {"zzz"})
UNIVERSE = frozenset((resource, action) for resource in _RESOURCES for action in _ACTIONS)


def _held(role: str) -> Pairs:
    return tuple((row["resource"], row["action"]) for row in _ROWS if row[role] == "1")


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


def powers(role: str) -> Points:
    """Return the questions that the matrix grants a role."""
    return _POWERS[role]


def is_owner(role: str) -> bool:
    """Whether a role is an owner's."""
    return ("owners", "update") in powers(role)


@dataclass(frozen=True)
class CredentialCase:
    """Credential: its kind, its holder's role (a program's own), and the name of its restriction."""

    kind: CredentialKind
    role: str
    restriction_name: str

    @property
    def only(self) -> Pairs | None:
        """The patterns that it is restricted to."""
        return RESTRICTIONS[self.restriction_name]

    @property
    def is_person(self) -> bool:
        """Whether a person is behind it."""
        return self.kind is not CredentialKind.ORGANIZATION

    @property
    def may(self) -> Points:
        """The permissions of its holder's role, restricted to its own restriction."""
        return powers(self.role) & bound(self.only)

    def can(self, resource: str, action: str) -> bool:
        """Whether it has the permission."""
        return (resource, action) in self.may

    def covers_role(self, role: str) -> bool:
        """Rule 1: whether a role is no owner's, and within what the credential may."""
        return not is_owner(role) and powers(role) <= self.may

    def handles(self, verb: str, *roles: str) -> bool:
        """Rule 1: whether it may invite to, update from or to, or remove from each of the roles."""
        return all(self.can("members" if self.covers_role(role) else "owners", verb) for role in roles)

    def may_restrict_to(self, wanted: Pairs | None, role: str) -> bool:
        """Rule 3: whether it may create a token of `role` with this restriction."""
        if wanted is None:
            return self.only is None
        return bound(wanted) <= self.may & powers(role)

    def restricts_at_least(self, only: Pairs | None) -> bool:
        """Rule 3: whether this restriction is at least as strict as its own; none is not within `* *`."""
        return self.only is None or (only is not None and bound(only) <= bound(self.only))

    def may_create_program_token(self, role: str) -> bool:
        """Rule 4: whether it may make an organization's token with a role."""
        return self.is_person and self.can("organization-tokens", "create") and self.covers_role(role)
