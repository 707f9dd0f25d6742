"""What mails say, whom they go to, whom they come from; and that no name makes more of them."""

import email
import email.policy
from contextlib import suppress
from email.message import EmailMessage
from typing import Any

import pytest
from conftest import MakeSite, Site, wait_until
from mail_servers import MailServer, secret_in, text_of
from mail_sites import accept, hurry, invite, owner, sql

from rolecall import Client, Guest
from rolecall.config import Settings
from rolecall.domain import LinkKind
from rolecall.errors import ConfigError, InvalidField
from rolecall.mail import Letters
from rolecall.mail.letters import Letter

SECRET = "rci_0123456789abcdefghijkl_" + "x" * 49
HEADERS = ["From", "To", "Date", "Message-ID", "Auto-Submitted", "Subject", "MIME-Version", "Content-Type"]
LINE_ENDS = ["\r\n", "\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def letter(kind: LinkKind = LinkKind.INVITATION, **others: Any) -> Letter:
    """What a mail has to tell."""
    values = {
        "id": "0123",
        "mailbox": "bob@acme.io",
        "organization_id": "acme",
        "organization": "Acme",
        "secret": SECRET,
        "expire_time": 1_800_000_000_000_000,
        "inviter": "Ann",
        "role": "VIEWER",
        "name": "Bob",
    }
    return Letter(kind, **{**values, **others})


def sent(what: Letter, **settings: Any) -> EmailMessage:
    """The mail as it is read after it went over the wire."""
    parsed = email.message_from_bytes(bytes(Letters(Settings(**settings)).write(what)), policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


# What they say


@pytest.mark.parametrize(("kind", "command"), [(LinkKind.INVITATION, "accept"), (LinkKind.SIGN_IN, "sign-in")])
@pytest.mark.parametrize("form", ["plain", "html"])
def test_a_mail_tells_what_to_do(kind: LinkKind, command: str, form: str) -> None:
    """Text and HTML: who invites to what or who signs in, the command, the secret alone on its line, and until when."""
    mail = sent(letter(kind), public_address="rolecall.acme.io:443", mail_from="Acme <no-reply@acme.io>")
    said = text_of(mail, form)

    for word in ("Acme", f"ROLECALL_ADDRESS=rolecall.acme.io:443 rolecall {command}", "2027-01-15 08:00 UTC"):
        assert word in said
    for word in ("Ann", "VIEWER") if kind is LinkKind.INVITATION else ("Bob",):
        assert word in said
    assert SECRET in (said.splitlines() if form == "plain" else said.replace("<pre>", "<").replace("<", "\n").split())
    assert mail["From"] == "Acme <no-reply@acme.io>"
    assert mail["To"] == "bob@acme.io"
    assert mail["Message-ID"] == "<0123@acme.io>"
    assert mail["Subject"] == ("Ann invites you to Acme" if kind is LinkKind.INVITATION else "Sign in to Acme")


def test_names_are_text_in_html() -> None:
    """Tags, entities and quotes in them stay what they are, in the text as in the HTML."""
    name = "<b>Böse</b> & \"Söhne' <script>"
    for kind in LinkKind:
        mail = sent(
            letter(kind, organization=name, inviter=name, role=name, name=name),
            link_template="https://acme.io/?a&b#{secret}",
        )
        html = text_of(mail, "html")

        assert name in text_of(mail)
        assert name not in html
        assert "<script>" not in html
        assert "&lt;b&gt;Böse&lt;/b&gt; &amp; &#34;Söhne&#39; &lt;script&gt;" in html
        assert f'href="https://acme.io/?a&amp;b#{SECRET}"' in html


@pytest.mark.parametrize("end", LINE_ENDS)
def test_no_name_makes_a_header(end: str) -> None:
    """Whatever ends a line somewhere: the mail has the headers it always has, and one body of each kind."""
    name = f"Eve{end}Bcc: eve@acme.io{end}{end}Body"
    for kind in LinkKind:
        mail = sent(letter(kind, organization=name, inviter=name, role=name, name=name))

        assert mail.keys() == HEADERS
        assert "Eve Bcc: eve@acme.io Body" in mail["Subject"]
        assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
        assert secret_in(mail) == SECRET


@pytest.mark.parametrize(
    "name",
    ["=?utf-8?q?x=0D=0ABcc:_eve@acme.io=0D=0A=0D=0ABody?=", "=?utf-8?b?eA0KQmNjOiBldmVAYWNtZS5pbw0KDQpCb2R5?="],
)
def test_no_encoded_name_makes_a_header(name: str) -> None:
    """A name that looks like an encoded header, and may be an organization's: the ends of lines in it are none."""
    for kind in LinkKind:
        mail = sent(letter(kind, organization=name, inviter=name))

        assert mail.keys() == HEADERS
        assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
        assert secret_in(mail) == SECRET


def test_names_that_would_break_a_line_are_refused(sqlite_site: Site) -> None:
    """Of organizations and of persons, long before they get into a mail."""
    for end in ("\r\n", "\n", "\u2028", "\x00"):
        name = f"Eve{end}Bcc: eve@acme.io"
        with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client, pytest.raises(InvalidField):
            client.organization.update(name)
        with Guest(sqlite_site.address) as guest, pytest.raises(InvalidField):
            guest.accept_invitation(SECRET, display_name=name)


def test_the_subject_holds_any_name(make_site: MakeSite, sqlite_url: str) -> None:
    """Whatever an organization may be called is in the subject and both bodies, as it is written."""
    names = ["Bücher & Söhne", "東京 🚀 株式会社", "x" * 64, "é" * 64, "=?utf-8?q?Acme?="]
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        client = owner(site)
        for number, name in enumerate(names):
            client.organization.update(name)
            invite(site, f"person{number}@acme.io")
            wait_until(lambda number=number: len(server.taken) > number)  # type: ignore[misc]

    for name, arrived in zip(names, server.taken, strict=True):
        # But for blanks, where lines were folded.
        assert "".join(arrived.mail["Subject"].split()) == "".join(f"ann@acme.io invites you to {name}".split())
        assert name in text_of(arrived.mail)
        assert name.replace("&", "&amp;") in text_of(arrived.mail, "html")
        assert arrived.raw.isascii()
        assert all(len(line) <= 998 for line in arrived.raw.split(b"\r\n"))


def test_mails_go_to_the_very_address(make_site: MakeSite, sqlite_url: str) -> None:
    """Its domain in A-labels, its local part as written."""
    mailboxes = {
        "Bob@Bücher.io": "Bob@xn--bcher-kva.io",
        "bob@xn--strae-oqa.io": "bob@xn--strae-oqa.io",
        "o'hara+a.b@acme.io": "o'hara+a.b@acme.io",
        "!#$%&*/?=^_`{|}~-@acme.io": "!#$%&*/?=^_`{|}~-@acme.io",
    }
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        invite(site, *mailboxes)
        wait_until(lambda: len(server.taken) == len(mailboxes))

    assert server.recipients == sorted(mailboxes.values())
    assert {str(arrived.mail["To"]) for arrived in server.taken} == set(mailboxes.values())


def test_an_address_that_looks_encoded_is_nobody_elses(make_site: MakeSite, sqlite_url: str) -> None:
    """It is refused, or gets its mail: but no other address gets it, such as that of ann@acme.io."""
    addresses = {"=?utf-8?q?ann?=@acme.io", "=?utf-8?q?eve=40evil=2Eio=2C?=@acme.io"}
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        for address in addresses:
            with suppress(InvalidField):
                invite(site, address)
        invite(site, "bob@acme.io")
        wait_until(lambda: "bob@acme.io" in server.recipients)
        wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))

    assert set(server.recipients) <= {*addresses, "bob@acme.io"}


