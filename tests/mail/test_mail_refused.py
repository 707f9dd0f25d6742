"""Mails that the mail server refuses for good: they bounce, are told of, and can be sent anew."""

import pytest
from conftest import MakeSite, wait_until
from mail_servers import MailServer, answer_at, first
from mail_sites import Logs, accept, delivery, hurry, invite, owner, sql

from rolecall import Guest
from rolecall.errors import InvitationNotFound, RolecallError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def server() -> MailServer:
    """A mail server that isn't there yet."""
    return MailServer()


@pytest.mark.parametrize(("command", "answer"), [("RCPT", "550 no such user"), ("DATA", "554 spam")])
def test_a_mail_that_is_refused_bounces_until_it_is_resent(
    make_site: MakeSite, sqlite_url: str, server: MailServer, command: str, answer: str
) -> None:
    """It is tried once; ResendInvitation sends another secret, by which the person joins."""
    answer_at(server, command, first(answer))
    with server:
        site = make_site(sqlite_url, **server.settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "BOUNCED")
        refused = list(server.handed)
        client = owner(site)
        (listed,) = client.invitations.list(state="pending")
        resent = client.invitations.resend(invitation.id).invitation
        wait_until(lambda: delivery(site, invitation) == "SENT")
    (arrived,) = server.taken

    assert listed.id == invitation.id
    assert resent.id == invitation.id
    assert arrived.id not in [old.id for old in refused]
    for old in refused:
        with pytest.raises(InvitationNotFound):
            accept(site, old.secret)
    assert accept(site, arrived.secret).member.email == "bob@acme.io"


def test_a_sign_in_mail_that_is_refused_is_forgotten(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """Nobody looks after it: the person asks again, and gets another one."""
    server.at_data = first("554 spam")
    with server:
        site = make_site(sqlite_url, **server.settings())
        with Guest(site.address, organization="acme") as guest:
            guest.request_sign_in("ann@acme.io")
            wait_until(lambda: len(server.handed) == 1 and not sql(site, "SELECT id FROM mails"))
            guest.request_sign_in("ann@acme.io")
            wait_until(lambda: bool(server.taken))
            member = guest.sign_in(server.taken[0].secret).member

    assert len(server.handed) == 2
    assert member.email == "ann@acme.io"


def test_errors_tell_the_reason_of_the_mail_server(
    make_site: MakeSite, sqlite_url: str, server: MailServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The operator reads why a mail was refused, and of which invitation; the client reads that it was."""
    logs = Logs(capfd)
    server.at_recipient = lambda _: "550 5.7.1 blocked for a policy"
    with server:
        site = make_site(sqlite_url, **server.settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "BOUNCED")
        wait_until(lambda: logs.has("mail refused"))

    assert logs.has("5.7.1 blocked for a policy")
    assert logs.has(invitation.id)
    with pytest.raises(RolecallError) as caught:
        invite(site, "bob@acme.io")
    assert caught.value.reason == "DUPLICATE_INVITATION"
