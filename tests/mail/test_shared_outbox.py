"""Several servers over one database: they share its mails, and take over from one that died."""

from collections import Counter
from dataclasses import replace

from rolecall import UnauthenticatedClient
from rolecall.domain import now
from rolecall.storage import Transaction
from rolecall.storage import outbox as rows
from rolecall.storage.outbox import Mail
from rolecall.v1 import invitation_pb2 as pb
from support.mail_servers import OK, MailServer, ReceivedMail, free_port
from support.mail_sites import QUICK_MAIL, another_server, invite, owner, sql
from support.sites import MakeSite
from support.waiting import wait_until


def test_servers_share_the_outbox(make_site: MakeSite, database_url: str) -> None:
    """Each of three takes some of forty mails; each mail is sent exactly once."""
    people = sorted(f"person{number:02}@acme.io" for number in range(40))
    names = {"one", "two", "three"}
    with MailServer() as server:
        # Nobody is served before all have mails in hand.
        server.gate = lambda: {received.user for received in server.all_received} == names
        site = make_site(database_url, **server.settings(smtp_user="one", smtp_password="x"))
        with another_server(site, smtp_user="two"), another_server(site, smtp_user="three"):
            invite(site, *people)
            wait_until(lambda: len(server.accepted) >= len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))
            client = owner(site)
            deliveries = Counter(invitation.delivery for invitation in client.invitations.list())

    assert server.recipients == people
    assert len({received.id for received in server.all_received}) == len(server.all_received) == len(people)
    assert {received.user for received in server.accepted} == names
    assert deliveries == {pb.DELIVERY_STATE_SENT: len(people)}


def test_mails_leased_by_a_dead_server_are_sent_by_another(make_site: MakeSite, database_url: str) -> None:
    """A mail that a killed server had leased is sent by another one after the lease, once."""
    site = make_site(database_url, **MailServer(port=free_port()).settings())
    people = sorted(f"person{number}@acme.io" for number in range(7))
    invite(site, *people)
    site.server.stop(0)
    sql(site, "UPDATE mails SET due_time = 0, attempts = 0")
    arrivals: dict[str, int] = {}

    def answer(received: ReceivedMail) -> str:
        arrivals[received.id.strip("<>").partition("@")[0]] = now()
        return OK

    with MailServer() as server:
        server.at_data = answer
        until = now() + 800_000
        leased = site.storage.write(lambda tx: rows.lease(tx, now(), until, 3))
        with another_server(site, **server.settings()):
            wait_until(lambda: len(server.accepted) == len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))

    held = {mail.id for mail in leased}
    assert len(held) == 3
    assert {mail.attempts for mail in leased} == {1}
    assert min(arrivals[identifier] for identifier in held) >= until
    assert server.recipients == people
    assert len(server.all_received) == len(people)


def test_server_does_not_wait_for_mails_leased_by_another(make_site: MakeSite, database_url: str) -> None:
    """Servers that take mails at the same moment get different ones, and none gets one that isn't due."""
    site = make_site(database_url, **MailServer(port=free_port()).settings())
    invite(site, *(f"person{number}@acme.io" for number in range(5)))
    site.server.stop(0)
    at = now()
    sql(site, "UPDATE mails SET due_time = 0, attempts = 0")
    sql(site, "UPDATE mails SET due_time = :late WHERE id = (SELECT min(id) FROM mails)", late=at + 3_600_000_000)
    (late,) = sql(site, "SELECT min(id) FROM mails")[0]
    until = at + 60_000_000

    def take_within_another(tx: Transaction) -> tuple[list[Mail], list[Mail]]:
        mine = rows.lease(tx, at, until, 2)
        if database_url.startswith("sqlite"):
            # One transaction writes at a time.
            return mine, rows.lease(tx, at, until, 5)
        return mine, site.storage.write(lambda other: rows.lease(other, at, until, 5))

    mine, others = site.storage.write(take_within_another)

    assert len(mine) == len(others) == 2
    assert len({mail.id for mail in (*mine, *others)} | {late}) == 5
    assert site.storage.write(lambda tx: rows.lease(tx, at, until, 5)) == []


def test_a_queued_mail_wakes_the_sender(make_site: MakeSite, sqlite_url: str) -> None:
    """A queued mail is sent before the next poll of the outbox; so is one that is due again before that."""
    limits = replace(QUICK_MAIL, mail_poll_seconds=60.0)
    tries: list[str] = []

    def defer_once(address: str) -> str:
        tries.append(address)
        return "451 not now" if len(tries) == 1 else OK

    with MailServer() as server:
        server.at_recipient = defer_once
        site = make_site(sqlite_url, limits=limits, **server.settings())
        invite(site, "bob@acme.io")
        wait_until(lambda: server.recipients == ["bob@acme.io"])

    assert len(tries) == 2


def test_sign_in_mails_are_sent_before_invitations(make_site: MakeSite, database_url: str) -> None:
    """Sign-in mails, whose links work for 15 minutes, are sent before queued invitations, except those being sent."""
    people = [f"person{number:02}@acme.io" for number in range(40)]
    answering: list[bool] = []
    with MailServer() as server:
        server.gate = lambda: bool(answering)
        site = make_site(database_url, **server.settings())
        invite(site, *people)
        wait_until(lambda: bool(server.all_received))
        with UnauthenticatedClient(site.address, organization="acme", timeout=20) as guest:
            guest.request_sign_in("viewer@acme.io")
        answering.append(True)
        wait_until(lambda: len(server.accepted) == len(people) + 1)

    order = [received.recipients for received in server.accepted]
    assert order.index(["viewer@acme.io"]) <= QUICK_MAIL.mail_leases
    assert server.recipients == sorted([*people, "viewer@acme.io"])


def test_a_stopped_server_leaves_its_mails_to_the_next(make_site: MakeSite, sqlite_url: str) -> None:
    """A server stops within its limit though a mail is being sent; the mail is sent again, with the same Message-ID."""
    limits = replace(QUICK_MAIL, mail_lease_seconds=1.2)
    people = sorted(f"person{number}@acme.io" for number in range(3))
    open_gate: list[bool] = []
    with MailServer() as server:
        server.gate = lambda: bool(open_gate)
        site = make_site(sqlite_url, limits=limits, **server.settings())
        invite(site, *people)
        wait_until(lambda: bool(server.all_received))
        begun = now()
        site.server.stop(0)
        took = now() - begun
        open_gate.append(True)
        with another_server(site):
            wait_until(lambda: len({received.id for received in server.accepted}) == len(people))
            wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))

    assert took < 4_000_000
    assert sorted(set(server.recipients)) == people
    assert len({received.secret for received in server.all_received}) == len(people)
