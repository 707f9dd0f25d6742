"""Malformed and forbidden requests: the status, the reason, the field, and what to do."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from rolecall import Client
from rolecall.domain import Effect, Reason
from rolecall.errors import InvalidField, OrganizationNotFound, PageToken, PermissionMissing, RevisionNotReached
from rolecall.v1 import (
    assignment_pb2,
    audit_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    team_pb2,
    token_pb2,
)
from rolecall.v1 import authorization_pb2 as pb
from support.credentials import put_credential
from support.server_calls import SiteCalls, failure_of
from support.sites import Site

CHECK = "/rolecall.v1.AuthorizationService/Check"
BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"

FILES = [
    pb,
    assignment_pb2,
    audit_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    team_pb2,
    token_pb2,
]
REQUESTS = [
    GetMessageClass(method.input_type)
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
]

FIELDS = [
    ("", "view", "secrets", "subject"),
    ("bob", "view", "secrets", "subject"),
    ("group:staff", "view", "secrets", "subject"),
    ("user:", "view", "secrets", "subject"),
    ("role:", "view", "secrets", "subject"),
    ("user:*", "view", "secrets", "subject"),
    ("token:ci", "view", "secrets", "subject"),
    ("token:" + "x" * 23, "view", "secrets", "subject"),
    ("role:AD MIN", "view", "secrets", "subject"),
    ("role:9", "view", "secrets", "subject"),
    ("user:a\x00@acme.io", "view", "secrets", "subject"),
    ("user:a\n@acme.io", "view", "secrets", "subject"),
    ("user:" + "a" * 330, "view", "secrets", "subject"),
    ("ann@", "view", "secrets", "subject"),
    (" ann@acme.io", "view", "secrets", "subject"),
    ("user:\u212aate@acme.io", "view", "secrets", "subject"),
    ("user:" + "a" * 256, "view", "secrets", "subject"),
    ("user:ann b", "view", "secrets", "subject"),
    ("user:\u0430nn", "view", "secrets", "subject"),
    ("ann@acme.io", "", "secrets", "action"),
    ("ann@acme.io", "*", "secrets", "action"),
    ("ann@acme.io", "vi*", "secrets", "action"),
    ("ann@acme.io", "a" * 257, "secrets", "action"),
    ("ann@acme.io", "view\x07", "secrets", "action"),
    ("ann@acme.io", "view\u200b", "secrets", "action"),
    ("ann@acme.io", "view", "", "resource"),
    ("ann@acme.io", "view", "*", "resource"),
    ("ann@acme.io", "view", "secrets/*", "resource"),
    ("ann@acme.io", "view", "s" * 1025, "resource"),
    ("ann@acme.io", "view", "secrets\n", "resource"),
    ("ann@acme.io", "view", "/secrets", "resource"),
    ("ann@acme.io", "view", "secrets/", "resource"),
    ("ann@acme.io", "view", "secrets//x", "resource"),
    ("ann@acme.io", "view", "secrets/../owners", "resource"),
    ("ann@acme.io", "view", "secrets/.", "resource"),
    ("ann@acme.io", "view", "..", "resource"),
    ("ann@acme.io", "view", "secrets/prod ", "resource"),
    ("ann@acme.io", "view", "secrets/ prod", "resource"),
    ("ann@acme.io", "view ", "secrets", "action"),
]


@pytest.fixture
def owner(sqlite_site: Site) -> Callable[[str, bytes], bytes]:
    """Calls a method with raw bytes as the owner."""

    def call(method: str, request: bytes) -> bytes:
        return sqlite_site.call(method, request, f"Bearer {sqlite_site.tokens['OWNER']}")[0]

    return call


def test_each_malformed_field_is_named_with_what_to_do(owner: Callable[[str, bytes], bytes]) -> None:
    """INVALID_ARGUMENT, the field in BadRequest, and a message that says what is wrong and what to do."""
    for subject, action, resource, field in FIELDS:
        request = pb.CheckRequest(subject=subject, action=action, resource=resource)
        with pytest.raises(grpc.RpcError) as caught:
            owner(CHECK, request.SerializeToString())

        failure = failure_of(caught.value)
        case = (subject[:20], action[:20], resource[:20])
        assert (failure.code, failure.reason, failure.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            field,
        ), case
        assert ":" in failure.message, case


def test_unset_subject_is_refused_not_taken_as_the_caller(owner: Callable[[str, bytes], bytes]) -> None:
    """An absent or empty subject doesn't mean the caller."""
    for request in (
        pb.CheckRequest(action="view", resource="secrets"),
        pb.CheckRequest(subject="", action="view", resource="secrets"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            owner(CHECK, request.SerializeToString())

        assert failure_of(caught.value).field == "subject"


def test_empty_token_is_no_live_token(owner: Callable[[str, bytes], bytes]) -> None:
    """An empty token is as invalid as any other text that is none, alone and in a batch."""
    texts = ("", "garbage", "rcp_")
    for text in texts:
        request = pb.CheckRequest(subject_token=text, action="view", resource="secrets")
        answer = pb.CheckResponse.FromString(owner(CHECK, request.SerializeToString()))

        assert (answer.decision, answer.reason) == (pb.DECISION_DENY, pb.REASON_TOKEN_INVALID), text
    items = [pb.BatchCheckItem(subject_token=text, action="view", resource="secrets") for text in texts]
    batch = pb.BatchCheckResponse.FromString(owner(BATCH, pb.BatchCheckRequest(checks=items).SerializeToString()))

    assert [result.reason for result in batch.results] == [pb.REASON_TOKEN_INVALID] * 3
    assert not any(result.HasField("error") for result in batch.results)


@pytest.mark.parametrize("text", ["here", "192.0.2.7:4711", "192.0.2.0/24", "::ffff:1.2.3.4.5", "1" * 65, "\0"])
def test_malformed_address_of_a_token_is_named_as_the_client_names_it(
    owner: Callable[[str, bytes], bytes], text: str
) -> None:
    """The field at fault is `subject_address`, in a Check and in an item of a batch."""
    asked: Any = {"subject_token": "x", "subject_address": text, "action": "view", "resource": "secrets"}
    with pytest.raises(grpc.RpcError) as caught:
        owner(CHECK, pb.CheckRequest(**asked).SerializeToString())
    batch = pb.BatchCheckRequest(checks=[pb.BatchCheckItem(**asked)])
    answer = pb.BatchCheckResponse.FromString(owner(BATCH, batch.SerializeToString()))

    assert failure_of(caught.value).field == "subject_address"
    assert answer.results[0].error.field == "subject_address"


def test_every_field_at_fault_is_one_of_the_request(sqlite_site: Site) -> None:
    """An error names a field by its path in the request, for each field of each request that is spoilt."""
    calls = SiteCalls(sqlite_site)
    named = set()
    for request in REQUESTS:
        for spoilt in spoilt_messages(request):
            try:
                calls.send("OWNER", spoilt)
            except grpc.RpcError as error:
                failure = failure_of(error)
                if failure.field:
                    named.add(failure.field)
                    assert has_field(request.DESCRIPTOR, failure.field), (request, failure.field)

    assert {"organization.id", "restriction.permissions[0].resource", "networks[0]", "filter.start_time"} <= named


def test_a_credential_in_a_wrong_field_is_not_repeated(sqlite_site: Site) -> None:
    """No error about any field of any request holds a secret that was put there, nor the beginning of one."""
    calls = SiteCalls(sqlite_site)
    text = put_credential(sqlite_site, sqlite_site.members["VIEWER"].user_id)
    beginning = text.split("_")[2][:12]
    shown: list[str] = []
    for request in REQUESTS:
        for pasted in (text, f"team:{text}", f"user:{text}"):
            for spoilt in spoilt_messages(request, pasted):
                try:
                    calls.send("OWNER", spoilt)
                except grpc.RpcError as error:
                    shown.append(f"{request.__name__}: {failure_of(error)} {error}")

    assert len(shown) > 100
    assert [each for each in shown if beginning in each] == []


def spoilt_messages(request: type[Message], text: str = "\0" * 70) -> Iterator[Message]:
    """Yield the request with one field after the other filled with nonsense, those of its messages too."""
    for path in field_paths(request.DESCRIPTOR):
        message: Any = request()
        inner = message
        for field in path[:-1]:
            inner = getattr(inner, field.name).add() if field.is_repeated else getattr(inner, field.name)
            inner.SetInParent()
        # Without its name, nothing else of a request is looked at.
        if "display_name" in request.DESCRIPTOR.fields_by_name:
            message.display_name = "x"
        if request is organization_pb2.UpdateOrganizationRequest:
            message.organization.display_name = "x"
        field = path[-1]
        value: Any = text if field.type == field.TYPE_STRING else -1
        if field.type == field.TYPE_BOOL:
            continue
        if field.is_repeated:
            getattr(inner, field.name).append(value)
        else:
            setattr(inner, field.name, value)
        yield message


def field_paths(descriptor: Any) -> Iterator[list[Any]]:
    """Yield the path to each field that holds no message."""
    for field in descriptor.fields:
        if field.message_type is None:
            yield [field]
        else:
            yield from ([field, *rest] for rest in field_paths(field.message_type))


def has_field(descriptor: Any, path: str) -> bool:
    """Whether a message has a field at this path, as in `invitations[3].email`."""
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name.partition("[")[0]) if descriptor else None
        if field is None or ("[" in name) > field.is_repeated:
            return False
        descriptor = field.message_type
    return True


def test_action_and_resource_of_maximum_length_are_accepted(sqlite_site: Site) -> None:
    """The limits themselves are allowed, and so are blanks and letters of any script."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        assert client.check("ann@acme.io", "a" * 256, "s" * 1024).reason is Reason.UNKNOWN_RESOURCE
        assert client.check("ann@acme.io", "view", "secrets/größe/a b/" + "x" * 900)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x12\x05\xff\xfe\xfd\xfc\xfb", b"\x0a"])
def test_malformed_message_is_an_invalid_argument(owner: Callable[[str, bytes], bytes], garbage: bytes) -> None:
    """Malformed bytes and invalid UTF-8 are INVALID_ARGUMENT, not an internal error."""
    with pytest.raises(grpc.RpcError) as caught:
        owner(CHECK, garbage)

    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize("size", [0, 1001])
def test_batch_size_is_limited(owner: Callable[[str, bytes], bytes], size: int) -> None:
    """An empty and an overlong batch are refused, with both numbers."""
    item = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="secrets")
    with pytest.raises(grpc.RpcError) as caught:
        owner(BATCH, pb.BatchCheckRequest(checks=[item] * size).SerializeToString())

    failure = failure_of(caught.value)
    assert (failure.code, failure.reason, failure.field) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_SIZE", "checks")
    assert failure.metadata["size"] == str(size)
    assert failure.metadata["maximum"] == "1000"
    assert str(size) in failure.message
    assert "1000" in failure.message


def test_the_largest_batch_is_answered_in_order(sqlite_site: Site) -> None:
    """1,000 questions get 1,000 answers, each in its place."""
    questions = [("viewer@acme.io", "view" if i % 3 else "delete", "secrets") for i in range(1000)]
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        results = client.batch_check(questions)

    assert [bool(result) for result in results] == [bool(i % 3) for i in range(1000)]


def test_malformed_item_is_denied_and_affects_no_other(sqlite_site: Site) -> None:
    """The others of the batch are answered; the malformed one says which field is wrong."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        first, second, third = client.batch_check(
            [("ann@acme.io", "view", "secrets"), ("ann@acme.io", "view", "a//b"), ("ann@acme.io", "view", "members")]
        )

    assert first
    assert third
    assert second.decision is Effect.DENY
    assert second.error is not None
    assert second.error.field == "resource"


