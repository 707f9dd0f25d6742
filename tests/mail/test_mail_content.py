"""The content of mails, their recipients and senders; and that no name changes their structure."""

import email
import email.policy
from contextlib import suppress
from email.message import EmailMessage
from typing import Any

import pytest

from rolecall import Client, UnauthenticatedClient
from rolecall.config import Settings
from rolecall.domain import Invitee, MailKind
from rolecall.errors import ConfigError, InvalidField
from rolecall.mail import MailRenderer
from rolecall.mail.rendering import MailContent
from support.mail_servers import MailServer, body_of, secret_in
from support.mail_sites import accept, invite, owner, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until

SECRET = "rci_0123456789abcdefghijkl_" + "x" * 49
HEADERS = ["From", "To", "Date", "Message-ID", "Auto-Submitted", "Subject", "MIME-Version", "Content-Type"]
LINE_ENDS = ["\r\n", "\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def mail_content(kind: MailKind = MailKind.INVITATION, **others: Any) -> MailContent:
    """The parts of a mail, read back."""
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
        "token": "laptop",
        "token_id": "0123456789abcdefghijkl",
        "holder": "ann@acme.io",
    }
    if kind is MailKind.TOKEN_EXPIRY:
        values["secret"] = ""
    return MailContent(kind, **{**values, **others})


def sent(what: MailContent, **settings: Any) -> EmailMessage:
    """Render the mail, and parse its bytes again."""
    parsed = email.message_from_bytes(
        bytes(MailRenderer(Settings(**settings)).render(what)), policy=email.policy.default
    )
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


# What they say


@pytest.mark.parametrize(("kind", "command"), [(MailKind.INVITATION, "accept"), (MailKind.SIGN_IN, "sign-in")])
@pytest.mark.parametrize("form", ["plain", "html"])
def test_mail_says_what_to_do(kind: MailKind, command: str, form: str) -> None:
    """Text and HTML: who invites to what or who signs in, the command, the secret alone on its line, and until when."""
    mail = sent(mail_content(kind), public_address="rolecall.acme.io:443", mail_from="Acme <no-reply@acme.io>")
    body = body_of(mail, form)

    for word in ("Acme", f"ROLECALL_ADDRESS=rolecall.acme.io:443 rolecall {command}", "2027-01-15 08:00 UTC"):
        assert word in body
    for word in ("Ann", "VIEWER") if kind is MailKind.INVITATION else ("Bob",):
        assert word in body
    assert SECRET in (body.splitlines() if form == "plain" else body.replace("<pre>", "<").replace("<", "\n").split())
    assert mail["From"] == "Acme <no-reply@acme.io>"
    assert mail["To"] == "bob@acme.io"
    assert mail["Message-ID"] == "<0123@acme.io>"
    assert mail["Subject"] == ("Ann invites you to Acme" if kind is MailKind.INVITATION else "Sign in to Acme")


@pytest.mark.parametrize("form", ["plain", "html"])
def test_notice_says_which_token_expires_and_what_to_do(form: str) -> None:
    """Text and HTML: the token by name and id, its holder, until when it works, its last use, and the commands."""
    used = mail_content(MailKind.TOKEN_EXPIRY, last_use_time=1_799_000_000_000_000)
    mail = sent(used, public_address="rolecall.acme.io:443", link_template="https://acme.io/#{secret}")
    body = " ".join(body_of(mail, form).split())
    unused = body_of(sent(mail_content(MailKind.TOKEN_EXPIRY, token="", holder="")), form)

    for words in (
        "laptop",
        "(0123456789abcdefghijkl) of ann@acme.io in Acme stops working on 2027-01-15 08:00 UTC.",
        "last used on 2027-01-03 18:13 UTC",
        "ROLECALL_ADDRESS=rolecall.acme.io:443 rolecall tokens create NAME",
        "rolecall tokens delete 0123456789abcdefghijkl",
    ):
        assert words in body
    assert "href" not in body
    assert mail["Subject"] == "A token of Acme stops working on 2027-01-15 08:00 UTC"
    assert mail["To"] == "bob@acme.io"
    assert "never used" in unused
    assert "the token 0123456789abcdefghijkl of" in " ".join(unused.split())
    assert "a member in Acme" in " ".join(unused.split())


