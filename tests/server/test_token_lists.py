"""Lists of tokens over gRPC: filters, pages that joined are the list, and when a token was used."""

import time
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import update

from rolecall.domain import CredentialKind, now
from rolecall.storage import tables
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import CHECK_ONLY, found_other, id_of, put_credential, put_session
from support.roles import ROLES
from support.server_calls import DENIED, INVALID, OK, SiteCalls
from support.sites import Site
from support.token_requests import (
    ACTIVE,
    DELETED,
    EXPIRED,
    ORGANIZATION,
    PERSONAL,
    SESSION,
    Organizational,
    Personal,
    own_token,
)
from support.waiting import until


def test_joined_pages_are_the_whole_list(site: Site) -> None:
    """Newest first, nothing twice or missed, for each page size, filter and caller."""
    calls = SiteCalls(site)
    users = {role: site.members[role].user_id for role in ROLES}
    for number in range(4):
        put_credential(site, users["CONTRIBUTOR"], name=f"c{number}")
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", name=f"o{number}")
    put_credential(site, users["CONTRIBUTOR"], life=1, name="expired")
    gone = put_credential(site, users["CONTRIBUTOR"], name="deleted")
    calls.send("OWNER", pb.DeleteTokenRequest(id=id_of(gone)))
    put_session(site, "CONTRIBUTOR")
    found_other(site)
    # Entries of the same time have a fixed order too.
    tied = tables.credentials.c.display_name.in_(["c1", "c2", "o1"])
    site.storage.mutate(
        "acme", lambda tx: tx.connection.execute(update(tables.credentials).where(tied).values(create_time=now()))
    )

    def listed(who: str, size: int, **filters: Any) -> list[pb.Token]:
        found: list[pb.Token] = []
        page = ""
        while True:
            answer = calls.send(who, pb.ListTokensRequest(page_size=size, page_token=page, **filters))
            found += answer.tokens
            assert len(answer.tokens) == size or not answer.next_page_token
            page = answer.next_page_token
            if not page:
                return found

    mine = users["CONTRIBUTOR"]
    cases: list[tuple[str, dict[str, Any], int]] = [
        # Six tokens that the site began with, and the ten from above.
        ("OWNER", {"show_deleted": True}, 16),
        ("OWNER", {}, 15),
        ("ADMIN", {}, 15),
        ("CONTRIBUTOR", {"show_deleted": True}, 7),
        ("CONTRIBUTOR", {}, 6),
        ("VIEWER", {}, 1),
        ("OWNER", {"kind": PERSONAL}, 11),
        ("OWNER", {"kind": ORGANIZATION}, 4),
        ("OWNER", {"kind": PERSONAL, "user_id": mine}, 6),
        ("CONTRIBUTOR", {"user_id": mine}, 6),
        ("CONTRIBUTOR", {"kind": PERSONAL}, 6),
        ("OWNER", {"user_id": "nobody"}, 0),
        ("OWNER", {"state": ACTIVE}, 14),
        ("OWNER", {"state": EXPIRED}, 1),
        ("OWNER", {"state": DELETED}, 1),
        ("OWNER", {"state": ACTIVE, "show_deleted": True}, 14),
        ("CONTRIBUTOR", {"state": ACTIVE}, 5),
        # Those put directly live for twelve days, the first ones for ninety.
        ("OWNER", {"expires_within": Duration(seconds=13 * 86_400)}, 8),
        ("OWNER", {"expires_within": Duration(seconds=13 * 86_400), "state": ACTIVE, "show_deleted": True}, 8),
        ("OWNER", {"expires_within": Duration(seconds=13 * 86_400), "kind": ORGANIZATION}, 4),
        ("OWNER", {"expires_within": Duration(seconds=11 * 86_400)}, 0),
        ("OWNER", {"expires_within": Duration(seconds=91 * 86_400)}, 14),
        ("OWNER", {"expires_within": Duration(seconds=315_576_000_000)}, 14),
        ("CONTRIBUTOR", {"expires_within": Duration(seconds=13 * 86_400)}, 4),
        ("OWNER", {"kind": ORGANIZATION, "state": DELETED}, 0),
    ]
    for who, filters, count in cases:
        whole = listed(who, 1000, **filters)

        assert len(whole) == count, (who, filters)
        assert whole == sorted(whole, key=lambda t: (t.create_time.ToMicroseconds(), t.id), reverse=True)
        assert len({token.id for token in whole}) == count
        for size in (1, 2, 3):
            assert [token.id for token in listed(who, size, **filters)] == [token.id for token in whole]