def test_a_batch_of_malformed_items_is_answered_item_by_item(sqlite_site: Site) -> None:
    """A batch of malformed items is answered item by item; none needs to be well-formed."""
    with Client(sqlite_site.address, sqlite_site.tokens["VIEWERNOSECRETS"]) as client:
        results = client.batch_check([("", "", "")] * 2)

    assert [result.error is not None for result in results] == [True, True]


def test_a_foreign_and_a_missing_organization_look_the_same(site: Site) -> None:
    """A foreign organization can't be distinguished from a missing one."""
    from rolecall import policy as policies
    from rolecall.services import organizations

    policy = policies.build(site.policy_folder, 0.0).policy
    assert policy is not None
    organizations.create(site.storage, site.log, policy, "globex", "hank@globex.io")
    failures = []
    for organization in ("globex", "nobody"):
        with (
            Client(site.address, site.tokens["OWNER"], organization) as client,
            pytest.raises(OrganizationNotFound) as caught,
        ):
            client.check("ann@acme.io", "view", "members")
        failures.append((caught.value.message.replace(organization, "?"), caught.value.field))

    assert failures[0] == failures[1]


def test_an_overlong_organization_is_not_echoed(sqlite_site: Site) -> None:
    """An overlong name is refused without being repeated."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "x" * 5000) as client,
        pytest.raises(InvalidField) as caught,
    ):
        client.check("ann@acme.io", "view", "members")

    assert caught.value.field == "organization"
    assert len(caught.value.message) < 200


def test_malformed_field_is_reported_before_a_foreign_organization(sqlite_site: Site) -> None:
    """Validation, which reveals nothing of what exists, may come first."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "nobody") as client, pytest.raises(InvalidField):
        client.check("ann@acme.io", "", "members")


