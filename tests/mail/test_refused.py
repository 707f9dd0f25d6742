"""Mails that the mail server refuses permanently: they bounce, are logged, and can be sent again."""

import pytest

from rolecall import UnauthenticatedClient
from rolecall.errors import InvitationNotFound, RolecallError
from support.mail_servers import MailServer, answer_at, first
from support.mail_sites import Logs, accept, delivery, invite, owner, sql
from support.sites import MakeSite
from support.waiting import wait_until


@pytest.fixture
def server() -> MailServer:
    """A mail server that is not started yet."""
    return MailServer()


@pytest.mark.parametrize(("command", "answer"), [("RCPT", "550 no such user"), ("DATA", "554 spam")])
def test_a_mail_that_is_refused_bounces_until_it_is_resent(
    make_site: MakeSite, sqlite_url: str, server: MailServer, command: str, answer: str
) -> None:
    """A refused mail is tried once; ResendInvitation sends another secret, by which the person joins."""
    answer_at(server, command, first(answer))
    with server:
        site = make_site(sqlite_url, **server.settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "BOUNCED")
        refused = list(server.all_received)
        client = owner(site)
        (listed,) = client.invitations.list(state="pending")
        resent = client.invitations.resend(invitation.id).invitation
        wait_until(lambda: delivery(site, invitation) == "SENT")
    (received,) = server.accepted

    assert listed.id == invitation.id
    assert resent.id == invitation.id
    assert received.id not in [old.id for old in refused]
    for old in refused:
        with pytest.raises(InvitationNotFound):
            accept(site, old.secret)
    assert accept(site, received.secret).member.email == "bob@acme.io"


def test_refused_sign_in_mail_is_deleted(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """A refused sign-in mail is dropped: the person requests another one, and gets it."""
    server.at_data = first("554 spam")
    with server:
        site = make_site(sqlite_url, **server.settings())
        with UnauthenticatedClient(site.address, organization="acme") as guest:
            guest.request_sign_in("ann@acme.io")
            wait_until(lambda: len(server.all_received) == 1 and not sql(site, "SELECT id FROM mails"))
            guest.request_sign_in("ann@acme.io")
            wait_until(lambda: bool(server.accepted))
            member = guest.sign_in(server.accepted[0].secret).member

    assert len(server.all_received) == 2
    assert member.email == "ann@acme.io"


def test_errors_hold_the_reason_of_the_mail_server(
    make_site: MakeSite, sqlite_url: str, server: MailServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log has the reason why a mail was refused, and the invitation; the client sees only that it bounced."""
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
