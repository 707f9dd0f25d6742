"""An operator's own templates and link: what works, and that any mistake is told at start."""

import socket
from pathlib import Path

import pytest
from conftest import MakeSite, Site, wait_until
from mail_servers import MailServer, text_of
from mail_sites import hurry, invite

from rolecall import Guest
from rolecall.config import Settings
from rolecall.domain import LinkKind
from rolecall.errors import ConfigError
from rolecall.mail import Letters
from rolecall.mail.letters import Letter
from rolecall.server import build_server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """An empty folder for an operator's templates."""
    folder = tmp_path / "templates"
    folder.mkdir()
    return folder


# Templates of one's own


def test_own_templates_stand_in_for_ours(make_site: MakeSite, sqlite_url: str, templates: Path) -> None:
    """One by one: those that aren't in the folder are ours, which one of theirs may use."""
    (templates / "invitation.subject").write_text("{{ organization }} wants\n you, {{ role }}!\n", encoding="utf-8")
    (templates / "invitation.html").write_text("<p>Grüße, {{ inviter }}: {{ secret }}</p>", encoding="utf-8")
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(mail_templates=templates))
        invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.taken))
    (arrived,) = server.taken

    assert arrived.mail["Subject"] == "acme wants you, VIEWER!"
    assert text_of(arrived.mail, "html").strip() == f"<p>Grüße, ann@acme.io: {arrived.secret}</p>"
    assert text_of(arrived.mail).startswith("Hello,")


@pytest.mark.parametrize("name", ["invitation.txt", "sign_in.html"])
def test_a_template_without_a_secret_is_none(templates: Path, name: str) -> None:
    """Whoever got such a mail could do nothing with it; a link holds the secret too."""
    (templates / name).write_text("Welcome!")
    with pytest.raises(ConfigError, match=f"{name} holds neither"):
        Letters(Settings(mail_templates=templates))
    (templates / name).write_text("{{ link }}")
    Letters(Settings(mail_templates=templates, link_template="https://app.example.com/{action}#{secret}"))


@pytest.mark.parametrize(("listen", "told"), [("127.0.0.1:7", "127.0.0.1:7"), ("rolecall:7", "rolecall:7")])
def test_mails_tell_where_the_server_is(listen: str, told: str) -> None:
    """As it listens; whoever listens everywhere is reached by the machine's name."""
    letter = Letter(LinkKind.INVITATION, "id", "ann@x.io", "acme", "Acme", "secret", 0, "Ann", "VIEWER")
    said = Letters(Settings(listen=listen)).write(letter).as_string()
    everywhere = [Letters(Settings(listen=f"{host}:7")).write(letter).as_string() for host in ("0.0.0.0", "[::]")]

    assert told in said
    assert all(f"{socket.getfqdn()}:7" in mail for mail in everywhere)


def test_a_broken_template_is_named_at_start(sqlite_site: Site, templates: Path) -> None:
    """Whichever of them it is; no server starts with it."""
    names = [f"{kind}.{part}" for kind in ("invitation", "sign_in") for part in ("subject", "txt", "html")]
    for name in names:
        (templates / name).write_text("{{ organisation }}")
        with pytest.raises(ConfigError, match=name) as caught:
            Letters(Settings(mail_templates=templates))
        (templates / name).unlink()

        assert "organisation" in str(caught.value)
    (templates / names[0]).write_text("{{ organisation }}")
    with pytest.raises(ConfigError, match=names[0]):
        build_server(sqlite_site.settings.model_copy(update={"mail_templates": templates}))


