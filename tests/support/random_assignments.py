"""Random organizations with members, teams, tokens and role assignments, and a plain model of what each may."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import strategies as st

from rolecall.credentials import token_format
from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import (
    NEVER,
    ORGANIZATION,
    CredentialKind,
    Effect,
    Member,
    Permission,
    Principal,
    PrincipalKind,
    Question,
    Restriction,
    RoleAssignment,
    Subject,
    SubjectKind,
    Team,
    now,
)
from rolecall.policy import Policy, Rule
from rolecall.storage import Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import credentials as credential_rows
from rolecall.storage import members as member_rows
from rolecall.storage import teams as team_rows
from rolecall.storage.credentials import NewCredential
from support.random_policies import ROLES, RandomPolicy, matches, pairs, random_policies

__all__ = ["ASKER", "ENDED", "ModelAssignment", "RandomCase", "World", "casbin_text", "policy_of", "random_cases"]

HOUR = 3_600_000_000
PEOPLE = ("ann", "bob", "cyd")
TEAMS = ("blue", "red")
PROGRAMS = ("ci", "cd")
# The role that may ask about everybody, and see everybody.
ASKER = "asker"
_ASKER_RULES = (
    Rule(ASKER, "authorization", "*", Effect.ALLOW, 901),
    Rule(ASKER, "members", "view", Effect.ALLOW, 902),
    Rule(ASKER, "owners", "update", Effect.ALLOW, 903),
)
# When an assignment ends, from now on.
ENDED, LATER = -HOUR, HOUR

_scopes = st.one_of(
    st.just(ORGANIZATION),
    st.lists(st.sampled_from(["a", "ab", "b", "a-b"]), min_size=1, max_size=3).map("/".join),
)
_restrictions = st.one_of(
    st.none(),
    st.builds(
        Restriction,
        st.one_of(
            st.none(),
            st.lists(pairs, min_size=1, max_size=3, unique=True).map(
                lambda found: tuple(Permission(resource, action, Effect.ALLOW) for resource, action in found)
            ),
        ),
        _scopes,
    ),
)


@dataclass(frozen=True)
class ModelAssignment:
    """Role of a principal at a scope. `life`: the time from now until it ends; None for never."""

    principal: Principal
    role: str
    scope: str
    life: int | None

    @property
    def key(self) -> tuple[Principal, str, str]:
        """The key: no two assignments of an organization have the same."""
        return self.principal, self.role, self.scope


@dataclass(frozen=True)
class World:
    """Content of an organization: the own role of each person and program, the teams, and what is assigned.

    `restrictions`: of a token of each person, and of each program, by the holder's name.
    """

    own: dict[str, str]
    teams: frozenset[tuple[str, str]]
    assignments: tuple[ModelAssignment, ...]
    restrictions: dict[str, Restriction | None]
    minted: dict[str, MintedCredential] = field(default_factory=dict, compare=False)

    def write(self, tx: Transaction, organization: str) -> "World":
        """Write the rows; returns the world with the credentials that were made."""
        at = now()
        minted = {}
        for name in PEOPLE:
            address = f"{name}@acme.io"
            member = Member(organization, name, address, name, self.own[name], at, at, external_id=f"idp:{name}")
            member_rows.add(tx, member, address)
        for name, restriction in self.restrictions.items():
            person = name in PEOPLE
            minted[name] = token_format.mint(CredentialKind.PERSONAL if person else CredentialKind.ORGANIZATION)
            user_id, role = (name, None) if person else (None, self.own[name])
            new = NewCredential(minted[name], organization, user_id, role, name, restriction, "user:ann", at, at + HOUR)
            credential_rows.add(tx, new)
        for name in TEAMS:
            team = Team(organization, name, name, at, tx.revision)
            team_rows.add(tx, team)
            if inside := [person for person in PEOPLE if (name, person) in self.teams]:
                team_rows.add_members(tx, team, inside)
        world = replace(self, minted=minted)
        for assignment in self.assignments:
            world.assign(tx, organization, assignment)
        return world

    def assign(self, tx: Transaction, organization: str, assignment: ModelAssignment) -> None:
        """Write an assignment."""
        at = now()
        end = NEVER if assignment.life is None else at + assignment.life
        values = (assignment.role, assignment.scope, "user:ann", at, end, "", tx.revision)
        row = RoleAssignment(organization, token_format.new_id(), self.stored(assignment.principal), *values)
        assignment_rows.add(tx, [row])

    def stored(self, principal: Principal) -> Principal:
        """The principal as the rows name it."""
        is_token = principal.kind is PrincipalKind.TOKEN
        return Principal(principal.kind, self.minted[principal.id].id) if is_token else principal

    # The model: what the text about role assignments says, in the plainest words.

    def assigned_to(self, holder: str) -> list[ModelAssignment]:
        """The assignments of a person or program and of its teams, those that have ended included."""
        principals = {Principal(PrincipalKind.USER if holder in PEOPLE else PrincipalKind.TOKEN, holder)}
        principals |= {Principal(PrincipalKind.TEAM, team) for team, person in self.teams if person == holder}
        return [each for each in self.assignments if each.principal in principals]

    def applicable(self, holder: str, scope: str, resource: str) -> list[ModelAssignment]:
        """The assignments of a person or program that apply to a question with this scope and resource."""
        return [
            each
            for each in self.assigned_to(holder)
            if each.life != ENDED and (_is_beneath(each.scope, scope) or _is_beneath(each.scope, resource))
        ]

    def permits(self, holder: str, action: str, resource: str, scope: str) -> bool:
        """Whether the restriction of the holder's token permits the question."""
        restriction = self.restrictions[holder]
        if restriction is None:
            return True
        if not _is_beneath(restriction.scope, scope) and not _is_beneath(restriction.scope, resource):
            return False
        return restriction.permissions is None or any(
            matches(each.resource, resource) and each.action in (action, "*") for each in restriction.permissions
        )


