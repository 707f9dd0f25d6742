"""Rendering of mails from templates: the built-in ones, or the operator's."""

import ipaddress
import re
import socket
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.config import Settings, socket_path, split_address
from rolecall.domain import MailKind
from rolecall.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["MailContent", "MailRenderer"]

# For each kind: the templates' names; and for those with a secret, the command or page that accepts it.
_NAMES = {MailKind.INVITATION: "invitation", MailKind.SIGN_IN: "sign_in", MailKind.TOKEN_EXPIRY: "token_expiry"}
_ACTIONS = {MailKind.INVITATION: "accept", MailKind.SIGN_IN: "sign-in"}
_PLACEHOLDERS = {"secret", "action", "organization"}
# Placeholder for the secret in the mails that check the templates.
_TEST_SECRET = "the-secret"  # noqa: S105 - no real secret


@dataclass(frozen=True, slots=True)
class MailContent:
    """Content of a mail and its recipient: `mailbox` is the address in the form that mail servers accept.

    `inviter` (an address, or an organization's name) and `role` are empty for a sign-in link, `name` (the recipient's)
    for an invitation. A notice of a token's expiry has no secret; `token` is the token's name, empty where it could be
    taken for a link, `holder` the address of its person or the organization's name, and `role` that of an
    organization's token.
    """

    kind: MailKind
    id: str
    mailbox: str
    organization_id: str
    organization: str
    secret: str
    expire_time: int
    inviter: str = ""
    role: str = ""
    name: str = ""
    token: str = ""
    token_id: str = ""
    holder: str = ""
    last_use_time: int | None = None


class MailRenderer:
    """Renders mails, each as plain text and HTML."""

    def __init__(self, settings: Settings) -> None:
        """Check the settings and the operator's templates. Raises `ConfigError` where one is wrong."""
        self._sender = _sender(settings.mail_from)
        self._link = _checked_link(settings.link_template)
        self._address = settings.public_address or _public_address(settings.listen)
        self._folder = settings.mail_templates
        if self._folder:
            self._check_templates(self._folder)

    @cached_property
    def _templates(self) -> "Environment":
        """The templates. The first mail imports Jinja and compiles them, where the start needn't."""
        from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, StrictUndefined  # noqa: PLC0415
        from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415

        loaders = [FileSystemLoader(self._folder)] if self._folder else []
        return SandboxedEnvironment(
            loader=ChoiceLoader([*loaders, PackageLoader("rolecall.mail")]),
            autoescape=lambda name: bool(name and name.endswith(".html")),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )

    def _check_templates(self, folder: Path) -> None:
        """Raise `ConfigError` where a template of the operator's is wrong, before the first mail is sent."""
        if not folder.is_dir():
            raise ConfigError(f"The folder {folder} does not exist: correct `mail_templates`.")
        for kind in MailKind:
            test = MailContent(kind, "try", "ann@example.com", "acme", "Acme", _TEST_SECRET, 0, "Ann", "ROLE", "Ann")
            mail = self.render(test)
            bytes(mail)
            for part in mail.iter_parts():
                if kind in _ACTIONS and _TEST_SECRET not in part.get_content():
                    name = f"{_NAMES[kind]}.{'html' if part.get_content_subtype() == 'html' else 'txt'}"
                    raise ConfigError(
                        f"The mail template {name} holds neither `{{{{ secret }}}}` nor `{{{{ link }}}}`: nobody"
                        " could use such a mail."
                    )

    def render(self, content: MailContent) -> EmailMessage:
        """Render the mail. Its Message-ID is the same each time, so that a second copy is recognized.

        Raises `ConfigError` where a template is wrong.
        """
        action, secret = _ACTIONS.get(content.kind, ""), content.secret
        link = self._link.format(secret=secret, action=action, organization=content.organization_id) if action else ""
        values = {
            "organization": content.organization,
            "inviter": content.inviter,
            "role": content.role,
            "name": content.name,
            "secret": secret,
            "address": self._address,
            "expires": _minute(content.expire_time),
            "link": link,
            "token": content.token,
            "token_id": content.token_id,
            "holder": content.holder,
            "last_used": "" if content.last_use_time is None else _minute(content.last_use_time),
        }
        mail = EmailMessage(policy=SMTP)
        mail["From"] = self._sender
        mail["To"] = content.mailbox
        mail["Date"] = datetime.now(UTC)
        mail["Message-ID"] = f"<{content.id}@{self._sender.domain}>"
        # Automatic responders must not answer (RFC 3834).
        mail["Auto-Submitted"] = "auto-generated"
        name = _NAMES[content.kind]
        # One line, whatever the template or a name holds. Python would decode what looks encoded, line ends included.
        subject = " ".join(self._render_template(f"{name}.subject", values).split())
        mail["Subject"] = subject.replace("=?", "= ?")
        text, html = self._render_template(f"{name}.txt", values), self._render_template(f"{name}.html", values)
        # 7bit where possible: a secret must not be broken over two lines for readers of the raw file.
        mail.set_content(text, cte="7bit" if text.isascii() else "quoted-printable")
        mail.add_alternative(html, subtype="html", cte="7bit" if html.isascii() else "quoted-printable")
        return mail

    def _render_template(self, name: str, values: dict[str, str]) -> str:
        try:
            return self._templates.get_template(name).render(values)
        except Exception as error:
            raise ConfigError(f"The mail template {name} is wrong: {error}. Correct it in `mail_templates`.") from error


def _minute(microseconds: int) -> str:
    return f"{datetime.fromtimestamp(microseconds / 1_000_000, UTC):%Y-%m-%d %H:%M} UTC"


def _public_address(listen: str) -> str:
    """Return the address at which people reach a server that listens there: this host's name for all interfaces."""
    if path := socket_path(listen):
        # For commands on this machine.
        return f"unix:{Path(path).absolute()}"
    host, port = split_address(listen)
    try:
        is_wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        # A name.
        return listen
    return f"{socket.getfqdn()}:{port}" if is_wildcard else listen


def _checked_link(template: str) -> str:
    """Return the setting `link_template`, checked. Raises `ConfigError`."""
    try:
        placeholders = [
            # A placeholder with a format or a conversion is never a known one.
            f"{place}:{spec}" if spec or conversion else place
            for _, place, spec, conversion in string.Formatter().parse(template)
            if place is not None
        ]
    except ValueError as error:
        raise ConfigError(f"The setting `link_template` is wrong: {error}.") from error
    before, _, fragment = template.partition("#")
    if template and (
        not set(placeholders) <= _PLACEHOLDERS
        or placeholders.count("secret") != 1
        or "{secret}" not in fragment
        or not re.match(r"https?://[^/?]", before)
        or not template.isprintable()
        or " " in template
    ):
        raise ConfigError(
            "The setting `link_template` is wrong: write a URL with {secret} once, after its #, as"
            " https://app.example.com/{action}#{secret}. Everything before the # gets into the logs of web servers."
        )
    return template


def _sender(text: str) -> Address:
    """Parse the one address in `text`, its domain in A-labels. Raises `ConfigError`."""
    mail = EmailMessage(policy=SMTP)
    try:
        mail["From"] = text
        # An address in a malformed header is not used.
        addresses = [] if mail["From"].defects else list(mail["From"].addresses)
        (given,) = addresses
        return Address(given.display_name, given.username, given.domain.encode("idna").decode())
    except (ValueError, IndexError) as error:
        message = f"The setting `mail_from` is not one address, as `Acme <rolecall@acme.io>`: {error}."
        raise ConfigError(message) from error
