"""A request that is repeated with its `request_id` has one effect and the same answer."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from sqlalchemy import func, select, update

from rolecall.domain import CredentialKind
from rolecall.storage import tables
from rolecall.storage.changes import record_change
from rolecall.v1 import invitation_pb2 as invitations
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb
from support.credentials import CHECK_ONLY, DAY, found_other, id_of, put_credential, put_session, restriction
from support.rows import nothing_written, rows_of
from support.server_calls import DENIED, INVALID, OK, UNAUTHENTICATED, SiteCalls
from support.sites import Site

THREADS = 8

Personal = pb.CreatePersonalTokenRequest
Organizational = pb.CreateOrganizationTokenRequest
Rename = organization.UpdateOrganizationRequest


def new_id() -> str:
    """A UUID."""
    return str(uuid.uuid4())


def requests_of(site: Site, request_id: str) -> list[Any]:
    """One request to each RPC that takes a `request_id`."""
    owner = site.members["OWNER"].user_id
    rotated, deleted = (id_of(put_credential(site, owner)) for _ in range(2))
    return [
        Personal(display_name="laptop", request_id=request_id, restriction=restriction(*CHECK_ONLY)),
        Organizational(display_name="deploy", role="VIEWER", request_id=request_id),
        pb.RotateTokenRequest(id=rotated, overlap=Duration(seconds=60), request_id=request_id),
        pb.DeleteTokenRequest(id=deleted, request_id=request_id),
        Rename(organization=organization.Organization(display_name="Acme, Inc."), request_id=request_id),
        members.ChangeMemberExternalIdRequest(user_id=owner, external_id="auth0|1", request_id=request_id),
    ]


def set_role(site: Site, role: str, to: str) -> None:
    """Give the demo member with this role another one, as the server's process would."""
    user = site.members[role].user_id

    def work(tx: Any) -> None:
        tx.connection.execute(update(tables.members).where(tables.members.c.user_id == user).values(role=to))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def without_secret(answer: Any) -> Any:
    """Return the answer as a repetition gets it: without its secret."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    if "secret" in copy.DESCRIPTOR.fields_by_name:
        copy.secret, copy.secret_lost = "", True
    return copy


def test_a_repeated_request_has_one_effect_and_the_same_answer(site: Site) -> None:
    """A repeated request of every RPC with an id has one answer, only without the secret. One id serves all RPCs."""
    calls = SiteCalls(site)
    for request in requests_of(site, new_id()):
        first = calls.send("OWNER", request)
        with nothing_written(site):
            again = [calls.send("OWNER", request) for _ in range(3)]

        if "secret" in first.DESCRIPTOR.fields_by_name:
            assert first.secret
            assert not first.secret_lost
        assert again == [without_secret(first)] * 3, type(request)


def test_a_request_that_changed_nothing_keeps_its_id(site: Site) -> None:
    """A request that changed nothing keeps its id: another body under it has no effect."""
    calls, owner, viewer = SiteCalls(site), site.members["OWNER"].user_id, site.members["VIEWER"].user_id
    dead, alive = (id_of(put_credential(site, owner)) for _ in range(2))
    calls.send("OWNER", pb.DeleteTokenRequest(id=dead))
    pairs: list[tuple[Any, Any]] = [
        (pb.DeleteTokenRequest(id=dead), pb.DeleteTokenRequest(id=alive)),
        (
            members.ChangeMemberRoleRequest(user_id=viewer, role="VIEWER"),
            members.ChangeMemberRoleRequest(user_id=viewer, role="CONTRIBUTOR"),
        ),
    ]
    for idle, other in pairs:
        idle.request_id = other.request_id = new_id()
        first = calls.send("OWNER", idle)

        with nothing_written(site):
            assert calls.refused("OWNER", other).reason == "REQUEST_ID_REUSED"
            assert calls.send("OWNER", idle) == first


def test_request_id_of_a_validation_stays_free(site: Site) -> None:
    """Invitations that were validated only may be sent under the same id."""
    calls, request_id = SiteCalls(site), new_id()
    entry = invitations.Invitee(email="new@acme.io", role="VIEWER")
    dry_run = invitations.CreateInvitationsRequest(invitations=[entry], validate_only=True, request_id=request_id)
    calls.send("OWNER", dry_run)

    made = calls.send("OWNER", invitations.CreateInvitationsRequest(invitations=[entry], request_id=request_id))

    assert made.invitations[0].id


def test_case_of_the_request_id_does_not_matter(sqlite_site: Site) -> None:
    """A request_id in capitals is the same id."""
    calls = SiteCalls(sqlite_site)
    request_id = new_id()
    first = calls.send("OWNER", Rename(organization=organization.Organization(display_name="x"), request_id=request_id))
    # As the body differs, the request counts as another one: it never has a second effect.
    failure = calls.refused(
        "OWNER", Rename(organization=organization.Organization(display_name="y"), request_id=request_id.upper())
    )

    assert failure.reason == "REQUEST_ID_REUSED"
    assert first.organization.display_name == "x"


def test_another_body_under_the_same_id_is_refused(site: Site) -> None:
    """INVALID_ARGUMENT REQUEST_ID_REUSED names the field; the first change remains, and nothing else is written."""
    calls = SiteCalls(site)
    request_id = new_id()
    other_bodies: list[Message] = [
        Personal(display_name="other", request_id=request_id),
        Organizational(display_name="deploy", role="ADMIN", request_id=request_id),
        pb.RotateTokenRequest(id=id_of(site.tokens["OWNER"]), request_id=request_id),
        pb.DeleteTokenRequest(id=id_of(site.tokens["VIEWER"]), request_id=request_id),
        Rename(organization=organization.Organization(display_name="Other"), request_id=request_id),
        members.ChangeMemberExternalIdRequest(
            user_id=site.members["OWNER"].user_id, external_id="auth0|2", request_id=request_id
        ),
    ]
    for request in requests_of(site, request_id):
        calls.send("OWNER", request)
    with nothing_written(site):
        for request in other_bodies:
            failure = calls.refused("OWNER", request)

            assert (failure.code, failure.reason, failure.field) == (INVALID, "REQUEST_ID_REUSED", "request_id")


def test_without_an_id_each_request_has_its_effect(sqlite_site: Site) -> None:
    """Two equal creations make two tokens."""
    calls = SiteCalls(sqlite_site)
    made = [calls.send("OWNER", Personal(display_name="laptop")) for _ in range(2)]

    assert made[0].token.id != made[1].token.id
    assert all(answer.secret and not answer.secret_lost for answer in made)


def test_a_refused_request_may_be_repeated(site: Site) -> None:
    """A refused request leaves its id free, for the same body and for a corrected one."""
    calls = SiteCalls(site)
    request_id = new_id()
    refused = Organizational(display_name="deploy", role="OWNER", request_id=request_id)
    with nothing_written(site):
        for _ in range(2):
            assert calls.refused("OWNER", refused).reason == "ROLE_BEYOND_CALLER"
    stale = Rename(organization=organization.Organization(display_name="x", etag="stale"), request_id=request_id)
    assert calls.refused("OWNER", stale).reason == "ETAG_MISMATCH"

    assert calls.send("OWNER", Organizational(display_name="deploy", role="ADMIN", request_id=request_id)).secret
    assert (
        calls.send(
            "OWNER", Rename(organization=organization.Organization(display_name="x"), request_id=request_id)
        ).organization.display_name
        == "x"
    )


def test_a_repeated_request_is_authorized_again(site: Site) -> None:
    """A repeated request is authorized again: refused while the right is lost, the first answer once it is back."""
    calls = SiteCalls(site)
    requests = [
        Personal(display_name="laptop", request_id=new_id()),
        Organizational(display_name="deploy", role="VIEWER", request_id=new_id()),
    ]
    made = [calls.send("ADMIN", request) for request in requests]
    set_role(site, "ADMIN", "VIEWER")
    with nothing_written(site):
        for request in requests:
            failure = calls.refused("ADMIN", request)
            assert (failure.code, failure.reason) == (DENIED, "PERMISSION_MISSING")
    set_role(site, "ADMIN", "ADMIN")

    assert [calls.send("ADMIN", request) for request in requests] == [without_secret(answer) for answer in made]


def test_repeated_request_is_authorized_by_the_presented_credential(site: Site) -> None:
    """A restricted one of the same person doesn't get the answer that an unrestricted one got."""
    calls = SiteCalls(site)
    narrow = put_credential(site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"),))
    request = Personal(display_name="laptop", request_id=new_id())
    made = calls.send("OWNER", request)

    assert calls.refused(narrow, request).reason == "ROLE_BEYOND_CALLER"
    assert calls.send(put_session(site, "OWNER"), request) == without_secret(made)


def test_a_repeated_request_is_authenticated_again(site: Site) -> None:
    """A credential that died meanwhile gets UNAUTHENTICATED, even for the request that it died by."""
    calls = SiteCalls(site)
    token = put_credential(site, site.members["OWNER"].user_id)
    create = Personal(display_name="laptop", request_id=new_id())
    suicide = pb.DeleteTokenRequest(id=id_of(token), request_id=new_id())
    calls.send(token, create)
    assert calls.code(token, suicide) is OK

    with nothing_written(site):
        assert calls.code(token, create) is UNAUTHENTICATED
        assert calls.code(token, suicide) is UNAUTHENTICATED


def test_ids_of_others_are_independent(site: Site) -> None:
    """Another person, RPC, organization or program may use the same one."""
    calls = SiteCalls(site)
    stranger = found_other(site)
    request_id = new_id()
    mine = calls.send("OWNER", Personal(display_name="laptop", request_id=request_id))
    admins = calls.send("ADMIN", Personal(display_name="phone", request_id=request_id))
    abroad = calls.send(stranger, Personal(display_name="calls", request_id=request_id))
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="ADMIN")
    gone = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    deleted = calls.send(program, pb.DeleteTokenRequest(id=id_of(gone), request_id=request_id))

    names = {answer.token.display_name for answer in (mine, admins, abroad)}
    assert names == {"laptop", "phone", "calls"}
    assert all(answer.secret for answer in (mine, admins, abroad))
    assert deleted.token.state == pb.TOKEN_STATE_DELETED
    assert calls.send("ADMIN", Personal(display_name="phone", request_id=request_id)) == without_secret(admins)


