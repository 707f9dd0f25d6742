"""Mails that can't be written, by whatever mishap: they are in nobody else's way."""

from pathlib import Path

import pytest
from conftest import MakeSite, Site, wait_until
from mail_servers import MailServer, free_port
from mail_sites import Logs, another_server, hurry, invite, sql

OTHERS = [f"other{number}@acme.io" for number in range(4)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def server() -> MailServer:
    """A mail server that isn't there yet."""
    return MailServer()


def spoilt(make_site: MakeSite, url: str, *, role: str = "VIEWER") -> Site:
    """A site that has mails to send and can't: the one to bad@acme.io is the first, those to OTHERS follow."""
    site = make_site(url, **MailServer(port=free_port()).settings())
    invite(site, "bad@acme.io", role=role)
    invite(site, *OTHERS)
    site.server.stop(0)
    sql(site, "UPDATE mails SET due_time = 0 WHERE about IN (SELECT id FROM invitations WHERE email_key LIKE 'bad@%')")
    return site


def test_a_mail_that_cannot_be_addressed_is_in_nobodys_way(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """An address in the database that is none, by whatever mishap: the others arrive meanwhile."""
    site = spoilt(make_site, sqlite_url)
    sql(site, "UPDATE invitations SET email = 'no address' WHERE email_key LIKE 'bad@%'")
    with server, another_server(site, **server.settings()):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)


def test_a_mail_that_cannot_be_written_is_in_nobodys_way(
    make_site: MakeSite, sqlite_url: str, server: MailServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An operator's template is wrong for one role only: the others arrive meanwhile, and the template is named."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "invitation.txt").write_text('{% if role == "ADMIN" %}{{ mistyped }}{% endif %}{{ secret }}')
    logs = Logs(capfd)
    site = spoilt(make_site, sqlite_url, role="ADMIN")
    with server, another_server(site, **server.settings(mail_templates=folder)):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)

    assert logs.has("invitation.txt")


def test_spoilt_text_is_in_nobodys_way(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """Text in the database that is no UTF-8, by whatever mishap: other people's mails arrive meanwhile."""
    site = spoilt(make_site, sqlite_url)
    sql(site, "UPDATE invitations SET role = CAST(x'ff' AS TEXT) WHERE email_key LIKE 'bad@%'")
    with server, another_server(site, **server.settings()):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)
