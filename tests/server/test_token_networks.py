"""Tokens that may be used from some networks only, over both transports."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from rolecall import Client
from rolecall.domain import PlanKind
from rolecall.errors import UnauthenticatedCredential
from rolecall.v1 import authorization_pb2 as authorization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import put_session
from support.server_calls import DENIED, INVALID, UNAUTHENTICATED, SiteCalls
from support.sites import MakeSite, Site
from support.token_requests import Organizational, Personal

HERE, ELSEWHERE = "127.0.0.0/8", "192.0.2.0/24"
WHO_AM_I = session.WhoAmIRequest()


@pytest.mark.usefixtures("each_transport")
def test_token_works_from_its_networks_only(make_site: MakeSite, database_url: str) -> None:
    """From one of its networks a token works, cached and not; from elsewhere it gets the text of every dead one."""
    site = make_site(database_url)
    calls = SiteCalls(site)
    here = calls.send("OWNER", Personal(display_name="here", networks=[ELSEWHERE, HERE]))
    elsewhere = calls.send("OWNER", Organizational(display_name="ci", role="VIEWER", networks=[ELSEWHERE, "::/0"]))
    works = [calls.code(here.secret, WHO_AM_I) for _ in range(3)]
    refusals = [calls.refused(elsewhere.secret, WHO_AM_I) for _ in range(3)]
    unknown = calls.refused("rcp_0", WHO_AM_I)
    listed = {token.id: list(token.networks) for token in calls.send("OWNER", pb.ListTokensRequest()).tokens}

    assert works == [grpc.StatusCode.OK] * 3
    assert {(failure.code, failure.message) for failure in refusals} == {(UNAUTHENTICATED, unknown.message)}
    assert list(here.token.networks) == listed[here.token.id] == [ELSEWHERE, HERE]
    assert listed[elsewhere.token.id] == [ELSEWHERE, "::/0"]


@pytest.mark.usefixtures("each_transport")
def test_peer_on_a_socket_for_both_versions_is_its_ipv4_address(make_site: MakeSite, sqlite_url: str) -> None:
    """A client that reaches a server on all interfaces by IPv4 is compared by that address; one by IPv6 by its own."""
    site = make_site(sqlite_url, listen="[::]:0", plaintext_exposes_tokens=True)
    port = site.address.rpartition(":")[2]
    with Client(f"127.0.0.1:{port}", site.tokens["OWNER"]) as owner:
        by_ipv4 = owner.tokens.create_personal("four", networks=[HERE]).secret
        by_ipv6 = owner.tokens.create_personal("six", networks=["::1"]).secret
    works = {}
    for host in ("127.0.0.1", "[::1]"):
        for name, secret in (("four", by_ipv4), ("six", by_ipv6)):
            with Client(f"{host}:{port}", secret) as client:
                try:
                    works[host, name] = bool(client.session.who_am_i())
                except UnauthenticatedCredential:
                    works[host, name] = False

    assert works == {
        ("127.0.0.1", "four"): True,
        ("127.0.0.1", "six"): False,
        ("[::1]", "four"): False,
        ("[::1]", "six"): True,
    }


def test_malformed_networks_are_refused_by_their_place(sqlite_site: Site) -> None:
    """Both creations name the network at fault; more than twenty are too many."""
    calls = SiteCalls(sqlite_site)
    for bad, field in (([HERE, "10.1.2.3/8"], "networks[1]"), (["x"], "networks[0]"), ([HERE] * 21, "networks")):
        for request in (
            Personal(display_name="x", networks=bad),
            Organizational(display_name="x", role="VIEWER", networks=bad),
        ):
            failure = calls.refused("OWNER", request)

            assert (failure.code, failure.reason, failure.field) == (INVALID, "INVALID_FIELD", field)


def test_token_with_networks_creates_and_rotates_none_beyond_them(site: Site) -> None:
    """A token with networks creates tokens within them only, and rotates no token that works elsewhere."""
    calls = SiteCalls(site)
    owner = put_session(site, "OWNER")
    narrow = calls.send(owner, Personal(display_name="narrow", networks=["127.0.0.0/16"]))
    wide, same = (
        calls.send(owner, Personal(display_name="other", networks=networks, ttl=Duration(seconds=3600)))
        for networks in ([HERE], ["127.0.0.0/24"])
    )
    anywhere = calls.send(owner, Personal(display_name="anywhere", ttl=Duration(seconds=3600)))
    refused = [
        calls.refused(narrow.secret, request)
        for networks in ([], [HERE], ["127.0.0.0/24", ELSEWHERE])
        for request in (
            Personal(display_name="x", networks=networks),
            Organizational(display_name="x", role="VIEWER", networks=networks),
        )
    ]
    rotated = [calls.refused(narrow.secret, pb.RotateTokenRequest(id=made.token.id)) for made in (wide, anywhere)]
    made = calls.send(narrow.secret, Personal(display_name="x", networks=["127.0.0.1"]))
    again = calls.send(narrow.secret, pb.RotateTokenRequest(id=same.token.id))

    assert {(each.code, each.reason, each.field) for each in refused} == {(DENIED, "ROLE_BEYOND_CALLER", "networks")}
    assert {(each.code, each.reason, each.field) for each in rotated} == {(DENIED, "ROLE_BEYOND_CALLER", "id")}
    assert list(made.token.networks) == ["127.0.0.1/32"]
    assert list(again.token.networks) == ["127.0.0.0/24"]


def test_rotated_token_keeps_its_networks(site: Site) -> None:
    """The new secret works from the same networks as the old one, which both keep during an overlap."""
    calls = SiteCalls(site)
    made = calls.send("OWNER", Personal(display_name="x", networks=[ELSEWHERE]))
    rotated = calls.send("OWNER", pb.RotateTokenRequest(id=made.token.id, overlap=Duration(seconds=3600)))

    assert list(rotated.token.networks) == [ELSEWHERE]
    assert [calls.code(secret, WHO_AM_I) for secret in (made.secret, rotated.secret)] == [UNAUTHENTICATED] * 2


@pytest.mark.usefixtures("each_transport")
def test_question_about_a_token_with_networks_names_its_address(make_site: MakeSite, database_url: str) -> None:
    """A presented token with networks is valid only with an address in one of them, in a Check and in a batch."""
    site = make_site(database_url)
    calls = SiteCalls(site)
    made = calls.send("OWNER", Personal(display_name="x", networks=[ELSEWHERE]))
    valid, invalid = authorization.REASON_GRANTED, authorization.REASON_TOKEN_INVALID
    expected = {
        "192.0.2.7": valid,
        "::ffff:192.0.2.7": valid,
        "198.51.100.7": invalid,
        "127.0.0.1": invalid,
        "": invalid,
    }
    items = [
        authorization.BatchCheckItem(
            subject_token=made.secret, subject_address=address, action="view", resource="secrets"
        )
        for address in expected
    ]
    alone = [
        calls.send(
            "OWNER",
            authorization.CheckRequest(
                subject_token=made.secret, subject_address=address, action="view", resource="secrets"
            ),
        ).reason
        for address in expected
    ]
    batch = calls.send("OWNER", authorization.BatchCheckRequest(checks=items))
    with Client(site.address, site.tokens["OWNER"]) as client:
        passing = client.check_token(made.secret, "view", "secrets", subject_address="192.0.2.7")
        plans = [
            client.plan_token_resources(made.secret, "view", "secrets", subject_address=address).kind
            for address in expected
        ]

    assert alone == list(expected.values())
    assert [result.reason for result in batch.results] == list(expected.values())
    assert passing
    assert plans == [PlanKind.ALWAYS if reason == valid else PlanKind.NEVER for reason in expected.values()]
