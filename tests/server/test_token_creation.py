"""Creation of tokens over gRPC: the answers, and invalid requests."""

import re
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import delete

from rolecall.domain import now
from rolecall.storage import Transaction, tables
from rolecall.storage.changes import record_change
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import shared_pb2 as shared
from rolecall.v1 import token_pb2 as pb
from support.credentials import (
    CHECK_ONLY,
    DAY,
    SECOND,
    found_other,
    id_of,
    in_future,
    put_credential,
    put_session,
    restriction,
)
from support.rows import nothing_written
from support.server_calls import DENIED, INVALID, NOT_FOUND, UNAUTHENTICATED, SiteCalls
from support.sites import Site
from support.token_requests import (
    ACTIVE,
    NAMES,
    ORGANIZATION,
    PERSONAL,
    UUID,
    Organizational,
    Personal,
)


def test_created_personal_token_has_all_fields(site: Site) -> None:
    """The answer has all fields, the secret and the revision; the token acts as its holder."""
    calls = SiteCalls(site)
    before = now()
    answer = calls.send("CONTRIBUTOR", Personal(display_name="laptop", restriction=restriction(*CHECK_ONLY)))
    token = answer.token
    who = calls.send(answer.secret, session.WhoAmIRequest())

    assert (token.id, token.kind, token.display_name) == (id_of(answer.secret), PERSONAL, "laptop")
    assert token.user_id == token.creator == site.members["CONTRIBUTOR"].user_id
    assert (token.role, token.prefix, token.last_four) == ("CONTRIBUTOR", "rcp", answer.secret[-4:])
    assert answer.secret.startswith("rcp_")
    assert [(item.resource, item.action) for item in token.restriction.permissions] == list(CHECK_ONLY)
    assert before <= token.create_time.ToMicroseconds() <= now()
    assert token.state == ACTIVE
    assert not token.HasField("last_use_time")
    assert token.etag
    assert not answer.secret_lost
    assert answer.revision == calls.send("OWNER", organization.GetOrganizationRequest()).organization.revision
    assert (who.member.user_id, who.credential.id, who.credential.expire_time) == (
        token.user_id,
        token.id,
        token.expire_time,
    )


def test_an_organization_token_has_a_role_of_its_own(site: Site) -> None:
    """An organization's token has no user, its creator, a role of its own, and survives its creator."""
    calls = SiteCalls(site)
    answer = calls.send("ADMIN", Organizational(display_name="billing-service", role="CONTRIBUTOR"))
    token = answer.token
    gone = site.members["ADMIN"].user_id

    def remove(tx: Transaction) -> None:
        tx.connection.execute(delete(tables.members).where(tables.members.c.user_id == gone))
        record_change(tx, "acme", "member", gone)

    site.server.storage.mutate("acme", remove)
    who = calls.send(answer.secret, session.WhoAmIRequest())

    assert (token.kind, token.user_id, token.creator) == (ORGANIZATION, "", gone)
    assert (token.role, token.prefix, token.last_four) == ("CONTRIBUTOR", "rco", answer.secret[-4:])
    assert not token.HasField("restriction")
    assert calls.code("ADMIN", session.WhoAmIRequest()) is UNAUTHENTICATED
    assert who.WhichOneof("holder") == "token"
    assert (who.token.id, who.token.display_name, who.role) == (token.id, "billing-service", "CONTRIBUTOR")


def test_expiry_is_ninety_days_or_as_requested(site: Site) -> None:
    """A token lives 90 days, or up to 365 as requested; one created with a token no longer than that token."""
    calls = SiteCalls(site)
    signed_in = put_session(site, "OWNER")
    short = put_credential(site, site.members["OWNER"].user_id, life=DAY)

    def life(token: str, request: Any) -> float:
        made: pb.Token = calls.send(token, request).token
        return (made.expire_time.ToMicroseconds() - made.create_time.ToMicroseconds()) / DAY

    assert life(signed_in, Personal(display_name="x")) == pytest.approx(90, abs=0.001)
    assert life(signed_in, Personal(display_name="x", ttl=Duration(seconds=365 * 86400))) == pytest.approx(
        365, abs=0.001
    )
    assert life(signed_in, Personal(display_name="x", expire_time=in_future(364 * DAY))) == pytest.approx(
        364, abs=0.001
    )
    assert life(signed_in, Organizational(display_name="x", role="VIEWER", ttl=Duration(seconds=60))) < 0.001
    assert life(short, Personal(display_name="x")) == pytest.approx(1, abs=0.01)
    made = calls.send(short, Organizational(display_name="x", role="ADMIN")).token
    assert made.expire_time == calls.send(short, session.WhoAmIRequest()).credential.expire_time


