"""What grpcio does silently, and what becomes of it here."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import MakeSite, Site
from grpc_errors import told

from rolecall import Client, credentials
from rolecall.cli.running import SWITCH_SECONDS
from rolecall.domain import CredentialKind
from rolecall.errors import ConfigError, PermissionMissing, RolecallError
from rolecall.server import build_server, calls
from rolecall.server.authorization import AuthorizationService
from rolecall.server.calls import Call
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import authorization_pb2_grpc

# Whichever way calls come in.
pytestmark = pytest.mark.usefixtures("each_lane")

CHECK = "/rolecall.v1.AuthorizationService/Check"
REQUEST = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()


def test_strangers_hold_no_thread_of_the_callers(make_site: MakeSite, sqlite_url: str) -> None:
    """Calls that send their headers and no message, without a credential or with a forged one, stop nobody else."""
    site = make_site(sqlite_url, threads=2, connection_seconds=600)
    stop = threading.Event()
    health, reflect = "/grpc.health.v1.Health", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    forged = (("authorization", f"Bearer {credentials.mint(CredentialKind.PERSONAL).text}"),)
    calls = []
    for method in (CHECK, f"{health}/Check", f"{health}/Watch", reflect):
        stub = site.channel().stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
        calls += [stub(_silence(stop), timeout=30, metadata=forged if i % 2 else None) for i in range(10)]
    try:
        with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
            for _ in range(5):
                assert client.check("ann@acme.io", "view", "members")
    finally:
        stop.set()
        for call in calls:
            call.cancel()


def test_a_caller_without_a_message_is_cut_off(make_site: MakeSite, sqlite_url: str) -> None:
    """A call with a credential and no message holds a thread until its connection's age ends it."""
    site = make_site(sqlite_url, threads=2, connection_seconds=1)
    stop = threading.Event()
    stub = site.channel().stream_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
    bearer = (("authorization", f"Bearer {site.tokens['VIEWER']}"),)
    half_open = [stub.future(_silence(stop), timeout=30, metadata=bearer) for _ in range(4)]
    try:
        with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
            assert client.check("ann@acme.io", "view", "members")
    finally:
        stop.set()
        for call in half_open:
            call.cancel()


