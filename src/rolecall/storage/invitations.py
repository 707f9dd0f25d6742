"""Queries on invitations. Invitations aren't cached, so their changes invalidate nothing."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, case, func, insert, or_, select, tuple_, update

from rolecall.domain import Delivery, Invitation, InvitationState, MailKind
from rolecall.storage.credentials import restriction_of, restriction_text
from rolecall.storage.tables import invitations, mails
from rolecall.storage.transaction import Transaction

__all__ = [
    "accept",
    "accepted_by",
    "add",
    "change_role",
    "delete",
    "erase",
    "expire",
    "find",
    "get",
    "of_address",
    "page",
    "pending",
    "pending_count",
    "pending_with_external_ids",
    "pending_with_roles",
    "renew",
]

# Replaces an erased address.
ERASED = "[erased]"

_newest_mail = and_(
    mails.c.about == invitations.c.id,
    mails.c.generation == invitations.c.generation,
    mails.c.kind == MailKind.INVITATION.value,
)
_INVITATIONS = select(invitations, mails.c.state.label("delivery")).select_from(
    invitations.outerjoin(mails, _newest_mail)
)
# The states that a list without a filter leaves out, unless they are requested.
_CLOSED_STATES = (InvitationState.ACCEPTED.value, InvitationState.DELETED.value)
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
                "creator": invitation.creator,
                "restriction": restriction_text(invitation.restriction),
                "generation": invitation.generation,
                "state": invitation.stored.value,
                "create_time": invitation.create_time,
                "expire_time": invitation.expire_time,
                "changed": invitation.changed,
                "display_name": invitation.display_name,
                "external_id": invitation.external_id or None,
            }
            for email_key, invitation in new
        ],
    )


def find(tx: Transaction, invitation_id: str) -> tuple[Invitation, str] | None:
    """Read the invitation with this id, in any organization, and its address key; None where it doesn't exist."""
    row = tx.connection.execute(_ONE, {"id": invitation_id}).one_or_none()
    return (_invitation(row), row.email_key) if row else None


def get(tx: Transaction, organization: str, invitation_id: str) -> Invitation | None:
    """Read the organization's invitation with this id; None where it doesn't exist."""
    found = find(tx, invitation_id)
    return found[0] if found and found[0].organization == organization else None


def pending(tx: Transaction, organization: str, email_keys: Collection[str], at: int) -> dict[str, str]:
    """Map each of the addresses that has an invitation pending at `at` to the invitation's id."""
    return _pending_by(tx, organization, invitations.c.email_key, email_keys, at)


def pending_with_external_ids(
    tx: Transaction, organization: str, external_ids: Collection[str], at: int
) -> dict[str, str]:
    """Map each of the external ids that an invitation pending at `at` has to the invitation's id."""
    return _pending_by(tx, organization, invitations.c.external_id, external_ids, at)


def expire(
    tx: Transaction, organization: str, at: int, *, email_keys: Collection[str] = (), external_ids: Collection[str] = ()
) -> None:
    """Mark the pending invitations of these addresses or external ids that expired by `at`, so that these are free."""
    tx.connection.execute(
        update(invitations)
        .where(
            invitations.c.organization == organization,
            or_(invitations.c.email_key.in_(email_keys), invitations.c.external_id.in_(external_ids)),
            invitations.c.state == InvitationState.PENDING.value,
            invitations.c.expire_time <= at,
        )
        .values(state=InvitationState.EXPIRED.value, changed=tx.revision)
    )


def renew(tx: Transaction, invitation: Invitation) -> None:
    """Store the generation and expiry of a new secret, the inviter who sent it, and what else they changed."""
    _change(
        tx,
        invitation,
        role=invitation.role,
        display_name=invitation.display_name,
        external_id=invitation.external_id or None,
        creator=invitation.creator,
        restriction=restriction_text(invitation.restriction),
        generation=invitation.generation,
        expire_time=invitation.expire_time,
    )


def accept(tx: Transaction, invitation: Invitation, user_id: str) -> None:
    """Mark the invitation as accepted by this person, whose row has the external id from now on."""
    _change(tx, invitation, state=InvitationState.ACCEPTED.value, user_id=user_id, external_id=None)


def delete(tx: Transaction, invitation: Invitation) -> None:
    """Mark the invitation as deleted."""
    _change(tx, invitation, state=InvitationState.DELETED.value)


def accepted_by(tx: Transaction, organization: str, user_ids: Collection[str]) -> set[str]:
    """Return the ids of the invitations by which these persons joined."""
    mine = (invitations.c.organization == organization, invitations.c.user_id.in_(user_ids))
    return set(tx.connection.scalars(select(invitations.c.id).where(*mine)))


