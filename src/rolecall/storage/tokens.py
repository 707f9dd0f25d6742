"""Queries on tokens, as people look at them: live or not, and never their secrets."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, false, or_, select, tuple_

from rolecall.domain import CredentialKind, Token, TokenState
from rolecall.storage.credentials import held_credentials, present_role, restriction_of
from rolecall.storage.tables import credentials
from rolecall.storage.transaction import Transaction

__all__ = ["TokenQuery", "get", "made_by", "page", "roles_held"]

_TOKENS = (
    select(credentials, present_role().label("acting_role"))
    .select_from(held_credentials())
    .where(
        credentials.c.organization == bindparam("organization"),
        credentials.c.kind.in_([CredentialKind.PERSONAL, CredentialKind.ORGANIZATION]),
    )
)
_ONE = _TOKENS.where(credentials.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class TokenQuery:
    """Which of an organization's tokens are wanted.

    `owner`: those of this person, of everybody (None), or of nobody (""). `organizations`: the organization's too.
    `own`: and the one with this id.
    """

    owner: str | None
    organizations: bool
    state: TokenState | None
    at: int
    own: str = ""


def get(tx: Transaction, organization: str, token_id: str) -> Token | None:
    """The token, dead or alive; None where the organization has none of this id. A session is no token."""
    row = tx.connection.execute(_ONE, {"organization": organization, "id": token_id}).one_or_none()
    return _token(row) if row else None


def page(
    tx: Transaction, organization: str, query: TokenQuery, after: tuple[int, str] | None, limit: int
) -> list[Token]:
    """At most `limit` tokens, from the newest to the oldest, those behind the (create_time, id) `after`."""
    select_ = _TOKENS.where(_wanted(query))
    place = tuple_(credentials.c.create_time, credentials.c.id)
    if after is not None:
        select_ = select_.where(place < after)
    ordered = select_.order_by(credentials.c.create_time.desc(), credentials.c.id.desc()).limit(limit)
    rows = tx.connection.execute(ordered, {"organization": organization})
    return [_token(row) for row in rows]


def made_by(tx: Transaction, organization: str, user_id: str, at: int, limit: int) -> list[Token]:
    """The organization's tokens that this person made and that live at `at`, the newest first, at most `limit`."""
    query = _TOKENS.where(
        credentials.c.user_id.is_(None),
        credentials.c.created_by == user_id,
        credentials.c.revoke_time.is_(None),
        credentials.c.expire_time > at,
    )
    newest = query.order_by(credentials.c.create_time.desc(), credentials.c.id.desc()).limit(limit)
    return [_token(row) for row in tx.connection.execute(newest, {"organization": organization})]


def roles_held(tx: Transaction, at: int) -> set[str]:
    """Every role that an organization's token has which lives at `at`."""
    rows = tx.connection.scalars(
        select(credentials.c.role)
        .where(credentials.c.role.is_not(None), credentials.c.revoke_time.is_(None), credentials.c.expire_time > at)
        .distinct()
    )
    return {role for role in rows if role is not None}


def _wanted(query: TokenQuery) -> ColumnElement[bool]:
    personal: ColumnElement[bool] = credentials.c.user_id.is_not(None)
    if query.owner is not None:
        personal = credentials.c.user_id == query.owner
    whose = or_(
        personal,
        credentials.c.user_id.is_(None) if query.organizations else false(),
        credentials.c.id == query.own if query.own else false(),
    )
    match query.state:
        case None:
            return whose
        case TokenState.DELETED:
            return and_(whose, credentials.c.revoke_time.is_not(None))
        case TokenState.LIVE:
            return and_(whose, credentials.c.revoke_time.is_(None), credentials.c.expire_time > query.at)
        case TokenState.EXPIRED:
            return and_(whose, credentials.c.revoke_time.is_(None), credentials.c.expire_time <= query.at)


def _token(row: Row[Any]) -> Token:
    return Token(
        row.organization,
        row.id,
        CredentialKind(row.kind),
        row.name,
        row.user_id or "",
        row.created_by,
        row.acting_role,
        restriction_of(row.restriction),
        row.last_four,
        row.create_time,
        row.expire_time,
        row.last_used_time,
        row.revoke_time,
        row.changed,
    )
