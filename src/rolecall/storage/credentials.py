"""Queries on credentials, live or not: `Validity` says whether and where a secret works."""

import hmac
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

from sqlalchemy import ColumnElement, Join, and_, bindparam, delete, func, insert, or_, select, update

from rolecall.credentials.token_format import MintedCredential
from rolecall.domain import (
    NOTHING_ASSIGNED,
    AssignedRoles,
    Caller,
    CredentialKind,
    Effect,
    Networks,
    Permission,
    Principal,
    PrincipalKind,
    Restriction,
    Validity,
)
from rolecall.storage import assignments as assignment_rows
from rolecall.storage.changes import record_change
from rolecall.storage.tables import credentials, members, retired_secrets
from rolecall.storage.transaction import Transaction

__all__ = [
    "CredentialHolder",
    "KnownToken",
    "NewCredential",
    "add",
    "credentials_with_holders",
    "holders",
    "networks_of",
    "present_role",
    "prune_sessions",
    "record_use",
    "restriction_of",
    "restriction_text",
    "revoke",
    "rotate",
    "tokens",
]


def credentials_with_holders() -> Join:
    """Join credentials with their holders; an organization's token has none."""
    same = (members.c.organization == credentials.c.organization) & (members.c.user_id == credentials.c.user_id)
    return credentials.outerjoin(members, same)


def present_role() -> ColumnElement[str]:
    """Select the role that a credential acts with: an organization token's own, else its holder's current one."""
    return func.coalesce(credentials.c.role, members.c.role)


@dataclass(frozen=True, slots=True)
class KnownToken:
    """Credential, live or not: its holder, roles and restriction, and the validity of it and of each of its secrets.

    An organization's token has no `user_id` and no `email_key`, the normalised address.

    That of the credential itself holds wherever it is, as it is named and not presented. Secrets stand by their digest.
    """

    user_id: str
    role: str
    restriction: Restriction | None
    validity: Validity
    secrets: dict[bytes, Validity]
    assigned: AssignedRoles = NOTHING_ASSIGNED
    email_key: str = ""


# Built once, as SQLAlchemy takes longer to build a statement than SQLite to run it.
_ADD = insert(credentials)
_KNOWN = (
    select(
        credentials.c.organization,
        credentials.c.id,
        credentials.c.kind,
        credentials.c.user_id,
        credentials.c.restriction,
        credentials.c.networks,
        credentials.c.expire_time,
        credentials.c.revoke_time,
        credentials.c.digest,
        members.c.email_key,
        members.c.external_id,
        present_role().label("role"),
    )
    .select_from(credentials_with_holders())
    # A person's credential without its member would be a defect; it counts as unknown.
    .where(or_(credentials.c.user_id.is_(None), members.c.user_id.is_not(None)))
)
_SOME = _KNOWN.where(credentials.c.id.in_(bindparam("ids", expanding=True)))


@dataclass(frozen=True, slots=True)
class NewCredential:
    """Credential to be stored: a person's has a `user_id`, an organization's token a `role`."""

    minted: MintedCredential
    organization: str
    user_id: str | None
    role: str | None
    display_name: str
    restriction: Restriction | None
    creator: str
    create_time: int
    expire_time: int
    networks: Networks = ()


@dataclass(frozen=True, slots=True)
class CredentialHolder:
    """Holder of a presented credential, live or not, and the validity of the presented secret."""

    caller: Caller
    validity: Validity


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
            "display_name": new.display_name,
            "restriction": restriction_text(new.restriction),
            "networks": " ".join(str(network) for network in new.networks),
            "creator": new.creator,
            "digest": new.minted.digest,
            "last_four": new.minted.last_four,
            "create_time": new.create_time,
            "expire_time": new.expire_time,
            "changed": tx.revision,
        },
    )
    record_change(tx, new.organization, "credential", new.minted.id)


def revoke(tx: Transaction, organization: str, credential_id: str, at: int) -> bool:
    """Revoke a credential. False where the organization has no credential of this id, or it is revoked already."""
    result = tx.connection.execute(
        update(credentials)
        .where(_named(organization, credential_id), credentials.c.revoke_time.is_(None))
        .values(revoke_time=at, changed=tx.revision)
    )
    if result.rowcount == 0:
        return False
    assignment_rows.remove_of_token(tx, organization, credential_id)
    record_change(tx, organization, "credential", credential_id)
    return True


def prune_sessions(tx: Transaction, organization: str, user_id: str, before: int) -> None:
    """Delete the member's sessions that expired before this time. Creates no revision: no reader sees a difference."""
    tx.connection.execute(
        delete(credentials).where(
            credentials.c.organization == organization,
            credentials.c.user_id == user_id,
            credentials.c.kind == CredentialKind.SESSION.value,
            credentials.c.expire_time < before,
        )
    )


def rotate(tx: Transaction, organization: str, minted: MintedCredential, old_until: int) -> None:
    """Replace the credential's secret; the old one and earlier ones work until `old_until` at most."""
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


def record_use(tx: Transaction, credential_id: str, at: int, unless_since: int) -> None:
    """Store when the credential was used, unless that was stored since `unless_since`. Creates no revision."""
    tx.connection.execute(
        update(credentials)
        .where(
            credentials.c.id == credential_id,
            or_(credentials.c.last_use_time.is_(None), credentials.c.last_use_time <= unless_since),
        )
        .values(last_use_time=at)
    )


