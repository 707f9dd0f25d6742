"""Comparison of an organization's rows with the model."""

import json
from typing import Any

from sqlalchemy import delete, select

from rolecall.audit import AuditLog, verify
from rolecall.domain import now
from rolecall.storage import Transaction
from rolecall.storage import tables as t
from stateful.credential_model import ExpectedEntry, Pattern
from stateful.people_model import ModelOrganization, Rules

__all__ = ["clear", "compare", "requests_of", "rows_of"]

TABLES = (t.organizations, t.members, t.invitations, t.credentials, t.changes, t.audit_heads)


def clear(tx: Transaction) -> None:
    """Delete what an earlier run left: after a failed run, no new organization might be possible."""
    for table in reversed(t.metadata.sorted_tables):
        tx.connection.execute(delete(table))


def requests_of(tx: Transaction, org: ModelOrganization) -> set[tuple[str, str, str]]:
    """The stored requests, as in the model."""
    columns = t.requests.c.principal, t.requests.c.action, t.requests.c.request_id
    return {tuple(row) for row in tx.connection.execute(select(*columns).where(t.requests.c.organization == org.name))}


def rows_of(tx: Transaction, org: ModelOrganization) -> list[str]:
    """The organization's rows as text; without stored requests, even of those that changed nothing."""
    lines = []
    for table in TABLES:
        column = "id" if table is t.organizations else "organization"
        found = tx.connection.exec_driver_sql(f"SELECT * FROM {table.name} WHERE {column} = '{org.name}'")
        lines += sorted(f"{table.name} {tuple(row)!r}" for row in found)
    return lines


def compare(tx: Transaction, log: AuditLog, rules: Rules, org: ModelOrganization) -> None:
    def rows(what: str, table: str) -> list[Any]:
        key = "id" if table == "organizations" else "organization"
        found = tx.connection.exec_driver_sql(f"SELECT {what} FROM {table} WHERE {key} = '{org.name}'")
        return sorted((tuple(row) for row in found), key=repr)

    members = rows("user_id, email_key, role", "members")
    assert members == sorted(((p.id, p.key, p.role) for p in org.present), key=repr)
    # 1, 2: an owner, and one member for each address.
    assert any(role in rules.owners for _, _, role in members)
    assert len({key for _, key, _ in members}) == len(members)

    columns = "id, email_key, role, creator, restriction, generation, state, expire_time, create_time, user_id"
    invitations = [(*row[:4], restriction_in(row[4]), *row[5:]) for row in rows(columns, "invitations")]
    assert sorted(invitations, key=repr) == sorted(
        (
            (
                invite.id,
                invite.key,
                invite.role,
                invite.inviter,
                invite.restriction,
                len(invite.texts),
                invite.state,
                invite.expire_time,
                invite.create_time,
                invite.joined.id if invite.joined else None,
            )
            for invite in org.invites
        ),
        key=repr,
    )
    # 2, 3: one live invitation for each address, of no member; an accepted one made one member, whom no other made.
    at = now()
    live = [row[1] for row in invitations if row[6] == "pending" and row[7] > at]
    assert len(set(live)) == len(live)
    assert not set(live) & {key for _, key, _ in members}
    joined = [row[9] for row in invitations if row[9] is not None]
    assert len(set(joined)) == len(joined)
    assert all((row[6] == "accepted") == (row[9] is not None) for row in invitations)

    columns = "id, kind, user_id, role, restriction, creator, expire_time, revoke_time"
    found = [(*row[:4], restriction_in(row[4]), *row[5:7], row[7] is not None) for row in rows(columns, "credentials")]
    assert sorted(found, key=repr) == sorted(
        (
            (
                cred.id,
                cred.kind.value,
                cred.person.id if cred.person else None,
                None if cred.person else cred.own_role,
                cred.restriction,
                cred.creator,
                cred.expire_time,
                cred.deleted,
            )
            for cred in org.creds
            if not cred.gone and not cred.cleared
        ),
        key=repr,
    )

    assert rows("about, generation, state", "mails") == sorted(((*k, v) for k, v in org.mails.items()), key=repr)
    left = [link for link in org.links if not link.used and not link.pruned]
    assert rows("id, email_key, user_id", "sign_ins") == sorted(
        ((link.id, link.key, link.person.id if link.person else None) for link in left), key=repr
    )

    assert rows("revision", "organizations") == [(org.revision,)]
    entries = rows("sequence, actor, action, object, credential_id, reason", "audit_entries")
    entries.sort()
    assert [row[0] for row in entries] == list(range(1, org.revision + 1))
    assert [ExpectedEntry(*row[1:5]) for row in entries] == org.entries
    assert not any(row[5] for row in entries)
    verdict = verify(tx, log, org.name)
    assert verdict.intact, verdict.problem
    assert verdict.entries == org.revision


def restriction_in(row: str | None) -> tuple[Pattern, ...] | None:
    """The restriction that a row holds."""
    return None if row is None else tuple((resource, action) for resource, action in json.loads(row))