def test_a_request_id_is_kept_for_a_day(site: Site) -> None:
    """An answer is repeated up to 24 hours; after them the request is a new one, whatever its body."""
    calls = SiteCalls(site)
    same, other = new_id(), new_id()
    first = {key: calls.send("OWNER", Personal(display_name="laptop", request_id=key)) for key in (same, other)}

    def age(microseconds: int) -> None:
        table = tables.requests
        site.storage.mutate(
            "acme", lambda tx: tx.connection.execute(update(table).values(time=table.c.time - microseconds))
        )

    age(DAY - 60_000_000)
    again = calls.send("OWNER", Personal(display_name="laptop", request_id=same))
    age(61_000_000)
    anew = calls.send("OWNER", Personal(display_name="laptop", request_id=same))
    with_another_body = calls.send("OWNER", Personal(display_name="other", request_id=other))
    kept = site.storage.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(tables.requests)))

    assert again == without_secret(first[same])
    assert anew.secret
    assert anew.token.id != first[same].token.id
    assert with_another_body.token.display_name == "other"
    assert kept == 2


def test_no_secret_is_kept_for_repetition(site: Site) -> None:
    """The stored answer has the token, never its text."""
    calls = SiteCalls(site)
    secrets = [answer.secret for answer in (calls.send("OWNER", r) for r in requests_of(site, new_id())[:3])]
    kept = repr(rows_of(site.storage)["requests"])

    assert all(secrets)
    assert "laptop" in kept
    for secret in secrets:
        assert secret.split("_")[2] not in kept


