"""Services of a server without its transports, on a real database, for the state machine of people."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.identity.authentication import Authenticator
from rolecall.identity.directory import Directory
from rolecall.mail import MailRenderer, MailSender
from rolecall.mail.transport import Send
from rolecall.policy.reload import LivePolicy
from rolecall.services.authorization import Authorizer
from rolecall.services.invitations import Invitations
from rolecall.services.members import Members
from rolecall.services.pagination import Pagination
from rolecall.services.sessions import Sessions
from rolecall.services.tokens import Tokens
from rolecall.services.unit_of_work import UnitOfWork
from rolecall.storage import Storage
from support.sites import QUICK_LIMITS, without_rates

__all__ = ["MailCollector", "PeopleSite"]

SECRET = re.compile(r"\brc[il]_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}\b")


@dataclass
class MailCollector:
    """Mail transport that collects all mails. `mails`: address and secret of each."""

    where: str = "Mails are collected."
    outage: str = "mails are not collected"
    mails: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def session(self) -> Iterator[Send]:
        """Implement `Transport.session`."""
        yield self._collect

    def _collect(self, mail: EmailMessage) -> None:
        body = mail.get_body(("plain",))
        assert body is not None
        [secret] = set(SECRET.findall(body.get_content()))
        self.mails.append((str(mail["To"]).lower(), secret))


class PeopleSite:
    """Services over one database with one policy."""

    def __init__(self, database_url: str, policy_folder: Path, folder: Path) -> None:
        key = server_key.create(folder / "rolecall.key")
        limits = without_rates(QUICK_LIMITS)
        self.storage = Storage(database_url)
        self.storage.create()
        self.log = AuditLog(key)
        self.live = LivePolicy(policy_folder, self.storage, limits)
        self.links = MailedSecrets(key)
        self.collector = MailCollector()
        renderer = MailRenderer(Settings(policy=policy_folder, database=database_url))
        self.sender = MailSender(self.storage, self.live, self.links, renderer, self.collector)
        self.authenticator = Authenticator(self.storage, None, limits)
        self.directory = Directory(self.storage, self.authenticator, None, limits)
        unit_of_work, pages = UnitOfWork(self.storage, self.authenticator, self.live, self.log), Pagination(key)
        parts = (unit_of_work, self.storage, self.live, pages)
        self.members = Members(*parts)
        self.invitations = Invitations(*parts, self.links, limits)
        self.tokens = Tokens(*parts)
        self.sessions = Sessions(unit_of_work, self.storage, self.live, self.links, limits)
        self.authorizer = Authorizer(self.storage, self.directory, self.live, pages)
