"""Model of credentials and their holders, and of what a policy lets a credential do and grant."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rolecall.domain import CredentialKind, now
from support.environment import ROOT

__all__ = ["SHIPPED", "Credential", "CredentialRules", "ExpectedEntry", "Pattern", "Person"]

Pattern = tuple[str, str]

# The permissions that the server itself uses are in the shipped policy; `zzz` is a name that no policy has.
SHIPPED = ROOT / "policies" / "policy.csv"
STRANGE = ["secrets/billing/db", "secrets/bills", "secretszzz", "zzz", "zzz/billing"]


def covers(pattern: str, resource: str) -> bool:
    """Whether a resource pattern covers a resource."""
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def read_policy(file: Path) -> dict[str, set[Pattern]]:
    """The permissions of each role, inherited ones included, in the order in which the file names the roles."""
    own: dict[str, set[Pattern]] = {}
    parents: list[Pattern] = []
    for row in csv.reader(file.read_text().splitlines(), skipinitialspace=True):
        match row:
            case ["p", role, resource, action, "allow"]:
                own.setdefault(role, set()).add((resource, action))
            case ["g", child, parent]:
                own.setdefault(child, set())
                own.setdefault(parent, set())
                parents.append((child, parent))
            case [] | [str()]:
                pass
            case _ if not row[0].startswith("#"):
                raise AssertionError(f"the model does not know how to read {row}")
    for _ in parents:
        for child, parent in parents:
            own[child] |= own[parent]
    return own


def words(policies: Iterable[dict[str, set[Pattern]]]) -> tuple[list[str], list[str]]:
    """The resource types and the actions that the policies name."""
    named = [pattern for policy in policies for held in policy.values() for pattern in held]
    types = {resource.partition("/")[0] for resource, _ in named} - {"*"}
    return sorted(types), sorted({action for _, action in named} - {"*"})


@dataclass(eq=False)
class Person:
    """Present or former member. `key` is the address in lower case."""

    id: str
    key: str
    role: str
    etag: str = ""
    present: bool = True


@dataclass(eq=False)
class Credential:
    """Token or session, live or not. `creator`: the id of its creator; `etag`: empty where unknown."""

    id: str
    kind: CredentialKind
    person: Person | None
    own_role: str
    restriction: tuple[Pattern, ...] | None
    creator: str
    expire_time: int
    etag: str
    deleted: bool = False

    @property
    def role(self) -> str:
        """The role that it acts with."""
        return self.person.role if self.person else self.own_role

    @property
    def actor(self) -> str:
        """The actor that acts with it."""
        return f"user:{self.person.id}" if self.person else f"token:{self.id}"

    @property
    def gone(self) -> bool:
        """Whether its row was deleted with its holder's."""
        return self.person is not None and not self.person.present

    @property
    def expired(self) -> bool:
        """Whether it has expired."""
        return self.expire_time <= now()

    @property
    def live(self) -> bool:
        """Whether it works."""
        return not (self.deleted or self.expired or self.gone)

    @property
    def is_session(self) -> bool:
        """Whether it is a session, which is no token."""
        return self.kind is CredentialKind.SESSION


@dataclass(frozen=True)
class ExpectedEntry:
    """An audit entry's content. `count`: how many refusals it stands for; None for a change."""

    actor: str
    action: str
    object: str
    credential_id: str
    reason: str = ""
    count: int | None = None


