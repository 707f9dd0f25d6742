"""Queries on credentials. A dead one, expired or revoked, is never found by those that find live ones."""

import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Join, and_, bindparam, delete, func, insert, or_, select, update

from rolecall.credentials import Minted
from rolecall.domain import Caller, CredentialKind, Effect, Permission, Restriction
from rolecall.storage.changes import record_change
from rolecall.storage.tables import credentials, members, retired_secrets
from rolecall.storage.transaction import Transaction

__all__ = [
    "Held",
    "LiveToken",
    "NewCredential",
    "add",
    "held_credentials",
    "live_holder",
    "live_holders",
    "present_role",
    "prune_sessions",
    "restriction_of",
    "restriction_text",
    "revoke",
    "rotate",
    "used",
]


def held_credentials() -> Join:
    """Credentials with their holders; an organization's token has none."""
    same = (members.c.organization == credentials.c.organization) & (members.c.user_id == credentials.c.user_id)
    return credentials.outerjoin(members, same)


def present_role() -> ColumnElement[str]:
    """The role that a credential acts with: an organization token's own, else its holder's present one."""
    return func.coalesce(credentials.c.role, members.c.role)


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A live credential: whose it is, what it acts with, until when, and the digests of its secrets.

    `digests` tells of each secret until when it works; `retired` are those that don't since a rotation.
    """

    user_id: str
    role: str
    restriction: Restriction
    until: int
    digests: dict[bytes, int]
    retired: set[bytes]


# Made once, as SQLAlchemy takes longer to put a statement together than SQLite to run it.
_ADD = insert(credentials)
_LIVE = (
    select(
        credentials.c.organization,
        credentials.c.id,
        credentials.c.kind,
        credentials.c.user_id,
        credentials.c.restriction,
        credentials.c.expire_time,
        credentials.c.digest,
        members.c.email_key,
        present_role().label("role"),
    )
    .select_from(held_credentials())
    .where(
        credentials.c.revoke_time.is_(None),
        credentials.c.expire_time > bindparam("at"),
        # A person's credential without the person would be a defect; it is dead.
        or_(credentials.c.user_id.is_(None), members.c.user_id.is_not(None)),
    )
)
_LIVE_ONE = _LIVE.where(credentials.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class NewCredential:
    """What is stored of a minted credential: a person's has a `user_id`, an organization's token a `role`."""

    minted: Minted
    organization: str
    user_id: str | None
    role: str | None
    name: str
    restriction: Restriction
    created_by: str
    create_time: int
    expire_time: int


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds a credential, and until when the presented secret works. `retired`: since a rotation it doesn't."""

    caller: Caller
    until: int
    retired: bool = False


def add(tx: Transaction, new: NewCredential) -> None:
    """Insert a credential: its digest, never its text."""
    tx.connection.execute(
        _ADD,
        {
            "id": new.minted.id,
            "organization": new.organization,
            "kind": new.minted.kind.value,
            "user_id": new.user_id,
            "role": new.role,
            "name": new.name,
            "restriction": restriction_text(new.restriction),
            "created_by": new.created_by,
            "digest": new.minted.digest,
            "last_four": new.minted.last_four,
            "create_time": new.create_time,
            "expire_time": new.expire_time,
            "changed": tx.revision,
        },
    )
    record_change(tx, new.organization, "credential", new.minted.id)


def revoke(tx: Transaction, organization: str, credential_id: str, at: int) -> bool:
    """Kill a credential. False where the organization has none of this id that isn't revoked yet."""
    result = tx.connection.execute(
        update(credentials)
        .where(_named(organization, credential_id), credentials.c.revoke_time.is_(None))
        .values(revoke_time=at, changed=tx.revision)
    )
    if result.rowcount == 0:
        return False
    record_change(tx, organization, "credential", credential_id)
    return True


def prune_sessions(tx: Transaction, organization: str, user_id: str, before: int) -> None:
    """Delete the member's sessions that ended before this moment. No mutation: nobody sees a difference."""
    tx.connection.execute(
        delete(credentials).where(
            credentials.c.organization == organization,
            credentials.c.user_id == user_id,
            credentials.c.kind == CredentialKind.SESSION.value,
            credentials.c.expire_time < before,
        )
    )


