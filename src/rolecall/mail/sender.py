"""Sender of queued mails: leases a few at a time, so that several servers share the outbox, and retries."""

import re
import time
from email.message import EmailMessage

import structlog

from rolecall.background import PeriodicThread
from rolecall.credentials import token_format
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import Delivery, InvitationState, LinkKind, MailKind, Member, Organization, TokenState, now
from rolecall.errors import RolecallError, StorageUnavailable, WriteConflict
from rolecall.formats import email_address
from rolecall.limits import DEFAULT_LIMITS, Limits
from rolecall.mail.rendering import MailContent, MailRenderer
from rolecall.mail.transport import REDACTED, Refused, Send, Transport, TryLater, Unreachable
from rolecall.policy.reload import LivePolicy
from rolecall.storage import Storage, Transaction
from rolecall.storage import invitations as invitation_rows
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import outbox as rows
from rolecall.storage import tokens as token_rows
from rolecall.storage.outbox import ExpiryNotice, Mail

__all__ = ["MailSender"]

# Text that mail clients turn into a link, as in `https://evil.io` and `evil.io`.
_LINK = re.compile(r"/|\w\.\w")

_log = structlog.get_logger("rolecall.mail")


class MailSender:
    """Thread that sends the mails in the outbox, woken when this process queues one."""

    def __init__(
        self,
        storage: Storage,
        live: LivePolicy,
        secrets: MailedSecrets,
        renderer: MailRenderer,
        transport: Transport,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._storage = storage
        self._live = live
        self._secrets = secrets
        self._renderer = renderer
        self._transport = transport
        self._limits = limits
        self._thread = PeriodicThread("mail", self._send_all, interval=limits.mail_poll_seconds)
        # Pause during an outage of the mail server or the database, in seconds; 0 outside of one.
        self._outage_pause = 0.0
        storage.on_mail_queued(self._wake)

    def start(self) -> None:
        """Start the thread; it sends at once the mails that are queued already."""
        self._thread.start()
        self._thread.wake()

    def stop(self) -> None:
        """Stop the thread. A mail that is being sent has one second; then another server sends it again."""
        self._thread.stop()

    def _wake(self) -> None:
        # During an outage, a new mail doesn't shorten the pause.
        if not self._outage_pause:
            self._thread.wake()

    def _send_all(self) -> float:
        """Send all due mails. Returns the seconds until the next round: a due mail, a poll, or an outage's pause."""
        limits = self._limits
        pause = min(max(2 * self._outage_pause, 2 * limits.mail_retry_seconds), limits.mail_outage_pause_seconds)
        try:
            while self.send_due() and not self._thread.stopping.is_set():
                pass
            # Before the outbox is read: a mail that is committed later wakes this thread.
            self._outage_pause = 0.0
            due = self._storage.read(rows.next_due_time)
        except Unreachable as error:
            self._outage_pause = pause
            _log.error(self._transport.outage, error=str(error), where=self._transport.where, again_in=pause)
        except RolecallError as error:
            self._outage_pause = pause
            _log.warning("mail delivery deferred", error=error.message, again_in=pause)
        except Exception:  # noqa: BLE001 - the thread survives any defect, and tries again
            self._outage_pause = pause
            _log.exception("mail delivery failed", again_in=pause)
        else:
            if due is None:
                return limits.mail_poll_seconds
            return min(max((due - now()) / 1_000_000, limits.mail_retry_seconds), limits.mail_poll_seconds)
        return pause

    def send_due(self) -> int:
        """Send some of the mails that are due. Returns how many were sent, refused or deferred; 0 where none is due.

        Raises `Unreachable`, `StorageUnavailable`, `WriteConflict`.
        """
        limits, at = self._limits, now()
        due = self._storage.read(rows.next_due_time)
        if due is None or due > at:
            return 0
        until = at + int(limits.mail_lease_seconds * 1_000_000)
        mails = self._storage.write(lambda tx: rows.lease(tx, at, until, limits.mail_leases))
        lease_until = time.monotonic() + limits.mail_lease_seconds / 2
        unsent = list(mails)
        try:
            with self._transport.session() as send:
                while unsent and time.monotonic() < lease_until and not self._thread.stopping.is_set():
                    mail = unsent.pop(0)
                    try:
                        self._send(mail, send)
                    except Unreachable:
                        unsent.append(mail)
                        raise
        finally:
            # A mail that wasn't offered to the mail server has used up no attempt, and any server may take it.
            for mail in unsent:
                self._postpone(mail, 0, mail.attempts - 1)
        return len(mails) - len(unsent)

    def _send(self, mail: Mail, send: Send) -> None:
        """Send one mail, and store the outcome."""
        limits = self._limits
        fields = {
            "organization": mail.organization,
            "kind": mail.kind.value,
            "target": mail.target_id,
            "attempt": mail.attempts,
        }
        try:
            message = self._render(mail)
            if message is None:
                self._storage.write(lambda tx: rows.drop(tx, mail.id))
                return
            send(message)
        except TryLater as error:
            if mail.attempts < limits.mail_attempts:
                pause = min(limits.mail_first_pause_seconds * 2 ** (mail.attempts - 1), limits.mail_max_pause_seconds)
                self._postpone(mail, pause, mail.attempts)
                _log.info("mail deferred", **fields, error=str(error), again_in=pause)
                return
            self._record_outcome(mail, Delivery.BOUNCED)
            _log.warning("mail not delivered, no attempts left", **fields, error=str(error))
        except Refused as error:
            self._record_outcome(mail, Delivery.BOUNCED)
            _log.warning("mail refused", **fields, error=str(error))
        else:
            self._record_outcome(mail, Delivery.SENT)

    def _render(self, mail: Mail) -> EmailMessage | None:
        """Return the message; None where it is obsolete. Raises `TryLater` where it can't be rendered."""
        try:
            content = self._content(mail)
            return self._renderer.render(content) if content else None
        except (StorageUnavailable, WriteConflict):
            raise
        except Exception as error:
            # Only this mail is at fault: the others must not wait for it.
            text = str(error)
            raise TryLater(
                f"it can't be rendered: {REDACTED if token_format.contains_credential(text) else text}"
            ) from error

    def _record_outcome(self, mail: Mail, state: Delivery) -> None:
        """Store the outcome of an invitation's mail, which its readers see; delete any other."""
        if mail.kind is MailKind.INVITATION:
            self._storage.write(lambda tx: rows.record_outcome(tx, mail.id, state))
        else:
            self._storage.write(lambda tx: rows.drop(tx, mail.id))

    def _postpone(self, mail: Mail, seconds: float, attempts: int) -> None:
        due = now() + int(seconds * 1_000_000)
        self._storage.write(lambda tx: rows.postpone(tx, mail.id, due, attempts))

    def _content(self, mail: Mail) -> MailContent | None:
        """Read the content of the mail; None where it is obsolete: accepted, deleted, expired, or of a non-member."""
        match mail.kind:
            case MailKind.INVITATION:
                return self._storage.read(lambda tx: self._invitation_content(tx, mail))
            case MailKind.SIGN_IN:
                return self._storage.write(lambda tx: self._sign_in_content(tx, mail))
            case MailKind.TOKEN_EXPIRY:
                return self._storage.read(lambda tx: self._notice_content(tx, mail))

    def _invitation_content(self, tx: Transaction, mail: Mail) -> MailContent | None:
        invitation = invitation_rows.get(tx, mail.organization, mail.target_id)
        organization = organization_rows.get(tx, mail.organization)
        if invitation is None or organization is None or invitation.generation != mail.generation:
            return None
        if invitation.state(now()) is not InvitationState.PENDING:
            return None
        kind, _, identifier = invitation.creator.partition(":")
        inviter = member_rows.get(tx, mail.organization, identifier) if kind == "user" else None
        return MailContent(
            mail.kind,
            mail.id,
            email_address.mailbox(invitation.email),
            organization.id,
            _display_name(organization),
            self._secrets.secret(LinkKind(mail.kind), mail.target_id, mail.generation),
            invitation.expire_time,
            # Only the address is verified; a display name may be any text, and the recipient is not a member.
            inviter=_plain_address(inviter) or _display_name(organization),
            role=invitation.role,
        )

    def _sign_in_content(self, tx: Transaction, mail: Mail) -> MailContent | None:
        request = rows.sign_in(tx, mail.target_id)
        if request is None or request.expire_time <= now():
            return None
        organization = organization_rows.get(tx, mail.organization)
        member = member_rows.by_email(tx, mail.organization, request.email_key)
        if organization is None or member is None:
            return None
        rows.set_recipient(tx, request.id, member.user_id)
        return MailContent(
            mail.kind,
            mail.id,
            email_address.mailbox(member.email),
            organization.id,
            _display_name(organization),
            self._secrets.secret(LinkKind(mail.kind), mail.target_id, mail.generation),
            request.expire_time,
            name=_greeted_name(member),
        )

    def _notice_content(self, tx: Transaction, mail: Mail) -> MailContent | None:
        notice = ExpiryNotice.parse(mail.target_id)
        token = token_rows.get(tx, mail.organization, notice.token_id)
        recipient = member_rows.get(tx, mail.organization, notice.user_id)
        organization = organization_rows.get(tx, mail.organization)
        if token is None or recipient is None or organization is None or token.state(now()) is not TokenState.ACTIVE:
            return None
        # Their role may have changed since the mail was queued.
        if recipient.user_id != token.user_id and not self._live.in_force.policy.decide(
            recipient.role, "view", token.resource
        ):
            return None
        holder = member_rows.get(tx, mail.organization, token.user_id) if token.user_id else None
        return MailContent(
            mail.kind,
            mail.id,
            email_address.mailbox(recipient.email),
            organization.id,
            _display_name(organization),
            "",
            token.expire_time,
            role="" if token.user_id else token.role,
            name=_greeted_name(recipient),
            # A member may have given it any name, and other members trust the sender of the mail.
            token="" if _LINK.search(token.display_name) else token.display_name,
            token_id=token.id,
            holder=_plain_address(holder) if holder else _display_name(organization),
            last_use_time=token.last_use_time,
        )


def _greeted_name(member: Member) -> str:
    """Return the recipient's name, or their address where mail clients would turn the name into a link.

    Whoever invited them may have chosen the name.
    """
    return _plain_address(member) or member.user_id if _LINK.search(member.display_name) else member.display_name


def _plain_address(member: Member | None) -> str:
    """Return the member's address; empty where mail clients would turn a part of it into a link to a page."""
    if member is None or "/" in member.email or "www." in member.email.lower():
        return ""
    return member.email


def _display_name(organization: Organization) -> str:
    """Return the organization's name, or its id where mail clients would turn the name into a link.

    Readers trust the sender of the mail, and so its links.
    """
    return organization.id if _LINK.search(organization.display_name) else organization.display_name