@pytest.mark.parametrize("number", range(5), ids=["personal", "organization", "rotate", "delete", "rename"])
def test_concurrent_repetitions_have_one_effect(site: Site, number: int) -> None:
    """Eight threads with one request: one is answered with the effect, the others with its repetition."""
    request = requests_of(site, new_id())[number]
    callers = [SiteCalls(site) for _ in range(THREADS)]
    for calls in callers:
        calls.send("OWNER", session.WhoAmIRequest())
    before = rows_of(site.storage)
    start = Barrier(THREADS)

    def send(calls: SiteCalls) -> Any:
        start.wait()
        while True:
            try:
                return calls.send("OWNER", request)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(send, callers))
    after = rows_of(site.storage)

    assert len(after["audit_entries"]) == len(before["audit_entries"]) + 1
    assert len(after["requests"]) == 1
    assert {answer.revision for answer in answers} == {
        callers[0].send("OWNER", session.WhoAmIRequest()).organization.revision
    }
    if number < 3:
        assert sorted(answer.secret_lost for answer in answers) == [False] + [True] * (THREADS - 1)
        assert sum(bool(answer.secret) for answer in answers) == 1
        assert len({answer.token.id for answer in answers}) == 1
    assert len({without_secret(answer).SerializeToString(deterministic=True) for answer in answers}) == 1


def test_a_repetition_after_the_expiry_gets_the_first_answer(sqlite_site: Site) -> None:
    """A repeated request gets the first answer within the day, though the token expired."""
    calls = SiteCalls(sqlite_site)
    request = Personal(display_name="x", request_id=new_id())
    request.expire_time.GetCurrentTime()
    request.expire_time.nanos = 0
    request.expire_time.seconds += 2
    first = calls.send("OWNER", request)
    time.sleep(2.1)

    assert calls.send("OWNER", request).token.id == first.token.id


def test_equivalent_request_is_a_repetition(sqlite_site: Site) -> None:
    """An organization named or left out, and a UUID in capitals, are the same request."""
    calls = SiteCalls(sqlite_site)
    identifier = new_id()
    first = calls.send("OWNER", Personal(display_name="x", request_id=identifier))

    again = calls.send("OWNER", Personal(display_name="x", request_id=identifier.upper(), organization="acme"))

    assert again.token.id == first.token.id
