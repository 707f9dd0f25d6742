"""Queries on queued mails, and on the sign-in requests that mails answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from sqlalchemy import bindparam, case, delete, func, insert, select, update

from rolecall.domain import Delivery, MailKind
from rolecall.storage.tables import mails, sign_ins
from rolecall.storage.transaction import Transaction

__all__ = [
    "ExpiryNotice",
    "Mail",
    "SignInRequest",
    "add",
    "add_sign_in",
    "drop",
    "lease",
    "next_due_time",
    "postpone",
    "prune_sign_ins",
    "record_outcome",
    "set_recipient",
    "sign_in",
    "use_sign_in",
]


@dataclass(frozen=True, slots=True)
class Mail:
    """Queued mail. `target_id` is the id of an invitation or of a sign-in request, or an `ExpiryNotice` as text.

    `generation` selects which of its secrets the mail holds; of a notice it is the number.
    """

    id: str
    organization: str
    kind: MailKind
    target_id: str
    generation: int
    attempts: int = 0


class ExpiryNotice(NamedTuple):
    """Notice of a token's expiry, for one person; what its mail is about."""

    token_id: str
    user_id: str

    @property
    def text(self) -> str:
        """The `target_id` of its mail. Ids have no blanks."""
        return f"{self.token_id} {self.user_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the `target_id` of a mail."""
        token_id, _, user_id = text.partition(" ")
        return cls(token_id, user_id)


@dataclass(frozen=True, slots=True)
class SignInRequest:
    """Request for a link to sign in. `user_id` is empty until the mail to that member is rendered."""

    id: str
    organization: str
    email_key: str
    expire_time: int
    user_id: str = ""


_NEXT = (
    select(mails)
    .where(mails.c.state == Delivery.QUEUED.value, mails.c.due_time <= bindparam("at"))
    # A sign-in link expires within minutes: it must not wait behind many invitations, nor these behind many notices.
    .order_by(
        case((mails.c.kind == MailKind.SIGN_IN.value, 0), (mails.c.kind == MailKind.TOKEN_EXPIRY.value, 2), else_=1),
        mails.c.due_time,
        mails.c.id,
    )
    .limit(bindparam("limit"))
    # Several servers lease mails from one table, each those that no other has locked.
    .with_for_update(skip_locked=True)
)

_NEXT_DUE = select(func.min(mails.c.due_time)).where(mails.c.state == Delivery.QUEUED.value)


def add(tx: Transaction, new: Sequence[Mail], due_time: int) -> None:
    """Insert mails, and have the sender of this process woken once they are committed."""
    values = [
        {
            "id": mail.id,
            "organization": mail.organization,
            "kind": mail.kind.value,
            "about": mail.target_id,
            "generation": mail.generation,
            "state": Delivery.QUEUED.value,
            "attempts": 0,
            "due_time": due_time,
        }
        for mail in new
    ]
    tx.connection.execute(insert(mails), values)
    tx.on_commit.extend(tx.on_mail_queued)


def next_due_time(tx: Transaction) -> int | None:
    """Read when the next mail is due, in the past where one is due already; None where no mail is queued."""
    due: int | None = tx.connection.scalar(_NEXT_DUE)
    return due


def lease(tx: Transaction, at: int, until: int, limit: int) -> list[Mail]:
    """Lease at most `limit` mails that are due at `at`, sign-in mails first, and notices last.

    No other server gets them before `until`. Each counts one more attempt.
    """
    rows = tx.connection.execute(_NEXT, {"at": at, "limit": limit}).all()
    if rows:
        taken = update(mails).where(mails.c.id.in_([row.id for row in rows]))
        tx.connection.execute(taken.values(due_time=until, attempts=mails.c.attempts + 1))
    return [
        Mail(row.id, row.organization, MailKind(row.kind), row.about, row.generation, row.attempts + 1) for row in rows
    ]


def record_outcome(tx: Transaction, mail_id: str, state: Delivery) -> None:
    """Store whether a mail was sent or bounced."""
    tx.connection.execute(update(mails).where(mails.c.id == mail_id).values(state=state.value))


def postpone(tx: Transaction, mail_id: str, due_time: int, attempts: int) -> None:
    """Have a mail sent again at `due_time`, with this number of attempts counted."""
    tx.connection.execute(update(mails).where(mails.c.id == mail_id).values(due_time=due_time, attempts=attempts))


def drop(tx: Transaction, mail_id: str) -> None:
    """Delete a mail that is obsolete, or whose outcome nobody reads."""
    tx.connection.execute(delete(mails).where(mails.c.id == mail_id))


def add_sign_in(tx: Transaction, new: SignInRequest) -> None:
    """Insert a sign-in request."""
    tx.connection.execute(
        insert(sign_ins).values(
            id=new.id, organization=new.organization, email_key=new.email_key, expire_time=new.expire_time
        )
    )


def sign_in(tx: Transaction, request_id: str) -> SignInRequest | None:
    """Read the sign-in request with this id; None where it doesn't exist, or its link was used."""
    row = tx.connection.execute(select(sign_ins).where(sign_ins.c.id == request_id)).one_or_none()
    if row is None:
        return None
    return SignInRequest(row.id, row.organization, row.email_key, row.expire_time, row.user_id or "")


def set_recipient(tx: Transaction, request_id: str, user_id: str) -> None:
    """Store the recipient of the mail: the link signs in this member, and nobody who gets the address later."""
    tx.connection.execute(update(sign_ins).where(sign_ins.c.id == request_id).values(user_id=user_id))


def use_sign_in(tx: Transaction, request_id: str) -> bool:
    """Consume a link. False where it was consumed already."""
    return tx.connection.execute(delete(sign_ins).where(sign_ins.c.id == request_id)).rowcount == 1


def prune_sign_ins(tx: Transaction, before: int) -> None:
    """Delete the requests that expired before this time, and their mails."""
    old = sign_ins.c.expire_time < before
    tx.connection.execute(delete(mails).where(mails.c.about.in_(select(sign_ins.c.id).where(old))))
    tx.connection.execute(delete(sign_ins).where(old))
