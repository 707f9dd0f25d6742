"""Who may what and handle whom, reckoned from `permissions.csv` and the requirements' rules, not by the server."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rolecall.domain import CredentialKind

__all__ = ["RESTRICTIONS", "ROLES", "UNIVERSE", "Pairs", "Presenter", "bound", "is_owner", "powers"]

Pairs = tuple[tuple[str, str], ...]
Points = frozenset[tuple[str, str]]

with (Path(__file__).parents[1] / "permissions.csv").open(encoding="utf-8") as _file:
    _ROWS = list(csv.DictReader(_file))
ROLES = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS")
# Concrete questions that tell all patterns here from each other; `zzz` stands for what no policy names.
_RESOURCES = sorted({row["resource"] for row in _ROWS} | {"secrets/prod", "secrets/prod/db", "projects/1", "zzz"})
_ACTIONS = sorted({row["action"] for row in _ROWS} | {"zzz"})
UNIVERSE = frozenset((resource, action) for resource in _RESOURCES for action in _ACTIONS)


def _held(role: str) -> Pairs:
    return tuple((row["resource"], row["action"]) for row in _ROWS if row[role] == "1")


_PEOPLE = (("members", "*"), ("owners", "*"))
_MINTING = (("personal-tokens", "create"), ("organization-tokens", "create"))

# What the presented credentials are cut down to.
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
    """The questions that a restriction leaves."""
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
    """The questions that the matrix grants a role."""
    return _POWERS[role]


def is_owner(role: str) -> bool:
    """Whether a role is an owner's."""
    return ("owners", "update") in powers(role)


@dataclass(frozen=True)
class Presenter:
    """A credential: what it is, its holder's role (a program's own), and the name of what it is cut down to."""

    kind: CredentialKind
    role: str
    cut: str

    @property
    def only(self) -> Pairs | None:
        """What it is cut down to."""
        return RESTRICTIONS[self.cut]

    @property
    def is_person(self) -> bool:
        """Whether a person is behind it."""
        return self.kind is not CredentialKind.ORGANIZATION

    @property
    def may(self) -> Points:
        """What its holder's role allows, cut down to its own restriction."""
        return powers(self.role) & bound(self.only)

    def can(self, resource: str, action: str) -> bool:
        """Whether it may."""
        return (resource, action) in self.may

    def reaches(self, role: str) -> bool:
        """Rule 1: whether a role is no owner's, and within what the credential may."""
        return not is_owner(role) and powers(role) <= self.may

    def handles(self, verb: str, *roles: str) -> bool:
        """Rule 1: whether it may invite to, update from or to, or remove from each of the roles."""
        return all(self.can("members" if self.reaches(role) else "owners", verb) for role in roles)

    def hands_on(self, wished: Pairs | None, role: str) -> bool:
        """Rule 3: whether a token of `role` that it mints may be restricted so."""
        if wished is None:
            return self.only is None
        return bound(wished) <= self.may & powers(role)

    def bounds(self, only: Pairs | None) -> bool:
        """Rule 3: whether what is restricted so is restricted as it is itself at least; what isn't, not by `* *`."""
        return self.only is None or (only is not None and bound(only) <= bound(self.only))

    def gives(self, role: str) -> bool:
        """Rule 4: whether it may make an organization's token with a role."""
        return self.is_person and self.can("organization-tokens", "create") and self.reaches(role)
