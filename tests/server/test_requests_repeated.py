"""A request that is repeated with its `request_id` has one effect and the same answer."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import grpc
import pytest
from conftest import Site
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from sqlalchemy import func, select, update
from test_tokens import (
    CHECK_ONLY,
    DAY,
    DENIED,
    INVALID,
    OK,
    UNAUTHENTICATED,
    Desk,
    found_other,
    id_of,
    nothing_written,
    put_credential,
    put_session,
    restriction,
    rows_of,
)

from rolecall.domain import CredentialKind
from rolecall.storage import tables
from rolecall.storage.changes import record_change
from rolecall.v1 import invitation_pb2 as invitations
from rolecall.v1 import member_pb2 as members
from rolecall.v1 import organization_pb2 as organization
from rolecall.v1 import session_pb2 as session
from rolecall.v1 import token_pb2 as pb

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
        Personal(name="laptop", request_id=request_id, restriction=restriction(*CHECK_ONLY)),
        Organizational(name="deploy", role="VIEWER", request_id=request_id),
        pb.RotateTokenRequest(id=rotated, overlap=Duration(seconds=60), request_id=request_id),
        pb.DeleteTokenRequest(id=deleted, request_id=request_id),
        Rename(display_name="Acme, Inc.", request_id=request_id),
    ]


def set_role(site: Site, role: str, to: str) -> None:
    """Give the demo member with this role another one, as the server's process would."""
    user = site.members[role].user_id

    def work(tx: Any) -> None:
        tx.connection.execute(update(tables.members).where(tables.members.c.user_id == user).values(role=to))
        record_change(tx, "acme", "member", user)

    site.server.storage.mutate("acme", work)


