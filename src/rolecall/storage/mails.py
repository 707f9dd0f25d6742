"""Queries on what is to be mailed, and on the requests to sign in that mails answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, bindparam, case, delete, exists, insert, select, update

from rolecall.domain import Delivery, LinkKind
from rolecall.storage.tables import mails, sign_ins
from rolecall.storage.transaction import Transaction

__all__ = [
    "Mail",
    "SignInRequest",
    "add",
    "add_sign_in",
    "drop",
    "is_any_due",
    "name_person",
    "postpone",
    "prune_sign_ins",
    "settle",
    "sign_in",
    "take",
    "use_sign_in",
]


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to be sent. `about` is the id of an invitation or of a request to sign in.

    `generation`: which of its secrets the mail holds.
    """

    id: str
    organization: str
    kind: LinkKind
    about: str
    generation: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """Somebody's request for a link to sign in. `user_id` is empty until a mail has gone to that member."""

    id: str
    organization: str
    email_key: str
    expire_time: int
    user_id: str = ""


_NEXT = (
    select(mails)
    .where(mails.c.state == Delivery.QUEUED.value, mails.c.due_time <= bindparam("at"))
    # A link to sign in lives for minutes, an invitation for days: many of these must not outlast those.
    .order_by(case((mails.c.kind == LinkKind.SIGN_IN.value, 0), else_=1), mails.c.due_time, mails.c.id)
    .limit(bindparam("limit"))
    # Several servers take from one table, each what the others don't have in hand.
    .with_for_update(skip_locked=True)
)


# Asked twice a second: put together once.
_ANY_DUE = select(
    exists().where(mails.c.state == Delivery.QUEUED.value, mails.c.due_time <= bindparam("at", type_=BigInteger))
)


def add(tx: Transaction, new: Sequence[Mail], due_time: int) -> None:
    """Insert mails."""
    values = [
        {
            "id": mail.id,
            "organization": mail.organization,
            "kind": mail.kind.value,
            "about": mail.about,
            "generation": mail.generation,
            "state": Delivery.QUEUED.value,
            "attempts": 0,
            "due_time": due_time,
        }
        for mail in new
    ]
    tx.connection.execute(insert(mails), values)


def is_any_due(tx: Transaction, at: int) -> bool:
    """Whether there is a mail to be sent at `at`."""
    return bool(tx.connection.scalar(_ANY_DUE, {"at": at}))


def take(tx: Transaction, at: int, until: int, limit: int) -> list[Mail]:
    """At most `limit` mails that are due at `at`, those to sign in first; nobody else gets them before `until`.

    Each has one more attempt.
    """
    rows = tx.connection.execute(_NEXT, {"at": at, "limit": limit}).all()
    if rows:
        taken = update(mails).where(mails.c.id.in_([row.id for row in rows]))
        tx.connection.execute(taken.values(due_time=until, attempts=mails.c.attempts + 1))
    return [
        Mail(row.id, row.organization, LinkKind(row.kind), row.about, row.generation, row.attempts + 1) for row in rows
    ]


def settle(tx: Transaction, mail_id: str, state: Delivery) -> None:
    """Put down what became of a mail."""
    tx.connection.execute(update(mails).where(mails.c.id == mail_id).values(state=state.value))


def postpone(tx: Transaction, mail_id: str, due_time: int, attempts: int) -> None:
    """Have a mail tried again at `due_time`, with so many attempts held against it."""
    tx.connection.execute(update(mails).where(mails.c.id == mail_id).values(due_time=due_time, attempts=attempts))


def drop(tx: Transaction, mail_id: str) -> None:
    """Delete a mail that nobody waits for any more."""
    tx.connection.execute(delete(mails).where(mails.c.id == mail_id))


def add_sign_in(tx: Transaction, new: SignInRequest) -> None:
    """Insert a request to sign in."""
    tx.connection.execute(
        insert(sign_ins).values(
            id=new.id, organization=new.organization, email_key=new.email_key, expire_time=new.expire_time
        )
    )


def sign_in(tx: Transaction, request_id: str) -> SignInRequest | None:
    """The request to sign in with this id; None where there is none, or its link was used."""
    row = tx.connection.execute(select(sign_ins).where(sign_ins.c.id == request_id)).one_or_none()
    if row is None:
        return None
    return SignInRequest(row.id, row.organization, row.email_key, row.expire_time, row.user_id or "")


def name_person(tx: Transaction, request_id: str, user_id: str) -> None:
    """Put down whom the mail goes to: the link signs this member in, and nobody who has the address later."""
    tx.connection.execute(update(sign_ins).where(sign_ins.c.id == request_id).values(user_id=user_id))


def use_sign_in(tx: Transaction, request_id: str) -> bool:
    """Use up a link. False where somebody else did."""
    return tx.connection.execute(delete(sign_ins).where(sign_ins.c.id == request_id)).rowcount == 1


def prune_sign_ins(tx: Transaction, before: int) -> None:
    """Delete the requests that ended before this moment, and their mails."""
    old = sign_ins.c.expire_time < before
    tx.connection.execute(delete(mails).where(mails.c.about.in_(select(sign_ins.c.id).where(old))))
    tx.connection.execute(delete(sign_ins).where(old))
