"""Queries on tokens for people who manage them: live or not, and never their secrets."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, and_, bindparam, case, false, func, or_, select, tuple_, update

from rolecall.domain import CredentialKind, Token, TokenState
from rolecall.storage.changes import record_change
from rolecall.storage.credentials import credentials_with_holders, networks_of, present_role, restriction_of
from rolecall.storage.tables import credentials
from rolecall.storage.transaction import Transaction

__all__ = [
    "RoleHolder",
    "TokenQuery",
    "change_role",
    "count_notices",
    "count_with_role",
    "created_by",
    "expiring",
    "get",
    "holders",
    "page",
    "roles_held",
]

_TOKENS = (
    select(credentials, present_role().label("acting_role"))
    .select_from(credentials_with_holders())
    .where(
        credentials.c.organization == bindparam("organization"),
        credentials.c.kind.in_([CredentialKind.PERSONAL, CredentialKind.ORGANIZATION]),
    )
)
_ONE = _TOKENS.where(credentials.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class TokenQuery:
    """Filter on an organization's tokens.

    `owner` selects the personal tokens of this person, of all persons (None) or none (""); `organizations` adds the
    organization's tokens, and `own` the token with this id. Without a `state`, deleted ones only with `show_deleted`.
    `expires_before` selects those that expire by this time.
    """

    owner: str | None
    organizations: bool
    state: TokenState | None
    at: int
    own: str = ""
    show_deleted: bool = False
    expires_before: int | None = None


class RoleHolder(NamedTuple):
    """Organization token with a role of its own."""

    organization: str
    id: str
    role: str


def get(tx: Transaction, organization: str, token_id: str) -> Token | None:
    """Read the token, live or not; None where the organization has none of this id. Sessions aren't tokens."""
    row = tx.connection.execute(_ONE, {"organization": organization, "id": token_id}).one_or_none()
    return _token(row) if row else None


def page(
    tx: Transaction, organization: str, query: TokenQuery, after: tuple[int, str] | None, limit: int
) -> list[Token]:
    """Read at most `limit` tokens, newest first, those after the position `after`, a (create_time, id)."""
    select_ = _TOKENS.where(_wanted(query))
    place = tuple_(credentials.c.create_time, credentials.c.id)
    if after is not None:
        select_ = select_.where(place < after)
    ordered = select_.order_by(credentials.c.create_time.desc(), credentials.c.id.desc()).limit(limit)
    rows = tx.connection.execute(ordered, {"organization": organization})
    return [_token(row) for row in rows]


def created_by(tx: Transaction, organization: str, user_id: str, at: int, limit: int) -> list[Token]:
    """Read at most `limit` organization tokens that this person created and that are live at `at`, newest first."""
    query = _TOKENS.where(
        credentials.c.user_id.is_(None),
        credentials.c.creator == user_id,
        credentials.c.revoke_time.is_(None),
        credentials.c.expire_time > at,
    )
    newest = query.order_by(credentials.c.create_time.desc(), credentials.c.id.desc()).limit(limit)
    return [_token(row) for row in tx.connection.execute(newest, {"organization": organization})]


def roles_held(tx: Transaction, at: int) -> set[str]:
    """Return every role of an organization's token that is live at `at`."""
    rows = tx.connection.scalars(
        select(credentials.c.role)
        .where(credentials.c.role.is_not(None), credentials.c.revoke_time.is_(None), credentials.c.expire_time > at)
        .distinct()
    )
    return {role for role in rows if role is not None}


def count_with_role(tx: Transaction, organization: str, role: str, at: int) -> int:
    """Count the organization's tokens with this role that are live at `at`."""
    query = select(func.count()).where(
        credentials.c.organization == organization,
        credentials.c.role == role,
        credentials.c.revoke_time.is_(None),
        credentials.c.expire_time > at,
    )
    return tx.connection.scalars(query).one()


