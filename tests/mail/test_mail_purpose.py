"""Who gets a mail, and who no longer or never does: invitations that changed before it left, members, strangers."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSite, Site, wait_until
from mail_servers import MailServer, text_of
from mail_sites import Logs, accept, another_server, delivery, dump, hurry, invite, owner, sql

from rolecall import Client, Guest, keys
from rolecall.domain import LinkKind
from rolecall.errors import InvalidField, InvitationNotFound, UnauthenticatedCredential
from rolecall.links import Links
from rolecall.v1.session_pb2 import RequestSignInRequest


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def server() -> MailServer:
    """A mail server that isn't there yet."""
    return MailServer()


@pytest.fixture
def cut_off(make_site: MakeSite, sqlite_url: str, server: MailServer) -> Site:
    """A site whose mail server isn't there yet."""
    return make_site(sqlite_url, **server.settings())


def ask(site: Site, email: str, organization: str = "acme") -> tuple[bytes, set[str], str | None]:
    """Ask for a link to sign in; all that is told about it."""
    request = RequestSignInRequest(organization=organization, email=email).SerializeToString()
    answer, call = site.call("/rolecall.v1.SessionService/RequestSignIn", request)
    return answer, {key for key, _ in call.trailing_metadata() or ()}, call.details()


def queued(site: Site) -> int:
    """How many mails are to be sent."""
    return len(sql(site, "SELECT id FROM mails WHERE state = 'queued'"))


def secret_of(site: Site, invitation_id: str) -> str:
    """The first secret of an invitation, as only the server can compute it."""
    return Links(keys.read(site.settings.key_file)).secret(LinkKind.INVITATION, invitation_id, 1)


# Invitations


def test_an_invitation_that_is_over_is_not_mailed(cut_off: Site, server: MailServer) -> None:
    """Deleted, accepted, or expired before the mail left: only the one that still waits is mailed."""
    deleted, accepted, expired, waiting = invite(
        cut_off, "deleted@acme.io", "accepted@acme.io", "expired@acme.io", "waiting@acme.io"
    )
    client = owner(cut_off)
    client.invitations.delete(deleted.id)
    accept(cut_off, secret_of(cut_off, accepted.id))
    sql(cut_off, "UPDATE invitations SET expire_time = 1 WHERE id = :id", id=expired.id)
    with server:
        wait_until(lambda: not queued(cut_off))

    assert server.recipients == ["waiting@acme.io"]
    assert delivery(cut_off, waiting) == "SENT"


def test_only_the_newest_secret_is_mailed(cut_off: Site, server: MailServer) -> None:
    """An invitation that was resent twice before its mail left: one mail, whose secret works, unlike the first."""
    (invitation,) = invite(cut_off, "bob@acme.io")
    client = owner(cut_off)
    for _ in range(2):
        client.invitations.resend(invitation.id)
    with server:
        wait_until(lambda: not queued(cut_off))
    with pytest.raises(InvitationNotFound):
        accept(cut_off, secret_of(cut_off, invitation.id))

    (arrived,) = server.handed
    assert arrived.secret != secret_of(cut_off, invitation.id)
    assert accept(cut_off, arrived.secret).member.email == "bob@acme.io"


def test_a_check_of_invitations_mails_nothing(cut_off: Site) -> None:
    """Nor does a batch with a fault in it."""
    client = owner(cut_off)
    client.invitations.create([("bob@acme.io", "VIEWER")], validate_only=True)
    with pytest.raises(InvalidField):
        invite(cut_off, "bob@acme.io", "nobody")

    assert dump(cut_off)["mails"] == []


# Signing in


def test_a_member_signs_in_by_the_mailed_link(cut_off: Site, server: MailServer) -> None:
    """The mail names the person and the organization; its secret works once, however the address was spelt."""
    with server:
        ask(cut_off, "Viewer@ACME.io")
        wait_until(lambda: bool(server.taken))
    (arrived,) = server.taken
    with Guest(cut_off.address) as guest:
        answer = guest.sign_in(arrived.secret)
        with pytest.raises(UnauthenticatedCredential):
            guest.sign_in(arrived.secret)

    assert arrived.recipients == ["viewer@acme.io"]
    assert "Hello viewer," in text_of(arrived.mail)
    assert arrived.mail["Subject"] == "Sign in to acme"
    assert (answer.organization, answer.member.user_id) == ("acme", cut_off.members["VIEWER"].user_id)
    with Client(cut_off.address, answer.session.secret) as client:
        assert client.session.who_am_i().role == "VIEWER"


def test_strangers_get_the_same_answer_and_no_mail(cut_off: Site, server: MailServer) -> None:
    """An unknown address, one that is only invited, an unknown organization: the same rows are written for all."""
    (invitation,) = invite(cut_off, "invited@acme.io")
    sql(cut_off, "DELETE FROM mails")
    shapes = []
    answers = []
    for email, organization in [
        ("viewer@acme.io", "acme"),
        ("stranger@acme.io", "acme"),
        ("invited@acme.io", "acme"),
        ("viewer@acme.io", "nowhere"),
    ]:
        before = dump(cut_off)
        answers.append(ask(cut_off, email, organization))
        shapes.append(written(before, dump(cut_off)))
        assert shapes[-1].pop("organization") == organization
        assert shapes[-1].pop("email_key") == email
    with server:
        wait_until(lambda: not queued(cut_off))

    assert answers == [answers[0]] * 4
    assert shapes == [shapes[0]] * 4
    assert server.recipients == ["viewer@acme.io"]
    assert invitation.id not in {arrived.id for arrived in server.handed}