def test_a_restricted_credential_sees_what_it_may_itself(sqlite_site: Site) -> None:
    """A check-only credential of an OWNER lists the OWNER's own tokens, but not those of others."""
    calls = SiteCalls(sqlite_site)
    owner = sqlite_site.members["OWNER"].user_id
    checker = put_credential(sqlite_site, owner, only=CHECK_ONLY)
    put_credential(sqlite_site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")

    assert {token.user_id for token in calls.send(checker, pb.ListTokensRequest()).tokens} == {owner}
    assert calls.code(checker, pb.ListTokensRequest(kind=ORGANIZATION)) is DENIED
    assert calls.code(checker, pb.ListTokensRequest(user_id=sqlite_site.members["VIEWER"].user_id)) is DENIED


def test_bad_filters_and_pages_are_refused(site: Site) -> None:
    """The kind SESSION, unknown enum numbers, sizes out of range and page tokens of other lists are refused."""
    calls = SiteCalls(site)
    stranger = found_other(site)
    for number in range(3):
        put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER", name=str(number))
    member = site.members["CONTRIBUTOR"].user_id
    first = calls.send("OWNER", pb.ListTokensRequest(page_size=1)).next_page_token
    filtered = calls.send("OWNER", pb.ListTokensRequest(page_size=1, kind=ORGANIZATION)).next_page_token
    roles = calls.send("OWNER", authorization.ListPermissionsRequest(subject="role:OWNER", page_size=1)).next_page_token
    abroad = calls.send(stranger, Personal(display_name="x")) and calls.send(
        stranger, pb.ListTokensRequest(page_size=1)
    )
    invalid: list[tuple[pb.ListTokensRequest, str, str]] = [
        (pb.ListTokensRequest(kind=SESSION), "INVALID_FIELD", "kind"),
        (pb.ListTokensRequest(kind=9), "INVALID_FIELD", "kind"),  # type: ignore[arg-type]
        (pb.ListTokensRequest(state=9), "INVALID_FIELD", "state"),  # type: ignore[arg-type]
        (pb.ListTokensRequest(kind=ORGANIZATION, user_id=member), "INVALID_FIELD", "user_id"),
        (pb.ListTokensRequest(expires_within=Duration()), "INVALID_FIELD", "expires_within"),
        (pb.ListTokensRequest(expires_within=Duration(seconds=-1)), "INVALID_FIELD", "expires_within"),
        (pb.ListTokensRequest(expires_within=Duration(seconds=2**60)), "INVALID_FIELD", "expires_within"),
        (pb.ListTokensRequest(expires_within=Duration(seconds=1), state=EXPIRED), "INVALID_FIELD", "state"),
        (pb.ListTokensRequest(expires_within=Duration(seconds=1), state=DELETED), "INVALID_FIELD", "state"),
        (pb.ListTokensRequest(page_size=-1), "INVALID_FIELD", "page_size"),
        (pb.ListTokensRequest(page_size=-(2**31)), "INVALID_FIELD", "page_size"),
    ]
    other = "B" if first[5] == "A" else "A"
    tampered = ("x", "é", first[:-2], f"{first}=", first[:5] + other + first[6:], filtered, roles)
    invalid += [(pb.ListTokensRequest(page_size=1, page_token=page), "PAGE_TOKEN", "page_token") for page in tampered]
    invalid.append((pb.ListTokensRequest(page_size=1, page_token=abroad.next_page_token), "PAGE_TOKEN", "page_token"))
    spans: list[Any] = [{"expires_within": Duration(seconds=seconds)} for seconds in (1, 86_400)]
    for filters in ({"kind": PERSONAL}, {"state": ACTIVE}, {"user_id": member}, {"show_deleted": True}, *spans):
        request = pb.ListTokensRequest(page_token=first, **filters)
        invalid.append((request, "PAGE_TOKEN", "page_token"))

    assert abroad.next_page_token
    for request, reason, field in invalid:
        failure = calls.refused("OWNER", request)
        assert (failure.code, failure.reason, failure.field) == (INVALID, reason, field), request
    for who in ("ADMIN", stranger):
        assert calls.refused(who, pb.ListTokensRequest(page_token=first)).reason == "PAGE_TOKEN"
    assert calls.refused(
        "OWNER", authorization.ListPermissionsRequest(subject="role:OWNER", page_token=first)
    ).reason == ("PAGE_TOKEN")
    assert calls.code("OWNER", pb.ListTokensRequest(page_token=first, page_size=1000)) is OK


def test_last_use_is_written_at_most_once_a_minute(site: Site) -> None:
    """The time of last use appears within seconds, changes no etag, and is written at most once a minute."""
    calls = SiteCalls(site)
    made = calls.send("OWNER", Personal(display_name="laptop")).token
    secret = calls.send("OWNER", pb.RotateTokenRequest(id=made.id)).secret
    before = own_token(calls, "OWNER", made.id)
    at = now()
    calls.send(secret, session.WhoAmIRequest())

    def noted() -> pb.Token | None:
        token = own_token(calls, "OWNER", made.id)
        return token if token and token.HasField("last_use_time") else None

    used: pb.Token = until(noted)
    site.core.authenticator.last_used._noted.clear()
    calls.send(secret, session.WhoAmIRequest())
    time.sleep(0.6)
    later = own_token(calls, "OWNER", made.id)

    assert before is not None
    assert later is not None
    assert not before.HasField("last_use_time")
    assert at <= used.last_use_time.ToMicroseconds() <= now()
    assert used.etag == before.etag
    assert later.last_use_time == used.last_use_time


def test_a_program_sees_its_own_token(sqlite_site: Site) -> None:
    """A program sees its own token in the list, like a person, and no other."""
    calls = SiteCalls(sqlite_site)
    mine, _ = (calls.send("OWNER", Organizational(display_name=name, role="VIEWER")) for name in ("mine", "other"))

    assert [token.id for token in calls.send(mine.secret, pb.ListTokensRequest()).tokens] == [mine.token.id]