def _is_beneath(scope: str, path: str) -> bool:
    """Whether the path is the scope or beneath it; all is beneath the organization."""
    return scope == ORGANIZATION or path.split("/")[: scope.count("/") + 1] == scope.split("/")


@dataclass(frozen=True)
class RandomCase:
    """A policy, and the content of two organizations, with the same names. `seed`: of random questions."""

    rows: RandomPolicy
    worlds: tuple[World, World]
    seed: int

    def rules_of(self, roles: set[str]) -> list[Rule]:
        """The rules of all of these roles, inherited ones too."""
        asked = [*_ASKER_RULES] if ASKER in roles else []
        return [rule for role in sorted(roles - {ASKER}) for rule in self.rows.held_by(role)] + asked

    def allows(self, roles: set[str], action: str, resource: str) -> bool:
        """Whether a subject with these roles may: a deny rule of any of them beats any allow."""
        effects = {
            rule.effect
            for rule in self.rules_of(roles)
            if matches(rule.resource, resource) and rule.action in (action, "*")
        }
        return effects == {Effect.ALLOW}

    def questions(self, world: World, number: int) -> Iterator[tuple[str, Question]]:
        """Yield questions about the subjects of a world, with the name of each, near what is ruled and assigned.

        The name is empty for a subject that doesn't exist.
        """
        chance = Random(f"{self.seed} {number} {len(world.assignments)} {sorted(world.teams)}")
        ruled = [rule for rule in self.rows.rules if rule.action != "idle"]
        stems = {each.scope for each in world.assignments} | {"members", "zz"}
        stems |= {held.scope for held in world.restrictions.values() if held}
        paths = sorted({path for stem in stems - {""} for path in _around(stem)})
        scopes = [each.scope for each in world.assignments]
        for _ in range(number):
            name, subject = self._subject(world, chance)
            action, resource = chance.choice(["view", "edit", "idle", "zz"]), chance.choice(paths)
            if ruled and chance.random() < 0.8:
                # Near a rule rather than anywhere, so that many of the answers are not the default.
                rule = chance.choice(ruled)
                action = chance.choice(["view", "edit"]) if rule.action == "*" else rule.action
                resource = chance.choice(sorted(_around(rule.resource.rstrip("*").rstrip("/") or "b")))
            scope = chance.choice([ORGANIZATION, chance.choice(scopes or paths), chance.choice(paths), resource])
            yield name, Question(subject, action, resource, scope)

    def _subject(self, world: World, chance: Random) -> tuple[str, Subject]:
        if chance.random() < 0.04:
            unknown = [
                (SubjectKind.USER_ID, "eve"),
                (SubjectKind.TOKEN_ID, "0" * 22),
                (SubjectKind.EMAIL, "eve@acme.io"),
            ]
            return "", Subject(*chance.choice(unknown))
        name = chance.choice([*PEOPLE, *PEOPLE, *PROGRAMS])
        if name in PEOPLE and chance.random() < 0.6:
            kind = chance.choice([SubjectKind.USER_ID, SubjectKind.EMAIL, SubjectKind.EXTERNAL_ID])
            forms = {SubjectKind.USER_ID: name, SubjectKind.EMAIL: f"{name}@acme.io"}
            return name if name in world.own else "", Subject(kind, forms.get(kind, f"idp:{name}"))
        minted = world.minted[name]
        digest = minted.digest if chance.random() < 0.5 else b""
        known = name if name in world.own else ""
        return known, Subject(SubjectKind.PRESENTED if digest else SubjectKind.TOKEN_ID, minted.id, digest)

    def changed(self, tx: Transaction, organization: str, world: World, step: int) -> World:
        """Change the world in one way, in the rows and in the model; returns it as it is then."""
        chance = Random(f"{self.seed} change {step}")
        kinds = ["join", "leave", "assign", "own role", "remove", "delete team"]
        kinds += ["end", "lengthen"] * 2 if world.assignments else []
        match chance.choice(kinds):
            case "join" | "leave":
                return _change_team(tx, organization, world, chance.choice(TEAMS), chance.choice(sorted(PEOPLE)))
            case "assign":
                principals = [Principal(PrincipalKind.TEAM, name) for name in TEAMS]
                principals += [Principal(PrincipalKind.TOKEN, name) for name in PROGRAMS]
                new = ModelAssignment(chance.choice(principals), chance.choice(ROLES), chance.choice(["", "a"]), None)
                if new.key in {each.key for each in world.assignments}:
                    return world
                world.assign(tx, organization, new)
                return replace(world, assignments=(*world.assignments, new))
            case "own role":
                name, role = chance.choice([each for each in PEOPLE if each in world.own]), chance.choice(ROLES)
                member = member_rows.get(tx, organization, name)
                assert member is not None
                member_rows.change_role(tx, member, role, member.update_time + 1)
                return replace(world, own={**world.own, name: role})
            case "remove" if all(name in world.own for name in PEOPLE):
                return _remove(tx, organization, world, chance.choice(PEOPLE))
            case "delete team" if step % 2:
                return _delete_team(tx, organization, world, chance.choice(TEAMS))
            case "end":
                gone = chance.choice(world.assignments)
                assignment_rows.remove(tx, _row(tx, organization, world, gone))
                return replace(world, assignments=tuple(each for each in world.assignments if each is not gone))
            case "lengthen":
                old = chance.choice(world.assignments)
                new = replace(old, life=ENDED if old.life != ENDED else LATER)
                row = _row(tx, organization, world, old)
                assignment_rows.change(tx, replace(row, expire_time=now() + (new.life or 0)))
                kept = tuple(new if each is old else each for each in world.assignments)
                return replace(world, assignments=kept)
        return world


