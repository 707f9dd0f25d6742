"""Queries on members."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    bindparam,
    case,
    delete,
    exists,
    insert,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from rolecall.domain import Member, MemberOrder
from rolecall.storage.changes import record_change, record_changes
from rolecall.storage.tables import members, organizations, role_assignments, team_members
from rolecall.storage.transaction import Transaction

__all__ = [
    "RolesAtScopes",
    "add",
    "by_email",
    "by_emails",
    "change_external_id",
    "change_role",
    "from_row",
    "get",
    "holders",
    "move",
    "organizations_without",
    "page",
    "page_with_roles",
    "remove",
    "roles_by_email",
    "roles_by_external_id",
    "roles_by_id",
    "roles_held",
    "versions_with_role",
]

# Columns of each order; the second makes it total.
_ORDERS = {
    MemberOrder.EMAIL: (members.c.email_key, members.c.user_id),
    MemberOrder.DISPLAY_NAME: (members.c.display_name, members.c.user_id),
    MemberOrder.NEWEST: (members.c.create_time, members.c.user_id),
}

# Built once: building them takes SQLAlchemy a third of a look-up's time.
_BY_ID = select(members.c.user_id, members.c.role, members.c.email_key).where(
    members.c.organization == bindparam("named"), members.c.user_id.in_(bindparam("user_ids", expanding=True))
)
_BY_EMAIL = select(members.c.email_key, members.c.role, members.c.user_id).where(
    members.c.organization == bindparam("named"), members.c.email_key.in_(bindparam("keys", expanding=True))
)
_BY_EXTERNAL_ID = select(members.c.external_id, members.c.role, members.c.user_id, members.c.email_key).where(
    members.c.organization == bindparam("named"), members.c.external_id.in_(bindparam("keys", expanding=True))
)


def add(tx: Transaction, member: Member, email_key: str) -> None:
    """Insert a new member."""
    tx.connection.execute(
        insert(members).values(
            organization=member.organization,
            user_id=member.user_id,
            email_key=email_key,
            email=member.email,
            display_name=member.display_name,
            role=member.role,
            create_time=member.create_time,
            update_time=member.update_time,
            external_id=member.external_id or None,
        )
    )
    record_change(tx, member.organization, "member", member.user_id)


def get(tx: Transaction, organization: str, user_id: str) -> Member | None:
    """Read the member with this id; None where the organization has none."""
    row = tx.connection.execute(
        select(members).where(members.c.organization == organization, members.c.user_id == user_id)
    ).one_or_none()
    return from_row(row) if row else None


def by_email(tx: Transaction, organization: str, email_key: str) -> Member | None:
    """Read the member with this address; None where the organization has none."""
    row = tx.connection.execute(
        select(members).where(members.c.organization == organization, members.c.email_key == email_key)
    ).one_or_none()
    return from_row(row) if row else None


def by_emails(tx: Transaction, organization: str, email_keys: Collection[str]) -> dict[str, str]:
    """Map each of the addresses that is a member's to the user id."""
    rows = tx.connection.execute(
        select(members.c.email_key, members.c.user_id).where(
            members.c.organization == organization, members.c.email_key.in_(email_keys)
        )
    )
    return {row.email_key: row.user_id for row in rows}


def change_role(tx: Transaction, member: Member, role: str, at: int) -> None:
    """Give the member another role."""
    tx.connection.execute(update(members).where(_named(member)).values(role=role, update_time=at))
    record_change(tx, member.organization, "member", member.user_id)


def change_external_id(tx: Transaction, member: Member, external_id: str, at: int) -> None:
    """Give the member another external id; an empty one stands for none."""
    values = {"external_id": external_id or None, "update_time": at}
    tx.connection.execute(update(members).where(_named(member)).values(values))
    record_change(tx, member.organization, "member", member.user_id)


def versions_with_role(tx: Transaction, organization: str, role: str, limit: int) -> list[tuple[str, int]]:
    """Return the ids of at most `limit` members with this role, with the time of each one's last change, by id."""
    query = select(members.c.user_id, members.c.update_time).where(
        members.c.organization == organization, members.c.role == role
    )
    rows = tx.connection.execute(query.order_by(members.c.user_id).limit(limit))
    return [(row.user_id, row.update_time) for row in rows]


def move(tx: Transaction, organization: str, from_role: str, to_role: str, at: int) -> list[str]:
    """Give all members with `from_role`, at least one, the role `to_role`. Returns their ids."""
    moved = (
        update(members)
        .where(members.c.organization == organization, members.c.role == from_role)
        # An etag must never occur twice, even where the clock was set back.
        .values(role=to_role, update_time=case((members.c.update_time >= at, members.c.update_time + 1), else_=at))
        .returning(members.c.user_id)
    )
    user_ids = sorted(tx.connection.scalars(moved))
    record_changes(tx, organization, "member", user_ids)
    return user_ids


def remove(tx: Transaction, member: Member) -> None:
    """Delete the member, and with the row all their credentials."""
    tx.connection.execute(delete(members).where(_named(member)))
    record_change(tx, member.organization, "member", member.user_id)


