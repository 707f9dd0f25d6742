"""Queries on role assignments."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from rolecall.domain import (
    NOTHING_ASSIGNED,
    AssignedRole,
    AssignedRoles,
    AssignmentQuery,
    Principal,
    PrincipalKind,
    RoleAssignment,
)
from rolecall.storage.changes import record_change
from rolecall.storage.tables import credentials, members, role_assignments, team_members, teams
from rolecall.storage.transaction import Transaction

__all__ = [
    "RoleHolder",
    "add",
    "assigned",
    "change",
    "change_roles",
    "count",
    "count_with_role",
    "get",
    "holders",
    "page",
    "present",
    "prune",
    "record_assigned",
    "remove",
    "remove_of_token",
    "roles_held",
    "scopes",
]

_A = role_assignments.c
# What follows a scope and a slash is before the scope and this character.
_AFTER_SLASH = chr(ord("/") + 1)


class RoleHolder(NamedTuple):
    """Role assignment, as far as the activation of a policy needs it."""

    organization: str
    id: str
    role: str
    principal: str
    scope: str


_NAMES = func.coalesce(members.c.email, teams.c.display_name, credentials.c.display_name, "")


def _with_names() -> Select[Any]:
    """Select assignments with the names of their principals."""
    member = (members.c.organization == _A.organization) & (members.c.user_id == _A.user_id)
    team = (teams.c.organization == _A.organization) & (teams.c.id == _A.team_id)
    token = (credentials.c.organization == _A.organization) & (
        literal(f"{PrincipalKind.TOKEN.value}:") + credentials.c.id == _A.principal
    )
    joined = role_assignments.outerjoin(members, member).outerjoin(teams, team).outerjoin(credentials, token)
    return select(role_assignments, _NAMES.label("name")).select_from(joined)


# Built once: building them takes SQLAlchemy a third of a look-up's time.
_ROLES = (_A.role, _A.scope, _A.expire_time, _A.id, _A.principal)
_OF_TEAMS = (
    select(team_members.c.user_id.label("holder"), team_members.c.team_id, *_ROLES)
    .select_from(
        team_members.outerjoin(
            role_assignments, (_A.organization == team_members.c.organization) & (_A.team_id == team_members.c.team_id)
        )
    )
    .where(
        team_members.c.organization == bindparam("named"),
        team_members.c.user_id.in_(bindparam("user_ids", expanding=True)),
    )
)
_OWN = select(_A.principal.label("holder"), literal("").label("team_id"), *_ROLES).where(
    _A.organization == bindparam("named"), _A.principal.in_(bindparam("principals", expanding=True))
)
_ASSIGNED = _OF_TEAMS.union_all(_OWN)


def assigned(tx: Transaction, organization: str, principals: Collection[Principal]) -> dict[Principal, AssignedRoles]:
    """Read the roles that members and tokens are assigned, themselves and through teams; for each of `principals`."""
    user_ids = [each.id for each in principals if each.kind is PrincipalKind.USER]
    by_text = {each.text: each for each in principals}
    values = {"named": organization, "user_ids": user_ids, "principals": list(by_text)}
    roles: dict[Principal, list[AssignedRole]] = {}
    of_teams: dict[Principal, dict[str, None]] = {}
    for holder, team_id, role, scope, expire_time, assignment_id, principal in tx.connection.execute(_ASSIGNED, values):
        who = Principal(PrincipalKind.USER, holder) if team_id else by_text[holder]
        if team_id:
            of_teams.setdefault(who, {})[team_id] = None
        if assignment_id is not None:
            roles.setdefault(who, []).append(AssignedRole(role, scope, expire_time, assignment_id, principal))
    return {
        who: AssignedRoles(tuple(roles.get(who, ())), tuple(of_teams.get(who, ())))
        if who in roles or who in of_teams
        else NOTHING_ASSIGNED
        for who in principals
    }


def add(tx: Transaction, assignments: Sequence[RoleAssignment]) -> None:
    """Insert assignments, at least one. The changes are recorded."""
    tx.connection.execute(
        insert(role_assignments),
        [
            {
                "id": each.id,
                "organization": each.organization,
                "principal": each.principal.text,
                "user_id": each.principal.id if each.principal.kind is PrincipalKind.USER else None,
                "team_id": each.principal.id if each.principal.kind is PrincipalKind.TEAM else None,
                "role": each.role,
                "scope": each.scope,
                "creator": each.creator,
                "create_time": each.create_time,
                "expire_time": each.expire_time,
                "note": each.note,
                "changed": each.changed,
            }
            for each in assignments
        ],
    )
    record_assigned(tx, assignments[0].organization, (each.principal for each in assignments))


def record_assigned(tx: Transaction, organization: str, principals: Iterable[Principal]) -> None:
    """Record that the roles assigned to these principals change. A team's name in the cache is its text."""
    for principal in dict.fromkeys(principals):
        is_team = principal.kind is PrincipalKind.TEAM
        record_change(tx, organization, "assignment", principal.text if is_team else principal.id)


def get(tx: Transaction, organization: str, assignment_id: str) -> RoleAssignment | None:
    """Read the assignment with this id; None where the organization has none."""
    row = tx.connection.execute(
        _with_names().where(_A.organization == organization, _A.id == assignment_id)
    ).one_or_none()
    return _assignment(row) if row else None


