"""A plain model of organizations, members, invitations, links and credentials, and of who may do what to them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from conftest import ROOT

from rolecall.domain import CredentialKind

__all__ = ["Cred", "Entry", "Invite", "Link", "Org", "Pattern", "Person", "Rules", "gravest"]

Pattern = tuple[str, str]

# The words that the server itself asks about stand in the shipped policy; `zzz` stands for what no policy names.
SHIPPED = ROOT / "policies" / "policy.csv"
STRANGE = ["secrets/billing/db", "secrets/bills", "zzz", "zzz/billing"]


def covers(pattern: str, resource: str) -> bool:
    """Whether a resource pattern covers a resource."""
    if pattern.endswith("*"):
        return resource.startswith(pattern[:-1])
    return resource == pattern or resource.startswith(f"{pattern}/")


def read_policy(file: Path) -> dict[str, set[Pattern]]:
    """For each role, in the order in which the file names them, all that it may, what it inherits included."""
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
    """A member, or one who was. `key` is the address in lower case."""

    id: str
    key: str
    role: str
    etag: str
    present: bool = True


@dataclass(eq=False)
class Cred:
    """A token or session that was once made. `made_by`: the id of the person who did; `cleared`: its row is gone."""

    id: str
    kind: CredentialKind
    text: str
    person: Person | None
    own_role: str
    restriction: tuple[Pattern, ...] | None
    made_by: str
    expire_time: int
    etag: str
    deleted: bool = False
    expired: bool = False
    cleared: bool = False

    @property
    def role(self) -> str:
        """The role that it acts with."""
        return self.person.role if self.person else self.own_role

    @property
    def actor(self) -> str:
        """Who acts with it."""
        return f"user:{self.person.id}" if self.person else f"token:{self.id}"

    @property
    def gone(self) -> bool:
        """Whether it went with its holder."""
        return self.person is not None and not self.person.present

    @property
    def live(self) -> bool:
        """Whether it works."""
        return not (self.deleted or self.expired or self.gone)

    @property
    def is_session(self) -> bool:
        """Whether it is a session, which is no token."""
        return self.kind is CredentialKind.SESSION


@dataclass(eq=False)
class Invite:
    """An invitation that was once made. `texts` are its secrets, of which the last is the newest; `voucher` invites.

    `state` as it is stored; `late`: its time is over.
    """

    id: str
    email: str
    role: str
    voucher: Person | Cred
    restriction: tuple[Pattern, ...] | None
    expire_time: int
    create_time: int
    texts: list[str]
    etag: str
    state: str = "pending"
    late: bool = False
    joined: Person | None = None

    @property
    def key(self) -> str:
        """The address in lower case."""
        return self.email.lower()

    @property
    def shown(self) -> str:
        """The state as people see it."""
        return "expired" if self.late and self.state == "pending" else self.state

    @property
    def inviter(self) -> str:
        """Who vouches for it."""
        return f"user:{self.voucher.id}" if isinstance(self.voucher, Person) else self.voucher.actor


@dataclass(eq=False)
class Link:
    """A request to sign in, and the link that answers it. `person`: whom it was mailed to."""

    id: str
    key: str
    text: str
    person: Person | None = None
    used: bool = False
    late: bool = False
    pruned: bool = False


@dataclass(frozen=True)
class Entry:
    """What an audit entry must say."""

    actor: str
    action: str
    object: str
    credential_id: str


@dataclass(eq=False)
class Org:
    """One organization. `mails`: the state of the mail about a thing with its so many-th secret.

    `requests`: which are remembered, as (actor, action, request_id).
    """

    name: str
    people: list[Person] = field(default_factory=list)
    creds: list[Cred] = field(default_factory=list)
    invites: list[Invite] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    mails: dict[tuple[str, int], str] = field(default_factory=dict)
    requests: set[tuple[str, str, str]] = field(default_factory=set)
    revision: int = 1

    @property
    def present(self) -> list[Person]:
        """The members."""
        return [person for person in self.people if person.present]

    @property
    def live(self) -> list[Cred]:
        """The credentials that work."""
        return [cred for cred in self.creds if cred.live]

    def member(self, key: str) -> Person | None:
        """The member with this address."""
        return next((person for person in self.present if person.key == key), None)

    def person(self, user_id: str) -> Person | None:
        """The member with this id."""
        return next((person for person in self.present if person.id == user_id), None)

    def token(self, token_id: str) -> Cred | None:
        """The token with this id, dead or alive; a session is none, and a removed person's are gone."""
        found = (cred for cred in self.creds if cred.id == token_id)
        return next((cred for cred in found if not cred.is_session and not cred.gone), None)

    def invite(self, invitation_id: str) -> Invite | None:
        """The invitation with this id."""
        return next((invite for invite in self.invites if invite.id == invitation_id), None)

    def pending(self, key: str) -> Invite | None:
        """The invitation by which this address can join."""
        return next((invite for invite in self.invites if invite.key == key and invite.shown == "pending"), None)