def test_names_are_escaped_in_html() -> None:
    """Tags, entities and quotes in them stay what they are, in the text as in the HTML."""
    name = "<b>Böse</b> & \"Söhne' <script>"
    for kind in MailKind:
        mail = sent(
            mail_content(kind, organization=name, inviter=name, role=name, name=name, token=name, holder=name),
            link_template="https://acme.io/?a&b#{secret}",
        )
        html = body_of(mail, "html")

        assert name in body_of(mail)
        assert name not in html
        assert "<script>" not in html
        assert "&lt;b&gt;Böse&lt;/b&gt; &amp; &#34;Söhne&#39; &lt;script&gt;" in html
        assert (f'href="https://acme.io/?a&amp;b#{SECRET}"' in html) is (kind is not MailKind.TOKEN_EXPIRY)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_name_cannot_inject_a_header(end: str) -> None:
    """A name with any line end leaves the mail its usual headers, and one body of each kind."""
    name = f"Eve{end}Bcc: eve@acme.io{end}{end}Body"
    for kind in MailKind:
        mail = sent(mail_content(kind, organization=name, inviter=name, role=name, name=name, token=name, holder=name))

        assert mail.keys() == HEADERS
        assert "Eve Bcc: eve@acme.io Body" in mail["Subject"]
        assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
        assert kind is MailKind.TOKEN_EXPIRY or secret_in(mail) == SECRET


@pytest.mark.parametrize(
    "name",
    ["=?utf-8?q?x=0D=0ABcc:_eve@acme.io=0D=0A=0D=0ABody?=", "=?utf-8?b?eA0KQmNjOiBldmVAYWNtZS5pbw0KDQpCb2R5?="],
)
def test_encoded_name_cannot_inject_a_header(name: str) -> None:
    """A name that looks like an encoded header, and may be an organization's: the ends of lines in it are none."""
    for kind in MailKind:
        mail = sent(mail_content(kind, organization=name, inviter=name))

        assert mail.keys() == HEADERS
        assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
        assert kind is MailKind.TOKEN_EXPIRY or secret_in(mail) == SECRET


def test_names_that_would_break_a_line_are_refused(sqlite_site: Site) -> None:
    """Names with line ends, of organizations and of persons, are refused long before they get into a mail."""
    for end in ("\r\n", "\n", "\u2028", "\x00"):
        name = f"Eve{end}Bcc: eve@acme.io"
        with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client, pytest.raises(InvalidField):
            client.organization.update(name)
        with UnauthenticatedClient(sqlite_site.address) as guest, pytest.raises(InvalidField):
            guest.accept_invitation(SECRET, display_name=name)


def test_the_subject_holds_any_name(make_site: MakeSite, sqlite_url: str) -> None:
    """Any name of an organization is in the subject and both bodies unchanged."""
    names = ["Bücher & Söhne", "東京 🚀 株式会社", "x" * 64, "é" * 64, "=?utf-8?q?Acme?="]
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        client = owner(site)
        for number, name in enumerate(names):
            client.organization.update(name)
            invite(site, f"person{number}@acme.io")
            wait_until(lambda number=number: len(server.accepted) > number)  # type: ignore[misc]

    for name, received in zip(names, server.accepted, strict=True):
        # But for blanks, where lines were folded.
        assert "".join(received.mail["Subject"].split()) == "".join(f"ann@acme.io invites you to {name}".split())
        assert name in body_of(received.mail)
        assert name.replace("&", "&amp;") in body_of(received.mail, "html")
        assert received.raw.isascii()
        assert all(len(line) <= 998 for line in received.raw.split(b"\r\n"))


def test_mails_are_sent_to_the_address_as_written(make_site: MakeSite, sqlite_url: str) -> None:
    """A mail goes to the address with its domain in A-labels and its local part as written."""
    mailboxes = {
        "Bob@Bücher.io": "Bob@xn--bcher-kva.io",
        "bob@xn--strae-oqa.io": "bob@xn--strae-oqa.io",
        "o'hara+a.b@acme.io": "o'hara+a.b@acme.io",
        "!#$%&*/?=^_`{|}~-@acme.io": "!#$%&*/?=^_`{|}~-@acme.io",
    }
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        invite(site, *mailboxes)
        wait_until(lambda: len(server.accepted) == len(mailboxes))

    assert server.recipients == sorted(mailboxes.values())
    assert {str(received.mail["To"]) for received in server.accepted} == set(mailboxes.values())


