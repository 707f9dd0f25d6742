"""Several servers over one database: they share its mails, and take over from one that died."""

from collections import Counter

import pytest
from conftest import MakeSite, wait_until
from mail_servers import OK, Arrived, MailServer, free_port
from mail_sites import another_server, hurry, invite, owner, sql

from rolecall import Guest
from rolecall.domain import now
from rolecall.mail.sender import AT_ONCE
from rolecall.storage import Transaction
from rolecall.storage import mails as rows
from rolecall.storage.mails import Mail
from rolecall.v1 import invitation_pb2 as pb


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def test_servers_share_the_mails(make_site: MakeSite, database_url: str) -> None:
    """Each of three takes some of forty mails; each mail is sent exactly once."""
    people = sorted(f"person{number:02}@acme.io" for number in range(40))
    names = {"one", "two", "three"}
    with MailServer() as server:
        # Nobody is served before all have mails in hand.
        server.gate = lambda: {arrived.user for arrived in server.handed} == names
        site = make_site(database_url, **server.settings(smtp_user="one", smtp_password="x"))
        with another_server(site, smtp_user="two"), another_server(site, smtp_user="three"):
            invite(site, *people)
            wait_until(lambda: len(server.taken) >= len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))
            client = owner(site)
            deliveries = Counter(invitation.delivery for invitation in client.invitations.list())

    assert server.recipients == people
    assert len({arrived.id for arrived in server.handed}) == len(server.handed) == len(people)
    assert {arrived.user for arrived in server.taken} == names
    assert deliveries == {pb.DELIVERY_STATE_SENT: len(people)}


def test_what_a_dead_server_took_is_sent_by_another(make_site: MakeSite, database_url: str) -> None:
    """Not before its time is over, and then once."""
    site = make_site(database_url, **MailServer(port=free_port()).settings())
    people = sorted(f"person{number}@acme.io" for number in range(7))
    invite(site, *people)
    site.server.stop(0)
    sql(site, "UPDATE mails SET due_time = 0, attempts = 0")
    arrivals: dict[str, int] = {}

    def take(arrived: Arrived) -> str:
        arrivals[arrived.id.strip("<>").partition("@")[0]] = now()
        return OK

    with MailServer() as server:
        server.at_data = take
        until = now() + 800_000
        taken = site.storage.write(lambda tx: rows.take(tx, now(), until, 3))
        with another_server(site, **server.settings()):
            wait_until(lambda: len(server.taken) == len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))

    held = {mail.id for mail in taken}
    assert len(held) == 3
    assert {mail.attempts for mail in taken} == {1}
    assert min(arrivals[identifier] for identifier in held) >= until
    assert server.recipients == people
    assert len(server.handed) == len(people)


def test_nobody_waits_for_what_another_server_has_in_hand(make_site: MakeSite, database_url: str) -> None:
    """Those who take at the same moment get different mails, and none gets one that isn't due."""
    site = make_site(database_url, **MailServer(port=free_port()).settings())
    invite(site, *(f"person{number}@acme.io" for number in range(5)))
    site.server.stop(0)
    at = now()
    sql(site, "UPDATE mails SET due_time = 0, attempts = 0")
    sql(site, "UPDATE mails SET due_time = :late WHERE id = (SELECT min(id) FROM mails)", late=at + 3_600_000_000)
    (late,) = sql(site, "SELECT min(id) FROM mails")[0]
    until = at + 60_000_000

    def take_within_another(tx: Transaction) -> tuple[list[Mail], list[Mail]]:
        mine = rows.take(tx, at, until, 2)
        if database_url.startswith("sqlite"):
            # One transaction writes at a time.
            return mine, rows.take(tx, at, until, 5)
        return mine, site.storage.write(lambda other: rows.take(other, at, until, 5))

    mine, others = site.storage.write(take_within_another)

    assert len(mine) == len(others) == 2
    assert len({mail.id for mail in (*mine, *others)} | {late}) == 5
    assert site.storage.write(lambda tx: rows.take(tx, at, until, 5)) == []


def test_mails_to_sign_in_overtake_invitations(make_site: MakeSite, database_url: str) -> None:
    """Behind a mail server that is slow, only the few that are in hand come before one: its link lives 15 minutes."""
    people = [f"person{number:02}@acme.io" for number in range(40)]
    answering: list[bool] = []
    with MailServer() as server:
        server.gate = lambda: bool(answering)
        site = make_site(database_url, **server.settings())
        invite(site, *people)
        wait_until(lambda: bool(server.handed))
        with Guest(site.address, organization="acme", timeout=20) as guest:
            guest.request_sign_in("viewer@acme.io")
        answering.append(True)
        wait_until(lambda: len(server.taken) == len(people) + 1)

    order = [arrived.recipients for arrived in server.taken]
    assert order.index(["viewer@acme.io"]) <= AT_ONCE
    assert server.recipients == sorted([*people, "viewer@acme.io"])


def test_a_stopped_server_leaves_its_mails_to_the_next(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in good time though a mail is under way, which is sent again, with the same Message-ID."""
    monkeypatch.setattr("rolecall.mail.sender.HELD_SECONDS", 1.2)
    people = sorted(f"person{number}@acme.io" for number in range(3))
    open_gate: list[bool] = []
    with MailServer() as server:
        server.gate = lambda: bool(open_gate)
        site = make_site(sqlite_url, **server.settings())
        invite(site, *people)
        wait_until(lambda: bool(server.handed))
        begun = now()
        site.server.stop(0)
        took = now() - begun
        open_gate.append(True)
        with another_server(site):
            wait_until(lambda: len({arrived.id for arrived in server.taken}) == len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))

    assert took < 4_000_000
    assert sorted(set(server.recipients)) == people
    assert len({arrived.secret for arrived in server.handed}) == len(people)