class CredentialRules:
    """Rules of one policy for credentials: each answer is the reason for a refusal, or empty.

    What somebody may is a set of points, of a universe of concrete questions that tells every pattern used here from
    every other, as the bits of a number.
    """

    def __init__(self, file: Path) -> None:
        self.may = read_policy(file)
        self.roles = list(self.may)
        self.types, self.actions = words([self.may])
        # What it says anything about, whatever the action.
        self.starred = {resource for held in self.may.values() for resource, action in held if action == "*"}
        types, actions = words([self.may, read_policy(SHIPPED)])
        resources = [*types, *(f"{kind}/billing" for kind in types), *STRANGE]
        self.universe = [(resource, action) for resource in resources for action in [*actions, "zzz"]]
        self._places = {point: number for number, point in enumerate(self.universe)}
        self.permissions = sorted({pattern for held in self.may.values() for pattern in held})
        self.points = cache(self._points)
        self.among = cache(self._among)
        self.bound = cache(self._bound)
        self.of_role = {role: self.union(held) for role, held in self.may.items()}
        self.owners = [role for role in self.roles if self.has(self.of_role[role], "owners", "update")]

    def _points(self, pattern: Pattern) -> int:
        resource, action = pattern
        return sum(
            1 << number
            for number, (asked, verb) in enumerate(self.universe)
            if action in (verb, "*") and covers(resource, asked)
        )

    def _among(self, points: int) -> list[Pattern]:
        return [point for place, point in enumerate(self.universe) if points >> place & 1]

    def union(self, patterns: Iterable[Pattern]) -> int:
        """The points that any of the patterns covers."""
        found = 0
        for pattern in patterns:
            found |= self.points(pattern)
        return found

    def has(self, points: int, resource: str, action: str) -> bool:
        """Whether the concrete question is among the points."""
        return bool(points >> self._places[resource, action] & 1)

    def _bound(self, restriction: tuple[Pattern, ...] | None) -> int:
        """The points that a restriction leaves."""
        return -1 if restriction is None else self.union(restriction)

    def held(self, cred: Credential) -> int:
        """The points that a credential may: its role's, restricted to its own restriction."""
        return self.of_role[cred.role] & self.bound(cred.restriction)

    def can(self, cred: Credential, resource: str, action: str) -> bool:
        """Whether a credential may."""
        return self.has(self.held(cred), resource, action)

    def needs(self, cred: Credential, resource: str, action: str) -> str:
        """Whether a credential may, as a reason."""
        return "" if self.can(cred, resource, action) else "PERMISSION_MISSING"

    def beyond(self, points: int, role: str) -> bool:
        """Whether a role is an owner's, or has a permission that is not among the points."""
        return role in self.owners or bool(self.of_role[role] & ~points)

    def is_named(self, pattern: Pattern) -> bool:
        """Whether the policy has a rule on the pattern's type and action."""
        if any(covers(resource, pattern[0]) for resource in self.starred):
            return True
        kind = pattern[0].partition("/")[0]
        return any(covers(kind, known) for known in self.types) and pattern[1] in (*self.actions, "*")

    def makes_personal(self, cred: Credential, restriction: tuple[Pattern, ...] | None) -> str:
        """Whether the credential may make its holder a token with a restriction."""
        if cred.person is None:
            return "PERSON_ONLY"
        return self.needs(cred, "personal-tokens", "create") or self.restricts(cred, restriction, cred.role)

    def gives(self, cred: Credential, role: str) -> str:
        """Rule 4: whether the credential may make an organization's token with a role."""
        if cred.person is None:
            return "PERSON_ONLY"
        if not self.can(cred, "organization-tokens", "create"):
            return "PERMISSION_MISSING"
        if role not in self.may:
            return "UNKNOWN_ROLE_NAME"
        return "ROLE_BEYOND_CALLER" if self.beyond(self.held(cred), role) else ""

    def restricts(self, cred: Credential, restriction: tuple[Pattern, ...] | None, role: str) -> str:
        """Rule 3: whether the credential may make a token of a role with a restriction."""
        if restriction is None:
            return "" if cred.restriction is None else "ROLE_BEYOND_CALLER"
        for pattern in restriction:
            if not self.is_named(pattern):
                return "INVALID_FIELD"
            if self.points(pattern) & ~self.held(cred):
                return "ROLE_BEYOND_CALLER"
            if self.points(pattern) & ~self.of_role[role]:
                return "INVALID_FIELD"
        return ""

    def exceeds(self, token: Credential, cred: Credential) -> bool:
        """Whether a token has permissions beyond the restriction of the credential."""
        return bool(self.bound(token.restriction) & ~self.bound(cred.restriction))

    def deletes(self, cred: Credential, token: Credential | None) -> str:
        """Whether the credential may delete a token: one's own always, unless it may more than what one presents.

        `token`: None where the organization has no such token.
        """
        if token and (token is cred or (token.person is not None and token.person is cred.person)):
            return "ROLE_BEYOND_CALLER" if self.exceeds(token, cred) else ""
        others, programs = self.can(cred, "member-tokens", "delete"), self.can(cred, "organization-tokens", "delete")
        if not others and not programs:
            return "PERMISSION_MISSING"
        if token is None or not (others if token.person else programs):
            return "TOKEN_NOT_FOUND"
        if token.person and self.beyond(self.held(cred), token.role):
            return self.needs(cred, "owners", "update")
        return ""

    def rotates(self, cred: Credential, token: Credential | None, end: int) -> str:
        """Whether the credential may have a token's new secret. `end`: when what was presented stops working.

        `token`: None where the organization has no such token.
        """
        if token is None or cred.person is None or token.person is not cred.person:
            if cred.person is None:
                return "PERSON_ONLY"
            if not self.can(cred, "organization-tokens", "create"):
                return "PERMISSION_MISSING"
            if token is None or token.person is not None:
                return "TOKEN_NOT_FOUND"
            if problem := self.gives(cred, token.role):
                return problem
        longer = not cred.is_session and token.expire_time > end
        return "ROLE_BEYOND_CALLER" if self.exceeds(token, cred) or longer else ""