def pending_with_roles(tx: Transaction, roles: Collection[str]) -> list[Invitation]:
    """Read the pending invitations of all organizations to one of `roles`, ordered by organization."""
    pending = invitations.c.state == InvitationState.PENDING.value
    query = _INVITATIONS.where(pending, invitations.c.role.in_(roles))
    return [_invitation(row) for row in tx.connection.execute(query.order_by(invitations.c.organization))]


def pending_count(tx: Transaction, organization: str, role: str, at: int) -> int:
    """Count the invitations to this role that can be accepted at `at`."""
    query = select(func.count()).where(
        invitations.c.organization == organization,
        invitations.c.role == role,
        invitations.c.state == InvitationState.PENDING.value,
        invitations.c.expire_time > at,
    )
    return tx.connection.scalars(query).one()


def change_role(tx: Transaction, invitation: Invitation, role: str) -> None:
    """Give the invited person another role."""
    _change(tx, invitation, role=role)


def of_address(tx: Transaction, organization: str, email_key: str) -> set[str]:
    """Return the ids of an address's invitations, in any state."""
    named = (invitations.c.organization == organization) & (invitations.c.email_key == email_key)
    return set(tx.connection.scalars(select(invitations.c.id).where(named)))


def erase(tx: Transaction, organization: str, invitation_ids: Collection[str], at: int) -> int:
    """Erase who these invitations are for, and delete the pending ones. Returns their number."""
    pending = invitations.c.state == InvitationState.PENDING.value
    state = case(
        (pending & (invitations.c.expire_time <= at), InvitationState.EXPIRED.value),
        (pending, InvitationState.DELETED.value),
        else_=invitations.c.state,
    )
    named = (invitations.c.organization == organization) & invitations.c.id.in_(invitation_ids)
    erased = update(invitations).where(named, invitations.c.email_key != "")
    person = {"email": ERASED, "email_key": "", "display_name": "", "external_id": None}
    return tx.connection.execute(erased.values(**person, state=state, changed=tx.revision)).rowcount


def page(
    tx: Transaction,
    organization: str,
    state: InvitationState | None,
    role: str,
    text: str,
    external_id: str,
    at: int,
    after: tuple[int, str] | None,
    limit: int,
    *,
    show_deleted: bool = False,
) -> list[Invitation]:
    """Read at most `limit` invitations, newest first, those after the position `after`, a (create_time, id).

    `state`: as it is at `at`; `role`, `text`, in lower case, and `external_id` are empty for any.
    """
    query = _INVITATIONS.where(invitations.c.organization == organization)
    pends = invitations.c.state == InvitationState.PENDING.value
    match state:
        case None if show_deleted:
            pass
        case None:
            query = query.where(invitations.c.state.not_in(_CLOSED_STATES))
        case InvitationState.PENDING:
            query = query.where(pends, invitations.c.expire_time > at)
        case InvitationState.EXPIRED:
            late = and_(pends, invitations.c.expire_time <= at)
            query = query.where(or_(invitations.c.state == state.value, late))
        case _:
            query = query.where(invitations.c.state == state.value)
    if role:
        query = query.where(invitations.c.role == role)
    if external_id:
        query = query.where(invitations.c.external_id == external_id)
    if text:
        columns = (invitations.c.email_key, invitations.c.email)
        query = query.where(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    place = (invitations.c.create_time, invitations.c.id)
    if after is not None:
        query = query.where(tuple_(*place) < after)
    rows = tx.connection.execute(query.order_by(*(column.desc() for column in place)).limit(limit))
    return [_invitation(row) for row in rows]


def _pending_by(
    tx: Transaction, organization: str, column: ColumnElement[Any], values: Collection[str], at: int
) -> dict[str, str]:
    """Map each of the values that stands in this column of an invitation pending at `at` to the invitation's id."""
    query = select(column.label("value"), invitations.c.id).where(
        invitations.c.organization == organization,
        column.in_(values),
        invitations.c.state == InvitationState.PENDING.value,
        invitations.c.expire_time > at,
    )
    return {row.value: row.id for row in tx.connection.execute(query)}


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
        row.creator,
        restriction_of(row.restriction),
        row.generation,
        InvitationState(row.state),
        row.create_time,
        row.expire_time,
        row.changed,
        Delivery(row.delivery) if row.delivery else None,
        row.display_name,
        row.external_id or "",
    )
