"""A mail server with given answers, and the content of the mails that it accepted."""

import asyncio
import email
import email.policy
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Self, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

__all__ = ["DROP", "OK", "MailServer", "ReceivedMail", "answer_at", "body_of", "first", "free_port", "secret_in"]

OK = "250 OK"
# Break the connection instead of answering.
DROP = "drop"

_SECRET = re.compile(r"rc[il]_[0-9A-Za-z]{22}_[0-9A-Za-z]{49}")


@dataclass(frozen=True)
class ReceivedMail:
    """Mail that the server received, with its recipients, and the user who had logged in."""

    recipients: list[str]
    over_tls: bool
    user: str
    raw: bytes

    @property
    def mail(self) -> EmailMessage:
        """The mail, parsed."""
        parsed = email.message_from_bytes(self.raw, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed

    @property
    def id(self) -> str:
        """The Message-ID."""
        return str(self.mail["Message-ID"])

    @property
    def secret(self) -> str:
        """The secret in it."""
        return secret_in(self.mail)


class _Protocol(SMTP):
    """SMTP protocol that records the bytes received without TLS."""

    clear: bytearray

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        if self._tls_protocol is None and self.transport.get_extra_info("sslcontext") is None:
            self.clear += data
        super().data_received(data)


class _Controller(Controller):
    clear: bytearray

    def factory(self) -> SMTP:
        protocol = _Protocol(self.handler, **self.SMTP_kwargs)
        protocol.clear = self.clear
        return protocol


class MailServer:
    """SMTP server of the tests on 127.0.0.1; `security` and `login` as in Rolecall's settings.

    `at_sender`, `at_recipient` and `at_data` return the answer to each address and each mail, the last one when `gate`
    returns True. `all_received` are all mails, `accepted` those that were not refused, `logins` the attempted logins,
    `clear` the bytes received unencrypted.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        security: str = "none",
        certificate: tuple[Path, Path] | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.all_received: list[ReceivedMail] = []
        self.accepted: list[ReceivedMail] = []
        self.logins: list[tuple[str, str]] = []
        self.clear = bytearray()
        self.at_sender: Callable[[], str] = lambda: OK
        self.at_recipient: Callable[[str], str] = lambda _: OK
        self.at_data: Callable[[ReceivedMail], str] = lambda _: OK
        self.gate: Callable[[], bool] = lambda: True
        self._security, self._certificate, self._login = security, certificate, login
        self._controller: _Controller | None = None

    def start(self) -> None:
        """Start to listen."""
        context = None
        if self._certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._certificate)
        self._controller = _Controller(
            self,
            "127.0.0.1",
            self.port,
            ssl_context=context if self._security == "tls" else None,
            server_hostname="mail.example",
            # As many servers: addresses and headers beyond ASCII must be encoded.
            enable_SMTPUTF8=False,
            tls_context=context if self._security == "starttls" else None,
            require_starttls=self._security == "starttls",
            auth_required=self._login is not None and self._security == "starttls",
            auth_require_tls=self._security == "starttls",
            authenticator=self._authenticate,
        )
        self._controller.clear = self.clear
        self._controller.start()

    def stop(self) -> None:
        """Stop to listen."""
        if self._controller:
            self._controller.stop()
            self._controller = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def settings(self, **others: object) -> dict[str, Any]:
        """Return the settings with which Rolecall uses this server."""
        user, password = self._login or ("", "")
        return {
            "smtp_host": "127.0.0.1",
            "smtp_port": self.port,
            "smtp_security": self._security,
            "smtp_user": user,
            "smtp_password": password,
            "smtp_ca_file": self._certificate[0] if self._certificate else None,
            **others,
        }

    @property
    def recipients(self) -> list[str]:
        """The recipients of the accepted mails, in alphabetical order."""
        return sorted(recipient for received in self.accepted for recipient in received.recipients)

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        attempted = (data.login.decode(), data.password.decode())
        self.logins.append(attempted)
        return AuthResult(success=self._login in (None, attempted), auth_data=attempted[0], handled=False)

    async def handle_MAIL(  # noqa: N802 - a hook of aiosmtpd
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer to MAIL FROM."""
        answer = self.at_sender()
        if answer == OK:
            envelope.mail_from = address
        return await self._answer(server, answer)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer to RCPT TO."""
        answer = self.at_recipient(address)
        if answer == OK:
            envelope.rcpt_tos.append(address)
        return await self._answer(server, answer)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Answer to the mail itself."""
        assert server.transport is not None
        assert isinstance(envelope.original_content, bytes)
        over_tls = server.transport.get_extra_info("sslcontext") is not None
        user = str(cast("object", session.auth_data) or "")
        received = ReceivedMail(list(envelope.rcpt_tos), over_tls, user, bytes(envelope.original_content))
        self.all_received.append(received)
        while not self.gate():
            await asyncio.sleep(0.01)
        answer = self.at_data(received)
        if answer == OK:
            self.accepted.append(received)
        return await self._answer(server, answer)

    async def _answer(self, server: SMTP, answer: str) -> str:
        if answer == DROP:
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
            # Cancelled when the connection has ended.
            await asyncio.sleep(60)
        return answer


def first(*answers: str) -> Callable[[object], str]:
    """Return a function that gives these answers, one after the other, and then OK."""
    left = list(answers)
    return lambda _: left.pop(0) if left else OK


def answer_at(server: MailServer, command: str, answers: Callable[[object], str]) -> None:
    """Have the server answer to this command as `answers` says."""
    if command == "MAIL":
        server.at_sender = lambda: answers(None)
    elif command == "RCPT":
        server.at_recipient = answers
    else:
        server.at_data = answers


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def body_of(mail: EmailMessage, kind: str = "plain") -> str:
    """Return the body of a mail, `plain` or `html`."""
    body = mail.get_body((kind,))
    assert body is not None
    content = body.get_content()
    assert isinstance(content, str)
    return content


def secret_in(mail: EmailMessage) -> str:
    """Return the one secret that both bodies of a mail contain."""
    plain, html = (set(_SECRET.findall(body_of(mail, kind))) for kind in ("plain", "html"))
    assert plain == html
    (secret,) = plain
    assert isinstance(secret, str)
    return secret
