"""Queries on organizations and their revisions."""

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
    "OrganizationSummary",
    "add",
    "bump",
    "exists",
    "get",
    "list_all",
    "lock_all",
    "owner_count",
    "rename",
    "revision_of",
    "revisions_of",
]


# Built once, as SQLAlchemy takes longer to build a statement than SQLite to run it.
_BUMP = (
    update(organizations)
    .where(organizations.c.id == bindparam("named"))
    .values(revision=organizations.c.revision + 1)
    .returning(organizations.c.revision)
)
_REVISION = select(organizations.c.revision).where(organizations.c.id == bindparam("named"))


@dataclass(frozen=True, slots=True)
class OrganizationSummary:
    """Organization and the number of its members."""

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
    """Change the organization's display name."""
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == organization)
        .values(display_name=display_name, changed=tx.revision)
    )
    record_change(tx, organization, "organization", organization)


def get(tx: Transaction, organization: str) -> Organization | None:
    """Read the organization; None where it doesn't exist."""
    row = tx.connection.execute(select(organizations).where(organizations.c.id == organization)).one_or_none()
    return _organization(row) if row else None


def owner_count(tx: Transaction, organization: str, roles: Collection[str]) -> int:
    """Count the members with one of `roles`."""
    query = select(func.count()).select_from(members)
    return tx.connection.scalars(query.where(members.c.organization == organization, members.c.role.in_(roles))).one()


def list_all(tx: Transaction) -> list[OrganizationSummary]:
    """Read all organizations with the number of their members, ordered by name."""
    rows = tx.connection.execute(
        select(organizations, func.count(members.c.user_id).label("member_count"))
        .outerjoin_from(organizations, members, members.c.organization == organizations.c.id)
        .group_by(organizations.c.id)
        .order_by(organizations.c.id)
    )
    return [OrganizationSummary(_organization(row), row.member_count) for row in rows]


def exists(tx: Transaction) -> bool:
    """Whether any organization exists."""
    return tx.connection.execute(select(organizations.c.id).limit(1)).first() is not None


def revision_of(tx: Transaction, organization: str) -> int:
    """Read the organization's revision. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(_REVISION, {"named": organization})
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def revisions_of(tx: Transaction, names: Collection[str]) -> dict[str, int]:
    """Read the revision of each of these organizations that exists."""
    if not names:
        return {}
    query = select(organizations.c.id, organizations.c.revision).where(organizations.c.id.in_(names))
    return {row.id: row.revision for row in tx.connection.execute(query)}


def bump(tx: Transaction, organization: str) -> int:
    """Increment the revision and return it; the row stays locked until the end. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(_BUMP, {"named": organization})
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def lock_all(tx: Transaction) -> None:
    """Wait for every change in progress, and block new ones until the transaction ends. PostgreSQL only.

    Of two transactions that do this, the second waits for the first.
    """
    tx.connection.execute(text("LOCK TABLE organizations IN SHARE ROW EXCLUSIVE MODE"))


def _organization(row: Row[Any]) -> Organization:
    return Organization(row.id, row.display_name, row.revision, row.create_time, row.changed)
