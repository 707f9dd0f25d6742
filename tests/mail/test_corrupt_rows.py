"""Mails that can't be written because of broken rows: they don't delay others."""

from pathlib import Path

import pytest

from support.mail_servers import MailServer, free_port
from support.mail_sites import Logs, another_server, invite, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until

OTHERS = [f"other{number}@acme.io" for number in range(4)]


@pytest.fixture
def server() -> MailServer:
    """A mail server that is not started yet."""
    return MailServer()


def make_corrupt_site(make_site: MakeSite, url: str, *, role: str = "VIEWER") -> Site:
    """A site that has mails to send and can't: the one to bad@acme.io is the first, those to OTHERS follow."""
    site = make_site(url, **MailServer(port=free_port()).settings())
    invite(site, "bad@acme.io", role=role)
    invite(site, *OTHERS)
    site.server.stop(0)
    sql(site, "UPDATE mails SET due_time = 0 WHERE about IN (SELECT id FROM invitations WHERE email_key LIKE 'bad@%')")
    return site


def test_a_mail_that_cannot_be_addressed_delays_no_other(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """A mail whose address in the database is broken doesn't delay the others."""
    site = make_corrupt_site(make_site, sqlite_url)
    sql(site, "UPDATE invitations SET email = 'no address' WHERE email_key LIKE 'bad@%'")
    with server, another_server(site, **server.settings()):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)


def test_mail_that_cannot_be_rendered_delays_no_other(
    make_site: MakeSite, sqlite_url: str, server: MailServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An operator's template is wrong for one role only: the others arrive meanwhile, and the template is named."""
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "invitation.txt").write_text('{% if role == "ADMIN" %}{{ mistyped }}{% endif %}{{ secret }}')
    logs = Logs(capfd)
    site = make_corrupt_site(make_site, sqlite_url, role="ADMIN")
    with server, another_server(site, **server.settings(mail_templates=folder)):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)

    assert logs.has("invitation.txt")


def test_corrupt_text_delays_no_other(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """A mail whose text in the database is not UTF-8 doesn't delay the others."""
    site = make_corrupt_site(make_site, sqlite_url)
    sql(site, "UPDATE invitations SET role = CAST(x'ff' AS TEXT) WHERE email_key LIKE 'bad@%'")
    with server, another_server(site, **server.settings()):
        wait_until(lambda: server.recipients == OTHERS, seconds=5)