def test_secret_is_returned_only_once(sqlite_site: Site) -> None:
    """A secret is in one answer only: no list, deletion or later rotation shows it again."""
    calls = SiteCalls(sqlite_site)
    first = calls.send("OWNER", Organizational(display_name="x", role="VIEWER"))
    second = calls.send("OWNER", pb.RotateTokenRequest(id=first.token.id))
    seen = [
        calls.send("OWNER", pb.ListTokensRequest()),
        calls.send(second.secret, session.WhoAmIRequest()),
        calls.send("OWNER", pb.DeleteTokenRequest(id=first.token.id)),
        calls.send("OWNER", pb.ListTokensRequest()),
    ]

    assert first.secret.split("_")[2] != second.secret.split("_")[2]
    for answer in seen:
        for secret in (first.secret, second.secret):
            assert secret.split("_")[2].encode() not in answer.SerializeToString()


def bad_tokens(site: Site) -> list[tuple[str, Any, grpc.StatusCode, str, str]]:
    """Return invalid requests as (role, request, status, reason, field), mostly for CreatePersonalToken."""
    short = put_credential(site, site.members["OWNER"].user_id, life=DAY)
    checker = put_credential(
        site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"), ("authorization", "check"))
    )
    allow, deny = shared.EFFECT_ALLOW, shared.EFFECT_DENY
    invalid, field = INVALID, "INVALID_FIELD"
    cases: list[tuple[str, dict[str, Any], grpc.StatusCode, str, str]] = [
        ("OWNER", {"display_name": name}, invalid, field, "display_name") for name in NAMES
    ]
    for moment in (
        in_future(-SECOND),
        Timestamp(),
        in_future(366 * DAY),
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**62),
        Timestamp(seconds=2**63 - 1),
        Timestamp(seconds=in_future(DAY).seconds, nanos=-1),
        Timestamp(seconds=in_future(DAY).seconds, nanos=1_000_000_000),
    ):
        cases += [("session", {"expire_time": moment}, invalid, field, "expire_time")]
    for span in (
        Duration(),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(nanos=999),
        Duration(seconds=365 * 86400 + 1),
        Duration(seconds=315_576_000_001),
        Duration(seconds=2**63 - 1),
        Duration(seconds=60, nanos=-1),
        Duration(seconds=60, nanos=1_000_000_000),
    ):
        cases += [("session", {"ttl": span}, invalid, field, "ttl")]
    cases += [
        (short, {"expire_time": in_future(2 * DAY)}, invalid, field, "expire_time"),
        (short, {"ttl": Duration(seconds=2 * 86400)}, invalid, field, "ttl"),
        ("OWNER", {"restriction": shared.Restriction()}, invalid, field, "restriction.permissions"),
        (
            "OWNER",
            {"restriction": restriction(*[("secrets", "view")] * 101)},
            invalid,
            field,
            "restriction.permissions",
        ),
    ]
    for pair, part in (
        (("", "view"), "resource"),
        (("secrets", ""), "action"),
        (("sec*rets", "view"), "resource"),
        (("secrets/../x", "view"), "resource"),
        (("/secrets", "view"), "resource"),
        (("secrets//x", "view"), "resource"),
        (("secrets x", "view"), "resource"),
        (("s" * 1025, "view"), "resource"),
        (("secrets", "vi*"), "action"),
        (("secrets", "view/x"), "action"),
        (("secrets", "v" * 257), "action"),
    ):
        wished = restriction(("secrets", "view"), pair)
        cases.append(("OWNER", {"restriction": wished}, invalid, field, f"restriction.permissions[1].{part}"))
    effects: list[Any] = [deny, 7]
    for effect in effects:
        wished = shared.Restriction(permissions=[shared.Permission(resource="secrets", action="view", effect=effect)])
        cases.append(("OWNER", {"restriction": wished}, invalid, field, "restriction.permissions[0].effect"))
    beyond = "restriction.permissions[1]"
    for pair in (("spaceships", "view"), ("secrets", "launch"), ("spaceships*", "view"), ("spaceships/x", "*")):
        wished = restriction(("secrets", "view"), pair)
        cases.append(("OWNER", {"restriction": wished}, invalid, field, beyond))
    wished = shared.Restriction(
        permissions=[
            shared.Permission(resource="authorization", action="check", effect=allow),
            shared.Permission(resource="secrets", action="view", effect=allow),
        ]
    )
    cases += [
        (checker, {"restriction": wished}, DENIED, "ROLE_BEYOND_CALLER", beyond),
        (checker, {}, DENIED, "ROLE_BEYOND_CALLER", "restriction"),
        ("OWNER", {"request_id": "again"}, invalid, field, "request_id"),
        ("OWNER", {"request_id": UUID.replace("-", "")}, invalid, field, "request_id"),
        ("OWNER", {"request_id": f"{{{UUID}}}"}, invalid, field, "request_id"),
        ("OWNER", {"request_id": UUID + "\n"}, invalid, field, "request_id"),
        ("OWNER", {"organization": "other"}, NOT_FOUND, "ORGANIZATION_NOT_FOUND", ""),
        ("OWNER", {"organization": "nowhere"}, NOT_FOUND, "ORGANIZATION_NOT_FOUND", ""),
        ("OWNER", {"organization": "o" * 64}, invalid, field, "organization"),
        ("VIEWER", {}, DENIED, "PERMISSION_MISSING", ""),
        ("VIEWERNOSECRETS", {}, DENIED, "PERMISSION_MISSING", ""),
    ]
    signed_in = put_session(site, "OWNER")
    return [
        (signed_in if who == "session" else who, {"display_name": "x", **values}, code, reason, field)
        for who, values, code, reason, field in cases
    ]


