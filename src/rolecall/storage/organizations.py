"""Queries on organizations and on what their revisions changed."""

from sqlalchemy import insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rolecall.domain import Organization
from rolecall.errors import OrganizationNotFound
from rolecall.storage.tables import changes, organizations
from rolecall.storage.transaction import Transaction

__all__ = ["add", "bump", "exists", "get", "record_change", "revision_of"]


def add(tx: Transaction, organization: Organization) -> None:
    """Insert a new organization."""
    tx.connection.execute(
        insert(organizations).values(
            id=organization.id,
            display_name=organization.display_name,
            revision=organization.revision,
            create_time=organization.create_time,
        )
    )


def get(tx: Transaction, organization: str) -> Organization | None:
    """The organization; None where there is none of this name."""
    row = tx.connection.execute(select(organizations).where(organizations.c.id == organization)).one_or_none()
    return Organization(row.id, row.display_name, row.revision, row.create_time) if row else None


def exists(tx: Transaction) -> bool:
    """Whether there is any organization at all."""
    return tx.connection.execute(select(organizations.c.id).limit(1)).first() is not None


def revision_of(tx: Transaction, organization: str) -> int:
    """The organization's revision. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(
        select(organizations.c.revision).where(organizations.c.id == organization)
    )
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def bump(tx: Transaction, organization: str) -> int:
    """Raise the revision by one and answer it; holds the row's lock to the end. Raises `OrganizationNotFound`."""
    revision: int | None = tx.connection.scalar(
        update(organizations)
        .where(organizations.c.id == organization)
        .values(revision=organizations.c.revision + 1)
        .returning(organizations.c.revision)
    )
    if revision is None:
        raise OrganizationNotFound.named(organization)
    return revision


def record_change(tx: Transaction, organization: str, kind: str, key: str) -> None:
    """Note that this revision changed the `kind` of thing named `key`; once is enough."""
    insert_or_leave = postgresql.insert if tx.connection.dialect.name == "postgresql" else sqlite.insert
    row = insert_or_leave(changes).values(organization=organization, revision=tx.revision, kind=kind, key=key)
    tx.connection.execute(row.on_conflict_do_nothing())
