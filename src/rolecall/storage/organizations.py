"""Queries on organizations and on what their revisions changed."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, insert, select, text, update

from rolecall.domain import Organization
from rolecall.errors import OrganizationNotFound
from rolecall.storage.changes import record_change
from rolecall.storage.tables import members, organizations
from rolecall.storage.transaction import Transaction

__all__ = [
    "Census",
    "add",
    "bump",
    "census",
    "exists",
    "get",
    "lock_all",
    "owner_count",
    "rename",
    "revision_of",
]


# Made once, as SQLAlchemy takes longer to put a statement together than SQLite to run it.
_BUMP = (
    update(organizations)
    .where(organizations.c.id == bindparam("named"))
    .values(revision=organizations.c.revision + 1)
    .returning(organizations.c.revision)
)
_REVISION = select(organizations.c.revision).where(organizations.c.id == bindparam("named"))


@dataclass(frozen=True, slots=True)
class Census:
    """An organization and how many members it has."""

    organization: Organization
    members: int


def add(tx: Transaction, organization: Organization) -> None:
    """Insert a new organization."""
    tx.connection.execute(
        insert(organizations).values(
            id=organization.id,
            display_name=organization.display_name,
            revision=organization.revision,
            create_time=organization.create_time,
            changed=organization.changed,
        )
    )


def rename(tx: Transaction, organization: str, display_name: str) -> None:
    """Give the organization another name to show."""
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == organization)
        .values(display_name=display_name, changed=tx.revision)
    )
    record_change(tx, organization, "organization", organization)


def get(tx: Transaction, organization: str) -> Organization | None:
    """The organization; None where there is none of this name."""
    row = tx.connection.execute(select(organizations).where(organizations.c.id == organization)).one_or_none()
    return _organization(row) if row else None


def owner_count(tx: Transaction, organization: str, roles: Collection[str]) -> int:
    """How many members hold one of `roles`."""
    query = select(func.count()).select_from(members)
    return tx.connection.scalars(query.where(members.c.organization == organization, members.c.role.in_(roles))).one()


def census(tx: Transaction) -> list[Census]:
    """Every organization with the number of its members, by name."""
    rows = tx.connection.execute(
        select(organizations, func.count(members.c.user_id).label("member_count"))
        .outerjoin_from(organizations, members, members.c.organization == organizations.c.id)
        .group_by(organizations.c.id)
        .order_by(organizations.c.id)
    )
    return [Census(_organization(row), row.member_count) for row in rows]


def exists(tx: Transaction) -> bool:
    """Whether there is any organization at all."""
    return tx.connection.execute(select(organizations.c.id).limit(1)).first() is not None


def revision_of(tx: Transaction, organization: str) -> int:
    """The organization's revision. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(_REVISION, {"named": organization})
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def bump(tx: Transaction, organization: str) -> int:
    """Raise the revision by one and answer it; holds the row's lock to the end. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(_BUMP, {"named": organization})
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def lock_all(tx: Transaction) -> None:
    """Wait for every change that is under way, and let none begin before the transaction ends. PostgreSQL only."""
    tx.connection.execute(text("LOCK TABLE organizations IN SHARE MODE"))


def _organization(row: Row[Any]) -> Organization:
    return Organization(row.id, row.display_name, row.revision, row.create_time, row.changed)