def page(
    tx: Transaction,
    organization: str,
    role: str,
    text: str,
    external_id: str,
    order: MemberOrder,
    after: tuple[str | int, str] | None,
    limit: int,
) -> list[tuple[tuple[str | int, str], Member]]:
    """Read at most `limit` members with their positions in the order, those after the position `after`.

    `role`, `text`, in lower case, and `external_id` are empty for any.
    """
    query = select(members).where(members.c.organization == organization)
    if role:
        query = query.where(members.c.role == role)
    if external_id:
        query = query.where(members.c.external_id == external_id)
    if text:
        columns = (members.c.email_key, members.c.email, members.c.display_name)
        query = query.where(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    first, second = _ORDERS[order]
    place = tuple_(first, second)
    if order is MemberOrder.NEWEST:
        query = query.order_by(first.desc(), second.desc())
        query = query if after is None else query.where(place < after)
    else:
        query = query.order_by(first, second)
        query = query if after is None else query.where(place > after)
    rows = tx.connection.execute(query.limit(limit))
    return [((getattr(row, first.name), row.user_id), from_row(row)) for row in rows]


def roles_by_id(tx: Transaction, organization: str, user_ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Map each of `user_ids` that is a member's to the role and the normalised address."""
    rows = tx.connection.execute(_BY_ID, {"named": organization, "user_ids": list(user_ids)})
    return {user_id: (role, email_key) for user_id, role, email_key in rows}


def roles_by_email(tx: Transaction, organization: str, email_keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Map each of the addresses that is a member's to the role and the user id."""
    rows = tx.connection.execute(_BY_EMAIL, {"named": organization, "keys": list(email_keys)})
    return {email_key: (role, user_id) for email_key, role, user_id in rows}


def roles_by_external_id(
    tx: Transaction, organization: str, external_ids: Collection[str]
) -> dict[str, tuple[str, str, str]]:
    """Map each of the external ids that is a member's to the role, the user id and the normalised address."""
    rows = tx.connection.execute(_BY_EXTERNAL_ID, {"named": organization, "keys": list(external_ids)})
    return {external_id: (role, user_id, email_key) for external_id, role, user_id, email_key in rows}


@dataclass(frozen=True, slots=True)
class RolesAtScopes:
    """Condition on members: they have one of the roles `allowed`, and none of `denied`, at the time `at`.

    A role counts if the member has it everywhere, or is assigned it at one of `scopes`, itself or through a team.
    """

    allowed: Collection[str]
    denied: Collection[str]
    scopes: Collection[str]
    at: int

    def clause(self) -> ColumnElement[bool]:
        """Return the condition for a query on `members`."""
        return and_(self._has(self.allowed), not_(self._has(self.denied))) if self.denied else self._has(self.allowed)

    def _has(self, roles: Collection[str]) -> ColumnElement[bool]:
        assigned = role_assignments.c
        applies = (
            assigned.organization == members.c.organization,
            assigned.role.in_(roles),
            assigned.scope.in_(self.scopes),
            assigned.expire_time > self.at,
        )
        teams = (
            select(team_members.c.team_id)
            .where(team_members.c.organization == members.c.organization, team_members.c.user_id == members.c.user_id)
            .correlate(members)
        )
        return or_(
            members.c.role.in_(roles),
            exists().where(*applies, assigned.user_id == members.c.user_id).correlate(members),
            exists().where(*applies, assigned.team_id.in_(teams)).correlate(members),
        )


def page_with_roles(
    tx: Transaction, organization: str, roles: RolesAtScopes, after: str | None, limit: int
) -> list[tuple[str, Member]]:
    """Read at most `limit` members who have these roles, ordered by address key, those after the key `after`."""
    query = select(members).where(members.c.organization == organization, roles.clause())
    if after is not None:
        query = query.where(members.c.email_key > after)
    rows = tx.connection.execute(query.order_by(members.c.email_key).limit(limit))
    return [(row.email_key, from_row(row)) for row in rows]


def roles_held(tx: Transaction) -> set[str]:
    """Return every role that a member of any organization has."""
    return set(tx.connection.scalars(select(members.c.role).distinct()))


def holders(tx: Transaction, roles: Collection[str]) -> list[Member]:
    """Read the members of all organizations with one of `roles`, ordered by organization."""
    query = select(members).where(members.c.role.in_(roles)).order_by(members.c.organization, members.c.user_id)
    return [from_row(row) for row in tx.connection.execute(query)]


def organizations_without(tx: Transaction, roles: Collection[str], limit: int) -> list[str]:
    """Return at most `limit` organizations in which no member has one of `roles`."""
    holder = exists().where(members.c.organization == organizations.c.id, members.c.role.in_(roles))
    return list(
        tx.connection.scalars(select(organizations.c.id).where(~holder).order_by(organizations.c.id).limit(limit))
    )


def _named(member: Member) -> ColumnElement[bool]:
    return and_(members.c.organization == member.organization, members.c.user_id == member.user_id)


def from_row(row: Row[Any]) -> Member:
    """Read a member from a row of the table."""
    return Member(
        row.organization,
        row.user_id,
        row.email,
        row.display_name,
        row.role,
        row.create_time,
        row.update_time,
        row.external_id or "",
    )
