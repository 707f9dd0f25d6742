"""How mails leave: through an SMTP server, or into a folder for people who try things out."""

import os
import smtplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol

from rolecall import credentials
from rolecall.config import Settings, is_loopback
from rolecall.errors import ConfigError

__all__ = [
    "REPEATED",
    "FolderTransport",
    "Refused",
    "SmtpTransport",
    "Transport",
    "TryLater",
    "Unreachable",
    "transport_for",
]

# For connecting, and for each answer of the mail server.
TIMEOUT_SECONDS = 15.0

# What is logged of a text that holds a secret.
REPEATED = "(it repeats a secret)"


class Unreachable(Exception):
    """No mail can be sent now, whichever; the fault is none of the mail's."""


class TryLater(Exception):
    """This mail wasn't taken now."""


class Refused(Exception):
    """This mail won't ever be taken."""


Send = Callable[[EmailMessage], None]


class Transport(Protocol):
    """Takes mails. `where` tells people where they go."""

    where: str

    @contextmanager
    def session(self) -> Iterator[Send]:
        """A function that sends mails one by one. Raises `Unreachable`, the function `TryLater` and `Refused` too."""
        ...


class FolderTransport:
    """Writes mails as files that only this user may read."""

    def __init__(self, folder: Path) -> None:
        """It is made when the first mail is written. Raises `ConfigError` where it is there and open to others."""
        self._folder = folder.absolute()
        if self._folder.is_dir() and self._folder.stat().st_mode & 0o077:
            raise ConfigError(
                f"The mail folder {self._folder}, where secrets land, is open to other users: run `chmod 700"
                f" {self._folder}`, or choose another with ROLECALL_MAIL_FOLDER."
            )
        self.where = f"Mails become files in {self._folder}, as no smtp_host is set."

    @contextmanager
    def session(self) -> Iterator[Send]:
        """As `Transport.session`."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unreachable(f"{self._folder}: {error.strerror}") from error
        yield self._write

    def _write(self, mail: EmailMessage) -> None:
        file = self._folder / f"{mail['Message-ID'].strip('<>').partition('@')[0]}.eml"
        aside = file.with_suffix(".new")
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
                opened.write(bytes(mail))
            # A file is there whole or not at all; a mail that is written twice is one file.
            aside.replace(file)
        except OSError as error:
            raise Unreachable(f"{file}: {error.strerror}") from error


class SmtpTransport:
    """Hands mails to an SMTP server."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError` where the settings would expose the password, or files can't be read."""
        self._host, self._port = settings.smtp_host, settings.smtp_port
        self._security = settings.smtp_security
        self._user, self._password = settings.smtp_user, _password(settings)
        if self._security == "none" and self._user and not is_loopback(self._host):
            raise ConfigError(
                "With smtp_security `none`, whoever sees the traffic can read the login's password: use `starttls` or"
                " `tls`."
            )
        if not (self._user + self._password).isascii():
            raise ConfigError(
                "The setting smtp_user or smtp_password holds other characters than ASCII, which no login has."
            )
        try:
            self._tls = ssl.create_default_context(cafile=settings.smtp_ca_file)
        except OSError as error:
            raise ConfigError(f"The file {settings.smtp_ca_file} is no PEM file that can be read: {error}.") from error
        self.where = f"Mails leave through {self._host}:{self._port}."

    @contextmanager
    def session(self) -> Iterator[Send]:
        """As `Transport.session`. A connection that breaks is opened anew for the next mail."""
        server = self._connect()

        def send(mail: EmailMessage) -> None:
            nonlocal server
            if server.sock is None:
                server = self._connect()
            _send(server, mail)

        try:
            yield send
        finally:
            try:
                server.quit()
            except (OSError, smtplib.SMTPException):
                server.close()

    def _connect(self) -> smtplib.SMTP:
        try:
            if self._security == "tls":
                server: smtplib.SMTP = smtplib.SMTP_SSL(
                    self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._tls
                )
            else:
                server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_SECONDS)
            try:
                if self._security == "starttls":
                    server.starttls(context=self._tls)
                if self._user:
                    server.login(self._user, self._password)
            except BaseException:
                server.close()
                raise
        except (OSError, smtplib.SMTPException) as error:
            raise Unreachable(_told(error)) from error
        return server


def transport_for(settings: Settings) -> Transport:
    """How mails leave with these settings. Raises `ConfigError`."""
    return SmtpTransport(settings) if settings.smtp_host else FolderTransport(settings.mail_folder)


def _send(server: smtplib.SMTP, mail: EmailMessage) -> None:
    try:
        server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        raise _refusal(code, text) from error
    except smtplib.SMTPHeloError as error:
        raise Unreachable(f"the greeting is refused: {_told(error)}") from error
    except smtplib.SMTPSenderRefused as error:
        # All mails have the same sender, so this is none's own fault: the operator is to mend it, and none is lost.
        raise Unreachable(f"the sender is refused: {_told(error)}") from error
    except smtplib.SMTPResponseException as error:
        raise _refusal(error.smtp_code, error.smtp_error) from error
    except (OSError, smtplib.SMTPException) as error:
        # It may have been taken and may not: better twice than never.
        server.close()
        raise TryLater(_told(error)) from error


def _refusal(code: int, text: bytes | str) -> TryLater | Refused:
    return (Refused if 500 <= code < 600 else TryLater)(_said(code, text))


def _said(code: int, text: bytes | str) -> str:
    """A mail server's answer, for the operator; it may repeat the mail."""
    said = text.decode(errors="replace") if isinstance(text, bytes) else text
    return f"{code} {REPEATED if credentials.holds_one(said) else said}"[:200]


def _told(error: Exception) -> str:
    """What happened, for the operator. A login that is refused tells no password."""
    if isinstance(error, smtplib.SMTPResponseException):
        return _said(error.smtp_code, error.smtp_error)
    return f"{type(error).__name__}: {error}"[:200]


def _password(settings: Settings) -> str:
    if settings.smtp_password_file is None:
        return settings.smtp_password
    try:
        return settings.smtp_password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file {settings.smtp_password_file} can't be read: {error}.") from error