def present(
    tx: Transaction, organization: str, keys: Collection[tuple[str, str, str]]
) -> dict[tuple[str, str, str], RoleAssignment]:
    """Read the assignments with these keys, (principal, role, scope) as text, ended ones included."""
    named = tuple_(_A.principal, _A.role, _A.scope).in_(list(keys))
    rows = tx.connection.execute(_with_names().where(_A.organization == organization, named))
    return {(row.principal, row.role, row.scope): _assignment(row) for row in rows}


def count(tx: Transaction, organization: str, principal: Principal) -> int:
    """Count a principal's assignments, ended ones included."""
    query = select(func.count()).where(_A.organization == organization, _A.principal == principal.text)
    return tx.connection.scalars(query).one()


def count_with_role(tx: Transaction, organization: str, role: str, at: int) -> int:
    """Count the organization's assignments of this role that have not ended at `at`."""
    query = select(func.count()).where(_A.organization == organization, _A.role == role, _A.expire_time > at)
    return tx.connection.scalars(query).one()


def page(
    tx: Transaction, organization: str, query: AssignmentQuery, after: tuple[int, str] | None, limit: int
) -> list[RoleAssignment]:
    """Read at most `limit` assignments that match, the newest first, those after (creation time, id)."""
    wanted = _with_names().where(_A.organization == organization)
    if query.principal:
        wanted = wanted.where(_A.principal == query.principal.text)
    if query.role:
        wanted = wanted.where(_A.role == query.role)
    if query.scope:
        wanted = wanted.where(_at_or_beneath(query.scope))
    if after is not None:
        wanted = wanted.where(tuple_(_A.create_time, _A.id) < after)
    rows = tx.connection.execute(wanted.order_by(_A.create_time.desc(), _A.id.desc()).limit(limit))
    return [_assignment(row) for row in rows]


def change(tx: Transaction, assignment: RoleAssignment) -> RoleAssignment:
    """Store an assignment's end and note; returns it as of the revision that is made."""
    changed = replace(assignment, changed=tx.revision)
    values = {"expire_time": changed.expire_time, "note": changed.note, "changed": changed.changed}
    tx.connection.execute(update(role_assignments).where(_named(assignment)).values(values))
    record_assigned(tx, assignment.organization, [assignment.principal])
    return changed


def remove(tx: Transaction, assignment: RoleAssignment) -> None:
    """Delete an assignment."""
    tx.connection.execute(delete(role_assignments).where(_named(assignment)))
    record_assigned(tx, assignment.organization, [assignment.principal])


def remove_of_token(tx: Transaction, organization: str, credential_id: str) -> None:
    """Delete what is assigned to a token that is revoked; the change of the token itself is recorded elsewhere."""
    principal = Principal(PrincipalKind.TOKEN, credential_id)
    tx.connection.execute(
        delete(role_assignments).where(_A.organization == organization, _A.principal == principal.text)
    )


def prune(tx: Transaction, before: int) -> None:
    """Delete the assignments that ended before this time. Creates no revision: they have no effect any more."""
    tx.connection.execute(delete(role_assignments).where(_A.expire_time < before))


def roles_held(tx: Transaction, at: int) -> dict[str, int]:
    """Return every role that is assigned in any organization at the time `at`, and how many assignments hold it."""
    query = select(_A.role, func.count().label("number")).where(_A.expire_time > at).group_by(_A.role)
    return {row.role: row.number for row in tx.connection.execute(query)}


def holders(tx: Transaction, roles: Collection[str]) -> list[RoleHolder]:
    """Read the assignments of all organizations of one of `roles`, ended ones included."""
    columns = (_A.organization, _A.id, _A.role, _A.principal, _A.scope)
    rows = tx.connection.execute(select(*columns).where(_A.role.in_(roles)).order_by(_A.organization, _A.id))
    return [RoleHolder(*row) for row in rows]


def change_roles(tx: Transaction, moved: Sequence[RoleHolder], moves: Mapping[str, str]) -> None:
    """Give the assignments of one organization, at least one, the role that `moves` maps theirs to.

    Where the principal has that role at that scope already, the assignment is deleted.
    """
    organization = moved[0].organization
    keys = [(each.principal, moves[each.role], each.scope) for each in moved]
    taken = set(present(tx, organization, keys))
    for each, key in zip(moved, keys, strict=True):
        named = and_(_A.organization == organization, _A.id == each.id)
        if key in taken:
            tx.connection.execute(delete(role_assignments).where(named))
        else:
            taken.add(key)
            tx.connection.execute(update(role_assignments).where(named).values(role=key[1], changed=tx.revision))
    record_assigned(tx, organization, (Principal.of(each.principal) for each in moved))


def scopes(tx: Transaction, organization: str, resource_type: str, after: str, limit: int) -> list[str]:
    """Read at most `limit` scopes of assignments at a path or beneath it, ordered as text, those after `after`."""
    named = (_A.organization == organization, _at_or_beneath(resource_type), _A.scope > after)
    return list(tx.connection.scalars(select(_A.scope).where(*named).distinct().order_by(_A.scope).limit(limit)))


def _at_or_beneath(scope: str) -> ColumnElement[bool]:
    # A range of the index.
    return or_(_A.scope == scope, and_(_A.scope > f"{scope}/", _A.scope < f"{scope}{_AFTER_SLASH}"))


def _named(assignment: RoleAssignment) -> ColumnElement[bool]:
    return and_(_A.organization == assignment.organization, _A.id == assignment.id)


def _assignment(row: Row[Any]) -> RoleAssignment:
    return RoleAssignment(
        row.organization,
        row.id,
        Principal.of(row.principal),
        row.role,
        row.scope,
        row.creator,
        row.create_time,
        row.expire_time,
        row.note,
        row.changed,
        row.name,
    )
