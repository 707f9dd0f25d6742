"""Recipients of mails, and when a mail is dropped: changed invitations, members, unknown addresses."""

from pathlib import Path
from typing import Any

import pytest

from rolecall import Client, UnauthenticatedClient
from rolecall.credentials import server_key
from rolecall.credentials.mailed_secrets import MailedSecrets
from rolecall.domain import LinkKind
from rolecall.errors import InvalidField, InvitationNotFound, UnauthenticatedCredential
from rolecall.v1.session_pb2 import RequestSignInRequest
from support.mail_servers import MailServer, body_of
from support.mail_sites import Logs, accept, another_server, delivery, dump, invite, owner, sql
from support.sites import MakeSite, Site
from support.waiting import wait_until


@pytest.fixture
def server() -> MailServer:
    """A mail server that is not started yet."""
    return MailServer()


@pytest.fixture
def site_without_mail_server(make_site: MakeSite, sqlite_url: str, server: MailServer) -> Site:
    """A site whose mail server is not started yet."""
    return make_site(sqlite_url, **server.settings())


def ask(site: Site, email: str, organization: str = "acme") -> tuple[bytes, set[str], str | None]:
    """Request a sign-in link; the answer holds nothing else."""
    request = RequestSignInRequest(organization=organization, email=email).SerializeToString()
    answer, call = site.call("/rolecall.v1.SessionService/RequestSignIn", request)
    return answer, {key for key, _ in call.trailing_metadata() or ()}, call.details()


def queued(site: Site) -> int:
    """Count the queued mails."""
    return len(sql(site, "SELECT id FROM mails WHERE state = 'queued'"))


def secret_of(site: Site, invitation_id: str) -> str:
    """The first secret of an invitation, as only the server can compute it."""
    return MailedSecrets(server_key.read(site.settings.key_file)).secret(LinkKind.INVITATION, invitation_id, 1)


# Invitations


def test_obsolete_invitation_is_not_mailed(site_without_mail_server: Site, server: MailServer) -> None:
    """Deleted, accepted, or expired before the mail left: only the one that still waits is mailed."""
    deleted, accepted, expired, waiting = invite(
        site_without_mail_server, "deleted@acme.io", "accepted@acme.io", "expired@acme.io", "waiting@acme.io"
    )
    client = owner(site_without_mail_server)
    client.invitations.delete(deleted.id)
    accept(site_without_mail_server, secret_of(site_without_mail_server, accepted.id))
    sql(site_without_mail_server, "UPDATE invitations SET expire_time = 1 WHERE id = :id", id=expired.id)
    with server:
        wait_until(lambda: not queued(site_without_mail_server))

    assert server.recipients == ["waiting@acme.io"]
    assert delivery(site_without_mail_server, waiting) == "SENT"


def test_only_the_newest_secret_is_mailed(site_without_mail_server: Site, server: MailServer) -> None:
    """An invitation that is resent twice before its mail is sent: one mail, with the secret that works."""
    (invitation,) = invite(site_without_mail_server, "bob@acme.io")
    client = owner(site_without_mail_server)
    for _ in range(2):
        client.invitations.resend(invitation.id)
    with server:
        wait_until(lambda: not queued(site_without_mail_server))
    with pytest.raises(InvitationNotFound):
        accept(site_without_mail_server, secret_of(site_without_mail_server, invitation.id))

    (received,) = server.all_received
    assert received.secret != secret_of(site_without_mail_server, invitation.id)
    assert accept(site_without_mail_server, received.secret).member.email == "bob@acme.io"


def test_validate_only_mails_nothing(site_without_mail_server: Site) -> None:
    """Neither a `validate_only` request nor a batch with an invalid entry mails anything."""
    client = owner(site_without_mail_server)
    client.invitations.create([("bob@acme.io", "VIEWER")], validate_only=True)
    with pytest.raises(InvalidField):
        invite(site_without_mail_server, "bob@acme.io", "nobody")

    assert dump(site_without_mail_server)["mails"] == []


