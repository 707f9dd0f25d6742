"""Values and errors of the client library: one type of member in every list, errors from complete statuses only."""

from collections.abc import Iterator
from concurrent import futures
from dataclasses import fields

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from rolecall.client import Client, to_dict
from rolecall.domain import Member
from rolecall.errors import CallFailed, InvalidField, RolecallError
from rolecall.v1 import member_pb2
from rolecall.v1.member_pb2_grpc import MemberServiceStub
from support.sites import Site, add_member

MESSAGE = "no"


@pytest.fixture
def owner(sqlite_site: Site) -> Iterator[Client]:
    """A client with the owner's token, which names its organization."""
    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], "acme") as client:
        yield client


def status(code: grpc.StatusCode, message: str, *details: Any) -> bytes:
    """A serialized google.rpc.Status."""
    made: bytes = status_pb2.Status(code=code.value[0], message=message, details=details).SerializeToString()
    return made


def detail(reason: str) -> Any:
    """An ErrorInfo as a detail of a status."""
    packed = Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="rolecall.dev"))
    return packed


MALFORMED_DETAIL = Any(type_url=detail("").type_url, value=b"\xff")


def error_for(trailers: tuple[tuple[str, bytes], ...]) -> RolecallError:
    """The client's error for a call that ends with INVALID_ARGUMENT and these trailers."""

    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(trailers)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, MESSAGE)

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(refuse)
    service = grpc.method_handlers_generic_handler("rolecall.v1.AuthorizationService", {"Check": handler})
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", "token") as client, pytest.raises(RolecallError) as caught:
            client.check("ann@acme.io", "view", "secrets")
    finally:
        server.stop(0).wait()
    return caught.value


def test_every_list_of_members_has_one_type(owner: Client, sqlite_site: Site) -> None:
    """`subjects`, `members.list` and `get`, `teams.members` return equal members, with every field as it is stored."""
    stored = add_member(sqlite_site.storage, "acme", "zed@acme.io", "VIEWER")
    owner.teams.create("payments")
    owner.teams.add_members("payments", [stored.email])

    listed = {member.user_id: member for member in owner.members.list()}
    subjects = {member.user_id: member for member in owner.subjects("view", "secrets")}

    assert all(getattr(stored, field.name) for field in fields(stored)), "no field may be empty: it could get lost"
    assert type(listed[stored.user_id]) is Member
    assert listed[stored.user_id] == subjects[stored.user_id] == owner.members.get(stored.user_id) == stored
    assert list(owner.teams.members("payments")) == [stored]
    assert subjects.keys() < listed.keys()


def test_member_has_the_plain_values_and_the_etag_of_its_message(owner: Client, sqlite_site: Site) -> None:
    """A member as plain values is what its message is, so programs read the same; its etag is the server's."""
    with grpc.insecure_channel(sqlite_site.address) as channel:
        metadata = (("authorization", f"Bearer {sqlite_site.tokens['OWNER']}"),)
        messages = MemberServiceStub(channel).ListMembers(member_pb2.ListMembersRequest(), metadata=metadata).members

    members = list(owner.members.list())

    assert [to_dict(member) for member in members] == [to_dict(message) for message in messages]
    assert [list(to_dict(member)) for member in members] == [list(to_dict(message)) for message in messages]
    assert [member.etag for member in members] == [message.etag for message in messages]


def test_error_comes_from_the_status_of_the_server() -> None:
    """A complete status becomes an error of its reason's class."""
    details = status(grpc.StatusCode.INVALID_ARGUMENT, MESSAGE, detail("INVALID_FIELD"))

    assert type(error_for((("grpc-status-details-bin", details),))) is InvalidField


@pytest.mark.parametrize(
    "details",
    [
        None,
        b"\xff\xff",
        status(grpc.StatusCode.PERMISSION_DENIED, MESSAGE, detail("INVALID_FIELD")),
        status(grpc.StatusCode.INVALID_ARGUMENT, "another", detail("INVALID_FIELD")),
        status(grpc.StatusCode.INVALID_ARGUMENT, MESSAGE, MALFORMED_DETAIL),
        status(grpc.StatusCode.INVALID_ARGUMENT, MESSAGE, detail("OF_A_LATER_VERSION")),
    ],
    ids=["none", "malformed", "another code", "another message", "malformed detail", "unknown reason"],
)
def test_incomplete_status_is_a_failed_call(details: bytes | None) -> None:
    """A status that a proxy has replaced or damaged gives `CallFailed`, with gRPC's own code."""
    error = error_for((("grpc-status-details-bin", details),) if details else ())

    assert type(error) is CallFailed
    assert error.metadata["code"] == "INVALID_ARGUMENT"