def rotate(tx: Transaction, organization: str, minted: Minted, old_until: int) -> None:
    """Give the credential of this id the new secret; the old one works until `old_until`, earlier ones no longer."""
    named = _named(organization, minted.id)
    old: bytes | None = tx.connection.scalar(select(credentials.c.digest).where(named))
    tx.connection.execute(
        update(retired_secrets)
        .where(retired_secrets.c.credential_id == minted.id, retired_secrets.c.expire_time > old_until)
        .values(expire_time=old_until)
    )
    tx.connection.execute(
        insert(retired_secrets).values(
            organization=organization, credential_id=minted.id, digest=old, expire_time=old_until
        )
    )
    tx.connection.execute(
        update(credentials).where(named).values(digest=minted.digest, last_four=minted.last_four, changed=tx.revision)
    )
    record_change(tx, organization, "credential", minted.id)


def used(tx: Transaction, credential_id: str, at: int, unless_since: int) -> None:
    """Note that the credential was used, unless that was noted since `unless_since`. No mutation: no revision."""
    tx.connection.execute(
        update(credentials)
        .where(
            credentials.c.id == credential_id,
            or_(credentials.c.last_used_time.is_(None), credentials.c.last_used_time <= unless_since),
        )
        .values(last_used_time=at)
    )


def live_holder(tx: Transaction, credential_id: str, digest: bytes, at: int) -> Held | None:
    """Who holds the credential of this id and secret; None where none such lives at `at`."""
    row = tx.connection.execute(_LIVE_ONE, {"at": at, "id": credential_id}).one_or_none()
    if row is None:
        return None
    caller = Caller(
        row.organization,
        row.id,
        CredentialKind(row.kind),
        row.user_id or "",
        row.email_key or "",
        row.role,
        restriction_of(row.restriction),
        row.expire_time,
        digest,
    )
    if hmac.compare_digest(row.digest, digest):
        return Held(caller, row.expire_time)
    retired: int | None = tx.connection.scalar(
        select(retired_secrets.c.expire_time).where(
            retired_secrets.c.credential_id == credential_id, retired_secrets.c.digest == digest
        )
    )
    if retired is None:
        return None
    until = min(row.expire_time, retired)
    # What an old secret makes must not outlive it.
    return Held(replace(caller, expire_time=until), until, retired=retired <= at)


def live_holders(tx: Transaction, organization: str, credential_ids: Collection[str], at: int) -> dict[str, LiveToken]:
    """Each of the organization's credentials that lives at `at`, with its secrets that work and those that did."""
    rows = tx.connection.execute(
        _LIVE.where(credentials.c.organization == organization, credentials.c.id.in_(credential_ids)), {"at": at}
    )
    found = {
        row.id: LiveToken(
            row.user_id or "",
            row.role,
            restriction_of(row.restriction),
            row.expire_time,
            {row.digest: row.expire_time},
            set(),
        )
        for row in rows
    }
    old = tx.connection.execute(select(retired_secrets).where(retired_secrets.c.credential_id.in_(found)))
    for row in old:
        token = found[row.credential_id]
        if row.expire_time > at:
            token.digests[row.digest] = min(row.expire_time, token.until)
        else:
            token.retired.add(row.digest)
    return found


def restriction_of(text: str | None) -> Restriction:
    """The restriction that a row holds."""
    if text is None:
        return None
    return tuple(Permission(resource, action, Effect.ALLOW) for resource, action in json.loads(text))


def restriction_text(restriction: Restriction) -> str | None:
    """The restriction as a row holds it."""
    if restriction is None:
        return None
    return json.dumps([[permission.resource, permission.action] for permission in restriction], ensure_ascii=False)


def _named(organization: str, credential_id: str) -> ColumnElement[bool]:
    return and_(credentials.c.organization == organization, credentials.c.id == credential_id)