# Signing in


def test_a_member_signs_in_by_the_mailed_link(site_without_mail_server: Site, server: MailServer) -> None:
    """The mail names the person and the organization; its secret works once, however the address was spelt."""
    with server:
        ask(site_without_mail_server, "Viewer@ACME.io")
        wait_until(lambda: bool(server.accepted))
    (received,) = server.accepted
    with UnauthenticatedClient(site_without_mail_server.address) as guest:
        answer = guest.sign_in(received.secret)
        with pytest.raises(UnauthenticatedCredential):
            guest.sign_in(received.secret)

    assert received.recipients == ["viewer@acme.io"]
    assert "Hello viewer," in body_of(received.mail)
    assert received.mail["Subject"] == "Sign in to acme"
    assert (answer.organization, answer.member.user_id) == ("acme", site_without_mail_server.members["VIEWER"].user_id)
    with Client(site_without_mail_server.address, answer.session.secret) as client:
        assert client.session.who_am_i().role == "VIEWER"


def test_unknown_addresses_get_the_same_answer_and_no_mail(site_without_mail_server: Site, server: MailServer) -> None:
    """An unknown address, one that is only invited, an unknown organization: the same rows are written for all."""
    (invitation,) = invite(site_without_mail_server, "invited@acme.io")
    sql(site_without_mail_server, "DELETE FROM mails")
    shapes = []
    answers = []
    for email, organization in [
        ("viewer@acme.io", "acme"),
        ("stranger@acme.io", "acme"),
        ("invited@acme.io", "acme"),
        ("viewer@acme.io", "nowhere"),
    ]:
        before = dump(site_without_mail_server)
        answers.append(ask(site_without_mail_server, email, organization))
        shapes.append(written(before, dump(site_without_mail_server)))
        assert shapes[-1].pop("organization") == organization
        assert shapes[-1].pop("email_key") == email
    with server:
        wait_until(lambda: not queued(site_without_mail_server))

    assert answers == [answers[0]] * 4
    assert shapes == [shapes[0]] * 4
    assert server.recipients == ["viewer@acme.io"]
    assert invitation.id not in {received.id for received in server.all_received}


