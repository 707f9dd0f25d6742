"""Sends what is queued: takes a few mails for a while, so that several servers share the work, and tries again."""

import re
import threading
import time
from email.message import EmailMessage

import structlog

from rolecall import addresses, credentials
from rolecall.domain import Delivery, InvitationState, LinkKind, Organization, now
from rolecall.errors import RolecallError, StorageUnavailable, WriteConflict
from rolecall.links import Links
from rolecall.mail.letters import Letter, Letters
from rolecall.mail.transport import REPEATED, Refused, Send, Transport, TryLater, Unreachable
from rolecall.storage import Storage, Transaction
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import mails as rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage.mails import Mail

__all__ = ["Sender"]

LOOK_SECONDS = 0.5
# For so long nobody else takes what this server took: a mail has six answers of the mail server to wait for.
HELD_SECONDS = 180.0
AT_ONCE = 5
# A mail that isn't taken: after 5, 10, 20, ... seconds, at most an hour; the last try is after some three hours.
MAX_ATTEMPTS = 12
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 3600.0
# A mail server that can't be reached.
MAX_OUTAGE_PAUSE_SECONDS = 60.0

# What mail clients make a link of in a text, as in `https://evil.io` and `evil.io`.
_LINK = re.compile(r"/|\w\.\w")

_log = structlog.get_logger("rolecall.mail")


class Sender:
    """Sends mails in a thread of its own."""

    def __init__(self, storage: Storage, links: Links, letters: Letters, transport: Transport) -> None:
        self._storage = storage
        self._links = links
        self._letters = letters
        self._transport = transport
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mail", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; a mail that is under way has a second, and is sent again by whoever is next."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _work(self) -> None:
        pause = LOOK_SECONDS
        while not self._stopped.wait(pause):
            try:
                while self.send_due() and not self._stopped.is_set():
                    pass
                pause = LOOK_SECONDS
            except Unreachable as error:
                pause = min(pause * 2, MAX_OUTAGE_PAUSE_SECONDS)
                _log.error("mail server unreachable", error=str(error), where=self._transport.where, again_in=pause)
            except RolecallError as error:
                pause = min(pause * 2, MAX_OUTAGE_PAUSE_SECONDS)
                _log.warning("mail put off", error=error.message)
            except Exception:  # noqa: BLE001 - it outlives any defect, and tries again
                pause = min(pause * 2, MAX_OUTAGE_PAUSE_SECONDS)
                _log.exception("mail failed")

    def send_due(self) -> int:
        """Send some of what is due; answers how many there were.

        Raises `Unreachable`, `StorageUnavailable`, `WriteConflict`.
        """
        at = now()
        if not self._storage.read(lambda tx: rows.is_any_due(tx, at)):
            return 0
        until = at + int(HELD_SECONDS * 1_000_000)
        mails = self._storage.write(lambda tx: rows.take(tx, at, until, AT_ONCE))
        held_until = time.monotonic() + HELD_SECONDS / 2
        waiting = list(mails)
        try:
            with self._transport.session() as send:
                while waiting and time.monotonic() < held_until and not self._stopped.is_set():
                    mail = waiting.pop(0)
                    try:
                        self._send(mail, send)
                    except Unreachable:
                        waiting.append(mail)
                        raise
        finally:
            # What wasn't offered is to blame for nothing, and anybody's again.
            for mail in waiting:
                self._postpone(mail, 0, mail.attempts - 1)
        return len(mails) - len(waiting)

    def _send(self, mail: Mail, send: Send) -> None:
        """Send one mail, and put down what became of it."""
        told = {"organization": mail.organization, "about": mail.about, "attempt": mail.attempts}
        try:
            written = self._written(mail)
            if written is None:
                self._storage.write(lambda tx: rows.drop(tx, mail.id))
                return
            send(written)
        except TryLater as error:
            if mail.attempts < MAX_ATTEMPTS:
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (mail.attempts - 1), MAX_PAUSE_SECONDS)
                self._postpone(mail, pause, mail.attempts)
                _log.info("mail not taken yet", **told, error=str(error), again_in=pause)
                return
            self._settle(mail, Delivery.BOUNCED)
            _log.warning("mail given up", **told, error=str(error))
        except Refused as error:
            self._settle(mail, Delivery.BOUNCED)
            _log.warning("mail refused", **told, error=str(error))
        else:
            self._settle(mail, Delivery.SENT)

    def _written(self, mail: Mail) -> EmailMessage | None:
        """The mail; None where nobody waits for it any more. Raises `TryLater` where it can't be written."""
        try:
            letter = self._letter(mail)
            return self._letters.write(letter) if letter else None
        except (StorageUnavailable, WriteConflict):
            raise
        except Exception as error:
            # The fault is this one's alone: the others must not wait for it.
            said = str(error)
            raise TryLater(f"it can't be written: {REPEATED if credentials.holds_one(said) else said}") from error

    def _settle(self, mail: Mail, state: Delivery) -> None:
        """An invitation tells what became of its mail; nobody looks after one to sign in."""
        if mail.kind is LinkKind.INVITATION:
            self._storage.write(lambda tx: rows.settle(tx, mail.id, state))
        else:
            self._storage.write(lambda tx: rows.drop(tx, mail.id))

    def _postpone(self, mail: Mail, seconds: float, attempts: int) -> None:
        due = now() + int(seconds * 1_000_000)
        self._storage.write(lambda tx: rows.postpone(tx, mail.id, due, attempts))

    def _letter(self, mail: Mail) -> Letter | None:
        """What the mail says; None where nobody waits for it any more."""
        if mail.kind is LinkKind.INVITATION:
            return self._storage.read(lambda tx: self._invitation(tx, mail))
        return self._storage.write(lambda tx: self._sign_in(tx, mail))

    def _invitation(self, tx: Transaction, mail: Mail) -> Letter | None:
        invitation = invitation_rows.get(tx, mail.organization, mail.about)
        organization = organization_rows.get(tx, mail.organization)
        if invitation is None or organization is None or invitation.generation != mail.generation:
            return None
        if invitation.state(now()) is not InvitationState.PENDING:
            return None
        kind, _, identifier = invitation.inviter.partition(":")
        inviter = member_rows.get(tx, mail.organization, identifier) if kind == "user" else None
        # A name may be anything, and this goes to strangers: the address was proven.
        is_plain = inviter is not None and "/" not in inviter.email and "www." not in inviter.email.lower()
        return Letter(
            mail.kind,
            mail.id,
            addresses.mailbox(invitation.email),
            organization.id,
            _shown(organization),
            self._links.secret(mail.kind, mail.about, mail.generation),
            invitation.expire_time,
            inviter=inviter.email if inviter and is_plain else _shown(organization),
            role=invitation.role,
        )

    def _sign_in(self, tx: Transaction, mail: Mail) -> Letter | None:
        request = rows.sign_in(tx, mail.about)
        if request is None or request.expire_time <= now():
            return None
        organization = organization_rows.get(tx, mail.organization)
        member = member_rows.by_email(tx, mail.organization, request.email_key)
        if organization is None or member is None:
            return None
        rows.name_person(tx, request.id, member.user_id)
        return Letter(
            mail.kind,
            mail.id,
            addresses.mailbox(member.email),
            organization.id,
            _shown(organization),
            self._links.secret(mail.kind, mail.about, mail.generation),
            request.expire_time,
            name=member.display_name,
        )


def _shown(organization: Organization) -> str:
    """The organization's name; its id where the name would become a link, in a mail of a sender who is trusted."""
    return organization.id if _LINK.search(organization.display_name) else organization.display_name