def test_check_of_another_subject_needs_a_permission(sqlite_site: Site) -> None:
    """A viewer may ask about itself, in any form, and about nobody else."""
    viewer = sqlite_site.members["VIEWER"]
    token = sqlite_site.tokens["VIEWER"]
    with Client(sqlite_site.address, token) as client:
        assert client.check("viewer@acme.io", "view", "secrets")
        assert client.check(f"user:{viewer.user_id}", "view", "secrets")
        assert client.check(f"token:{token.split('_')[1]}", "view", "secrets")
        assert client.check_token(token, "view", "secrets")
        assert list(client.permissions("viewer@acme.io"))
        for subject in ("ann@acme.io", "nobody@acme.io", "user:nobody", "role:VIEWER", f"token:{'x' * 22}"):
            with pytest.raises(PermissionMissing) as caught:
                client.check(subject, "view", "secrets")
            assert caught.value.metadata["resource"] == "authorization"
            with pytest.raises(PermissionMissing):
                client.batch_check([("viewer@acme.io", "view", "secrets"), (subject, "view", "secrets")])
            with pytest.raises(PermissionMissing):
                list(client.permissions(subject))
        with pytest.raises(PermissionMissing):
            list(client.subjects("view", "secrets"))


def test_explanation_about_others_needs_a_permission(sqlite_site: Site) -> None:
    """Only a caller with the permission for it gets an explanation about somebody else."""
    with Client(sqlite_site.address, sqlite_site.tokens["CONTRIBUTOR"]) as client:
        assert client.check("viewer@acme.io", "view", "secrets")
        for subject in ("viewer@acme.io", "nobody@acme.io", "role:CONTRIBUTOR"):
            with pytest.raises(PermissionMissing) as caught:
                client.check(subject, "view", "secrets", explain=True)

            assert caught.value.metadata["action"] == "explain"
            assert "OWNER, ADMIN" in caught.value.message