def test_a_call_that_ends_without_a_message_is_malformed(sqlite_site: Site) -> None:
    """A half-closed stream with nothing in it is an error of the client's."""
    stub = sqlite_site.channel().stream_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError) as caught:
        stub(iter(()), timeout=10, metadata=(("authorization", f"Bearer {sqlite_site.tokens['OWNER']}"),))

    assert told(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_refusal_fits_into_the_trailers(make_site: MakeSite, sqlite_url: str, policy_folder: Path) -> None:
    """However many roles may what the caller may not, the client gets the refusal itself."""
    with (policy_folder / "policy.csv").open("a") as file:
        file.writelines(f"g, A-ROLE-WITH-QUITE-A-LONG-NAME-{i}, ADMIN\n" for i in range(400))
    site = make_site(sqlite_url)

    with Client(site.address, site.tokens["VIEWER"]) as client, pytest.raises(PermissionMissing) as caught:
        client.check("ann@acme.io", "view", "members")

    assert "and 393 more" in caught.value.message


def test_an_exceptions_text_stays_here(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A defect is INTERNAL with a request id; the log has the rest under it."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(sqlite_site.server.live, "_in_force", None)
    monkeypatch.setattr("rolecall.authorizer._decide", broken)
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(CHECK, REQUEST, f"Bearer {sqlite_site.tokens['OWNER']}")

    said = told(caught.value)
    assert (said.code, said.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "1234" not in said.message
    assert "NoneType" not in said.message
    assert said.metadata["request_id"] in said.message
    assert said.metadata["request_id"] in capfd.readouterr().out


def test_an_oversized_message_is_refused_before_it_is_read(sqlite_site: Site) -> None:
    """More than 4 MiB: RESOURCE_EXHAUSTED, in our words up to twice as much, and the server goes on."""
    bearer = f"Bearer {sqlite_site.tokens['OWNER']}"
    for size in (calls.MAX_MESSAGE_BYTES + 1, 2 * calls.MAX_MESSAGE_BYTES + 1):
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(CHECK, b"\0" * size, bearer)
        said = told(caught.value)

        assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if size <= 2 * calls.MAX_MESSAGE_BYTES:
            assert (said.reason, said.metadata["size"]) == ("MESSAGE_SIZE", str(size))
        assert sqlite_site.call(CHECK, REQUEST, bearer)[0]


def test_oversized_metadata_is_refused(sqlite_site: Site) -> None:
    """A credential of 1 MiB never reaches the look-up."""
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(CHECK, REQUEST, "Bearer " + "x" * (1 << 20))

    assert told(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_second_server_on_the_port_is_refused(sqlite_site: Site) -> None:
    """Two servers would share the port's calls silently."""
    settings = sqlite_site.settings.model_copy(update={"listen": sqlite_site.address})

    with pytest.raises(ConfigError, match="can't be listened on"):
        build_server(settings)


def test_answers_never_leave_the_decision_out(sqlite_site: Site) -> None:
    """proto3's JSON omits zeros: no decision and no reason is one."""
    raw, _ = sqlite_site.call(CHECK, REQUEST, f"Bearer {sqlite_site.tokens['OWNER']}")

    answer = pb.CheckResponse.FromString(raw)
    assert answer.decision != 0
    assert answer.reason != 0
    assert min(pb.DECISION_ALLOW, pb.DECISION_DENY) > 0


def test_the_generated_code_accepts_the_lowest_grpcio_we_promise() -> None:
    """Generated code refuses a grpcio older than the tools that made it."""
    from importlib.metadata import requires

    promised = next(line for line in requires("rolecall") or [] if line.startswith("grpcio<") or "grpcio>=" in line)

    assert f">={'.'.join(authorization_pb2_grpc.GRPC_GENERATED_VERSION.split('.')[:2])}" in promised


def test_other_threads_get_their_turn() -> None:
    """The interpreter's default of 5 ms would be fifty Checks."""
    assert 0 < SWITCH_SECONDS < sys.getswitchinterval()


def test_a_call_past_its_deadline_is_not_worked_on(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited for a thread until its client was gone costs nothing more."""
    started: list[str] = []
    release = threading.Event()
    check = AuthorizationService.Check

    def slow(self: AuthorizationService, request: pb.CheckRequest, call: Call) -> bytes:
        site.server.storage.require_patience()
        started.append(request.resource)
        release.wait(10)
        return check(self, request, call)

    monkeypatch.setattr(AuthorizationService, "Check", slow)
    site = make_site(sqlite_url, threads=2)
    call = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", f"Bearer {site.tokens['OWNER']}"),)

    def ask(resource: str, timeout: float) -> Any:
        request = pb.CheckRequest(subject="ann@acme.io", action="view", resource=resource)
        return call.future(request.SerializeToString(), timeout=timeout, metadata=metadata)

    busy = [ask("members", 20), ask("members", 20)]
    while len(started) < 2:
        time.sleep(0.01)
    late = ask("late", 0.2)
    with pytest.raises(grpc.RpcError):
        late.result()
    release.set()
    for future in busy:
        assert future.result()
    time.sleep(0.2)

    assert started == ["members", "members"]


def test_stop_ends_with_calls_under_way(make_site: MakeSite, sqlite_url: str) -> None:
    """Stopping under load answers or breaks off every call, and returns."""
    site = make_site(sqlite_url)
    stop = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        with Client(site.address, site.tokens["OWNER"], timeout=2) as client:
            while not stop.is_set():
                try:
                    if not client.check("ann@acme.io", "view", "members"):
                        wrong.append("denied")
                except RolecallError:
                    return

    with futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        time.sleep(0.5)
        started = time.monotonic()
        site.server.stop(2)
        took = time.monotonic() - started
        stop.set()

    assert wrong == []
    assert took < 10


def test_a_socket_that_speaks_no_grpc_does_no_harm(sqlite_site: Site) -> None:
    """Noise on the port is dropped."""
    host, _, port = sqlite_site.address.rpartition(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b""):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(noise)

    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        assert client.check("ann@acme.io", "view", "members")


def _silence(stop: threading.Event) -> Iterator[bytes]:
    """A stream of requests that says nothing until it ends."""
    stop.wait(30)
    yield from ()
