"""Faults of the mail server: no mail is lost, and none waits for the one at fault."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from rolecall.errors import InvitationNotFound
from support.mail_servers import DROP, OK, MailServer, ReceivedMail, answer_at, first
from support.mail_sites import QUICK_MAIL, Logs, accept, delivery, invite, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until

OTHERS = [f"other{number}@acme.io" for number in range(4)]


@pytest.fixture
def server() -> MailServer:
    """A mail server that is not started yet."""
    return MailServer()


def attempts(site: Site) -> list[int]:
    """Return the attempts counted for each queued mail."""
    return [row.attempts for row in sql(site, "SELECT attempts FROM mails WHERE state = 'queued'")]


# The mail server can't be reached


def test_mails_wait_for_a_mail_server_that_is_down(
    make_site: MakeSite,
    sqlite_url: str,
    server: MailServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No mail is dropped while the mail server can't be reached; once it is back, each arrives once."""
    logs = Logs(capfd)
    site = make_site(sqlite_url, limits=replace(QUICK_MAIL, mail_attempts=1), **server.settings())
    invitations = invite(site, "bob@acme.io", *OTHERS)
    wait_until(lambda: logs.has("mail server unreachable", times=4))
    waiting = {delivery(site, invitation) for invitation in invitations}
    with server:
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations))

    assert waiting == {"QUEUED"}
    assert server.recipients == sorted(["bob@acme.io", *OTHERS])
    assert logs.has(f"127.0.0.1:{server.port}")


def test_silent_mail_server_is_treated_as_unreachable(
    make_site: MakeSite, sqlite_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mail server that never answers is timed out; the mail waits, without an attempt counted against it."""
    limits = replace(QUICK_MAIL, mail_timeout_seconds=0.1)
    logs = Logs(capfd)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        site = make_site(sqlite_url, limits=limits, **MailServer(port=port).settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: logs.has("mail server unreachable", times=2))
    wait_until(lambda: attempts(site) == [0])
    with MailServer(port=port) as server:
        wait_until(lambda: delivery(site, invitation) == "SENT")

    assert server.recipients == ["bob@acme.io"]


# It takes mails later


def test_deferred_mail_is_sent_again(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """A mail deferred at any command is sent again, with the same Message-ID and secret, until accepted once."""
    for command in ("MAIL", "RCPT", "DATA"):
        answer_at(server, command, first("451 not now", "450 nor now"))
    with server:
        site = make_site(sqlite_url, **server.settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "SENT")
    attempts_of = sql(site, "SELECT attempts FROM mails")

    assert len(server.accepted) == 1
    assert len(server.all_received) == 3
    assert len({received.id for received in server.all_received}) == 1
    assert len({received.secret for received in server.all_received}) == 1
    # A refused sender counts against no mail.
    assert attempts_of == [(5,)]


def test_mail_that_is_always_deferred_bounces(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """A mail bounces after the maximum of attempts, and is not tried again."""
    limits = replace(QUICK_MAIL, mail_attempts=3)
    attempted: list[str] = []

    def refuse(address: str) -> str:
        attempted.append(address)
        return "451 never" if address == "bob@acme.io" else OK

    server.at_recipient = refuse
    server.at_data = lambda _: "451 never"
    with server:
        site = make_site(sqlite_url, limits=limits, **server.settings())
        invitations = invite(site, "bob@acme.io", "eve@acme.io")
        wait_until(lambda: all(delivery(site, invitation) == "BOUNCED" for invitation in invitations))

    assert sorted(attempted) == ["bob@acme.io"] * 3 + ["eve@acme.io"] * 3
    assert attempts(site) == []
    assert server.accepted == []


# It may have taken a mail, and may not


def test_mail_without_an_answer_is_sent_twice_and_its_secret_works_once(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """Both copies have one Message-ID; the first use of either works, and the other one no more."""
    people = ["bob@acme.io", "eve@acme.io"]
    dropped: list[str] = []

    def drop(received: ReceivedMail) -> str:
        if received.id in dropped:
            return OK
        dropped.append(received.id)
        return DROP

    server.at_data = drop
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, *people)
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations))
    for used, person in enumerate(people):
        copies = [received for received in server.all_received if received.recipients == [person]]
        joined = accept(site, copies[used].secret).member
        with pytest.raises(InvitationNotFound) as caught:
            accept(site, copies[1 - used].secret)

        assert len(copies) == 2
        assert copies[0].id == copies[1].id
        assert joined.email == person
        assert caught.value.reason == "INVITATION_NOT_FOUND"
        assert len(sql(site, "SELECT user_id FROM members WHERE email_key = :key", key=person)) == 1


def test_mail_whose_outcome_could_not_be_stored_is_sent_again(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """The database went away just after the mail server took it: a second copy with the same Message-ID."""
    limits = replace(QUICK_MAIL, mail_lease_seconds=0.6)
    with server:
        site = make_site(sqlite_url, limits=limits, **server.settings())
        database = Path(sqlite_url.removeprefix("sqlite:///"))
        aside = database.with_suffix(".aside")

        def take(received: ReceivedMail) -> str:
            if len(server.all_received) == 1:
                database.rename(aside)
            return OK

        server.at_data = take
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.accepted))
        aside.rename(database)
        wait_until(lambda: delivery(site, invitation) == "SENT")

    assert len(server.accepted) == 2
    assert len({received.id for received in server.accepted}) == 1
    assert len({received.secret for received in server.accepted}) == 1


# One of many is at fault


def test_a_bad_mail_delays_no_other(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """Mails that the server refuses, in whatever way, don't delay the others: each arrives once."""
    answers = {"later": "451 not now", "away": "421 go away", "never": "550 no such user", "broken": DROP}
    bad = [f"{place}-{kind}@acme.io" for place in ("recipient", "data") for kind in answers]

    def answer_in_turn(place: str, address: str) -> str:
        where, _, kind = address.removesuffix("@acme.io").partition("-")
        return answers[kind] if where == place else OK

    server.at_recipient = lambda address: answer_in_turn("recipient", address)
    server.at_data = lambda received: answer_in_turn("data", received.recipients[0])
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, *bad, *OTHERS)
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations[len(bad) :]))
        wait_until(lambda: all(delivery(site, each) == "BOUNCED" for each in invitations if "never" in each.email))
        states = {delivery(site, each) for each in invitations[: len(bad)] if "never" not in each.email}

    assert server.recipients == OTHERS
    assert states == {"QUEUED"}


def test_mail_server_that_accepts_two_mails_per_session_gets_all(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """A mail server that hangs up before each third mail gets all of them, each once."""
    begun: list[int] = []

    def limit() -> str:
        begun.append(1)
        return "421 enough" if len(begun) % 3 == 0 else OK

    server.at_sender = limit
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, *OTHERS)
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations))

    assert server.recipients == OTHERS
