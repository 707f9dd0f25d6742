"""What the machine of people runs: the parts of a server without its calls, on a real database."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

from rolecall import keys
from rolecall.acceptance import Acceptance
from rolecall.audit import AuditLog
from rolecall.authorizer import Authorizer
from rolecall.config import Settings
from rolecall.directory import Directory
from rolecall.invitations import Invitations
from rolecall.links import Links
from rolecall.live_policy import LivePolicy
from rolecall.mail import Letters, Sender
from rolecall.mail.transport import Send
from rolecall.members import Members
from rolecall.mutations import Mutations
from rolecall.pages import Pages
from rolecall.sessions import Sessions
from rolecall.storage import Storage
from rolecall.tokens import Tokens

__all__ = ["PeopleSite", "Postman"]

SECRET = re.compile(r"\brc[il]_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}\b")


@dataclass
class Postman:
    """Takes all mails. `taken`: for each the address and the secret."""

    where: str = "Mails are kept."
    taken: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def session(self) -> Iterator[Send]:
        """As `Transport.session`."""
        yield self._take

    def _take(self, mail: EmailMessage) -> None:
        body = mail.get_body(("plain",))
        assert body is not None
        [secret] = set(SECRET.findall(body.get_content()))
        self.taken.append((str(mail["To"]).lower(), secret))


class PeopleSite:
    """One database with one policy."""

    def __init__(self, database_url: str, policy_folder: Path, folder: Path) -> None:
        key = keys.create(folder / "rolecall.key")
        self.storage = Storage(database_url)
        self.storage.create()
        self.log = AuditLog(key)
        self.live = LivePolicy(policy_folder, self.storage)
        self.links = Links(key)
        self.postman = Postman()
        letters = Letters(Settings(policy=policy_folder, database=database_url))
        self.sender = Sender(self.storage, self.links, letters, self.postman)
        self.directory = Directory(self.storage)
        mutations, pages = Mutations(self.storage, self.directory, self.live, self.log), Pages(key)
        parts = (mutations, self.storage, self.live, pages)
        self.members = Members(*parts)
        self.invitations = Invitations(*parts)
        self.tokens = Tokens(*parts)
        self.acceptance = Acceptance(mutations, self.storage, self.links)
        self.sessions = Sessions(mutations, self.storage, self.live, self.links)
        self.authorizer = Authorizer(self.storage, self.directory, self.live, pages)
