"""Transports of mails: an SMTP server, or a folder, for trying Rolecall out without a mail server."""

import os
import smtplib
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol

from rolecall.config import Settings, is_loopback
from rolecall.credentials import token_format
from rolecall.credentials.private_files import exposure
from rolecall.errors import ConfigError
from rolecall.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "REDACTED",
    "FolderTransport",
    "Refused",
    "SmtpTransport",
    "Transport",
    "TryLater",
    "Unreachable",
    "transport_for",
]

# Logged instead of a text that holds a secret.
REDACTED = "(it repeats a secret)"


class Unreachable(Exception):
    """No mail can be sent at present, for a reason that doesn't lie in a mail."""


class TryLater(Exception):
    """The mail server did not accept the mail now."""


class Refused(Exception):
    """The mail server will never accept the mail."""


Send = Callable[[EmailMessage], None]


class Transport(Protocol):
    """Sends mails. `where` is a sentence that names their destination; `outage` is logged while it can't be used."""

    where: str
    outage: str

    @contextmanager
    def session(self) -> Iterator[Send]:
        """Yield a function that sends one mail. Raises `Unreachable`; the function `TryLater` and `Refused` too."""
        ...


class FolderTransport:
    """Writes mails as files that only this user may read."""

    outage = "mail folder can't be written"

    def __init__(self, folder: Path) -> None:
        """Create the folder. Raises `ConfigError` where it can't be written, or is open to other users."""
        self._folder = folder.absolute()
        try:
            self._create()
            # A trial: before the first mail is lost from sight in the outbox.
            with tempfile.TemporaryFile(dir=self._folder):
                pass
            exposed = exposure(self._folder.stat())
        except OSError as error:
            raise ConfigError(
                f"The mail folder {self._folder} can't be written: {error.strerror}. Choose another with"
                " ROLECALL_MAIL_FOLDER, or name a mail server with ROLECALL_SMTP_HOST."
            ) from error
        if exposed:
            raise ConfigError(
                f"The mail folder {self._folder}, which holds secrets, is open to other users ({exposed}): run `chmod"
                f" 700 {self._folder}`, or choose another, such as a new folder in it, with ROLECALL_MAIL_FOLDER."
            )
        self.where = f"Mails become files in {self._folder}, as no smtp_host is set."

    @contextmanager
    def session(self) -> Iterator[Send]:
        """Implement `Transport.session`."""
        try:
            self._create()
        except OSError as error:
            raise Unreachable(f"{self._folder}: {error.strerror}") from error
        yield self._write

    def _create(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write(self, mail: EmailMessage) -> None:
        file = self._folder / f"{mail['Message-ID'].strip('<>').partition('@')[0]}.eml"
        temporary = file.with_suffix(".new")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
                opened.write(bytes(mail))
            # A file is complete or absent; a mail that is written twice is one file.
            temporary.replace(file)
        except OSError as error:
            raise Unreachable(f"{file}: {error.strerror}") from error


class SmtpTransport:
    """Hands mails to an SMTP server."""

    outage = "mail server unreachable"

    def __init__(self, settings: Settings, limits: Limits = DEFAULT_LIMITS) -> None:
        """Read the settings and files. Raises `ConfigError` where they can't be read or would expose the password."""
        self._timeout = limits.mail_timeout_seconds
        self._host, self._port = settings.smtp_host, settings.smtp_port
        self._security = settings.smtp_security
        self._user, self._password = settings.smtp_user, settings.smtp_password
        if self._security == "none" and self._user and not is_loopback(self._host):
            raise ConfigError(
                "With smtp_security `none`, anyone who sees the traffic can read the password: use `starttls` or `tls`."
            )
        if not (self._user + self._password).isascii():
            raise ConfigError(
                "The setting smtp_user or smtp_password holds characters beyond ASCII: an SMTP login can't have them."
            )
        try:
            self._tls = ssl.create_default_context(cafile=settings.smtp_ca_file)
        except OSError as error:
            raise ConfigError(f"The file {settings.smtp_ca_file} can't be read as a PEM file: {error}.") from error
        self.where = f"Mails leave through {self._host}:{self._port}."

    @contextmanager
    def session(self) -> Iterator[Send]:
        """Implement `Transport.session`. After a broken connection, the next mail opens a new one."""
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
                    self._host, self._port, timeout=self._timeout, context=self._tls
                )
            else:
                server = smtplib.SMTP(self._host, self._port, timeout=self._timeout)
            try:
                if self._security == "starttls":
                    server.starttls(context=self._tls)
                if self._user:
                    server.login(self._user, self._password)
            except BaseException:
                server.close()
                raise
        except (OSError, smtplib.SMTPException) as error:
            raise Unreachable(_describe(error)) from error
        return server


def transport_for(settings: Settings, limits: Limits = DEFAULT_LIMITS) -> Transport:
    """Return the transport that the settings select. Raises `ConfigError`."""
    return SmtpTransport(settings, limits) if settings.smtp_host else FolderTransport(settings.mail_folder)


def _send(server: smtplib.SMTP, mail: EmailMessage) -> None:
    try:
        server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        raise _refusal(code, text) from error
    except smtplib.SMTPHeloError as error:
        raise Unreachable(f"the greeting is refused: {_describe(error)}") from error
    except smtplib.SMTPSenderRefused as error:
        # All mails have the same sender, so no mail is at fault: the operator corrects it, and no mail is lost.
        raise Unreachable(f"the sender is refused: {_describe(error)}") from error
    except smtplib.SMTPResponseException as error:
        raise _refusal(error.smtp_code, error.smtp_error) from error
    except (OSError, smtplib.SMTPException) as error:
        # Whether the server accepted the mail is unknown: a mail that is sent twice is better than a lost one.
        server.close()
        raise TryLater(_describe(error)) from error


def _refusal(code: int, text: bytes | str) -> TryLater | Refused:
    return (Refused if 500 <= code < 600 else TryLater)(_response(code, text))


def _response(code: int, text: bytes | str) -> str:
    """Format a mail server's response for the operator, without the secrets of a mail that it repeats."""
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    return f"{code} {REDACTED if token_format.contains_credential(decoded) else decoded}"[:200]


def _describe(error: Exception) -> str:
    """Describe the error to the operator. The error of a refused login holds no password."""
    if isinstance(error, smtplib.SMTPResponseException):
        return _response(error.smtp_code, error.smtp_error)
    return f"{type(error).__name__}: {error}"[:200]