def written(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> dict[str, object]:
    """The new request to sign in and its mail, without ids and times; no other table got anything."""
    known = {row["id"] for name in ("mails", "sign_ins") for row in before[name]}
    (mail,), (request,) = ([row for row in after[name] if row["id"] not in known] for name in ("mails", "sign_ins"))
    for name in after.keys() - {"mails", "sign_ins"}:
        assert after[name] == before[name], name
    assert mail["about"] == request["id"]
    assert mail["organization"] == request["organization"]
    told = {**{f"mail.{key}": value for key, value in mail.items()}, **request}
    for name in ("mail.id", "mail.about", "mail.organization", "mail.due_time", "mail.attempts", "id", "expire_time"):
        del told[name]
    return told


def test_a_member_who_left_before_the_mail_did_gets_none(cut_off: Site, server: MailServer) -> None:
    """And a link that was mailed before lets nobody in who has the address afterwards."""
    client = owner(cut_off)
    ask(cut_off, "viewer@acme.io")
    ask(cut_off, "contributor@acme.io")
    client.members.remove(cut_off.members["VIEWER"].user_id)
    with server:
        wait_until(lambda: not queued(cut_off))
    (arrived,) = server.taken
    client.members.remove(cut_off.members["CONTRIBUTOR"].user_id)
    (invitation,) = invite(cut_off, "contributor@acme.io")
    accept(cut_off, secret_of(cut_off, invitation.id))
    with Guest(cut_off.address) as guest, pytest.raises(UnauthenticatedCredential):
        guest.sign_in(arrived.secret)

    assert arrived.recipients == ["contributor@acme.io"]


def test_a_request_that_is_over_is_not_mailed(cut_off: Site, server: MailServer) -> None:
    """A quarter of an hour without a mail server: the link would be dead on arrival."""
    ask(cut_off, "viewer@acme.io")
    sql(cut_off, "UPDATE sign_ins SET expire_time = 1")
    with server:
        wait_until(lambda: not queued(cut_off))

    assert server.handed == []


def test_nobodys_mailbox_is_flooded(cut_off: Site, server: MailServer) -> None:
    """Three mails for one address at once; further requests are answered alike, and write nothing."""
    answers = [ask(cut_off, "viewer@acme.io") for _ in range(6)]
    with server:
        wait_until(lambda: not queued(cut_off))

    assert answers == [answers[0]] * 6
    assert len(server.taken) == 3
    assert len(dump(cut_off)["sign_ins"]) == 3


# The secrets


def test_mailed_secrets_are_stored_and_logged_nowhere(
    cut_off: Site, server: MailServer, sqlite_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """In no column of any table, in no byte of the database's files, in no line of the log; whatever went wrong."""
    logs = Logs(capfd)
    server.at_data = lambda _: "451 not now" if len(server.handed) <= 2 else "250 OK"
    (invitation,) = invite(cut_off, "bob@acme.io")
    ask(cut_off, "viewer@acme.io")
    wait_until(lambda: logs.has("mail server unreachable"))
    with server:
        wait_until(lambda: len(server.taken) == 2)
        wait_until(lambda: delivery(cut_off, invitation) == "SENT")
    secrets = {arrived.secret for arrived in server.taken}
    rows = repr(dump(cut_off))
    with Guest(cut_off.address) as guest:
        for secret in sorted(secrets):
            (guest.accept_invitation if secret.startswith("rci") else guest.sign_in)(secret)
            with pytest.raises((InvitationNotFound, UnauthenticatedCredential)):
                (guest.accept_invitation if secret.startswith("rci") else guest.sign_in)(secret)
    rows += repr(dump(cut_off))
    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    files = b"".join(file.read_bytes() for file in folder.glob("rolecall.db*"))

    assert {secret[:3] for secret in secrets} == {"rci", "rcl"}
    assert logs.has("mail not taken yet")
    for secret in secrets:
        # The part that nobody knows: what stands before it is an id.
        hidden = secret.rpartition("_")[2]
        assert hidden not in rows
        assert hidden.encode() not in files
        assert hidden not in logs.text


def test_a_mail_server_that_repeats_the_mail_gets_no_secret_into_the_log(
    cut_off: Site, server: MailServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some quote in their refusal what they dislike, as a link."""
    logs = Logs(capfd)
    server.at_data = lambda arrived: f"554 blocked: https://app.acme.io/accept#{arrived.secret}"
    (invitation,) = invite(cut_off, "bob@acme.io")
    with server:
        wait_until(lambda: delivery(cut_off, invitation) == "BOUNCED")
        wait_until(lambda: logs.has("mail refused"))

    assert server.handed[0].secret not in logs.text


def test_servers_with_one_key_mail_the_same_secret(cut_off: Site, server: MailServer) -> None:
    """Whichever sends the mail, whichever is asked later: both know it."""
    invite(cut_off, "bob@acme.io")
    cut_off.server.stop(0)
    with server, another_server(cut_off, **server.settings()):
        wait_until(lambda: bool(server.taken))
    with another_server(cut_off) as third:
        assert accept(third, server.taken[0].secret).member.email == "bob@acme.io"
