"""Protection of the connection to the mail server: TLS, its certificate, the login; nothing is sent without it."""

import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from rolecall import config
from rolecall.config import Settings
from rolecall.errors import ConfigError
from rolecall.mail import transport_for
from rolecall.server import build_server
from support.mail_servers import MailServer
from support.mail_sites import Logs, accept, another_server, delivery, invite, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until

LOGIN = ("rolecall", "correct horse")
Certificate = tuple[Path, Path]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mail"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


def commands(server: MailServer) -> set[bytes]:
    """The commands that the mail server received unencrypted."""
    return {line.split()[0].upper() for line in bytes(server.clear).splitlines() if line.split()}


@pytest.mark.parametrize(("security", "from_file"), [("starttls", True), ("tls", False)])
def test_an_invitation_arrives_over_tls_with_login(
    make_site: MakeSite, sqlite_url: str, certificate: Certificate, tmp_path: Path, security: str, from_file: bool
) -> None:
    """An invitation arrives by STARTTLS and by implicit TLS, its password from settings or a file; its secret works."""
    password: dict[str, Any] = {}
    if from_file:
        file = tmp_path / "password"
        file.write_text(f"{LOGIN[1]}\n", encoding="utf-8")
        password = {"smtp_password": config.load(smtp_password_file=file).smtp_password}
    with MailServer(security=security, certificate=certificate, login=LOGIN) as server:
        site = make_site(sqlite_url, **server.settings(**password))
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "SENT")

    (received,) = server.accepted
    assert (received.recipients, received.over_tls, received.user) == (["bob@acme.io"], True, LOGIN[0])
    assert server.logins == [LOGIN]
    assert commands(server) == ({b"EHLO", b"STARTTLS"} if security == "starttls" else set())
    assert accept(site, received.secret).member.email == "bob@acme.io"


@pytest.mark.parametrize(
    ("offered", "fault"),
    [
        pytest.param("starttls", {"smtp_ca_file": None}, id="untrusted certificate, starttls"),
        pytest.param("tls", {"smtp_ca_file": None}, id="untrusted certificate, tls"),
        pytest.param("starttls", {"smtp_host": "localhost"}, id="certificate of another host"),
        pytest.param("starttls", {"smtp_password": "wrong"}, id="wrong password"),
        pytest.param("none", {"smtp_security": "starttls"}, id="no STARTTLS"),
        pytest.param("none", {"smtp_security": "tls"}, id="no TLS"),
    ],
)
def test_no_mail_is_sent_without_tls(
    make_site: MakeSite,
    sqlite_url: str,
    certificate: Certificate,
    capfd: pytest.CaptureFixture[str],
    offered: str,
    fault: dict[str, Any],
) -> None:
    """The mail stays queued, with nothing held against it, and arrives once the fault is mended."""
    logs = Logs(capfd)
    mended = MailServer(security="starttls", certificate=certificate, login=LOGIN)
    pair = None if offered == "none" else certificate
    with MailServer(security=offered, certificate=pair, login=LOGIN) as server:
        site = make_site(sqlite_url, **server.settings(**fault))
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: logs.has("mail server unreachable", times=2))
        queued = delivery(site, invitation)
        site.server.stop(0)
    rows = sql(site, "SELECT state, attempts FROM mails")
    with mended, another_server(site, **mended.settings()) as second:
        wait_until(lambda: delivery(second, invitation) == "SENT")

    assert (queued, rows) == ("QUEUED", [("queued", 0)])
    assert server.all_received == []
    assert not commands(server) & {b"AUTH", b"MAIL", b"RCPT", b"DATA"}
    for text in LOGIN:
        assert text.encode() not in server.clear
        assert b64encode(text.encode()) not in server.clear
    assert not logs.has(LOGIN[1])
    assert mended.recipients == ["bob@acme.io"]


def test_login_is_not_sent_to_other_machines_without_tls(sqlite_site: Site) -> None:
    """A login without TLS to another machine is refused at start; on this machine, or without a login, it may be."""
    with_login: dict[str, Any] = {"smtp_security": "none", "smtp_user": LOGIN[0], "smtp_password": LOGIN[1]}
    with pytest.raises(ConfigError, match="smtp_security `none`") as caught:
        build_server(sqlite_site.settings.model_copy(update={**with_login, "smtp_host": "mail.acme.io"}))
    for host in ("192.0.2.1", "localhost.acme.io", "::2", "0.0.0.0"):
        with pytest.raises(ConfigError, match="smtp_security `none`"):
            transport_for(Settings(**with_login, smtp_host=host))
        without = transport_for(Settings(smtp_host=host, smtp_security="none"))

        assert without.where == f"Mails leave through {host}:587."
    for host in ("localhost", "127.0.0.1", "::1"):
        transport_for(Settings(**with_login, smtp_host=host))

    assert LOGIN[1] not in str(caught.value)


def test_a_login_on_this_machine_needs_no_tls(make_site: MakeSite, sqlite_url: str) -> None:
    """A relay on loopback gets login and mail with `none`."""
    with MailServer(login=LOGIN) as server:
        site = make_site(sqlite_url, **server.settings())
        invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.accepted))

    assert (server.accepted[0].over_tls, server.accepted[0].user) == (False, LOGIN[0])


def test_files_that_cannot_be_read_are_named_at_start(sqlite_site: Site, tmp_path: Path) -> None:
    """A CA file that is missing or not readable as PEM is named in an error at the start."""
    missing, not_text = tmp_path / "missing", tmp_path / "not_text"
    not_text.write_bytes(b"\xff\xfe no text")
    for file in (missing, not_text):
        update = {"smtp_host": "127.0.0.1", "smtp_ca_file": file}
        with pytest.raises(ConfigError) as caught:
            build_server(sqlite_site.settings.model_copy(update=update))

        assert str(file) in str(caught.value)


@pytest.mark.parametrize("login", [("rolecall", "hörse"), ("röle", "horse")])
def test_a_login_beyond_ascii_is_reported_at_start(login: tuple[str, str]) -> None:
    """SMTP as we speak it can't send one: the operator learns of it before the first person is invited."""
    settings = Settings(smtp_host="127.0.0.1", smtp_user=login[0], smtp_password=login[1])
    with pytest.raises(ConfigError, match=r"smtp_(user|password)") as caught:
        transport_for(settings)

    assert login[1] not in str(caught.value)
