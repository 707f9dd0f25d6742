"""Queries on credentials. A dead one, expired or revoked, is never found by those that find live ones."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Select, insert, select, update

from rolecall.credentials import Minted
from rolecall.domain import Caller, CredentialKind
from rolecall.storage.organizations import record_change
from rolecall.storage.tables import credentials, members
from rolecall.storage.transaction import Transaction

__all__ = ["NewCredential", "add", "live_holder", "live_holders", "revoke"]


@dataclass(frozen=True, slots=True)
class NewCredential:
    """What is stored of a minted credential."""

    minted: Minted
    organization: str
    user_id: str
    name: str
    create_time: int
    expire_time: int


def add(tx: Transaction, new: NewCredential) -> None:
    """Insert a credential: its digest, never its text."""
    tx.connection.execute(
        insert(credentials).values(
            id=new.minted.id,
            organization=new.organization,
            kind=new.minted.kind.value,
            user_id=new.user_id,
            name=new.name,
            digest=new.minted.digest,
            last_four=new.minted.last_four,
            create_time=new.create_time,
            expire_time=new.expire_time,
        )
    )
    record_change(tx, new.organization, "credential", new.minted.id)


def revoke(tx: Transaction, organization: str, credential_id: str, at: int) -> bool:
    """Kill a credential. False where the organization has none of this id that isn't revoked yet."""
    result = tx.connection.execute(
        update(credentials)
        .where(
            credentials.c.organization == organization,
            credentials.c.id == credential_id,
            credentials.c.revoke_time.is_(None),
        )
        .values(revoke_time=at)
    )
    if result.rowcount == 0:
        return False
    record_change(tx, organization, "credential", credential_id)
    return True


def live_holder(tx: Transaction, credential_id: str, at: int) -> tuple[Caller, bytes] | None:
    """The holder of the credential as a caller, and the stored digest; None where none of this id lives at `at`."""
    row = tx.connection.execute(_live(at).where(credentials.c.id == credential_id)).one_or_none()
    if row is None:
        return None
    caller = Caller(row.organization, row.id, CredentialKind(row.kind), row.user_id, row.email_key, row.role)
    return caller, row.digest


def live_holders(
    tx: Transaction, organization: str, credential_ids: Collection[str], at: int
) -> dict[str, tuple[str, bytes]]:
    """The holder's role and the stored digest of each of the credentials that lives in the organization at `at`."""
    rows = tx.connection.execute(
        _live(at).where(credentials.c.organization == organization, credentials.c.id.in_(credential_ids))
    )
    return {row.id: (row.role, row.digest) for row in rows}


def _live(at: int) -> Select[tuple[str, str, str, str, str, str, bytes]]:
    return (
        select(
            credentials.c.organization,
            credentials.c.id,
            credentials.c.kind,
            credentials.c.user_id,
            members.c.email_key,
            members.c.role,
            credentials.c.digest,
        )
        .join_from(
            credentials,
            members,
            (members.c.organization == credentials.c.organization) & (members.c.user_id == credentials.c.user_id),
        )
        .where(credentials.c.revoke_time.is_(None), credentials.c.expire_time > at)
    )
