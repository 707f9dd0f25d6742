"""Silent behaviours of grpcio, and how this project handles each."""

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

from rolecall import Client
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.errors import ConfigError, PermissionMissing, RolecallError
from rolecall.server import build_server, handler
from rolecall.server.handler import Call
from rolecall.server.servicers.authorization import AuthorizationService
from rolecall.server.transport.tuning import SWITCH_SECONDS
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import authorization_pb2_grpc
from support.server_calls import failure_of
from support.sites import MakeSite, Site

# Whichever way calls come in.
pytestmark = pytest.mark.usefixtures("each_transport")

CHECK = "/rolecall.v1.AuthorizationService/Check"
REQUEST = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()


def test_unauthenticated_calls_hold_no_thread_of_the_callers(make_site: MakeSite, sqlite_url: str) -> None:
    """Calls that send their headers and no message, without a credential or with a forged one, stop nobody else."""
    site = make_site(sqlite_url, threads=2, connection_seconds=600)
    stop = threading.Event()
    health, reflect = "/grpc.health.v1.Health", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    forged = (("authorization", f"Bearer {token_format.mint(CredentialKind.PERSONAL).text}"),)
    calls = []
    for method in (CHECK, f"{health}/Check", f"{health}/Watch", reflect):
        stub = site.channel().stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
        calls += [stub(_no_requests(stop), timeout=30, metadata=forged if i % 2 else None) for i in range(10)]
    try:
        with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
            for _ in range(5):
                assert client.check("ann@acme.io", "view", "members")
    finally:
        stop.set()
        for call in calls:
            call.cancel()


def test_call_without_a_message_is_cancelled(make_site: MakeSite, sqlite_url: str) -> None:
    """A call with a credential and no message holds a thread until its connection's age ends it."""
    site = make_site(sqlite_url, threads=2, connection_seconds=1)
    stop = threading.Event()
    stub = site.channel().stream_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
    bearer = (("authorization", f"Bearer {site.tokens['VIEWER']}"),)
    half_open = [stub.future(_no_requests(stop), timeout=30, metadata=bearer) for _ in range(4)]
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

    assert failure_of(caught.value).code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_refusal_fits_into_the_trailers(make_site: MakeSite, sqlite_url: str, policy_folder: Path) -> None:
    """A refusal reaches the client, however many roles may what the caller may not."""
    with (policy_folder / "policy.csv").open("a") as file:
        file.writelines(f"g, A-ROLE-WITH-QUITE-A-LONG-NAME-{i}, ADMIN\n" for i in range(400))
    site = make_site(sqlite_url)

    with Client(site.address, site.tokens["VIEWER"]) as client, pytest.raises(PermissionMissing) as caught:
        client.check("ann@acme.io", "view", "members")

    assert "and 393 more" in caught.value.message


def test_text_of_an_exception_never_reaches_the_client(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A defect is INTERNAL with a request id; the log has the rest under it."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is 1234")

    monkeypatch.setattr(sqlite_site.server.live, "_in_force", None)
    monkeypatch.setattr("rolecall.services.authorization._reasons", broken)
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(CHECK, REQUEST, f"Bearer {sqlite_site.tokens['OWNER']}")

    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "1234" not in failure.message
    assert "NoneType" not in failure.message
    assert failure.metadata["call_id"] in failure.message
    assert failure.metadata["call_id"] in capfd.readouterr().out


def test_an_oversized_message_is_refused_before_it_is_read(sqlite_site: Site) -> None:
    """A message above 4 MiB is RESOURCE_EXHAUSTED, with Rolecall's text up to 8 MiB; the server continues to answer."""
    bearer = f"Bearer {sqlite_site.tokens['OWNER']}"
    for size in (handler.MAX_MESSAGE_BYTES + 1, 2 * handler.MAX_MESSAGE_BYTES + 1):
        with pytest.raises(grpc.RpcError) as caught:
            sqlite_site.call(CHECK, b"\0" * size, bearer)
        failure = failure_of(caught.value)

        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if size <= 2 * handler.MAX_MESSAGE_BYTES:
            assert (failure.reason, failure.metadata["size"]) == ("MESSAGE_SIZE", str(size))
        assert sqlite_site.call(CHECK, REQUEST, bearer)[0]


def test_oversized_metadata_is_refused(sqlite_site: Site) -> None:
    """Metadata of 1 MiB is refused before the credential is looked up."""
    with pytest.raises(grpc.RpcError) as caught:
        sqlite_site.call(CHECK, REQUEST, "Bearer " + "x" * (1 << 20))

    assert failure_of(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_second_server_on_the_port_is_refused(sqlite_site: Site) -> None:
    """A second server on the port fails to start: the two would share its calls silently."""
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


def test_generated_code_accepts_the_lowest_promised_grpcio() -> None:
    """Generated code refuses a grpcio older than the tools that made it."""
    from importlib.metadata import requires

    promised = next(line for line in requires("rolecall") or [] if line.startswith("grpcio<") or "grpcio>=" in line)

    assert f">={'.'.join(authorization_pb2_grpc.GRPC_GENERATED_VERSION.split('.')[:2])}" in promised


def test_started_server_sets_the_switch_interval(sqlite_site: Site) -> None:
    """A server that is started sets the switch interval, however it was built: the default, 5 ms, is fifty Checks."""
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)


def test_call_past_its_deadline_is_not_run(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that waited for a thread until its client was gone costs nothing more."""
    started: list[str] = []
    release = threading.Event()
    check = AuthorizationService.Check
    # Nothing is answered from the cache: every call runs in an executor.
    monkeypatch.setattr(AuthorizationService, "check_cached", lambda *_: None)

    def slow(self: AuthorizationService, request: pb.CheckRequest, call: Call) -> bytes:
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


def test_stop_returns_while_calls_are_running(make_site: MakeSite, sqlite_url: str) -> None:
    """A stop under load answers or cancels every call, and returns."""
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


def test_connection_without_grpc_is_harmless(sqlite_site: Site) -> None:
    """A connection with bytes that aren't gRPC affects no other."""
    host, _, port = sqlite_site.address.rpartition(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b""):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(noise)

    with Client(sqlite_site.address, sqlite_site.tokens["OWNER"]) as client:
        assert client.check("ann@acme.io", "view", "members")


def _no_requests(stop: threading.Event) -> Iterator[bytes]:
    """Yield no request until the stop."""
    stop.wait(30)
    yield from ()
