"""Queries on invitations. No process remembers any, so none is told of changes."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, insert, or_, select, tuple_, update

from rolecall.domain import Delivery, Invitation, InvitationState, LinkKind
from rolecall.storage.credentials import restriction_of, restriction_text
from rolecall.storage.tables import invitations, mails
from rolecall.storage.transaction import Transaction

__all__ = [
    "accept",
    "accepted_by",
    "add",
    "delete",
    "expire",
    "find",
    "forget",
    "get",
    "of_address",
    "page",
    "pending",
    "renew",
]

# What stands in the place of an address that was erased.
ERASED = "[erased]"

_newest_mail = and_(
    mails.c.about == invitations.c.id,
    mails.c.generation == invitations.c.generation,
    mails.c.kind == LinkKind.INVITATION.value,
)
_INVITATIONS = select(invitations, mails.c.state.label("delivery")).select_from(
    invitations.outerjoin(mails, _newest_mail)
)
_ONE = _INVITATIONS.where(invitations.c.id == bindparam("id"))


def add(tx: Transaction, new: Sequence[tuple[str, Invitation]]) -> None:
    """Insert invitations, each with the key of its address."""
    tx.connection.execute(
        insert(invitations),
        [
            {
                "id": invitation.id,
                "organization": invitation.organization,
                "email_key": email_key,
                "email": invitation.email,
                "role": invitation.role,
                "inviter": invitation.inviter,
                "restriction": restriction_text(invitation.restriction),
                "generation": invitation.generation,
                "state": invitation.stored.value,
                "create_time": invitation.create_time,
                "expire_time": invitation.expire_time,
                "changed": invitation.changed,
            }
            for email_key, invitation in new
        ],
    )


def find(tx: Transaction, invitation_id: str) -> tuple[Invitation, str] | None:
    """The invitation with this id, in whichever organization, and the key of its address; None where there is none."""
    row = tx.connection.execute(_ONE, {"id": invitation_id}).one_or_none()
    return (_invitation(row), row.email_key) if row else None


def get(tx: Transaction, organization: str, invitation_id: str) -> Invitation | None:
    """The organization's invitation with this id; None where there is none."""
    found = find(tx, invitation_id)
    return found[0] if found and found[0].organization == organization else None


def pending(tx: Transaction, organization: str, email_keys: Collection[str], at: int) -> dict[str, str]:
    """The id of the invitation that each of the addresses has which can be accepted at `at`."""
    rows = tx.connection.execute(
        select(invitations.c.email_key, invitations.c.id).where(
            invitations.c.organization == organization,
            invitations.c.email_key.in_(email_keys),
            invitations.c.state == InvitationState.PENDING.value,
            invitations.c.expire_time > at,
        )
    )
    return {row.email_key: row.id for row in rows}


def expire(tx: Transaction, organization: str, email_keys: Collection[str], at: int) -> None:
    """Put down as expired what these addresses have that could be accepted before `at`: it makes room for new ones."""
    tx.connection.execute(
        update(invitations)
        .where(
            invitations.c.organization == organization,
            invitations.c.email_key.in_(email_keys),
            invitations.c.state == InvitationState.PENDING.value,
            invitations.c.expire_time <= at,
        )
        .values(state=InvitationState.EXPIRED.value, changed=tx.revision)
    )


def renew(tx: Transaction, invitation: Invitation) -> None:
    """Store another secret's generation and expiry, and who vouches for it now."""
    _change(
        tx,
        invitation,
        inviter=invitation.inviter,
        restriction=restriction_text(invitation.restriction),
        generation=invitation.generation,
        expire_time=invitation.expire_time,
    )


def accept(tx: Transaction, invitation: Invitation, user_id: str) -> None:
    """Put down that this person joined by it."""
    _change(tx, invitation, state=InvitationState.ACCEPTED.value, user_id=user_id)


def delete(tx: Transaction, invitation: Invitation) -> None:
    """Put down that it is withdrawn."""
    _change(tx, invitation, state=InvitationState.DELETED.value)


def accepted_by(tx: Transaction, organization: str, user_ids: Collection[str]) -> set[str]:
    """The ids of the invitations by which these persons joined."""
    mine = (invitations.c.organization == organization, invitations.c.user_id.in_(user_ids))
    return set(tx.connection.scalars(select(invitations.c.id).where(*mine)))


def of_address(tx: Transaction, organization: str, email_key: str) -> set[str]:
    """The ids of the invitations of an address, in whatever state."""
    named = (invitations.c.organization == organization) & (invitations.c.email_key == email_key)
    return set(tx.connection.scalars(select(invitations.c.id).where(named)))


def forget(tx: Transaction, organization: str, invitation_ids: Collection[str], at: int) -> int:
    """Erase the addresses of these invitations, and withdraw those that could be accepted; answers how many."""
    pending = invitations.c.state == InvitationState.PENDING.value
    state = case(
        (pending & (invitations.c.expire_time <= at), InvitationState.EXPIRED.value),
        (pending, InvitationState.DELETED.value),
        else_=invitations.c.state,
    )
    named = (invitations.c.organization == organization) & invitations.c.id.in_(invitation_ids)
    erased = update(invitations).where(named, invitations.c.email_key != "")
    return tx.connection.execute(erased.values(email=ERASED, email_key="", state=state, changed=tx.revision)).rowcount


def page(
    tx: Transaction,
    organization: str,
    state: InvitationState | None,
    role: str,
    text: str,
    at: int,
    after: tuple[int, str] | None,
    limit: int,
) -> list[Invitation]:
    """At most `limit` invitations from the newest to the oldest, those behind the (create_time, id) `after`.

    `state`: as it is at `at`; `role` and `text`, in lower case, are empty for any.
    """
    query = _INVITATIONS.where(invitations.c.organization == organization)
    pends = invitations.c.state == InvitationState.PENDING.value
    match state:
        case None:
            pass
        case InvitationState.PENDING:
            query = query.where(pends, invitations.c.expire_time > at)
        case InvitationState.EXPIRED:
            late = and_(pends, invitations.c.expire_time <= at)
            query = query.where(or_(invitations.c.state == state.value, late))
        case _:
            query = query.where(invitations.c.state == state.value)
    if role:
        query = query.where(invitations.c.role == role)
    if text:
        columns = (invitations.c.email_key, invitations.c.email)
        query = query.where(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    place = (invitations.c.create_time, invitations.c.id)
    if after is not None:
        query = query.where(tuple_(*place) < after)
    rows = tx.connection.execute(query.order_by(*(column.desc() for column in place)).limit(limit))
    return [_invitation(row) for row in rows]


def _change(tx: Transaction, invitation: Invitation, **values: str | int | None) -> None:
    tx.connection.execute(
        update(invitations).where(invitations.c.id == invitation.id).values(**values, changed=tx.revision)
    )


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        row.organization,
        row.id,
        row.email,
        row.role,
        row.inviter,
        restriction_of(row.restriction),
        row.generation,
        InvitationState(row.state),
        row.create_time,
        row.expire_time,
        row.changed,
        Delivery(row.delivery) if row.delivery else None,
    )