def test_address_with_an_encoded_word_reaches_no_other(make_site: MakeSite, sqlite_url: str) -> None:
    """An address that looks encoded is refused or gets its mail; no other address does, such as ann@acme.io."""
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
        wait_until(lambda: len(server.accepted) == 1)
        session = accept(site, server.accepted[0].secret, "Bob <Böb> Bobson").session.secret
        with UnauthenticatedClient(site.address, organization="acme") as guest:
            guest.request_sign_in("bob@acme.io")
        wait_until(lambda: len(server.accepted) == 2)
        with Client(site.address, session) as bob:
            bob.invitations.create([("eve@acme.io", "VIEWER")])
        wait_until(lambda: len(server.accepted) == 3)

    assert body_of(server.accepted[1].mail).startswith("Hello Bob <Böb> Bobson,")
    assert server.accepted[2].mail["Subject"] == "bob@acme.io invites you to acme"


@pytest.mark.parametrize("name", ["https://evil.io", "Win now: www.evil.io", "evil.io", "//evil"])
def test_name_cannot_inject_a_link(make_site: MakeSite, sqlite_url: str, name: str) -> None:
    """Names that look like links are not: recipients see the inviter's address and the organization's id."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        first, odd = "bob@acme.io", "www.evil.io/x@acme.io"
        invite(site, first, odd, role="ADMIN")
        wait_until(lambda: len(server.accepted) == 2)
        secrets = {received.recipients[0]: received.secret for received in server.accepted}
        sessions = [accept(site, secrets[address], name).session.secret for address in (first, odd)]
        owner(site).organization.update(name)
        for number, session in enumerate(sessions):
            with Client(site.address, session) as inviter:
                inviter.invitations.create([(f"stranger{number}@x.io", "VIEWER")])
            wait_until(lambda number=number: len(server.accepted) == number + 3)  # type: ignore[misc]

    subjects = [received.mail["Subject"] for received in server.accepted[2:]]
    assert subjects == ["bob@acme.io invites you to acme", "acme invites you to acme"]
    for received in server.accepted[2:]:
        for form in ("plain", "html"):
            assert "evil" not in body_of(received.mail, form)


def test_name_that_an_inviter_chose_cannot_inject_a_link(make_site: MakeSite, sqlite_url: str) -> None:
    """An invited person who gives no name has that of the invitation: mails to them name it only where it's no link."""
    names = {"bob@acme.io": "https://evil.io", "eve@acme.io": "Eve", "www.x.io/y@acme.io": "evil.io"}
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings())
        made = owner(site).invitations.create([Invitee(address, "VIEWER", "Any") for address in names]).invitations
        for invitation in made:
            owner(site).invitations.update(invitation.id, display_name=names[invitation.email])
        wait_until(lambda: not sql(site, "SELECT id FROM mails WHERE state = 'queued'"))
        secrets = {received.recipients[0]: received.secret for received in server.accepted}
        members = {address: accept(site, secret).member for address, secret in secrets.items()}
        before = len(server.accepted)
        with UnauthenticatedClient(site.address, organization="acme") as guest:
            for address in names:
                guest.request_sign_in(address)
        wait_until(lambda: len(server.accepted) == before + 3)

    greetings = {
        received.recipients[0]: body_of(received.mail).splitlines()[0] for received in server.accepted[before:]
    }
    assert {address: member.display_name for address, member in members.items()} == names
    assert greetings == {
        "bob@acme.io": "Hello bob@acme.io,",
        "eve@acme.io": "Hello Eve,",
        "www.x.io/y@acme.io": f"Hello {members['www.x.io/y@acme.io'].user_id},",
    }


# Whom they come from


def test_mails_come_from_any_address(make_site: MakeSite, sqlite_url: str) -> None:
    """The sender may have a name beyond ASCII, and a domain beyond ASCII, which mail servers know in A-labels."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(mail_from="Böb <rolecall@bücher.io>"))
        invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.accepted), seconds=5)
    (sender,) = server.accepted[0].mail["From"].addresses

    assert (sender.display_name, sender.addr_spec) == ("Böb", "rolecall@xn--bcher-kva.io")
    assert server.accepted[0].id.endswith("@xn--bcher-kva.io>")
    assert server.accepted[0].raw.isascii()


def test_the_sender_may_have_any_name() -> None:
    """Beyond ASCII, with what addresses are made of, or none."""
    for name in ("Böb", "Acme, Inc.", 'The "Acme" <team>', ""):
        quoted = name.replace('"', '\\"')
        (sender,) = sent(mail_content(), mail_from=f'"{quoted}" <rolecall@acme.io>')["From"].addresses

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
def test_invalid_sender_is_reported_at_start(given: str) -> None:
    """The error names the setting; no part of the value is read as another address."""
    with pytest.raises(ConfigError, match="mail_from"):
        MailRenderer(Settings(mail_from=given))