def holders(tx: Transaction, presented: Collection[tuple[str, bytes]]) -> list[CredentialHolder | None]:
    """Find the holder of each credential by id and digest, in order; None for an unknown one."""
    ids = {credential_id for credential_id, _ in presented}
    rows = {row.id: row for row in tx.connection.execute(_SOME, {"ids": list(ids)})}
    # Every digest is compared in constant time: the duration must not disclose a matching prefix.
    rotated = [
        (credential_id, digest)
        for credential_id, digest in presented
        if credential_id in rows and not hmac.compare_digest(rows[credential_id].digest, digest)
    ]
    retired = _retired_secrets(tx, {credential_id for credential_id, _ in rotated}) if rotated else {}
    wrong = {each for each in rotated if each[1] not in retired.get(each[0], {})}
    valid = [each for each in presented if each[0] in rows and each not in wrong]
    assigned = _assigned(tx, [rows[credential_id] for credential_id, _ in valid])
    found: list[CredentialHolder | None] = []
    for credential_id, digest in presented:
        if credential_id not in assigned or (credential_id, digest) in wrong:
            found.append(None)
            continue
        row = rows[credential_id]
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
            networks_of(row.networks),
            row.external_id or "",
            assigned[row.id],
        )
        validity = _validity(row, caller.networks, retired.get(credential_id, {}).get(digest))
        # Credentials created with an old secret must not outlive it.
        found.append(CredentialHolder(replace(caller, expire_time=validity.until), validity))
    return found


def _validity(row: Any, networks: Networks, retired_at: int | None = None) -> Validity:
    """Return the validity of a credential's secret, `retired_at` being the end of an older one's overlap."""
    until: int = row.expire_time if retired_at is None else min(row.expire_time, retired_at)
    is_rotated, is_deleted = until < row.expire_time, row.revoke_time is not None
    return Validity(until, networks, is_rotated=is_rotated, is_deleted=is_deleted)


def _retired_secrets(tx: Transaction, credential_ids: Collection[str]) -> dict[str, dict[bytes, int]]:
    """Read the end of each secret that a rotation retired, by credential and digest."""
    rows = tx.connection.execute(
        select(retired_secrets.c.credential_id, retired_secrets.c.digest, retired_secrets.c.expire_time).where(
            retired_secrets.c.credential_id.in_(credential_ids)
        )
    )
    found: dict[str, dict[bytes, int]] = {}
    for row in rows:
        found.setdefault(row.credential_id, {})[row.digest] = row.expire_time
    return found


def tokens(tx: Transaction, organization: str, credential_ids: Collection[str]) -> dict[str, KnownToken]:
    """Read the organization's credentials with these ids, live or not, by id."""
    rows = tx.connection.execute(
        _KNOWN.where(credentials.c.organization == organization, credentials.c.id.in_(credential_ids))
    ).all()
    retired = _retired_secrets(tx, {row.id for row in rows}) if rows else {}
    assigned = _assigned(tx, rows)
    found: dict[str, KnownToken] = {}
    for row in rows:
        networks = networks_of(row.networks)
        secrets = {digest: _validity(row, networks, end) for digest, end in retired.get(row.id, {}).items()}
        secrets[row.digest] = _validity(row, networks)
        found[row.id] = KnownToken(
            row.user_id or "",
            row.role,
            restriction_of(row.restriction),
            _validity(row, ()),
            secrets,
            assigned[row.id],
            row.email_key or "",
        )
    return found


def _assigned(tx: Transaction, rows: Iterable[Any]) -> dict[str, AssignedRoles]:
    """Read the roles that are assigned to the holders of credentials, by the credential's id."""
    principals: dict[str, dict[str, Principal]] = {}
    for row in rows:
        holder = Principal(PrincipalKind.USER, row.user_id) if row.user_id else Principal(PrincipalKind.TOKEN, row.id)
        principals.setdefault(row.organization, {})[row.id] = holder
    found: dict[str, AssignedRoles] = {}
    for organization, holders_ in principals.items():
        assigned = assignment_rows.assigned(tx, organization, set(holders_.values()))
        found.update((credential_id, assigned[holder]) for credential_id, holder in holders_.items())
    return found


def networks_of(text: str) -> Networks:
    """Parse the networks in a row."""
    return tuple(ip_network(each) for each in text.split())


def restriction_of(text: str | None) -> Restriction | None:
    """Parse the restriction in a row; None where it has none."""
    if text is None:
        return None
    stored = json.loads(text)
    # Before scopes, a restriction was only its permissions.
    permissions, scope = (stored, "") if isinstance(stored, list) else (stored["permissions"], stored["scope"])
    if permissions is not None:
        permissions = tuple(Permission(resource, action, Effect.ALLOW) for resource, action in permissions)
    return Restriction(permissions, scope)


def restriction_text(restriction: Restriction | None) -> str | None:
    """Format the restriction for a row; None for no restriction."""
    if restriction is None or restriction == Restriction():
        return None
    permissions = restriction.permissions
    listed = None if permissions is None else [[each.resource, each.action] for each in permissions]
    stored = {"permissions": listed, "scope": restriction.scope} if restriction.scope else listed
    return json.dumps(stored, ensure_ascii=False)


def _named(organization: str, credential_id: str) -> ColumnElement[bool]:
    return and_(credentials.c.organization == organization, credentials.c.id == credential_id)