def test_future_revision_is_unavailable(site: Site) -> None:
    """A revision that isn't there yet is UNAVAILABLE; a negative revision is malformed."""
    with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
        revision = client.check("ann@acme.io", "view", "members").revision
        asks: list[Callable[[int], object]] = [
            lambda at: client.check("ann@acme.io", "view", "members", at_least_revision=at),
            lambda at: client.batch_check([("ann@acme.io", "view", "members")], at_least_revision=at),
            lambda at: list(client.permissions("ann@acme.io", at_least_revision=at)),
            lambda at: list(client.subjects("view", "members", at_least_revision=at)),
        ]
        assert all(ask(revision) for ask in asks)

        def refused(ask: Callable[[int], object]) -> str:
            with pytest.raises(RevisionNotReached) as caught:
                ask(revision + 1)
            return caught.value.metadata["revision"]

        # The client retries each for a second and a half.
        with ThreadPoolExecutor(len(asks)) as pool:
            assert set(pool.map(refused, asks)) == {str(revision)}
        for ask in asks:
            with pytest.raises(InvalidField) as negative:
                ask(-1)
            assert negative.value.field == "at_least_revision"


def test_a_page_of_a_negative_size_is_refused(sqlite_site: Site) -> None:
    """The error names `page_size`."""
    request = pb.ListSubjectsRequest(action="view", resource="members", page_size=-1)
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(
            "/rolecall.v1.AuthorizationService/ListSubjects",
            request.SerializeToString(),
            f"Bearer {sqlite_site.tokens['OWNER']}",
        )

    assert failure_of(caught.value).field == "page_size"


