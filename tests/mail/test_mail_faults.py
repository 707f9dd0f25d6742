"""What goes wrong between us and the mail server: nobody loses a mail, and nobody else waits for the one at fault."""

import socket
from pathlib import Path

import pytest
from conftest import MakeSite, Site, wait_until
from mail_servers import DROP, OK, Arrived, MailServer, answer_at, first
from mail_sites import Logs, accept, delivery, hurry, invite, sql

from rolecall.errors import InvitationNotFound

OTHERS = [f"other{number}@acme.io" for number in range(4)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def server() -> MailServer:
    """A mail server that isn't there yet."""
    return MailServer()


def attempts(site: Site) -> list[int]:
    """How many attempts are held against the mails that are queued."""
    return [row.attempts for row in sql(site, "SELECT attempts FROM mails WHERE state = 'queued'")]


# The mail server can't be reached


def test_mails_wait_for_a_mail_server_that_is_down(
    make_site: MakeSite,
    sqlite_url: str,
    server: MailServer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However often it can't be reached, no mail is given up; once it is back, each arrives once."""
    monkeypatch.setattr("rolecall.mail.sender.MAX_ATTEMPTS", 1)
    logs = Logs(capfd)
    site = make_site(sqlite_url, **server.settings())
    invitations = invite(site, "bob@acme.io", *OTHERS)
    wait_until(lambda: logs.has("mail server unreachable", times=4))
    waiting = {delivery(site, invitation) for invitation in invitations}
    with server:
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations))

    assert waiting == {"QUEUED"}
    assert server.recipients == sorted(["bob@acme.io", *OTHERS])
    assert logs.has(f"127.0.0.1:{server.port}")


def test_a_mail_server_that_says_nothing_is_like_one_that_is_down(
    make_site: MakeSite, sqlite_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it for ever; the mail does, with nothing held against it."""
    monkeypatch.setattr("rolecall.mail.transport.TIMEOUT_SECONDS", 0.1)
    logs = Logs(capfd)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        site = make_site(sqlite_url, **MailServer(port=port).settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: logs.has("mail server unreachable", times=2))
    wait_until(lambda: attempts(site) == [0])
    with MailServer(port=port) as server:
        wait_until(lambda: delivery(site, invitation) == "SENT")

    assert server.recipients == ["bob@acme.io"]


# It takes mails later


def test_a_mail_that_is_put_off_is_sent_again(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """At whichever command: until the server takes it, with the same Message-ID and the same secret, and once only."""
    for command in ("MAIL", "RCPT", "DATA"):
        answer_at(server, command, first("451 not now", "450 nor now"))
    with server:
        site = make_site(sqlite_url, **server.settings())
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: delivery(site, invitation) == "SENT")
    attempts_of = sql(site, "SELECT attempts FROM mails")

    assert len(server.taken) == 1
    assert len(server.handed) == 3
    assert len({arrived.id for arrived in server.handed}) == 1
    assert len({arrived.secret for arrived in server.handed}) == 1
    # A refused sender counts against no mail.
    assert attempts_of == [(5,)]


def test_a_mail_that_is_put_off_for_ever_bounces(
    make_site: MakeSite, sqlite_url: str, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many attempts, and is not tried again."""
    monkeypatch.setattr("rolecall.mail.sender.MAX_ATTEMPTS", 3)
    tried: list[str] = []

    def refuse(address: str) -> str:
        tried.append(address)
        return "451 never" if address == "bob@acme.io" else OK

    server.at_recipient = refuse
    server.at_data = lambda _: "451 never"
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, "bob@acme.io", "eve@acme.io")
        wait_until(lambda: all(delivery(site, invitation) == "BOUNCED" for invitation in invitations))

    assert sorted(tried) == ["bob@acme.io"] * 3 + ["eve@acme.io"] * 3
    assert attempts(site) == []
    assert server.taken == []


# It may have taken a mail, and may not


def test_a_mail_without_an_answer_is_sent_twice_and_works_once(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """The copies have one Message-ID; whichever is used first lets in, and the other one no more."""
    people = ["bob@acme.io", "eve@acme.io"]
    dropped: list[str] = []

    def drop(arrived: Arrived) -> str:
        if arrived.id in dropped:
            return OK
        dropped.append(arrived.id)
        return DROP

    server.at_data = drop
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, *people)
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations))
    for used, person in enumerate(people):
        copies = [arrived for arrived in server.handed if arrived.recipients == [person]]
        joined = accept(site, copies[used].secret).member
        with pytest.raises(InvitationNotFound) as caught:
            accept(site, copies[1 - used].secret)

        assert len(copies) == 2
        assert copies[0].id == copies[1].id
        assert joined.email == person
        assert caught.value.reason == "INVITATION_NOT_FOUND"
        assert len(sql(site, "SELECT user_id FROM members WHERE email_key = :key", key=person)) == 1


def test_a_mail_that_could_not_be_put_down_as_sent_is_sent_again(
    make_site: MakeSite, sqlite_url: str, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database went away just after the mail server took it: a second copy with the same Message-ID."""
    monkeypatch.setattr("rolecall.mail.sender.HELD_SECONDS", 0.6)
    with server:
        site = make_site(sqlite_url, **server.settings())
        database = Path(sqlite_url.removeprefix("sqlite:///"))
        aside = database.with_suffix(".aside")

        def take(arrived: Arrived) -> str:
            if len(server.handed) == 1:
                database.rename(aside)
            return OK

        server.at_data = take
        (invitation,) = invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.taken))
        aside.rename(database)
        wait_until(lambda: delivery(site, invitation) == "SENT")

    assert len(server.taken) == 2
    assert len({arrived.id for arrived in server.taken}) == 1
    assert len({arrived.secret for arrived in server.taken}) == 1


# One of many is at fault


def test_a_bad_mail_is_in_nobodys_way(make_site: MakeSite, sqlite_url: str, server: MailServer) -> None:
    """Whatever is wrong with some, and however the server says so: the others arrive meanwhile, each once."""
    answers = {"later": "451 not now", "away": "421 go away", "never": "550 no such user", "broken": DROP}
    bad = [f"{place}-{kind}@acme.io" for place in ("recipient", "data") for kind in answers]

    def judge(place: str, address: str) -> str:
        where, _, kind = address.removesuffix("@acme.io").partition("-")
        return answers[kind] if where == place else OK

    server.at_recipient = lambda address: judge("recipient", address)
    server.at_data = lambda arrived: judge("data", arrived.recipients[0])
    with server:
        site = make_site(sqlite_url, **server.settings())
        invitations = invite(site, *bad, *OTHERS)
        wait_until(lambda: all(delivery(site, invitation) == "SENT" for invitation in invitations[len(bad) :]))
        wait_until(lambda: all(delivery(site, each) == "BOUNCED" for each in invitations if "never" in each.email))
        states = {delivery(site, each) for each in invitations[: len(bad)] if "never" not in each.email}

    assert server.recipients == OTHERS
    assert states == {"QUEUED"}


def test_a_mail_server_that_takes_two_mails_at_once_gets_all(
    make_site: MakeSite, sqlite_url: str, server: MailServer
) -> None:
    """It hangs up before each third mail; each arrives once."""
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