def _row(tx: Transaction, organization: str, world: World, assignment: ModelAssignment) -> RoleAssignment:
    key = (world.stored(assignment.principal).text, assignment.role, assignment.scope)
    return assignment_rows.present(tx, organization, [key])[key]


def _change_team(tx: Transaction, organization: str, world: World, name: str, person: str) -> World:
    """Let a person join a team, or leave it."""
    team = team_rows.get(tx, organization, name)
    if team is None or person not in world.own:
        return world
    if (name, person) in world.teams:
        team_rows.remove_members(tx, team, [person])
    else:
        team_rows.add_members(tx, team, [person])
    return replace(world, teams=world.teams ^ {(name, person)})


def _delete_team(tx: Transaction, organization: str, world: World, name: str) -> World:
    """Delete a team and found it again: its members and assignments are gone."""
    team = team_rows.get(tx, organization, name)
    assert team is not None
    team_rows.remove(tx, team)
    team_rows.add(tx, team)
    kept = tuple(each for each in world.assignments if each.principal != Principal(PrincipalKind.TEAM, name))
    return replace(world, teams=frozenset(each for each in world.teams if each[0] != name), assignments=kept)


def _remove(tx: Transaction, organization: str, world: World, name: str) -> World:
    """Remove a member, who leaves the teams and loses what is assigned."""
    member = member_rows.get(tx, organization, name)
    assert member is not None
    member_rows.remove(tx, member)
    kept = tuple(each for each in world.assignments if each.principal != Principal(PrincipalKind.USER, name))
    own = {known: role for known, role in world.own.items() if known != name}
    return replace(world, own=own, teams=frozenset(each for each in world.teams if each[1] != name), assignments=kept)


