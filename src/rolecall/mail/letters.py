"""What a mail says: templates of ours, or an operator's own."""

import ipaddress
import re
import socket
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from rolecall.config import Settings, split_address
from rolecall.domain import LinkKind
from rolecall.errors import ConfigError

__all__ = ["Letter", "Letters"]

# For each kind, the templates' names and the command or page that takes the secret.
_NAMES = {LinkKind.INVITATION: "invitation", LinkKind.SIGN_IN: "sign_in"}
_ACTIONS = {LinkKind.INVITATION: "accept", LinkKind.SIGN_IN: "sign-in"}
_PLACES = {"secret", "action", "organization"}
# Stands for a secret where templates are tried out.
_TRIED = "the-secret"


@dataclass(frozen=True, slots=True)
class Letter:
    """What a mail has to tell, and to whom: `mailbox` is the address in the form that mail servers take.

    `inviter` (an address, or an organization's name) and `role` are empty for a link to sign in, `name` for an
    invitation.
    """

    kind: LinkKind
    id: str
    mailbox: str
    organization_id: str
    organization: str
    secret: str
    expire_time: int
    inviter: str = ""
    role: str = ""
    name: str = ""


class Letters:
    """Writes mails."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError` where a template or a setting is wrong: not when the first person is invited."""
        self._sender = _sender(settings.mail_from)
        self._link = _checked_link(settings.link_template)
        self._address = settings.public_address or _reachable(settings.listen)
        loaders = [FileSystemLoader(settings.mail_templates)] if settings.mail_templates else []
        self._templates: Environment = SandboxedEnvironment(
            loader=ChoiceLoader([*loaders, PackageLoader("rolecall.mail")]),
            autoescape=lambda name: bool(name and name.endswith(".html")),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        if settings.mail_templates and not settings.mail_templates.is_dir():
            raise ConfigError(f"There is no folder {settings.mail_templates}: correct `mail_templates`.")
        for kind in LinkKind:
            tried = Letter(kind, "try", "ann@example.com", "acme", "Acme", _TRIED, 0, "Ann", "ROLE", "Ann")
            mail = self.write(tried)
            bytes(mail)
            for part in mail.iter_parts():
                if _TRIED not in part.get_content():
                    name = f"{_NAMES[kind]}.{'html' if part.get_content_subtype() == 'html' else 'txt'}"
                    raise ConfigError(
                        f"The mail template {name} holds neither `{{{{ secret }}}}` nor `{{{{ link }}}}`: nobody"
                        " could use such a mail."
                    )

    def write(self, letter: Letter) -> EmailMessage:
        """The mail, with the same Message-ID each time it is written, by which a second copy is known.

        Raises `ConfigError` where a template is wrong.
        """
        action = _ACTIONS[letter.kind]
        at = datetime.fromtimestamp(letter.expire_time / 1_000_000, UTC)
        values = {
            "organization": letter.organization,
            "inviter": letter.inviter,
            "role": letter.role,
            "name": letter.name,
            "secret": letter.secret,
            "address": self._address,
            "expires": f"{at:%Y-%m-%d %H:%M} UTC",
            "link": self._link.format(secret=letter.secret, action=action, organization=letter.organization_id),
        }
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self._sender
        mail["To"] = letter.mailbox
        mail["Date"] = datetime.now(UTC)
        mail["Message-ID"] = f"<{letter.id}@{self._sender.domain}>"
        # No robot is to answer.
        mail["Auto-Submitted"] = "auto-generated"
        name = _NAMES[letter.kind]
        # One line, whatever the template or a name holds. Python would decode what looks encoded, line ends included.
        subject = " ".join(self._render(f"{name}.subject", values).split())
        mail["Subject"] = subject.replace("=?", "= ?")
        text, html = self._render(f"{name}.txt", values), self._render(f"{name}.html", values)
        # Plain where it can be: a secret must not be broken in two for who reads the file.
        mail.set_content(text, cte="7bit" if text.isascii() else "quoted-printable")
        mail.add_alternative(html, subtype="html", cte="7bit" if html.isascii() else "quoted-printable")
        return mail

    def _render(self, name: str, values: dict[str, str]) -> str:
        try:
            return self._templates.get_template(name).render(values)
        except Exception as error:
            raise ConfigError(f"The mail template {name} is wrong: {error}. Correct it in `mail_templates`.") from error


def _reachable(listen: str) -> str:
    """Where people reach who listens there: every address of this machine has its name."""
    host, port = split_address(listen)
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        # A name.
        return listen
    return f"{socket.getfqdn()}:{port}" if everywhere else listen


def _checked_link(template: str) -> str:
    """The template of the link. Raises `ConfigError`."""
    try:
        places = [
            # One that is to be formatted or converted is none of ours.
            f"{place}:{spec}" if spec or conversion else place
            for _, place, spec, conversion in string.Formatter().parse(template)
            if place is not None
        ]
    except ValueError as error:
        raise ConfigError(f"The setting `link_template` is wrong: {error}.") from error
    before, _, fragment = template.partition("#")
    if template and (
        not set(places) <= _PLACES
        or places.count("secret") != 1
        or "{secret}" not in fragment
        or not re.match(r"https?://[^/?]", before)
        or not template.isprintable()
        or " " in template
    ):
        raise ConfigError(
            "The setting `link_template` is wrong: write a URL with {secret} once, behind its #, as"
            " https://app.example.com/{action}#{secret}. What stands before the # gets into the logs of servers."
        )
    return template


def _sender(text: str) -> Address:
    """The one address in `text`, its domain in A-labels. Raises `ConfigError`."""
    mail = EmailMessage(policy=SMTP)
    try:
        mail["From"] = text
        # In a malformed header, no address counts.
        found = [] if mail["From"].defects else list(mail["From"].addresses)
        (given,) = found
        return Address(given.display_name, given.username, given.domain.encode("idna").decode())
    except (ValueError, IndexError) as error:
        message = f"The setting `mail_from` is not one address, as `Acme <rolecall@acme.io>`: {error}."
        raise ConfigError(message) from error