def test_each_bad_token_is_refused_and_nothing_written(site: Site) -> None:
    """Status, reason, field, and what to do; for both kinds of token."""
    found_other(site)
    calls = SiteCalls(site)
    cases = bad_tokens(site)
    wrong = []
    with nothing_written(site):
        for who, values, *expected in cases:
            # The credentials that are restricted may make no organization's token at all.
            restricted = expected[1] == "ROLE_BEYOND_CALLER"
            for_programs = [DENIED, "PERMISSION_MISSING", ""] if restricted else expected
            for request, wanted in (
                (Personal(**values), expected),
                (Organizational(**values, role="VIEWER"), for_programs),
            ):
                failure = calls.refused(who, request)
                if [failure.code, failure.reason, failure.field] != wanted or not re.search(
                    r"[:.] \w", failure.message
                ):
                    wrong.append((who, str(request)[:200], failure, wanted))

    assert wrong == []
    assert len(cases) > 60


def test_each_bad_role_is_refused_and_nothing_written(site: Site) -> None:
    """An unknown role, an owner role, a role beyond the caller, and one that has nothing of the restriction."""
    calls = SiteCalls(site)
    creator = site.members["ADMIN"].user_id
    narrow = put_credential(site, creator, only=(("organization-tokens", "create"), ("secrets", "view")))
    owners = put_credential(site, site.members["OWNER"].user_id, only=(("*", "*"),))
    cases: list[tuple[str, Organizational, grpc.StatusCode, str, str]] = [
        ("OWNER", Organizational(display_name="x"), INVALID, "INVALID_FIELD", "role"),
        ("OWNER", Organizational(display_name="x", role="R" * 65), INVALID, "INVALID_FIELD", "role"),
        ("OWNER", Organizational(display_name="x", role="EDITOR"), INVALID, "UNKNOWN_ROLE_NAME", "role"),
        ("OWNER", Organizational(display_name="x", role="viewer"), INVALID, "UNKNOWN_ROLE_NAME", "role"),
        ("OWNER", Organizational(display_name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        ("ADMIN", Organizational(display_name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        (owners, Organizational(display_name="x", role="OWNER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        (narrow, Organizational(display_name="x", role="VIEWER"), DENIED, "ROLE_BEYOND_CALLER", "role"),
        ("CONTRIBUTOR", Organizational(display_name="x", role="VIEWER"), DENIED, "PERMISSION_MISSING", ""),
        ("CONTRIBUTOR", Organizational(display_name="x", role="EDITOR"), DENIED, "PERMISSION_MISSING", ""),
        (
            "OWNER",
            Organizational(display_name="x", role="VIEWERNOSECRETS", restriction=restriction(("secrets", "view"))),
            INVALID,
            "INVALID_FIELD",
            "restriction.permissions[0]",
        ),
    ]
    with nothing_written(site):
        for who, request, *expected in cases:
            failure = calls.refused(who, request)

            assert [failure.code, failure.reason, failure.field] == expected, request


def test_a_restriction_holds_no_invisible_characters(sqlite_site: Site) -> None:
    """A pattern that nobody could ask about, or that looks like another, is refused."""
    calls = SiteCalls(sqlite_site)
    for resource in ("secrets/\x00", "secrets/a\x1bb", "secrets/\u200b", "secrets/\u202ex"):
        failure = calls.refused("OWNER", Personal(display_name="x", restriction=restriction((resource, "view"))))

        assert (failure.code, failure.field) == (INVALID, "restriction.permissions[0].resource")


def test_restriction_size_is_limited(sqlite_site: Site) -> None:
    """A thousand tokens must fit into one page, so a restriction can't be as large as a message."""
    calls = SiteCalls(sqlite_site)
    wide = restriction(*((f"parameters/{'x' * 100}{number}", "view") for number in range(20)))
    failure = calls.refused("CONTRIBUTOR", Personal(display_name="x", restriction=wide))

    assert (failure.code, failure.field) == (INVALID, "restriction.permissions")
    assert "more than 2048" in failure.message