@pytest.mark.parametrize(
    "content",
    [
        "{{",
        "{% if %}",
        "{{ secret|shout }}",
        "{% include 'missing.txt' %}",
        "{% include '../../etc/passwd' %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ organization + 1 }}",
        "{{ 1 / 0 }}",
        "{% for number in range(10 ** 9) %}{% endfor %}",
        "{{ organization.nothing.at.all }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        b"Gr\xfc\xdfe {{ secret }}",
    ],
)
def test_whatever_breaks_a_template_is_a_mistake_at_start(templates: Path, content: str | bytes) -> None:
    """In its grammar, in what it names, in what it computes, in its encoding: `ConfigError`, never another error."""
    (templates / "sign_in.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"sign_in\.txt"):
        Letters(Settings(mail_templates=templates))


def test_a_missing_folder_of_templates_is_named_at_start(sqlite_site: Site, tmp_path: Path) -> None:
    """And a file in its place."""
    file = tmp_path / "file"
    file.write_text("")
    for given in (tmp_path / "nowhere", file):
        with pytest.raises(ConfigError, match=str(given)):
            build_server(sqlite_site.settings.model_copy(update={"mail_templates": given}))


# The link


def test_the_secret_stands_in_the_fragment_of_the_link(make_site: MakeSite, sqlite_url: str) -> None:
    """So that no server on the way logs it; the mail has the link instead of the command."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(link_template="https://app.acme.io/{action}#{secret}"))
        invite(site, "bob@acme.io")
        wait_until(lambda: len(server.taken) == 1)
        with Guest(site.address, organization="acme") as guest:
            guest.request_sign_in("ann@acme.io")
        wait_until(lambda: len(server.taken) == 2)

    for arrived, action in zip(server.taken, ("accept", "sign-in"), strict=True):
        link = f"https://app.acme.io/{action}#{arrived.secret}"
        assert link in text_of(arrived.mail).splitlines()
        assert f'href="{link}"' in text_of(arrived.mail, "html")
        assert "ROLECALL_ADDRESS" not in text_of(arrived.mail)


@pytest.mark.parametrize(
    ("template", "link"),
    [
        ("http://localhost:3000/#/{organization}/{action}?s={secret}", "http://localhost:3000/#/acme/accept?s=hush"),
        ("https://{organization}.acme.io/{{x}}#{secret}", "https://acme.acme.io/{x}#hush"),
        ("https://[::1]:8443/?from=mail#{secret}&then={action}", "https://[::1]:8443/?from=mail#hush&then=accept"),
    ],
)
def test_links_may_be_of_many_forms(template: str, link: str) -> None:
    """With the organization's name and the action wherever they are wanted."""
    what = Letter(LinkKind.INVITATION, "1", "bob@acme.io", "acme", "Acme", "hush", 0, "Ann", "VIEWER")

    assert link in text_of(Letters(Settings(link_template=template)).write(what)).splitlines()


@pytest.mark.parametrize(
    "template",
    [
        "https://app.acme.io/{action}",
        "https://app.acme.io/{action}/{secret}",
        "https://app.acme.io/{secret}#",
        "https://app.acme.io/?{secret}#{action}",
        "https://app.acme.io/{secret}#{secret}",
        "https://app.acme.io/#{secret}{secret}",
        "https://app.acme.io/#{{secret}}",
        "https://app.acme.io/#{secret}{user}",
        "https://app.acme.io/#{secret}{}",
        "https://app.acme.io/#{secret}{0}",
        "https://app.acme.io/#{secret",
        "https://app.acme.io/#{secret:d}",
        "https://app.acme.io/#{secret!r}",
        "https://app.acme.io/{organization:d}#{secret}",
        "https://app.acme.io/{organization.__class__}#{secret}",
        "https://app.acme.io/{action[0]}#{secret}",
        "https://app.acme.io/{action!z}#{secret}",
        "app.acme.io/#{secret}",
        "javascript:alert(1)#{secret}",
        "#{secret}",
        "https://#{secret}",
        "https:///accept#{secret}",
        "https:// app.acme.io/#{secret}",
        "https://app.acme.io/\n#{secret}",
    ],
)
def test_a_bad_link_is_a_mistake_at_start(template: str) -> None:
    """One that no browser follows, that hides the secret or shows it to servers: the setting is named."""
    with pytest.raises(ConfigError, match="link_template"):
        Letters(Settings(link_template=template))


def test_a_bad_link_keeps_a_server_from_starting(sqlite_site: Site) -> None:
    """It is not found out when the first person is invited."""
    with pytest.raises(ConfigError, match="link_template"):
        build_server(sqlite_site.settings.model_copy(update={"link_template": "https://app.acme.io/{secret}"}))