def test_the_name_that_somebody_gave_is_in_their_mails(make_site: MakeSite, sqlite_url: str) -> None:
    """An invited person's: they are greeted by it. Others, whom they invite, see their address."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        invite(site, "bob@acme.io", role="ADMIN")
        wait_until(lambda: len(server.taken) == 1)
        session = accept(site, server.taken[0].secret, "Bob <Böb> Bobson").session.secret
        with Guest(site.address, organization="acme") as guest:
            guest.request_sign_in("bob@acme.io")
        wait_until(lambda: len(server.taken) == 2)
        with Client(site.address, session) as bob:
            bob.invitations.create([("eve@acme.io", "VIEWER")])
        wait_until(lambda: len(server.taken) == 3)

    assert text_of(server.taken[1].mail).startswith("Hello Bob <Böb> Bobson,")
    assert server.taken[2].mail["Subject"] == "bob@acme.io invites you to acme"


@pytest.mark.parametrize("name", ["https://evil.io", "Win now: www.evil.io", "evil.io", "//evil"])
def test_no_name_makes_a_link(make_site: MakeSite, sqlite_url: str, name: str) -> None:
    """Strangers see the inviter's address and the organization's id: a link there would be a trusted sender's."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        first, odd = "bob@acme.io", "www.evil.io/x@acme.io"
        invite(site, first, odd, role="ADMIN")
        wait_until(lambda: len(server.taken) == 2)
        secrets = {arrived.recipients[0]: arrived.secret for arrived in server.taken}
        sessions = [accept(site, secrets[address], name).session.secret for address in (first, odd)]
        owner(site).organization.update(name)
        for number, session in enumerate(sessions):
            with Client(site.address, session) as inviter:
                inviter.invitations.create([(f"stranger{number}@x.io", "VIEWER")])
            wait_until(lambda number=number: len(server.taken) == number + 3)  # type: ignore[misc]

    subjects = [arrived.mail["Subject"] for arrived in server.taken[2:]]
    assert subjects == ["bob@acme.io invites you to acme", "acme invites you to acme"]
    for arrived in server.taken[2:]:
        for form in ("plain", "html"):
            assert "evil" not in text_of(arrived.mail, form)