def _around(stem: str) -> set[str]:
    """Paths at the borders of a stem: itself, beneath it, beside it, and above it."""
    return {stem, f"{stem}/a", f"{stem}b", f"{stem}/a/b", stem.partition("/")[0], stem.rpartition("/")[0] or stem}


def policy_of(case: RandomCase) -> Policy:
    """Compile the policy, with the role that asks."""
    return Policy([*case.rows.rules, *_ASKER_RULES], case.rows.inheritances, f"random-{case.seed}")


def casbin_text(case: RandomCase) -> str:
    """The rows of the policy, as Casbin reads them."""
    rules = [f"p, {each.role}, {each.resource}, {each.action}, {each.effect}" for each in case.rows.rules]
    return "\n".join([*rules, *(f"g, {each.role}, {each.parent}" for each in case.rows.inheritances)])


@st.composite
def _worlds(draw: st.DrawFn) -> World:
    roles = st.sampled_from(ROLES)
    principals = st.sampled_from(
        [Principal(PrincipalKind.USER, name) for name in PEOPLE]
        + [Principal(PrincipalKind.TEAM, name) for name in TEAMS] * 2
        + [Principal(PrincipalKind.TOKEN, name) for name in PROGRAMS]
    )
    lives = st.sampled_from([None, None, LATER, ENDED])
    assignments = st.lists(
        st.builds(ModelAssignment, principals, roles, _scopes, lives),
        min_size=2,
        max_size=12,
        unique_by=lambda each: each.key,
    )
    return World(
        {name: draw(roles) for name in (*PEOPLE, *PROGRAMS)},
        frozenset(draw(st.lists(st.tuples(st.sampled_from(TEAMS), st.sampled_from(PEOPLE)), unique=True, max_size=4))),
        tuple(draw(assignments)),
        {name: draw(_restrictions) for name in (*PEOPLE, *PROGRAMS)},
    )


@st.composite
def random_cases(draw: st.DrawFn) -> RandomCase:
    """A policy, two organizations, and a seed of questions."""
    return RandomCase(draw(random_policies()), (draw(_worlds()), draw(_worlds())), draw(st.integers(0, 2**32 - 1)))
