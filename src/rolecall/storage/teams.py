"""Queries on teams and their members."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, insert, select, update

from rolecall.domain import Member, Principal, PrincipalKind, Team
from rolecall.storage import members as member_rows
from rolecall.storage.assignments import record_assigned
from rolecall.storage.tables import members, team_members, teams
from rolecall.storage.transaction import Transaction

__all__ = [
    "add",
    "add_members",
    "full_members",
    "get",
    "has_member",
    "member_ids",
    "members_page",
    "page",
    "remove",
    "remove_members",
    "rename",
]


def _with_counts() -> Select[Any]:
    """Select teams with the numbers of their members."""
    number = (
        select(func.count())
        .where(team_members.c.organization == teams.c.organization, team_members.c.team_id == teams.c.id)
        .scalar_subquery()
    )
    return select(teams, number.label("member_count"))


def add(tx: Transaction, team: Team) -> None:
    """Insert a team without members."""
    tx.connection.execute(
        insert(teams).values(
            organization=team.organization,
            id=team.id,
            display_name=team.display_name,
            create_time=team.create_time,
            changed=team.changed,
        )
    )
    record_assigned(tx, team.organization, [_principal(team)])


def get(tx: Transaction, organization: str, team_id: str) -> Team | None:
    """Read the team with this id; None where the organization has none."""
    row = tx.connection.execute(
        _with_counts().where(teams.c.organization == organization, teams.c.id == team_id)
    ).one_or_none()
    return _team(row) if row else None


def page(tx: Transaction, organization: str, user_id: str, after: str, limit: int) -> list[Team]:
    """Read at most `limit` teams by id, those after the id `after`; `user_id`: this member's only, empty for all."""
    query = _with_counts().where(teams.c.organization == organization, teams.c.id > after)
    if user_id:
        own = select(team_members.c.team_id).where(
            team_members.c.organization == organization, team_members.c.user_id == user_id
        )
        query = query.where(teams.c.id.in_(own))
    return [_team(row) for row in tx.connection.execute(query.order_by(teams.c.id).limit(limit))]


def rename(tx: Transaction, team: Team, display_name: str) -> Team:
    """Give a team another display name; returns it as of the revision that is made."""
    changed = replace(team, display_name=display_name, changed=tx.revision)
    tx.connection.execute(update(teams).where(_named(team)).values(display_name=display_name, changed=changed.changed))
    record_assigned(tx, team.organization, [_principal(team)])
    return changed


def remove(tx: Transaction, team: Team) -> None:
    """Delete a team, and with the row its members and what is assigned to it."""
    tx.connection.execute(delete(teams).where(_named(team)))
    record_assigned(tx, team.organization, [_principal(team)])


def has_member(tx: Transaction, organization: str, team_id: str, user_id: str) -> bool:
    """Return whether a member is in a team."""
    return bool(member_ids(tx, organization, team_id, [user_id]))


def member_ids(tx: Transaction, organization: str, team_id: str, user_ids: Collection[str]) -> set[str]:
    """Return which of `user_ids` are in a team."""
    query = select(team_members.c.user_id).where(
        team_members.c.organization == organization,
        team_members.c.team_id == team_id,
        team_members.c.user_id.in_(user_ids),
    )
    return set(tx.connection.scalars(query))


def full_members(tx: Transaction, organization: str, user_ids: Collection[str], maximum: int) -> list[str]:
    """Return which of `user_ids` are in `maximum` teams or more."""
    query = (
        select(team_members.c.user_id)
        .where(team_members.c.organization == organization, team_members.c.user_id.in_(user_ids))
        .group_by(team_members.c.user_id)
        .having(func.count() >= maximum)
        .order_by(team_members.c.user_id)
    )
    return list(tx.connection.scalars(query))


def add_members(tx: Transaction, team: Team, user_ids: Sequence[str]) -> None:
    """Add members, at least one, who are not in the team yet."""
    tx.connection.execute(
        insert(team_members),
        [{"organization": team.organization, "team_id": team.id, "user_id": user_id} for user_id in user_ids],
    )
    _record_members(tx, team, user_ids)


def remove_members(tx: Transaction, team: Team, user_ids: Sequence[str]) -> None:
    """Remove members, at least one, from the team."""
    tx.connection.execute(
        delete(team_members).where(
            team_members.c.organization == team.organization,
            team_members.c.team_id == team.id,
            team_members.c.user_id.in_(user_ids),
        )
    )
    _record_members(tx, team, user_ids)


def members_page(tx: Transaction, organization: str, team_id: str, after: str, limit: int) -> list[tuple[str, Member]]:
    """Read at most `limit` members of a team with their address keys, by these, those after the key `after`."""
    same = (members.c.organization == team_members.c.organization) & (members.c.user_id == team_members.c.user_id)
    query = (
        select(members)
        .select_from(team_members.join(members, same))
        .where(
            team_members.c.organization == organization,
            team_members.c.team_id == team_id,
            members.c.email_key > after,
        )
        .order_by(members.c.email_key)
        .limit(limit)
    )
    return [(row.email_key, member_rows.from_row(row)) for row in tx.connection.execute(query)]


def _record_members(tx: Transaction, team: Team, user_ids: Sequence[str]) -> None:
    tx.connection.execute(update(teams).where(_named(team)).values(changed=tx.revision))
    record_assigned(tx, team.organization, (Principal(PrincipalKind.USER, user_id) for user_id in user_ids))


def _principal(team: Team) -> Principal:
    return Principal(PrincipalKind.TEAM, team.id)


def _named(team: Team) -> ColumnElement[bool]:
    return and_(teams.c.organization == team.organization, teams.c.id == team.id)


def _team(row: Row[Any]) -> Team:
    return Team(row.organization, row.id, row.display_name, row.create_time, row.changed, row.member_count)
