"""The log of failed authentications: what it says, and that nobody can fill it."""

import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from rolecall import UnauthenticatedClient
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind, LinkKind, Refusal
from rolecall.errors import InvitationNotFound, UnauthenticatedCredential
from rolecall.identity.failed_authentications import FailedAuthentications
from rolecall.limits import DEFAULT_LIMITS, Limits, Rate
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import id_of, put_credential
from support.server_calls import UNAUTHENTICATED, SiteCalls
from support.sites import QUICK_LIMITS, MakeSite
from support.waiting import wait_until

WHO_AM_I = session.WhoAmIRequest()


def logged(failed: FailedAuthentications, *, closing: bool = False) -> list[tuple[str, str, str, int]]:
    """Flush the failures; return peer, cause, credential and count of each line, all of them at the level info."""
    with capture_logs() as lines:
        failed.flush(closing=closing)
    assert all((line["event"], line["log_level"]) == ("authentication failed", "info") for line in lines)
    return [(line["peer"], line["cause"], line.get("credential_id", ""), line["count"]) for line in lines]


@pytest.mark.usefixtures("each_transport")
def test_each_failure_is_logged_with_peer_cause_and_credential(make_site: MakeSite, database_url: str) -> None:
    """Every cause is told apart; a credential is named by its id, where it has one; a success leaves nothing."""
    site = make_site(database_url)
    site.core.background.stop()
    calls = SiteCalls(site)
    user = site.members["VIEWER"].user_id
    expired = put_credential(site, user, life=1)
    deleted, rotated = put_credential(site, user), put_credential(site, user)
    calls.send("OWNER", pb.DeleteTokenRequest(id=id_of(deleted)))
    calls.send("VIEWER", pb.RotateTokenRequest(id=id_of(rotated)))
    abroad = calls.send("OWNER", pb.CreatePersonalTokenRequest(display_name="x", networks=["192.0.2.7"])).secret
    unknown = token_format.mint(CredentialKind.PERSONAL).text
    presented = {
        expired: ("expired", id_of(expired)),
        deleted: ("deleted", id_of(deleted)),
        rotated: ("rotated", id_of(rotated)),
        abroad: ("outside its networks", id_of(abroad)),
        unknown: ("unknown", id_of(unknown)),
        unknown[:-1]: ("malformed", ""),
    }
    site.core.authenticator.failed.flush(closing=True)
    for text in presented:
        for _ in range(3):
            assert calls.code(text, WHO_AM_I) is UNAUTHENTICATED
    with pytest.raises(Exception, match="credential"):
        site.call("/rolecall.v1.SessionService/WhoAmI", b"")
    with UnauthenticatedClient(site.address) as guest:
        with pytest.raises(UnauthenticatedCredential):
            guest.sign_in(token_format.format_credential(LinkKind.SIGN_IN, id_of(unknown), bytes(32)))
        with pytest.raises(InvitationNotFound):
            guest.accept_invitation("rci_x")
    calls.send("OWNER", WHO_AM_I)
    lines = logged(site.core.authenticator.failed)

    assert lines == [
        *(("127.0.0.1", cause, credential_id, 3) for cause, credential_id in presented.values()),
        ("127.0.0.1", "no credential", "", 1),
        ("127.0.0.1", "mailed secret", "", 2),
    ]
    assert not any(text.rpartition("_")[2] in str(lines) for text in presented)


def test_failure_beyond_the_rate_is_logged(make_site: MakeSite, sqlite_url: str) -> None:
    """Credentials that aren't looked up any more, as too many were guesses, are counted too."""
    limits = replace(QUICK_LIMITS, failed_credentials=Rate(0.001, 2))
    site = make_site(sqlite_url, limits=limits)
    site.core.background.stop()
    calls = SiteCalls(site)
    codes = [calls.code(token_format.mint(CredentialKind.PERSONAL).text, WHO_AM_I) for _ in range(5)]
    causes = [line[1] for line in logged(site.core.authenticator.failed)]

    assert len(set(codes)) == 2
    assert causes == ["unknown", "unknown", "rate limited"]


def test_server_logs_failures_by_itself(
    make_site: MakeSite, sqlite_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A running server writes the line within a second, and the rest when it stops."""
    site = make_site(sqlite_url)
    calls = SiteCalls(site)
    dead = token_format.mint(CredentialKind.PERSONAL).text
    calls.code(dead, WHO_AM_I)
    text = ""

    def has_line() -> bool:
        nonlocal text
        text += capfd.readouterr().out
        return f"credential_id={id_of(dead)}" in text

    wait_until(has_line)
    for _ in range(4):
        calls.code(dead, WHO_AM_I)
    site.stop()
    text += capfd.readouterr().out

    assert text.count("authentication failed") == 2
    assert "count=4" in text


def test_kind_is_logged_at_once_and_then_once_a_minute() -> None:
    """The first failure is logged by the next flush, further ones with their number when the time is over."""
    failed = FailedAuthentications(replace(DEFAULT_LIMITS, failure_seconds=0.3))
    failed.note("192.0.2.7", Refusal.EXPIRED, "a")
    first = logged(failed)
    for _ in range(5):
        failed.note("192.0.2.7", Refusal.EXPIRED, "a")
    failed.note("192.0.2.7", Refusal.EXPIRED, "b")
    soon = logged(failed)
    time.sleep(0.35)
    later = logged(failed)
    time.sleep(0.35)

    assert first == [("192.0.2.7", "expired", "a", 1)]
    assert soon == [("192.0.2.7", "expired", "b", 1)]
    assert later == [("192.0.2.7", "expired", "a", 5)]
    assert logged(failed) == []
    assert not failed._pending
    assert not failed._kinds


def test_flood_has_a_bounded_number_of_lines() -> None:
    """A peer with many credentials has a few lines, and many peers share one; every failure is counted."""
    limits = Limits(failure_kinds=50, failure_kinds_per_peer=5)
    failed = FailedAuthentications(limits)
    for number in range(1000):
        failed.note("192.0.2.7", Refusal.UNKNOWN, str(number))
    of_one = logged(failed, closing=True)
    for number in range(1000):
        failed.note(f"peer {number}", Refusal.UNKNOWN)
    of_many = logged(failed, closing=True)

    assert len(of_one) == 6
    assert of_one[-1] == ("192.0.2.7", "others", "", 995)
    # Those of the first peer are kept for their minute.
    assert len(of_many) == 45
    assert of_many[-1] == ("others", "others", "", 1000 - 44)
    assert len(failed._pending) <= 51
