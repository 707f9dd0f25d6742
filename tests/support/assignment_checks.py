"""Calls that assign roles, end assignments or change teams, with all kinds of credentials, compared with the rules.

Besides, whatever a credential does without `owners update`: all that somebody gains or loses by it lies within what the
credential may itself, as Checks say, at every scope.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from rolecall.credentials import token_format
from rolecall.domain import CredentialKind, Principal, PrincipalKind, RoleAssignment, Team, now
from rolecall.storage import Transaction
from rolecall.storage import assignments as assignment_rows
from rolecall.storage import teams as team_rows
from rolecall.v1 import assignment_pb2 as assignment
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import team_pb2 as team
from support.credentials import id_of, in_future, put_credential
from support.environment import CI
from support.grant_checks import PERSONAL, PROGRAM, GrantChecks
from support.grants import EXTRA_ROLES, HOUR, ROLES, SCOPES, UNIVERSE, CredentialCase, Held, allows, denies

__all__ = ["ASSIGNERS", "ASSIGNMENT_CHECKS"]

_HOLDERS: tuple[tuple[str, tuple[Held, ...]], ...] = (
    ("ADMIN", ()),
    ("OWNER", ()),
    ("CONTRIBUTOR", ()),
    ("VIEWER", (Held("ADMIN", "projects/1"),)),
    ("VIEWER", (Held("ADMIN", "projects/1", HOUR),)),
    ("VIEWER", (Held("CLERK"), Held("CONTRIBUTOR", "projects/1", by_team=True))),
    # At a scope that is the resource by which roles are assigned, whatever the question's scope.
    ("VIEWER", (Held("ADMIN", "assignments"), Held("ADMIN", "teams"))),
    ("ADMIN", (Held("BARRED"),)),
    ("ADMIN", (Held("BARRED", "projects/1", by_team=True),)),
    ("ADMIN", (Held("GUARD", "projects/2"),)),
    ("OWNER", (Held("BARRED", "projects/1"),)),
)
_RESTRICTED = (
    ("nothing is cut", ""),
    ("nothing is cut", "projects/1"),
    ("nothing is cut", "assignments"),
    ("nothing is cut", "owners"),
    ("assign", ""),
    ("assign", "projects/1"),
    ("owners update", ""),
    ("as an admin", ""),
    ("check", ""),
    ("all", "projects"),
)
_ALL = [
    CredentialCase(PERSONAL, role, *restricted, assigned)
    for (role, assigned), restricted in product(_HOLDERS, _RESTRICTED)
]
# Outside CI, each holder without a restriction, and some of the others.
ASSIGNERS = [case for number, case in enumerate(_ALL) if CI or number % len(_RESTRICTED) == 0 or number % 7 == 0] + [
    CredentialCase(CredentialKind.SESSION, "ADMIN", "nothing is cut"),
    CredentialCase(PERSONAL, "ADMIN", "only assign"),
    CredentialCase(PROGRAM, "ADMIN", "nothing is cut"),
    CredentialCase(PROGRAM, "VIEWER", "nothing is cut", "", (Held("ADMIN", "projects/1"),)),
]

# Every question that distinguishes the roles, in every scope.
_POINTS = sorted(
    {
        (resource, action, scope)
        for resource, action in UNIVERSE
        if any((resource, action) in allows(role) | denies(role) for role in (*ROLES, *EXTRA_ROLES))
        for scope in SCOPES
    }
)
Power = frozenset[tuple[str, str, str]]


@dataclass(frozen=True)
class _Target:
    """Principal, what it has, and the subjects who hold what is assigned to it."""

    principal: Principal
    role: str
    assigned: tuple[Held, ...]
    subjects: tuple[str, ...]
    is_own: bool = False

    @property
    def is_team(self) -> bool:
        """Whether it is a team, whose members change."""
        return self.principal.kind is PrincipalKind.TEAM


def _power(checks: GrantChecks, subjects: Iterable[str]) -> list[Power]:
    """Return for each subject the questions, at every scope, to which Checks say yes."""
    found = []
    for subject in subjects:
        allowed: set[tuple[str, str, str]] = set()
        for first in range(0, len(_POINTS), 1000):
            points = _POINTS[first : first + 1000]
            items = [
                authorization.BatchCheckItem(subject=subject, resource=resource, action=action, scope=scope)
                for resource, action, scope in points
            ]
            results = checks.calls.send("OWNER", authorization.BatchCheckRequest(checks=items)).results
            pairs = zip(points, results, strict=True)
            allowed |= {point for point, result in pairs if result.decision == authorization.DECISION_ALLOW}
        found.append(frozenset(allowed))
    return found


class _Presenter:
    """Credential that is presented: what it may by the rules, and by Checks before the call."""

    def __init__(self, checks: GrantChecks, case: CredentialCase, text: str) -> None:
        self.checks, self.case, self.text = checks, case, text
        self.subject = f"token:{id_of(text)}"

    def call(self, request: Message, targets: Iterable[_Target], *, allowed: bool) -> bool:
        """Send the request; whoever gains or loses by it must do so within what the credential may."""
        subjects = [subject for target in targets for subject in target.subjects]
        is_free = self.case.can("owners", "update")
        watched = allowed and not is_free and subjects
        before = _power(self.checks, [self.subject, *subjects]) if watched else []
        done = self.checks.check_request(self.case, self.text, request, allowed=allowed)
        if done and watched:
            own, *others = before
            for subject, old, new in zip(subjects, others, _power(self.checks, subjects), strict=True):
                if beyond := (old ^ new) - own:
                    self.checks.wrong.append((self.case, str(request), subject, sorted(beyond)[:5]))
                self.checks.outcomes["watched"] += 1
        return done


def _never(role: str) -> bool:
    """Whether a role has any rule on `owners update`, so that it is never assigned."""
    return ("owners", "update") in allows(role) | denies(role)


def _targets(checks: GrantChecks, presenter: CredentialCase, text: str) -> list[_Target]:
    """Principals of every kind, and the presenter itself; none of the others presents a credential."""
    if not checks.targets:
        for role, assigned in (
            ("VIEWER", ()),
            ("VIEWER", (Held("CONTRIBUTOR", "projects/2"),)),
            ("ADMIN", ()),
            ("OWNER", ()),
        ):
            person = checks.add_person(role, assigned)
            principal = Principal(PrincipalKind.USER, person.user_id)
            checks.targets.append(_Target(principal, role, assigned, (principal.text,)))
        program = Principal(PrincipalKind.TOKEN, id_of(put_credential(checks.site, None, kind=PROGRAM, role="VIEWER")))
        checks.targets.append(_Target(program, "VIEWER", (), (program.text,)))
        member = checks.targets[0].principal
        checks.targets.append(_Target(_new_team(checks, [member.id]), "", (), (member.text,)))
    return [*checks.targets, _itself(checks, presenter, text)]


def _itself(checks: GrantChecks, presenter: CredentialCase, text: str) -> _Target:
    if presenter.is_person:
        principal = Principal(PrincipalKind.USER, checks.holder(presenter).user_id)
    else:
        principal = Principal(PrincipalKind.TOKEN, id_of(text))
    return _Target(principal, presenter.role, presenter.assigned, (principal.text,), is_own=True)


def _new_team(checks: GrantChecks, user_ids: list[str], assigned: tuple[Held, ...] = ()) -> Principal:
    """Create a team directly in the database."""
    principal = Principal(PrincipalKind.TEAM, f"t{token_format.new_id().lower()}")

    def work(tx: Transaction) -> None:
        row = Team("acme", principal.id, principal.id, now(), tx.revision)
        team_rows.add(tx, row)
        if user_ids:
            team_rows.add_members(tx, row, user_ids)

    checks.site.storage.mutate("acme", work)
    checks.assign(principal, assigned)
    return principal


@contextmanager
def _existing(checks: GrantChecks, target: _Target, held: Held) -> Iterator[RoleAssignment]:
    """Assign a role directly in the database, for a time."""
    [made] = checks.assign(target.principal, (held,))
    yield made
    _remove(checks, made)


def _remove(checks: GrantChecks, row: RoleAssignment) -> None:
    checks.site.storage.mutate("acme", lambda tx: assignment_rows.remove(tx, row))


def _end(life: int | None) -> Timestamp | None:
    return None if life is None else in_future(life)


def _may_touch(presenter: CredentialCase, verb: str, held: Held, target: _Target) -> bool:
    """Whether the rules let a credential assign (`create`) a role to a principal, or end (`delete`) it."""
    if presenter.can("owners", "update"):
        return True
    if not presenter.assigns(verb, held):
        return False
    if not denies(held.role):
        return True
    if target.is_team or (verb == "delete" and target.is_own):
        return False
    return presenter.covers_person(target.role, target.assigned)


def create_role_assignments(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Assign every role at every scope, for a time and for good, to principals of all kinds."""
    presented, targets = _Presenter(checks, presenter, text), _targets(checks, presenter, text)
    roles = ("OWNER", "ADMIN", "CONTRIBUTOR", "VIEWERNOSECRETS", "BARRED", "GUARD", "UNOWNER")
    for number, (role, scope, life) in enumerate(product(roles, SCOPES, (None, HOUR // 2))):
        held = Held(role, scope, life)
        # Of a role that denies something, each principal matters; of the others, they take turns.
        chosen = targets if denies(role) and scope in SCOPES[:2] else [targets[number % len(targets)]]
        for target in chosen:
            if any((other.role, other.scope) == (role, scope) for other in target.assigned):
                continue
            may = not _never(role) and _may_touch(presenter, "create", held, target)
            if presented.call(_creating((target, held)), [target], allowed=may):
                _remove_all(checks, target, held)
            humble = Held("VIEWERNOSECRETS", scope)
            if number % 6 == 0 and role != humble.role:
                # All or none.
                both = _creating((targets[2], humble), (target, held))
                both.validate_only = True
                may &= _may_touch(presenter, "create", humble, targets[2])
                checks.check_request(presenter, text, both, allowed=may)


def _creating(*wanted: tuple[_Target, Held]) -> assignment.CreateRoleAssignmentsRequest:
    """Make a request to assign roles."""
    return assignment.CreateRoleAssignmentsRequest(
        assignments=[
            assignment.NewRoleAssignment(
                principal=target.principal.text, role=held.role, scope=held.scope, expire_time=_end(held.life)
            )
            for target, held in wanted
        ]
    )


def _remove_all(checks: GrantChecks, target: _Target, held: Held) -> None:
    key = (target.principal.text, held.role, held.scope)
    made = checks.site.storage.read(lambda tx: assignment_rows.present(tx, "acme", [key]))
    _remove(checks, made[key])


def _some_existing(
    checks: GrantChecks, presenter: CredentialCase, text: str
) -> Iterator[tuple[CredentialCase, _Target, Held, RoleAssignment]]:
    """Yield assignments that exist, of every role and kind of principal, and what the presenter is with them."""
    targets = _targets(checks, presenter, text)
    roles = ("ADMIN", "CONTRIBUTOR", "BARRED", "GUARD", "UNOWNER")
    for number, (role, scope, life) in enumerate(product(roles, SCOPES[:4], (None, HOUR // 2, -HOUR))):
        held = Held(role, scope, life)
        chosen = targets if denies(role) and number % 4 == 0 else [targets[number % len(targets)]]
        for target in chosen:
            if any((other.role, other.scope) == (role, scope) for other in target.assigned):
                continue
            with _existing(checks, target, held) as row:
                lasting = target.assigned if life == -HOUR else (*target.assigned, held)
                present = replace(presenter, assigned=lasting) if target.is_own else presenter
                yield present, replace(target, assigned=lasting), held, row
    # The presenter's own, some by its team.
    if not presenter.assigned:
        return
    itself = targets[-1]
    rows = checks.site.storage.read(lambda tx: assignment_rows.assigned(tx, "acme", [itself.principal]))
    for each in rows[itself.principal].roles:
        [held] = [one for one in presenter.assigned if (one.role, one.scope) == (each.role, each.scope)]
        found = _row(checks, each.assignment_id)
        assert found is not None
        yield presenter, replace(itself, principal=found.principal), held, found
        if _row(checks, each.assignment_id) is None:
            _restore(checks, found)


def _row(checks: GrantChecks, assignment_id: str) -> RoleAssignment | None:
    return checks.site.storage.read(lambda tx: assignment_rows.get(tx, "acme", assignment_id))


def _restore(checks: GrantChecks, row: RoleAssignment) -> None:
    """Write an assignment as it was, whether it was changed or ended."""

    def work(tx: Transaction) -> None:
        assignment_rows.remove(tx, row)
        assignment_rows.add(tx, [row])

    checks.site.storage.mutate("acme", work)


def _sees(presenter: CredentialCase, target: _Target, held: Held) -> bool:
    """Whether a credential finds an assignment."""
    return target.is_own or presenter.can("assignments", "view", held.scope) or presenter.can("owners", "update")


def update_role_assignment(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Change the end of assignments, ended ones too, or only their notes."""
    for present, target, held, row in _some_existing(checks, presenter, text):
        presented = _Presenter(checks, present, text)
        for end in ("note", "earlier", "later", "never"):
            life = {"note": held.life, "earlier": HOUR // 4, "later": 2 * HOUR, "never": None}[end]
            longest = None if life is None or held.life is None else max(life, held.life)
            may = (
                _sees(present, target, held)
                and not _never(held.role)
                and _may_touch(present, "create", replace(held, life=longest), target)
            )
            if life is not None and (held.life is None or life < held.life):
                may &= _may_touch(present, "delete", held, target)
            new = assignment.RoleAssignment(id=row.id, note=f"{end} {next(checks.numbers)}", expire_time=_end(life))
            request = assignment.UpdateRoleAssignmentRequest(assignment=new)
            request.update_mask.paths.extend(["note"] if end == "note" else ["note", "expire_time"])
            # Only one that has ended gives anybody anything.
            if presented.call(request, [target] if held.life == -HOUR else [], allowed=may):
                _restore(checks, row)


def delete_role_assignment(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """End assignments of every role and of every kind of principal, the presenter's own included."""
    for present, target, held, row in _some_existing(checks, presenter, text):
        may = _sees(present, target, held) and _may_touch(present, "delete", held, target)
        request = assignment.DeleteRoleAssignmentRequest(id=row.id)
        _Presenter(checks, present, text).call(request, [target], allowed=may)


# What the teams are assigned whose members change.
_TEAMS: tuple[tuple[Held, ...], ...] = (
    (),
    (Held("CONTRIBUTOR", "projects/1"),),
    (Held("CONTRIBUTOR", "projects/1"), Held("ADMIN", "projects/2", HOUR // 2)),
    (Held("ADMIN", "", -HOUR),),
    (Held("BARRED", "projects/1"),),
    (Held("GUARD"), Held("VIEWERNOSECRETS")),
)


def _may_move(presenter: CredentialCase, verb: str, assigned: Iterable[Held], moved: Iterable[_Target]) -> bool:
    """Whether the rules let a credential add people to a team with these assignments, or remove them."""
    lasting = [held for held in assigned if held.life != -HOUR]
    if not presenter.can("teams", "update"):
        return False
    return all(_may_touch(presenter, verb, held, target) for held in lasting for target in moved)


def _people(checks: GrantChecks, presenter: CredentialCase, text: str) -> list[list[_Target]]:
    """People who join and leave, alone and with another one."""
    targets = _targets(checks, presenter, text)
    alone = [target for target in targets if target.principal.kind is PrincipalKind.USER]
    return [*([target] for target in alone), [alone[0], alone[2]]]


def add_team_members(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Add people to teams with and without assignments."""
    presented = _Presenter(checks, presenter, text)
    for assigned, moved in product(_TEAMS, _people(checks, presenter, text)):
        to = _new_team(checks, [], assigned)
        names = [target.principal.text for target in moved]
        may = _may_move(presenter, "create", assigned, moved)
        if presented.call(team.AddTeamMembersRequest(id=to.id, members=names), moved, allowed=may):
            _disband(checks, to)


def remove_team_members(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Remove people from teams with and without assignments, the presenter too."""
    for assigned, moved in product(_TEAMS, _people(checks, presenter, text)):
        lasting = tuple(held for held in assigned if held.life != -HOUR)
        left = _new_team(checks, [target.principal.id for target in moved], assigned)
        inside = [replace(target, assigned=(*target.assigned, *lasting)) for target in moved]
        own = [target for target in inside if target.is_own]
        present = replace(presenter, assigned=own[0].assigned) if own else presenter
        names = [target.principal.text for target in moved]
        may = _may_move(present, "delete", assigned, inside)
        request = team.RemoveTeamMembersRequest(id=left.id, members=names)
        _Presenter(checks, present, text).call(request, inside, allowed=may)
        _disband(checks, left)


def delete_team(checks: GrantChecks, presenter: CredentialCase, text: str) -> None:
    """Delete teams with and without assignments, in which the presenter is or isn't."""
    targets = _targets(checks, presenter, text)
    for assigned, member in product(_TEAMS, [targets[0], targets[-1]]):
        if member.principal.kind is not PrincipalKind.USER:
            continue
        lasting = tuple(held for held in assigned if held.life != -HOUR)
        ended = _new_team(checks, [member.principal.id], assigned)
        target = replace(member, principal=ended, assigned=(*member.assigned, *lasting))
        present = replace(presenter, assigned=target.assigned) if member.is_own else presenter
        may = present.can("teams", "delete") and all(_may_touch(present, "delete", held, target) for held in lasting)
        if not _Presenter(checks, present, text).call(team.DeleteTeamRequest(id=ended.id), [target], allowed=may):
            _disband(checks, ended)


def _disband(checks: GrantChecks, gone: Principal) -> None:
    """Delete a team directly in the database."""

    def work(tx: Transaction) -> None:
        found = team_rows.get(tx, "acme", gone.id)
        assert found is not None
        team_rows.remove(tx, found)

    checks.site.storage.mutate("acme", work)


ASSIGNMENT_CHECKS: dict[str, Callable[[GrantChecks, CredentialCase, str], None]] = {
    "AddTeamMembers": add_team_members,
    "CreateRoleAssignments": create_role_assignments,
    "UpdateRoleAssignment": update_role_assignment,
    # These end what is assigned, and with it what is denied.
    "DeleteRoleAssignment": delete_role_assignment,
    "DeleteTeam": delete_team,
    "RemoveTeamMembers": remove_team_members,
}
