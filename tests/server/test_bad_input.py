"""Malformed and forbidden requests: the status, the reason, the field, and what to do."""

from collections.abc import Callable

import grpc
import pytest
from conftest import Site
from grpc_errors import told

from rolecall import Client
from rolecall.domain import Effect, Reason
from rolecall.errors import InvalidField, OrganizationNotFound, PageToken, PermissionMissing, RevisionNotReached
from rolecall.v1 import authorization_pb2 as pb

CHECK = "/rolecall.v1.AuthorizationService/Check"
BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"

FIELDS = [
    ("", "view", "secrets", "subject"),
    ("bob", "view", "secrets", "subject"),
    ("group:staff", "view", "secrets", "subject"),
    ("user:", "view", "secrets", "subject"),
    ("role:", "view", "secrets", "subject"),
    ("user:*", "view", "secrets", "subject"),
    ("user:a\x00@acme.io", "view", "secrets", "subject"),
    ("user:a\n@acme.io", "view", "secrets", "subject"),
    ("user:" + "a" * 330, "view", "secrets", "subject"),
    ("ann@", "view", "secrets", "subject"),
    (" ann@acme.io", "view", "secrets", "subject"),
    ("user:\u212aate@acme.io", "view", "secrets", "subject"),
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
    """INVALID_ARGUMENT, the field in BadRequest, and a message that goes on after saying what is wrong."""
    for subject, action, resource, field in FIELDS:
        request = pb.CheckRequest(subject=subject, action=action, resource=resource)
        with pytest.raises(grpc.RpcError) as caught:
            owner(CHECK, request.SerializeToString())

        said = told(caught.value)
        case = (subject[:20], action[:20], resource[:20])
        assert (said.code, said.reason, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", field), case
        assert ":" in said.message, case


def test_an_unset_subject_is_never_the_caller(owner: Callable[[str, bytes], bytes]) -> None:
    """Neither an absent nor an empty subject or token is taken for oneself."""
    for request in (
        pb.CheckRequest(action="view", resource="secrets"),
        pb.CheckRequest(subject_token="", action="view", resource="secrets"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            owner(CHECK, request.SerializeToString())

        assert told(caught.value).field == "subject"


def test_the_longest_words_are_answered(sqlite_site: Site) -> None:
    """The limits themselves are allowed, and so are blanks and letters of any script."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        assert client.check("ann@acme.io", "a" * 256, "s" * 1024).reason is Reason.UNKNOWN_RESOURCE
        assert client.check("ann@acme.io", "view", "secrets/größe/a b/" + "x" * 900)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x12\x05\xff\xfe\xfd\xfc\xfb", b"\x0a"])
def test_what_is_no_message_is_an_invalid_argument(owner: Callable[[str, bytes], bytes], garbage: bytes) -> None:
    """Garbage and invalid UTF-8 are the client's error, not the server's."""
    with pytest.raises(grpc.RpcError) as caught:
        owner(CHECK, garbage)

    said = told(caught.value)
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize("size", [0, 1001])
def test_a_batch_has_bounds(owner: Callable[[str, bytes], bytes], size: int) -> None:
    """An empty and an overlong batch are refused, with both numbers."""
    item = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="secrets")
    with pytest.raises(grpc.RpcError) as caught:
        owner(BATCH, pb.BatchCheckRequest(checks=[item] * size).SerializeToString())

    said = told(caught.value)
    assert (said.code, said.reason, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_SIZE", "checks")
    assert said.metadata["size"] == str(size)
    assert said.metadata["maximum"] == "1000"
    assert str(size) in said.message
    assert "1000" in said.message


def test_the_largest_batch_is_answered_in_order(sqlite_site: Site) -> None:
    """1,000 questions get 1,000 answers, each in its place."""
    questions = [("viewer@acme.io", "view" if i % 3 else "delete", "secrets") for i in range(1000)]
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        results = client.batch_check(questions)

    assert [bool(result) for result in results] == [bool(i % 3) for i in range(1000)]


def test_a_malformed_item_denies_itself_only(sqlite_site: Site) -> None:
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
    """No well-formed question is needed for an answer."""
    with Client(sqlite_site.address, sqlite_site.tokens["VIEWERNOSECRETS"]) as client:
        results = client.batch_check([("", "", "")] * 2)

    assert [result.error is not None for result in results] == [True, True]


def test_a_foreign_and_a_missing_organization_look_the_same(site: Site) -> None:
    """Whether another organization exists can't be told from outside."""
    from rolecall import organizations
    from rolecall import policy as policies

    policy = policies.build(site.policy_folder, 0.0).policy
    assert policy is not None
    organizations.found(site.storage, site.log, policy, "globex", "hank@globex.io")
    said = []
    for organization in ("globex", "nobody"):
        with (
            Client(site.address, site.tokens["OWNER"], organization) as client,
            pytest.raises(OrganizationNotFound) as caught,
        ):
            client.check("ann@acme.io", "view", "members")
        said.append((caught.value.message.replace(organization, "?"), caught.value.field))

    assert said[0] == said[1]


def test_an_overlong_organization_is_not_echoed(sqlite_site: Site) -> None:
    """What can't be a name is refused without repeating it."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "x" * 5000) as client,
        pytest.raises(InvalidField) as caught,
    ):
        client.check("ann@acme.io", "view", "members")

    assert caught.value.field == "organization"
    assert len(caught.value.message) < 200


def test_malformed_comes_before_foreign(sqlite_site: Site) -> None:
    """Validation tells nothing of what exists, so it may come first."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "nobody") as client, pytest.raises(InvalidField):
        client.check("ann@acme.io", "", "members")


def test_asking_about_others_needs_a_permission(sqlite_site: Site) -> None:
    """A viewer may ask about itself, in any form, and about nobody else."""
    viewer = sqlite_site.members["VIEWER"]
    token = sqlite_site.tokens["VIEWER"]
    with Client(sqlite_site.address, token) as client:
        assert client.check("viewer@acme.io", "view", "secrets")
        assert client.check(f"user:{viewer.user_id}", "view", "secrets")
        assert client.check(f"token:{token.split('_')[1]}", "view", "secrets")
        assert client.check_token(token, "view", "secrets")
        assert list(client.permissions("viewer@acme.io"))
        for subject in ("ann@acme.io", "nobody@acme.io", "user:nobody", "role:VIEWER", "token:none"):
            with pytest.raises(PermissionMissing) as caught:
                client.check(subject, "view", "secrets")
            assert caught.value.metadata["resource"] == "authorization"
            with pytest.raises(PermissionMissing):
                client.batch_check([("viewer@acme.io", "view", "secrets"), (subject, "view", "secrets")])
            with pytest.raises(PermissionMissing):
                list(client.permissions(subject))
        with pytest.raises(PermissionMissing):
            list(client.subjects("view", "secrets"))


def test_an_explanation_needs_a_permission_even_about_oneself(sqlite_site: Site) -> None:
    """Which rule decided is for those who may see it."""
    with (
        Client(sqlite_site.address, sqlite_site.tokens["CONTRIBUTOR"]) as client,
        pytest.raises(PermissionMissing) as caught,
    ):
        client.check("contributor@acme.io", "view", "secrets", explain=True)

    assert caught.value.metadata["action"] == "explain"
    assert "OWNER, ADMIN" in caught.value.message


def test_a_revision_of_the_future_is_unavailable(site: Site) -> None:
    """An answer that can't know of the revision asked for is none; a negative revision is malformed."""
    with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
        revision = client.check("ann@acme.io", "view", "members").revision
        asks: list[Callable[[int], object]] = [
            lambda at: client.check("ann@acme.io", "view", "members", at_least_revision=at),
            lambda at: client.batch_check([("ann@acme.io", "view", "members")], at_least_revision=at),
            lambda at: list(client.permissions("ann@acme.io", at_least_revision=at)),
            lambda at: list(client.subjects("view", "members", at_least_revision=at)),
        ]
        for ask in asks:
            assert ask(revision)
            with pytest.raises(RevisionNotReached) as caught:
                ask(revision + 1)
            assert caught.value.metadata["revision"] == str(revision)
            with pytest.raises(InvalidField) as negative:
                ask(-1)
            assert negative.value.field == "at_least_revision"


@pytest.mark.parametrize("size", [-1, 1001])
def test_a_page_has_bounds(sqlite_site: Site, size: int) -> None:
    """A page of a negative or overlong size is refused."""
    request = pb.ListSubjectsRequest(action="view", resource="members", page_size=size)
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(
            "/rolecall.v1.AuthorizationService/ListSubjects",
            request.SerializeToString(),
            f"Bearer {sqlite_site.tokens['OWNER']}",
        )

    assert told(caught.value).field == "page_size"


def test_pages_joined_are_the_list(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing twice and nothing missed, whatever the size of a page; in a fixed order."""
    with Client(site.address, site.tokens["OWNER"]) as client:
        subjects = list(client.subjects("view", "members"))
        permissions = list(client.permissions("ann@acme.io"))
        roles = list(client.roles())
        for size in (1, 2, 3, 7):
            monkeypatch.setattr("rolecall.client.PAGE_SIZE", size)

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

        said = told(caught.value)
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, PageToken.reason)


def test_the_request_id_is_taken_or_made(sqlite_site: Site) -> None:
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
    said = told(caught.value)
    assert said.trailers["x-request-id"] == said.metadata["request_id"] == "mine-43"


def test_a_missing_method_is_unimplemented(sqlite_site: Site) -> None:
    """What the API doesn't have is said to be so."""
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call("/rolecall.v1.AuthorizationService/Guess", b"")

    assert told(caught.value).code is grpc.StatusCode.UNIMPLEMENTED