# Whom they come from


def test_mails_come_from_any_address(make_site: MakeSite, sqlite_url: str) -> None:
    """With a name beyond ASCII, and at a domain beyond ASCII, which mail servers know in A-labels."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(mail_from="Böb <rolecall@bücher.io>"))
        invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.taken), seconds=5)
    (sender,) = server.taken[0].mail["From"].addresses

    assert (sender.display_name, sender.addr_spec) == ("Böb", "rolecall@xn--bcher-kva.io")
    assert server.taken[0].id.endswith("@xn--bcher-kva.io>")
    assert server.taken[0].raw.isascii()


def test_the_sender_may_have_any_name() -> None:
    """Beyond ASCII, with what addresses are made of, or none."""
    for name in ("Böb", "Acme, Inc.", 'The "Acme" <team>', ""):
        quoted = name.replace('"', '\\"')
        (sender,) = sent(letter(), mail_from=f'"{quoted}" <rolecall@acme.io>')["From"].addresses

        assert (sender.display_name, sender.addr_spec) == (name, "rolecall@acme.io")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nobody",
        "nobody@",
        "Acme, Inc. <rolecall@acme.io>",
        "a b@acme.io",
        "röle@acme.io",
        "<a@acme.io>, <b@acme.io>",
        "Acme\r\nBcc: eve@acme.io <a@acme.io>",
    ],
)
def test_a_sender_that_is_no_address_is_a_mistake_at_start(given: str) -> None:
    """The setting is named; none of it is taken for another address."""
    with pytest.raises(ConfigError, match="mail_from"):
        Letters(Settings(mail_from=given))