def without_secret(answer: Any) -> Any:
    """The answer as it is given again: a secret that it had is lost."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    if "secret" in copy.DESCRIPTOR.fields_by_name:
        copy.secret, copy.secret_lost = "", True
    return copy


def test_a_repeated_request_has_one_effect_and_the_same_answer(site: Site) -> None:
    """For every RPC that takes one; just the secret is lost, and the answer says so. One id serves all RPCs."""
    desk = Desk(site)
    for request in requests_of(site, new_id()):
        first = desk.send("OWNER", request)
        with nothing_written(site):
            again = [desk.send("OWNER", request) for _ in range(3)]

        if "secret" in first.DESCRIPTOR.fields_by_name:
            assert first.secret
            assert not first.secret_lost
        assert again == [without_secret(first)] * 3, type(request)


def test_a_request_that_changed_nothing_keeps_its_id(site: Site) -> None:
    """What it asked for was so already, and it was told so: another body under its id has no effect."""
    desk, owner, viewer = Desk(site), site.members["OWNER"].user_id, site.members["VIEWER"].user_id
    dead, alive = (id_of(put_credential(site, owner)) for _ in range(2))
    desk.send("OWNER", pb.DeleteTokenRequest(id=dead))
    pairs: list[tuple[Any, Any]] = [
        (pb.DeleteTokenRequest(id=dead), pb.DeleteTokenRequest(id=alive)),
        (
            members.ChangeMemberRoleRequest(user_id=viewer, role="VIEWER"),
            members.ChangeMemberRoleRequest(user_id=viewer, role="CONTRIBUTOR"),
        ),
    ]
    for idle, other in pairs:
        idle.request_id = other.request_id = new_id()
        first = desk.send("OWNER", idle)

        with nothing_written(site):
            assert desk.refused("OWNER", other).reason == "REQUEST_ID_REUSED"
            assert desk.send("OWNER", idle) == first


def test_a_trial_leaves_its_id_to_the_change(site: Site) -> None:
    """Who validates invitations first may send them under the same id."""
    desk, request_id = Desk(site), new_id()
    entry = invitations.Invitee(email="new@acme.io", role="VIEWER")
    trial = invitations.CreateInvitationsRequest(invitations=[entry], validate_only=True, request_id=request_id)
    desk.send("OWNER", trial)

    made = desk.send("OWNER", invitations.CreateInvitationsRequest(invitations=[entry], request_id=request_id))

    assert made.invitations[0].id


def test_the_spelling_of_the_id_does_not_matter(sqlite_site: Site) -> None:
    """A UUID in capitals is the same UUID."""
    desk = Desk(sqlite_site)
    request_id = new_id()
    first = desk.send("OWNER", Rename(display_name="x", request_id=request_id))
    # As the body differs, the request counts as another one: it never has a second effect.
    said = desk.refused("OWNER", Rename(display_name="y", request_id=request_id.upper()))

    assert said.reason == "REQUEST_ID_REUSED"
    assert first.organization.display_name == "x"


def test_another_body_under_the_same_id_is_refused(site: Site) -> None:
    """INVALID_ARGUMENT REQUEST_ID_REUSED names the field; the first effect stands, and nothing else is written."""
    desk = Desk(site)
    request_id = new_id()
    other_bodies: list[Message] = [
        Personal(name="other", request_id=request_id),
        Organizational(name="deploy", role="ADMIN", request_id=request_id),
        pb.RotateTokenRequest(id=id_of(site.tokens["OWNER"]), request_id=request_id),
        pb.DeleteTokenRequest(id=id_of(site.tokens["VIEWER"]), request_id=request_id),
        Rename(display_name="Other", request_id=request_id),
    ]
    for request in requests_of(site, request_id):
        desk.send("OWNER", request)
    with nothing_written(site):
        for request in other_bodies:
            said = desk.refused("OWNER", request)

            assert (said.code, said.reason, said.field) == (INVALID, "REQUEST_ID_REUSED", "request_id")


def test_without_an_id_each_request_has_its_effect(sqlite_site: Site) -> None:
    """Two equal creations make two tokens."""
    desk = Desk(sqlite_site)
    made = [desk.send("OWNER", Personal(name="laptop")) for _ in range(2)]

    assert made[0].token.id != made[1].token.id
    assert all(answer.secret and not answer.secret_lost for answer in made)


def test_a_refused_request_may_be_repeated(site: Site) -> None:
    """What had no effect leaves its id free, for the same body and for a better one."""
    desk = Desk(site)
    request_id = new_id()
    refused = Organizational(name="deploy", role="OWNER", request_id=request_id)
    with nothing_written(site):
        for _ in range(2):
            assert desk.refused("OWNER", refused).reason == "ROLE_BEYOND_CALLER"
    stale = Rename(display_name="x", etag="stale", request_id=request_id)
    assert desk.refused("OWNER", stale).reason == "ETAG_MISMATCH"

    assert desk.send("OWNER", Organizational(name="deploy", role="ADMIN", request_id=request_id)).secret
    assert desk.send("OWNER", Rename(display_name="x", request_id=request_id)).organization.display_name == "x"


def test_a_repeated_request_is_authorized_again(site: Site) -> None:
    """Who may no longer gets no answer; who may once more gets the first one."""
    desk = Desk(site)
    requests = [
        Personal(name="laptop", request_id=new_id()),
        Organizational(name="deploy", role="VIEWER", request_id=new_id()),
    ]
    made = [desk.send("ADMIN", request) for request in requests]
    set_role(site, "ADMIN", "VIEWER")
    with nothing_written(site):
        for request in requests:
            said = desk.refused("ADMIN", request)
            assert (said.code, said.reason) == (DENIED, "PERMISSION_MISSING")
    set_role(site, "ADMIN", "ADMIN")

    assert [desk.send("ADMIN", request) for request in requests] == [without_secret(answer) for answer in made]


def test_a_repeated_request_is_judged_by_the_credential_presented(site: Site) -> None:
    """A restricted one of the same person doesn't get the answer that an unrestricted one got."""
    desk = Desk(site)
    narrow = put_credential(site, site.members["OWNER"].user_id, only=(("personal-tokens", "create"),))
    request = Personal(name="laptop", request_id=new_id())
    made = desk.send("OWNER", request)

    assert desk.refused(narrow, request).reason == "ROLE_BEYOND_CALLER"
    assert desk.send(put_session(site, "OWNER"), request) == without_secret(made)


def test_a_repeated_request_is_authenticated_again(site: Site) -> None:
    """A credential that died meanwhile gets UNAUTHENTICATED, even for the request that it died by."""
    desk = Desk(site)
    token = put_credential(site, site.members["OWNER"].user_id)
    create = Personal(name="laptop", request_id=new_id())
    suicide = pb.DeleteTokenRequest(id=id_of(token), request_id=new_id())
    desk.send(token, create)
    assert desk.code(token, suicide) is OK

    with nothing_written(site):
        assert desk.code(token, create) is UNAUTHENTICATED
        assert desk.code(token, suicide) is UNAUTHENTICATED


