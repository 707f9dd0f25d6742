"""An operator's own templates and link: those that work, and that any mistake is reported at start."""

import socket
from pathlib import Path

import pytest

from rolecall import UnauthenticatedClient
from rolecall.config import Settings
from rolecall.domain import MailKind
from rolecall.errors import ConfigError
from rolecall.mail import MailRenderer
from rolecall.mail.rendering import MailContent
from rolecall.server import build_server
from support.mail_servers import MailServer, body_of
from support.mail_sites import invite
from support.sites import MakeSite, Site
from support.waiting import wait_until


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """An empty folder for an operator's templates."""
    folder = tmp_path / "templates"
    folder.mkdir()
    return folder


# Templates of one's own


def test_own_templates_replace_the_built_in_ones(make_site: MakeSite, sqlite_url: str, templates: Path) -> None:
    """One by one: those that aren't in the folder are ours, which one of theirs may use."""
    (templates / "invitation.subject").write_text("{{ organization }} wants\n you, {{ role }}!\n", encoding="utf-8")
    (templates / "invitation.html").write_text("<p>Grüße, {{ inviter }}: {{ secret }}</p>", encoding="utf-8")
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(mail_templates=templates))
        invite(site, "bob@acme.io")
        wait_until(lambda: bool(server.accepted))
    (received,) = server.accepted

    assert received.mail["Subject"] == "acme wants you, VIEWER!"
    assert body_of(received.mail, "html").strip() == f"<p>Grüße, ann@acme.io: {received.secret}</p>"
    assert body_of(received.mail).startswith("Hello,")


@pytest.mark.parametrize("name", ["invitation.txt", "sign_in.html"])
def test_template_without_a_secret_is_refused(templates: Path, name: str) -> None:
    """A template without the secret is refused: its recipient could do nothing with it; a link holds the secret too."""
    (templates / name).write_text("Welcome!")
    with pytest.raises(ConfigError, match=f"{name} holds neither"):
        MailRenderer(Settings(mail_templates=templates))
    (templates / name).write_text("{{ link }}")
    MailRenderer(Settings(mail_templates=templates, link_template="https://app.example.com/{action}#{secret}"))


@pytest.mark.parametrize(("listen", "named"), [("127.0.0.1:7", "127.0.0.1:7"), ("rolecall:7", "rolecall:7")])
def test_mails_name_the_servers_address(listen: str, named: str) -> None:
    """Mails name the address that the server listens on; one that listens on all is named by the machine's name."""
    mail_content = MailContent(MailKind.INVITATION, "id", "ann@x.io", "acme", "Acme", "secret", 0, "Ann", "VIEWER")
    mail = MailRenderer(Settings(listen=listen)).render(mail_content).as_string()
    everywhere = [
        MailRenderer(Settings(listen=f"{host}:7")).render(mail_content).as_string() for host in ("0.0.0.0", "[::]")
    ]

    assert named in mail
    assert all(f"{socket.getfqdn()}:7" in mail for mail in everywhere)


def test_a_broken_template_is_named_at_start(sqlite_site: Site, templates: Path) -> None:
    """Whichever of them it is; no server starts with it."""
    names = [f"{kind}.{part}" for kind in ("invitation", "sign_in") for part in ("subject", "txt", "html")]
    for name in names:
        (templates / name).write_text("{{ organisation }}")
        with pytest.raises(ConfigError, match=name) as caught:
            MailRenderer(Settings(mail_templates=templates))
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
def test_any_error_in_a_template_is_reported_at_start(templates: Path, content: str | bytes) -> None:
    """A template broken in grammar, names, computation or encoding is a `ConfigError` at start, never another error."""
    (templates / "sign_in.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"sign_in\.txt"):
        MailRenderer(Settings(mail_templates=templates))


def test_a_missing_folder_of_templates_is_named_at_start(sqlite_site: Site, tmp_path: Path) -> None:
    """A missing folder of templates, or a file in its place, is named at start."""
    file = tmp_path / "file"
    file.write_text("")
    for given in (tmp_path / "nowhere", file):
        with pytest.raises(ConfigError, match=str(given)):
            build_server(sqlite_site.settings.model_copy(update={"mail_templates": given}))


# The link


def test_the_secret_stands_in_the_fragment_of_the_link(make_site: MakeSite, sqlite_url: str) -> None:
    """The secret is in the link's fragment, so that no server on the way logs it; the link replaces the command."""
    with MailServer() as server:
        site = make_site(sqlite_url, **server.settings(link_template="https://app.acme.io/{action}#{secret}"))
        invite(site, "bob@acme.io")
        wait_until(lambda: len(server.accepted) == 1)
        with UnauthenticatedClient(site.address, organization="acme") as guest:
            guest.request_sign_in("ann@acme.io")
        wait_until(lambda: len(server.accepted) == 2)

    for received, action in zip(server.accepted, ("accept", "sign-in"), strict=True):
        link = f"https://app.acme.io/{action}#{received.secret}"
        assert link in body_of(received.mail).splitlines()
        assert f'href="{link}"' in body_of(received.mail, "html")
        assert "ROLECALL_ADDRESS" not in body_of(received.mail)


@pytest.mark.parametrize(
    ("template", "link"),
    [
        ("http://localhost:3000/#/{organization}/{action}?s={secret}", "http://localhost:3000/#/acme/accept?s=hush"),
        ("https://{organization}.acme.io/{{x}}#{secret}", "https://acme.acme.io/{x}#hush"),
        ("https://[::1]:8443/?from=mail#{secret}&then={action}", "https://[::1]:8443/?from=mail#hush&then=accept"),
    ],
)
def test_valid_link_templates_are_accepted(template: str, link: str) -> None:
    """A link may hold the organization's name and the action in any place."""
    what = MailContent(MailKind.INVITATION, "1", "bob@acme.io", "acme", "Acme", "hush", 0, "Ann", "VIEWER")

    assert link in body_of(MailRenderer(Settings(link_template=template)).render(what)).splitlines()


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
def test_invalid_link_template_is_reported_at_start(template: str) -> None:
    """One that no browser follows, that hides the secret or shows it to servers: the setting is named."""
    with pytest.raises(ConfigError, match="link_template"):
        MailRenderer(Settings(link_template=template))


def test_invalid_link_template_prevents_the_start(sqlite_site: Site) -> None:
    """A bad link ends a server at its start, not at the first invitation."""
    with pytest.raises(ConfigError, match="link_template"):
        build_server(sqlite_site.settings.model_copy(update={"link_template": "https://app.acme.io/{secret}"}))