def gravest(problems: Sequence[tuple[str, str]]) -> str:
    """Why a batch with these problems, (field, reason), fails: for the one nearest to the request, then the first."""

    def rank(problem: tuple[str, str]) -> tuple[int, int]:
        place = int(problem[0].partition("[")[2].partition("]")[0]) if "[" in problem[0] else 0
        if problem[1] in ("INVALID_FIELD", "UNKNOWN_ROLE_NAME", "BATCH_SIZE"):
            return 0, place
        return (1 if problem[1] in ("PERMISSION_MISSING", "ROLE_BEYOND_CALLER") else 2), place

    return min(problems, key=rank)[1] if problems else ""


class Rules:
    """What follows from one policy: each answer is the reason why somebody may not, or empty.

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

    def held(self, cred: Cred) -> int:
        """The points that a credential may: its role's, cut down to its own restriction."""
        return self.of_role[cred.role] & self.bound(cred.restriction)

    def can(self, cred: Cred, resource: str, action: str) -> bool:
        """Whether a credential may."""
        return self.has(self.held(cred), resource, action)

    def needs(self, cred: Cred, resource: str, action: str) -> str:
        """Whether a credential may, as a reason."""
        return "" if self.can(cred, resource, action) else "PERMISSION_MISSING"

    def beyond(self, points: int, role: str) -> bool:
        """Whether a role is an owner's, or may something that is not among the points."""
        return role in self.owners or bool(self.of_role[role] & ~points)

    def handles_any(self, cred: Cred, verb: str) -> str:
        """Whether there may be a role that the credential may `verb` people with."""
        return "" if self.can(cred, "owners", verb) else self.needs(cred, "members", verb)

    def handles(self, points: int, verb: str, role: str) -> str:
        """Rule 1: whether who may these points may invite to, change, or remove from a role."""
        beyond = self.beyond(points, role)
        if beyond and self.has(points, "owners", verb):
            return ""
        if not self.has(points, "members", verb):
            return "PERMISSION_MISSING"
        return "ROLE_BEYOND_CALLER" if beyond else ""

    def vouches(self, invite: Invite) -> bool:
        """Rule 5 of the invariants: whether whoever invited could still make the invitation."""
        voucher = invite.voucher
        if not (voucher.present if isinstance(voucher, Person) else voucher.live):
            return False
        return not self.handles(self.of_role[voucher.role] & self.bound(invite.restriction), "invite", invite.role)

    def is_last_owner(self, org: Org, person: Person) -> bool:
        """Rule 2: whether nobody would own the organization without this member."""
        return person.role in self.owners and sum(other.role in self.owners for other in org.present) == 1

    def gives(self, cred: Cred, role: str) -> str:
        """Rule 4: whether the credential may make an organization's token with a role."""
        if cred.person is None:
            return "PERSON_ONLY"
        if not self.can(cred, "organization-tokens", "create"):
            return "PERMISSION_MISSING"
        if role not in self.may:
            return "UNKNOWN_ROLE_NAME"
        return "ROLE_BEYOND_CALLER" if self.beyond(self.held(cred), role) else ""

    def restricts(self, cred: Cred, restriction: tuple[Pattern, ...] | None, role: str) -> str:
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

    def is_named(self, pattern: Pattern) -> bool:
        """Whether the policy speaks of such a thing at all."""
        if any(covers(resource, pattern[0]) for resource in self.starred):
            return True
        kind = pattern[0].partition("/")[0]
        return any(covers(kind, known) for known in self.types) and pattern[1] in (*self.actions, "*")

    def deletes(self, org: Org, cred: Cred, token_id: str) -> str:
        """Whether the credential may delete a token: one's own always, unless it may more than what one presents."""
        token = org.token(token_id)
        if token and (token is cred or (token.person is not None and token.person is cred.person)):
            return "ROLE_BEYOND_CALLER" if self.bound(token.restriction) & ~self.bound(cred.restriction) else ""
        others, programs = self.can(cred, "member-tokens", "delete"), self.can(cred, "organization-tokens", "delete")
        if not others and not programs:
            return "PERMISSION_MISSING"
        if token is None or not (others if token.person else programs):
            return "TOKEN_NOT_FOUND"
        if token.person and self.beyond(self.held(cred), token.role):
            return self.needs(cred, "owners", "update")
        return ""

    def invites(self, org: Org, cred: Cred, entries: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """All that speaks against inviting these (address, role) pairs, as (field, reason)."""
        if not entries:
            return [("invitations", "BATCH_SIZE")]
        malformed, problems = [], []
        first: set[str] = set()
        for number, (email, role) in enumerate(entries):
            field, key = f"invitations[{number}]", email.lower()
            malformed += [(f"{field}.role", "INVALID_FIELD")] * (not role)
            if role:
                judged = self.handles(self.held(cred), "invite", role) if role in self.may else "UNKNOWN_ROLE_NAME"
                problems += [(f"{field}.role", judged)] if judged else []
            if "@" not in email[1:]:
                malformed.append((f"{field}.email", "INVALID_FIELD"))
                continue
            if org.member(key):
                problems.append((f"{field}.email", "ALREADY_MEMBER"))
            elif org.pending(key) or key in first:
                problems.append((f"{field}.email", "DUPLICATE_INVITATION"))
            first.add(key)
        if missing := self.handles_any(cred, "invite"):
            # Whoever may not invite at all isn't told who is a member or invited.
            return malformed or [("", missing)]
        return malformed + problems