def written(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> dict[str, object]:
    """The new request to sign in and its mail, without ids and times; no other table got anything."""
    known = {row["id"] for name in ("mails", "sign_ins") for row in before[name]}
    (mail,), (request,) = ([row for row in after[name] if row["id"] not in known] for name in ("mails", "sign_ins"))
    for name in after.keys() - {"mails", "sign_ins"}:
        assert after[name] == before[name], name
    assert mail["about"] == request["id"]
    assert mail["organization"] == request["organization"]
    columns = {**{f"mail.{key}": value for key, value in mail.items()}, **request}
    for name in ("mail.id", "mail.about", "mail.organization", "mail.due_time", "mail.attempts", "id", "expire_time"):
        del columns[name]
    return columns


def test_member_who_left_before_the_mail_was_sent_gets_none(site_without_mail_server: Site, server: MailServer) -> None:
    """A member who left gets no queued mail, and a link mailed before works for no later holder of the address."""
    client = owner(site_without_mail_server)
    ask(site_without_mail_server, "viewer@acme.io")
    ask(site_without_mail_server, "contributor@acme.io")
    client.members.remove(site_without_mail_server.members["VIEWER"].user_id)
    with server:
        wait_until(lambda: not queued(site_without_mail_server))
    (received,) = server.accepted
    client.members.remove(site_without_mail_server.members["CONTRIBUTOR"].user_id)
    (invitation,) = invite(site_without_mail_server, "contributor@acme.io")
    accept(site_without_mail_server, secret_of(site_without_mail_server, invitation.id))
    with UnauthenticatedClient(site_without_mail_server.address) as guest, pytest.raises(UnauthenticatedCredential):
        guest.sign_in(received.secret)

    assert received.recipients == ["contributor@acme.io"]


def test_expired_sign_in_request_is_not_mailed(site_without_mail_server: Site, server: MailServer) -> None:
    """A mail whose link expired while no mail server was reachable isn't sent."""
    ask(site_without_mail_server, "viewer@acme.io")
    sql(site_without_mail_server, "UPDATE sign_ins SET expire_time = 1")
    with server:
        wait_until(lambda: not queued(site_without_mail_server))

    assert server.all_received == []


def test_mails_to_one_address_are_limited(site_without_mail_server: Site, server: MailServer) -> None:
    """Three mails for one address at once; further requests are answered alike, and write nothing."""
    answers = [ask(site_without_mail_server, "viewer@acme.io") for _ in range(6)]
    with server:
        wait_until(lambda: not queued(site_without_mail_server))

    assert answers == [answers[0]] * 6
    assert len(server.accepted) == 3
    assert len(dump(site_without_mail_server)["sign_ins"]) == 3


# The secrets


def test_mailed_secrets_are_stored_and_logged_nowhere(
    site_without_mail_server: Site, server: MailServer, sqlite_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Mailed secrets are in no column, no byte of the database's files, no line of the log, whatever went wrong."""
    logs = Logs(capfd)
    server.at_data = lambda _: "451 not now" if len(server.all_received) <= 2 else "250 OK"
    (invitation,) = invite(site_without_mail_server, "bob@acme.io")
    ask(site_without_mail_server, "viewer@acme.io")
    wait_until(lambda: logs.has("mail server unreachable"))
    with server:
        wait_until(lambda: len(server.accepted) == 2)
        wait_until(lambda: delivery(site_without_mail_server, invitation) == "SENT")
    secrets = {received.secret for received in server.accepted}
    rows = repr(dump(site_without_mail_server))
    with UnauthenticatedClient(site_without_mail_server.address) as guest:
        for secret in sorted(secrets):
            (guest.accept_invitation if secret.startswith("rci") else guest.sign_in)(secret)
            with pytest.raises((InvitationNotFound, UnauthenticatedCredential)):
                (guest.accept_invitation if secret.startswith("rci") else guest.sign_in)(secret)
    rows += repr(dump(site_without_mail_server))
    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    files = b"".join(file.read_bytes() for file in folder.glob("rolecall.db*"))

    assert {secret[:3] for secret in secrets} == {"rci", "rcl"}
    assert logs.has("mail deferred")
    for secret in secrets:
        # Only the secret part: the id before it is no secret.
        hidden = secret.rpartition("_")[2]
        assert hidden not in rows
        assert hidden.encode() not in files
        assert hidden not in logs.text


def test_a_mail_server_that_repeats_the_mail_gets_no_secret_into_the_log(
    site_without_mail_server: Site, server: MailServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some quote in their refusal what they dislike, as a link."""
    logs = Logs(capfd)
    server.at_data = lambda received: f"554 blocked: https://app.acme.io/accept#{received.secret}"
    (invitation,) = invite(site_without_mail_server, "bob@acme.io")
    with server:
        wait_until(lambda: delivery(site_without_mail_server, invitation) == "BOUNCED")
        wait_until(lambda: logs.has("mail refused"))

    assert server.all_received[0].secret not in logs.text


def test_servers_with_one_key_mail_the_same_secret(site_without_mail_server: Site, server: MailServer) -> None:
    """Servers with one key mail and accept the same secret."""
    invite(site_without_mail_server, "bob@acme.io")
    site_without_mail_server.server.stop(0)
    with server, another_server(site_without_mail_server, **server.settings()):
        wait_until(lambda: bool(server.accepted))
    with another_server(site_without_mail_server) as third:
        assert accept(third, server.accepted[0].secret).member.email == "bob@acme.io"