def test_joined_pages_are_the_whole_list(site: Site) -> None:
    """Pages of any size joined are the list in a fixed order, with nothing twice and nothing missed."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        subjects = list(client.subjects("view", "members"))
        permissions = list(client.permissions("ann@acme.io"))
        roles = list(client.roles())
    for size in (1, 2, 3, 7):
        with Client(site.address, site.tokens["OWNER"], page_size=size) as client:
            assert list(client.subjects("view", "members")) == subjects
            assert list(client.permissions("ann@acme.io")) == permissions
            assert list(client.roles()) == roles
    assert [member.email for member in subjects] == sorted(member.email for member in subjects)


def test_a_page_token_of_another_list_is_refused(sqlite_site: Site) -> None:
    """A token is bound to its list and filters, and to the caller's organization."""
    bearer = f"Bearer {sqlite_site.tokens['OWNER']}"
    first = pb.ListSubjectsRequest(action="view", resource="members", page_size=1)
    raw, _ = sqlite_site.call("/rolecall.v1.AuthorizationService/ListSubjects", first.SerializeToString(), bearer)
    token = pb.ListSubjectsResponse.FromString(raw).next_page_token
    others = [
        ("ListSubjects", pb.ListSubjectsRequest(action="view", resource="secrets", page_size=1, page_token=token)),
        ("ListSubjects", pb.ListSubjectsRequest(action="view", resource="members", page_token=token + "A")),
        ("ListPermissions", pb.ListPermissionsRequest(subject="ann@acme.io", page_token=token)),
    ]
    for rpc, request in others:
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(f"/rolecall.v1.AuthorizationService/{rpc}", request.SerializeToString(), bearer)

        failure = failure_of(caught.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, PageToken.reason)


def test_call_id_is_taken_from_the_header_or_generated(sqlite_site: Site) -> None:
    """Every answer's trailers name the request, by the client's own id where it is a sane one."""
    request = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()
    check = sqlite_site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)

    def ask(*ids: str) -> str | bytes:
        bearer = ("authorization", f"Bearer {sqlite_site.tokens['OWNER']}")
        _, call = check.with_call(request, metadata=(bearer, *(("x-request-id", i) for i in ids)), timeout=10)
        return dict(call.trailing_metadata() or ())["x-request-id"]

    assert ask("mine-42") == "mine-42"
    made = [ask(), ask(), ask("x" * 129), ask("with blank")]
    assert len(set(made)) == 4
    with pytest.raises(grpc.RpcError) as caught:
        check(request, metadata=(("x-request-id", "mine-43"),), timeout=10)
    failure = failure_of(caught.value)
    assert failure.trailers["x-request-id"] == failure.metadata["call_id"] == "mine-43"


def test_a_missing_method_is_unimplemented(sqlite_site: Site) -> None:
    """A method that the API doesn't have is UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call("/rolecall.v1.AuthorizationService/Guess", b"")

    assert failure_of(caught.value).code is grpc.StatusCode.UNIMPLEMENTED