def holders(tx: Transaction, roles: Collection[str], at: int) -> list[RoleHolder]:
    """Read the organization tokens of all organizations with one of `roles` that are live at `at`."""
    query = (
        select(credentials.c.organization, credentials.c.id, credentials.c.role)
        .where(credentials.c.role.in_(roles), credentials.c.revoke_time.is_(None), credentials.c.expire_time > at)
        .order_by(credentials.c.organization, credentials.c.id)
    )
    return [RoleHolder(*row) for row in tx.connection.execute(query)]


def change_role(tx: Transaction, holder: RoleHolder, role: str) -> None:
    """Give an organization token another role."""
    named = (credentials.c.organization == holder.organization) & (credentials.c.id == holder.id)
    tx.connection.execute(update(credentials).where(named).values(role=role, changed=tx.revision))
    record_change(tx, holder.organization, "credential", holder.id)


def expiring(tx: Transaction, at: int, notices: Sequence[int], limit: int) -> list[tuple[Token, int]]:
    """Read at most `limit` tokens with a notice of their expiry that is due at `at`, and the notice's number, from 1.

    `notices`: when each is due, in microseconds before the expiry, the longest first. Of several that are due, the last
    is returned. A token that lives no longer than that has no such notice.
    """
    life = credentials.c.expire_time - credentials.c.create_time
    due = [
        (number, and_(credentials.c.expire_time <= at + span, life > span, credentials.c.expiry_notices < number))
        for number, span in enumerate(notices, 1)
    ]
    number = case(*((condition, number) for number, condition in reversed(due)), else_=0)
    query = (
        select(credentials, present_role().label("acting_role"), number.label("notice"))
        .select_from(credentials_with_holders())
        .where(
            credentials.c.kind.in_([CredentialKind.PERSONAL, CredentialKind.ORGANIZATION]),
            credentials.c.revoke_time.is_(None),
            credentials.c.expire_time.between(at + 1, at + max(notices)),
            number > 0,
        )
        .order_by(credentials.c.expire_time, credentials.c.id)
        .limit(limit)
    )
    return [(_token(row), row.notice) for row in tx.connection.execute(query)]


def count_notices(tx: Transaction, token: Token, number: int) -> bool:
    """Count the notices of a token's expiry up to `number` as queued; False where they are. Creates no revision."""
    unqueued = (credentials.c.id == token.id, credentials.c.expiry_notices < number)
    return tx.connection.execute(update(credentials).where(*unqueued).values(expiry_notices=number)).rowcount == 1


def _wanted(query: TokenQuery) -> ColumnElement[bool]:
    personal: ColumnElement[bool] = credentials.c.user_id.is_not(None)
    if query.owner is not None:
        personal = credentials.c.user_id == query.owner
    whose = or_(
        personal,
        credentials.c.user_id.is_(None) if query.organizations else false(),
        credentials.c.id == query.own if query.own else false(),
    )
    if query.expires_before is not None:
        whose = and_(whose, credentials.c.expire_time <= query.expires_before)
    match query.state:
        case None:
            return whose if query.show_deleted else and_(whose, credentials.c.revoke_time.is_(None))
        case TokenState.DELETED:
            return and_(whose, credentials.c.revoke_time.is_not(None))
        case TokenState.ACTIVE:
            return and_(whose, credentials.c.revoke_time.is_(None), credentials.c.expire_time > query.at)
        case TokenState.EXPIRED:
            return and_(whose, credentials.c.revoke_time.is_(None), credentials.c.expire_time <= query.at)


def _token(row: Row[Any]) -> Token:
    return Token(
        row.organization,
        row.id,
        CredentialKind(row.kind),
        row.display_name,
        row.user_id or "",
        row.creator,
        row.acting_role,
        restriction_of(row.restriction),
        row.last_four,
        row.create_time,
        row.expire_time,
        row.last_use_time,
        row.revoke_time,
        row.changed,
        networks_of(row.networks),
    )