def test_ids_of_others_are_independent(site: Site) -> None:
    """Another person, RPC, organization or program may use the same one."""
    desk = Desk(site)
    stranger = found_other(site)
    request_id = new_id()
    mine = desk.send("OWNER", Personal(name="laptop", request_id=request_id))
    admins = desk.send("ADMIN", Personal(name="phone", request_id=request_id))
    abroad = desk.send(stranger, Personal(name="desk", request_id=request_id))
    program = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="ADMIN")
    gone = put_credential(site, None, kind=CredentialKind.ORGANIZATION, role="VIEWER")
    deleted = desk.send(program, pb.DeleteTokenRequest(id=id_of(gone), request_id=request_id))

    assert {mine.token.name, admins.token.name, abroad.token.name} == {"laptop", "phone", "desk"}
    assert all(answer.secret for answer in (mine, admins, abroad))
    assert deleted.token.state == pb.TOKEN_STATE_DELETED
    assert desk.send("ADMIN", Personal(name="phone", request_id=request_id)) == without_secret(admins)


def test_an_id_is_remembered_for_a_day(site: Site) -> None:
    """Just before 24 hours the answer is repeated; after them the request is a new one, whatever its body."""
    desk = Desk(site)
    same, other = new_id(), new_id()
    first = {key: desk.send("OWNER", Personal(name="laptop", request_id=key)) for key in (same, other)}

    def age(microseconds: int) -> None:
        table = tables.requests
        site.storage.mutate(
            "acme", lambda tx: tx.connection.execute(update(table).values(time=table.c.time - microseconds))
        )

    age(DAY - 60_000_000)
    again = desk.send("OWNER", Personal(name="laptop", request_id=same))
    age(61_000_000)
    anew = desk.send("OWNER", Personal(name="laptop", request_id=same))
    with_another_body = desk.send("OWNER", Personal(name="other", request_id=other))
    kept = site.storage.read(lambda tx: tx.connection.scalar(select(func.count()).select_from(tables.requests)))

    assert again == without_secret(first[same])
    assert anew.secret
    assert anew.token.id != first[same].token.id
    assert with_another_body.token.name == "other"
    assert kept == 2


def test_no_secret_is_kept_for_repetition(site: Site) -> None:
    """The stored answer has the token, never its text."""
    desk = Desk(site)
    secrets = [answer.secret for answer in (desk.send("OWNER", r) for r in requests_of(site, new_id())[:3])]
    kept = repr(rows_of(site.storage)["requests"])

    assert all(secrets)
    assert "laptop" in kept
    for secret in secrets:
        assert secret.split("_")[2] not in kept


@pytest.mark.parametrize("number", range(5), ids=["personal", "organization", "rotate", "delete", "rename"])
def test_at_once_a_request_has_one_effect(site: Site, number: int) -> None:
    """Eight threads with one request: one is answered with the effect, the others with its repetition."""
    request = requests_of(site, new_id())[number]
    desks = [Desk(site) for _ in range(THREADS)]
    for desk in desks:
        desk.send("OWNER", session.WhoAmIRequest())
    before = rows_of(site.storage)
    start = Barrier(THREADS)

    def send(desk: Desk) -> Any:
        start.wait()
        while True:
            try:
                return desk.send("OWNER", request)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(send, desks))
    after = rows_of(site.storage)

    assert len(after["audit_entries"]) == len(before["audit_entries"]) + 1
    assert len(after["requests"]) == 1
    assert {answer.revision for answer in answers} == {
        desks[0].send("OWNER", session.WhoAmIRequest()).organization.revision
    }
    if number < 3:
        assert sorted(answer.secret_lost for answer in answers) == [False] + [True] * (THREADS - 1)
        assert sum(bool(answer.secret) for answer in answers) == 1
        assert len({answer.token.id for answer in answers}) == 1
    assert len({without_secret(answer).SerializeToString(deterministic=True) for answer in answers}) == 1


def test_a_repetition_after_the_expiry_gets_the_first_answer(sqlite_site: Site) -> None:
    """What was answered once is answered again, however late within the day."""
    desk = Desk(sqlite_site)
    request = Personal(name="x", request_id=new_id())
    request.expire_time.GetCurrentTime()
    request.expire_time.nanos = 0
    request.expire_time.seconds += 2
    first = desk.send("OWNER", request)
    time.sleep(2.1)

    assert desk.send("OWNER", request).token.id == first.token.id


def test_the_same_request_may_be_written_in_other_words(sqlite_site: Site) -> None:
    """An organization named or left out, and a UUID in capitals, are the same request."""
    desk = Desk(sqlite_site)
    identifier = new_id()
    first = desk.send("OWNER", Personal(name="x", request_id=identifier))

    again = desk.send("OWNER", Personal(name="x", request_id=identifier.upper(), organization="acme"))

    assert again.token.id == first.token.id
