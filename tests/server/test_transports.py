"""Both transports behave the same, and neither hangs nor answers wrongly, whatever clients do."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc._cython import cygrpc as native  # type: ignore[attr-defined]
from grpc_status import rpc_status

from rolecall import Client
from rolecall.credentials import token_format
from rolecall.domain import CredentialKind
from rolecall.errors import ConfigError, StorageUnavailable
from rolecall.identity.authentication import Authenticator
from rolecall.limits import Limits
from rolecall.server import build_server, handler
from rolecall.server.build import OPEN_METHODS, Server
from rolecall.server.handler import CallHandler
from rolecall.server.transport import cygrpc, polling_call, polling_server, probe
from rolecall.server.transport.call_limits import CallLimits
from rolecall.server.transport.executors import DEDICATED_THREADS
from rolecall.services.authorization import Authorizer
from rolecall.storage import Storage
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
from support.environment import CI
from support.raw_calls import RawConnection
from support.server_calls import failure_of
from support.sites import MakeSite, Site
from support.waiting import wait_until

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
UNARY = [
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
]
CHECK = "/rolecall.v1.AuthorizationService/Check"
BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"
UNAUTHENTICATED_MAY = tuple(OPEN_METHODS)
HEALTH = "/grpc.health.v1.Health/Check"
WHO_AM_I = "/rolecall.v1.SessionService/WhoAmI"
ALLOWED = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()
DENIED = pb.CheckRequest(subject="viewer@acme.io", action="manage", resource="account").SerializeToString()
READ = pb.CheckResponse.FromString
ROUNDS = 2_000 if CI else 300

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def site(each_transport: str, make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of each transport, with few threads."""
    site = make_site(sqlite_url, threads=4, connection_seconds=600)
    assert bool(site.polling) is (each_transport == "polling")
    return site


@pytest.fixture
def polling_site(make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of the polling transport."""
    return make_site(sqlite_url, threads=4, transport="polling")


def bearer(site: Site, role: str = "OWNER") -> str:
    """The metadata of a caller with a token."""
    return f"Bearer {site.tokens[role]}"


def open_sockets() -> int:
    """Count the sockets that this process has open. The pool opens the database's file when it needs to."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        # The descriptor of the listing itself is closed by now.
        with suppress(FileNotFoundError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def assert_serves(site: Site) -> None:
    """Assert that the server answers correctly, without delay."""
    with Client(site.address, site.tokens["OWNER"], timeout=10) as client:
        assert client.check("ann@acme.io", "view", "members")
        assert not client.check("viewer@acme.io", "manage", "account")
        assert client.session.who_am_i().role == "OWNER"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call as a client sees it, without the ids that differ."""

    answer: bytes
    code: grpc.StatusCode
    reason: str
    field: str
    message: str
    trailers: tuple[str, ...]


def outcome(address: str, method: str, message: bytes, metadata: list[tuple[str, str]]) -> Outcome:
    """Make a call."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer, call = stub.with_call(message, timeout=10, metadata=(*metadata, ("x-request-id", "the-same")))
        except grpc.RpcError as error:
            failure = failure_of(error)
            return Outcome(
                b"", failure.code, failure.reason, failure.field, failure.message, tuple(sorted(failure.trailers))
            )
        trailers = dict(call.trailing_metadata() or ())
        assert trailers["x-request-id"] == "the-same"
        # When a policy was read, and the like, differs.
        return Outcome(answer if method == CHECK else b"", grpc.StatusCode.OK, "", "", "", tuple(sorted(trailers)))


@pytest.fixture
def two_servers(make_site: MakeSite, sqlite_url: str) -> Iterator[tuple[Site, Server]]:
    """Two servers over one database, one with each transport."""
    site = make_site(sqlite_url, transport="polling")
    other = build_server(site.settings.model_copy(update={"transport": "standard"}))
    other.start()
    yield site, other
    other.stop(0)


def test_uncached_subjects_of_concurrent_calls_share_a_batch(
    polling_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Concurrent misses are one query by one thread; while the database is away, they all fail with one error."""
    channel = polling_site.channel()
    stub = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(polling_site)),)
    assert_serves(polling_site)
    read, reads = Storage.read, []

    def counted(self: Storage, work: Any) -> Any:
        reads.append(threading.current_thread().name)
        time.sleep(0.02)
        return read(self, work)

    def ask(name: str) -> list[Any]:
        asked = [
            pb.CheckRequest(subject=f"{name}{number}@acme.io", action="view", resource="members").SerializeToString()
            for number in range(400)
        ]
        return [stub.future(request, timeout=20, metadata=metadata) for request in asked]

    monkeypatch.setattr(Storage, "read", counted)
    answers = [call.result() for call in ask("nobody")]
    several = len(reads)

    def broken(*_: Any) -> Any:
        raise StorageUnavailable("It is away.")

    monkeypatch.setattr(Storage, "read", broken)
    failed = [call.code() for call in ask("stranger")]

    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(polling_call.PollingCall, "_cancelled_status", broken)
        cancelled = {call.code() for call in ask("somebody")}

    assert cancelled <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    # Calls that failed no longer count as waiting.
    assert not cast("Any", polling_site.polling).limits.queued
    assert {answer.reason for answer in answers} == {pb.REASON_NOT_A_MEMBER}
    assert several < 100
    assert set(failed) == {grpc.StatusCode.UNAVAILABLE}
    assert_serves(polling_site)


def test_both_transports_give_the_same_answers(two_servers: tuple[Site, Server]) -> None:
    """Both transports give each RPC the same status, reason, field, message and trailers, for any fault of a call."""
    site, other = two_servers
    good = ("authorization", bearer(site))
    viewer = ("authorization", bearer(site, "VIEWER"))
    large = b"\x0a\xff\x7f" + b"a" * 16_383
    requests = {"empty": b"", "garbage": b"\xff\xff\xff", "other": b"\x0a\x04acme", "large": large}
    presented: dict[str, list[tuple[str, str]]] = {
        "none": [],
        "good": [good],
        "doubled": [good, good],
        "malformed": [("authorization", "Bearer nothing")],
        "viewer": [viewer],
    }
    compared = 0
    for method in UNARY:
        for name, request in requests.items():
            for kind, metadata in presented.items():
                if method.endswith(("LeaveOrganization", "SignOut", "WhoAmI")) and kind in ("good", "viewer"):
                    continue
                there = outcome(other.address, method, request, metadata)
                here = outcome(site.address, method, request, metadata)
                assert here == there, (method, name, kind)
                compared += here.code is not grpc.StatusCode.OK
    for request in (ALLOWED, DENIED):
        assert outcome(site.address, CHECK, request, [good]) == outcome(other.address, CHECK, request, [good])
    assert compared > 300


def test_a_deadline_that_passes_meanwhile_ends_the_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose deadline passes while it is decided ends with DEADLINE_EXCEEDED."""
    parse = handler._parse

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return parse(*args)

    with monkeypatch.context() as patch:
        patch.setattr(handler, "_parse", slow)
        for method in (CHECK, BATCH, WHO_AM_I):
            with pytest.raises(grpc.RpcError) as caught:
                site.call(method, ALLOWED, bearer(site), timeout=0.01)
            assert failure_of(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_serves(site)


def test_calls_cancelled_at_any_moment(site: Site) -> None:
    """Calls cancelled at any moment leave the others answered correctly."""
    chance = random.Random(7)
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(site)),)
    pending: list[tuple[Any, bytes]] = []
    answered = 0
    for _ in range(ROUNDS):
        request = chance.choice([ALLOWED, DENIED])
        pending.append((stub.future(request, timeout=20, metadata=metadata), request))
        if len(pending) < 20:
            continue
        chance.shuffle(pending)
        call, asked = pending.pop()
        if chance.random() < 0.5:
            time.sleep(chance.choice([0, 0, 0.001]))
            call.cancel()
        else:
            expected = pb.DECISION_ALLOW if asked is ALLOWED else pb.DECISION_DENY
            assert call.result().decision == expected
            answered += 1
    for call, _ in pending:
        call.cancel()

    assert answered > ROUNDS / 4
    assert_serves(site)


def test_broken_streams_and_lost_connections(site: Site) -> None:
    """Calls cancelled after the headers, within or after the message leave no threads or sockets."""
    chance = random.Random(11)
    assert_serves(site)
    threads, sockets = threading.active_count(), open_sockets()
    for number in range(ROUNDS // 8):
        connection = RawConnection(site.address)
        for _ in range(8):
            stream = connection.begin(chance.choice([CHECK, BATCH, WHO_AM_I, HEALTH]), site.tokens["OWNER"])
            match chance.randrange(4):
                case 0:
                    connection.reset(stream)
                case 1:
                    connection.send(stream, ALLOWED, part=0.5)
                    connection.reset(stream)
                case 2:
                    connection.send(stream, ALLOWED)
                    connection.reset(stream)
                case _:
                    connection.send(stream, ALLOWED, part=chance.choice([0.0, 0.3, 1.0]))
        if number % 2:
            connection.vanish()
        else:
            connection.close()
    assert_serves(site)
    # The pool's threads start when they are first needed.
    wait_until(lambda: threading.active_count() <= threads + site.settings.threads + DEDICATED_THREADS)
    wait_until(lambda: open_sockets() <= sockets + 4)


def test_resets_at_random_under_load(site: Site) -> None:
    """Calls are answered correctly and soon while other clients cancel theirs, some of them half-way."""
    chance, parts = random.Random(13), [0.0, 0.5, 1.0]
    stop = threading.Event()
    wrong: list[object] = []
    answered = 0

    def break_off() -> None:
        while not stop.is_set():
            connection = RawConnection(site.address)
            for _ in range(6):
                stream = connection.begin(chance.choice([CHECK, BATCH, WHO_AM_I, HEALTH]), site.tokens["OWNER"])
                connection.send(stream, ALLOWED, part=chance.choice(parts))
                if chance.random() < 0.8:
                    connection.reset(stream)
            (connection.vanish if chance.random() < 0.5 else connection.close)()
            # All share one interpreter here.
            time.sleep(0.1)

    with ThreadPoolExecutor(2) as breaking:
        broken = [breaking.submit(break_off) for _ in range(2)]
        stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
        metadata = (("authorization", bearer(site)),)
        until = time.monotonic() + (10 if CI else 3)
        try:
            while time.monotonic() < until:
                asked = [ALLOWED if number % 2 else DENIED for number in range(8)]
                calls = [stub.future(request, timeout=20, metadata=metadata) for request in asked]
                for request, call in zip(asked, calls, strict=True):
                    answered += 1
                    if call.result().decision != (pb.DECISION_ALLOW if request is ALLOWED else pb.DECISION_DENY):
                        wrong.append(request)
        finally:
            stop.set()

    assert [each.result() for each in broken] == [None, None]
    assert not wrong
    assert answered > 50
    assert_serves(site)
    for _ in range(8):
        assert site.call(HEALTH, b"", timeout=5)[0] == b"\x08\x01"


def test_incomplete_calls_delay_no_other(make_site: MakeSite, database_url: str, each_transport: str) -> None:
    """Calls without a message delay no other on the polling transport; on the standard one they are cancelled later."""
    site = make_site(database_url, limits=Limits(message_seconds=1.0))
    connections = [RawConnection(site.address) for _ in range(8)]
    token = site.tokens["OWNER"]
    for connection in connections:
        for method in (CHECK, WHO_AM_I, BATCH):
            connection.begin(method, token)

    began = time.monotonic()
    assert_serves(site)

    assert time.monotonic() - began < (5 if each_transport == "polling" else 15)
    if site.polling:
        fast = site.polling
        wait_until(lambda: not fast.limits.receiving, 5)
    for connection in connections:
        connection.close()
    assert_serves(site)


@pytest.mark.parametrize("token", ["", "nonsense", "forged"])
def test_unauthenticated_caller_is_refused_before_its_message(site: Site, token: str) -> None:
    """An unauthenticated caller is refused by the headers alone."""
    text = token_format.mint(CredentialKind.PERSONAL).text if token == "forged" else token
    for method in (CHECK, WHO_AM_I):
        connection = RawConnection(site.address)
        connection.begin(method, text)
        received = b""
        while b"x-request-id" not in received:
            more = connection.socket.recv(4096)
            assert more, "the server closed the connection"
            received += more
        connection.close()


def test_a_thousand_connections(site: Site) -> None:
    """Each of a thousand connections makes a call, and all stay open."""
    connections = []
    for _ in range(1000):
        connection = RawConnection(site.address)
        connection.send(connection.begin(CHECK, site.tokens["OWNER"]), ALLOWED)
        connections.append(connection)
    for connection in connections:
        received = b""
        # The call id is in the trailers, as plain text.
        while b"x-request-id" not in received and b"grpc-status" not in received:
            more = connection.socket.recv(4096)
            assert more, "the server closed the connection"
            received += more
    assert_serves(site)
    for connection in connections:
        connection.close()
    assert_serves(site)


def test_garbage_bytes_instead_of_http(site: Site) -> None:
    """A connection with bytes that are not HTTP/2 is closed, and no other is affected."""
    host, _, port = site.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(4096), os.urandom(4096), preface + b"\xff" * 4096):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    assert_serves(site)


def test_exception_in_any_step_ends_only_its_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception anywhere ends one call with an error, soon, and not the thread that polls for all."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    class ModuleWithout:
        """Stand-in for the module of grpcio's private names, without one of them."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, name: str) -> object:
            if name == self.name:
                raise AttributeError(name)
            return getattr(native, name)

    places: list[tuple[object, str]] = [
        (Authenticator, "authenticate_cached"),
        (CallHandler, "read_metadata"),
        (handler, "_parse"),
        (CallHandler, "fail"),
    ]
    if site.polling:
        places += [(polling_call.PollingCall, name) for name in ("__init__", "_send", "_is_cancelled")]
        places += [
            (cygrpc.CompletionQueue, "request"),
            (cygrpc, "watch"),
            (CallLimits, "enqueue"),
            (CallLimits, "dequeue"),
        ]
        places += [(rpc_status, "to_status"), (site.polling.executors.callers, "submit")]
    ways = [(owner, name, cast("object", broken)) for owner, name in places]
    if site.polling:
        operations = ("ReceiveMessage", "ReceiveCloseOnServer", "SendInitialMetadata", "SendStatusFromServer")
        ways += [(cygrpc, "cygrpc", ModuleWithout(f"{name}Operation")) for name in operations]
    for owner, name, instead in ways:
        for method in (CHECK, WHO_AM_I):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, instead)
                began = time.monotonic()
                # More than are ever ready, so that a lost one would be missed.
                for _ in range({"__init__": 40, "request": 20}.get(name, 2)):
                    try:
                        site.call(method, ALLOWED, bearer(site), timeout=5)
                    except grpc.RpcError as error:
                        code = cast("grpc.Call", error).code()
                        assert code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK), (name, method)
                assert time.monotonic() - began < 5, (name, method)
            assert_serves(site)


def test_stopping_with_calls_in_flight(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop answers running calls or fails them; none hangs, and the stop takes no longer than its limit."""
    read = Storage.read

    def slow(self: Storage, work: Any) -> Any:
        time.sleep(0.5)
        return read(self, work)

    assert_serves(site)
    monkeypatch.setattr(Storage, "read", slow)
    listing = member_pb2.ListMembersRequest().SerializeToString()
    channel = site.channel()
    outcomes: list[grpc.StatusCode] = []

    def ask(method: str, request: bytes) -> None:
        stub = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            stub(request, timeout=20, metadata=(("authorization", bearer(site)),))
        except grpc.RpcError as error:
            outcomes.append(failure_of(error).code)
        else:
            outcomes.append(grpc.StatusCode.OK)

    with ThreadPoolExecutor(24) as callers:
        for number in range(24):
            callers.submit(ask, *[(CHECK, ALLOWED), ("/rolecall.v1.MemberService/ListMembers", listing)][number % 2])
        time.sleep(0.3)
        began = time.monotonic()
        site.server.stop(1.0)
        took = time.monotonic() - began

    assert took < 8
    assert len(outcomes) == 24
    assert grpc.StatusCode.DEADLINE_EXCEEDED not in outcomes
    assert set(outcomes) <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_no_call_is_requested_while_a_stop_begins(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc checks for a stop before it records a requested call, and aborts the process if the stop comes between.

    So it must be asked under the lock under which it begins to stop.
    """
    monkeypatch.setenv("ROLECALL_TRANSPORT", "polling")
    held: list[bool] = []
    request = cygrpc.CompletionQueue.request

    def watched(self: cygrpc.CompletionQueue, method: str, tag: object) -> None:
        lock, server = self._state.lock, self._server

        class Watched:
            def request_registered_call(self, *arguments: object) -> None:
                held.append(lock._is_owned())
                server.request_registered_call(*arguments)

        monkeypatch.setattr(self, "_server", Watched())
        request(self, method, tag)
        monkeypatch.setattr(self, "_server", server)

    monkeypatch.setattr(cygrpc.CompletionQueue, "request", watched)
    site = make_site(sqlite_url)
    asked_at_start = len(held)
    for _ in range(40):
        site.call(CHECK, ALLOWED, bearer(site))

    assert len(held) > asked_at_start > 0
    assert all(held)


def test_a_stopped_server_leaves_no_thread(site: Site) -> None:
    """A stopped server leaves no thread, so that a program may start and stop one any number of times."""
    before = set(threading.enumerate())
    for method in UNARY:
        with suppress(grpc.RpcError):
            site.call(method, b"", bearer(site))
    its_own = {
        thread for thread in threading.enumerate() if thread.name.startswith(("call", *UNAUTHENTICATED_MAY))
    } - before
    assert its_own

    site.server.stop(1.0)

    wait_until(lambda: not any(thread.is_alive() for thread in its_own))


def test_thousands_of_calls_to_a_busy_server_are_all_answered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a thousand calls that wait to be accepted are answered; grpc would cancel some."""
    assert_serves(site)
    check, halts = Authorizer.check_cached, iter([2.0])

    def halting(self: Authorizer, *arguments: Any, **named: Any) -> Any:
        time.sleep(next(halts, 0.0))
        return check(self, *arguments, **named)

    monkeypatch.setattr(Authorizer, "check_cached", halting)
    metadata = (("authorization", bearer(site)),)
    calls = []
    for _ in range(5):
        stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
        calls += [stub.future(ALLOWED, timeout=30, metadata=metadata) for _ in range(800)]

    assert {call.result().decision for call in calls} == {pb.DECISION_ALLOW}
    assert next(halts, None) is None, "the server was not busy"


def uncached_checks(number: int, first: int = 0) -> list[bytes]:
    """Questions about uncached subjects."""
    return [
        pb.CheckRequest(subject=f"nobody{first + place}@x.io", action="view", resource="members").SerializeToString()
        for place in range(number)
    ]


def test_a_query_that_hangs_is_abandoned(make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging query fails its callers; the next ones get another thread, and its late result is dropped."""
    site = make_site(sqlite_url, limits=Limits(load_seconds=1.0), transport="polling")
    load, hangs, released = site.core.directory._load, iter([True]), threading.Event()

    def hang_once(batch: Any) -> Any:
        if next(hangs, False):
            released.wait(30)
        return load(batch)

    assert_serves(site)
    monkeypatch.setattr(site.core.directory.loader, "_load_batch", hang_once)
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(site)),)
    began = time.monotonic()
    first = [stub.future(message, timeout=20, metadata=metadata) for message in uncached_checks(1)]
    time.sleep(0.2)
    behind = [stub.future(message, timeout=20, metadata=metadata) for message in uncached_checks(40, 1)]
    try:
        for call in first + behind:
            with pytest.raises(grpc.RpcError) as failed:
                call.result()
            failure = failure_of(failed.value)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        assert time.monotonic() - began < 5
        for message in uncached_checks(10):
            assert stub(message, timeout=5, metadata=metadata).decision == pb.DECISION_DENY
        assert_serves(site)
    finally:
        released.set()
    assert_serves(site)
    assert site.polling is not None
    assert not site.polling.limits.queued


def test_batch_of_queries_has_a_maximum_size(polling_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has a maximum size: calls queued behind a long query aren't delayed until all of them are answered."""
    site, load = polling_site, polling_site.core.directory._load
    slow, read = iter([1.5]), []
    answered_at_once: list[int] = []
    prepare_due = polling_server.PollingServer._answer_ready

    def slowly_once(batch: Any) -> Any:
        read.append(len(batch))
        time.sleep(next(slow, 0.0))
        return load(batch)

    def noted(self: polling_server.PollingServer) -> None:
        before = len(self._ready) + len(self._loaded)
        prepare_due(self)
        answered_at_once.append(before - len(self._ready) - len(self._loaded))

    assert_serves(site)
    monkeypatch.setattr(site.core.directory.loader, "_load_batch", slowly_once)
    monkeypatch.setattr(polling_server.PollingServer, "_answer_ready", noted)
    metadata = (("authorization", bearer(site)),)
    asked = uncached_checks(3000)
    stubs = [site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ) for _ in range(4)]
    calls = [stubs[number % 4].future(message, timeout=30, metadata=metadata) for number, message in enumerate(asked)]

    assert {call.result().decision for call in calls} == {pb.DECISION_DENY}
    assert sum(read) == len(asked)
    assert max(read) <= Limits().load_batch
    assert max(answered_at_once) <= 2 * polling_server.BATCH
    assert_serves(site)


def test_more_concurrent_calls_than_are_requested_from_grpc(site: Site) -> None:
    """No call is lost, and none gets another call's answer."""
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(site)),)
    asked = [ALLOWED if number % 3 else DENIED for number in range(500)]
    calls = [stub.future(request, timeout=30, metadata=metadata) for request in asked]

    for request, call in zip(asked, calls, strict=True):
        assert call.result().decision == (pb.DECISION_ALLOW if request is ALLOWED else pb.DECISION_DENY)


def test_slow_call_delays_no_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explanations, long batches and large messages are worked on by the pool's threads."""
    threads: list[str] = []
    check, batch = Authorizer.check_cached, Authorizer.batch_check_cached

    def noted_check(self: Authorizer, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread().name)
        return check(self, *args, **kwargs)

    def noted_batch(self: Authorizer, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread().name)
        return batch(self, *args, **kwargs)

    monkeypatch.setattr(Authorizer, "check_cached", noted_check)
    monkeypatch.setattr(Authorizer, "batch_check_cached", noted_batch)
    item = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="members")
    long = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="members/" + "x" * 1000)
    explained = pb.CheckRequest.FromString(ALLOWED)
    explained.explain = True
    assert_serves(site)
    for method, request in (
        (CHECK, explained),
        (BATCH, pb.BatchCheckRequest(checks=[item] * 101)),
        (BATCH, pb.BatchCheckRequest(checks=[long] * 99)),
    ):
        threads.clear()
        site.call(method, request.SerializeToString(), bearer(site))
        assert threads[-1].startswith("call"), request
    threads.clear()
    site.call(BATCH, pb.BatchCheckRequest(checks=[item] * 100).SerializeToString(), bearer(site))
    assert threads[-1].startswith("call") is not bool(site.polling)


@contextmanager
def all_threads_busy(site: Site) -> Iterator[None]:
    """Keep all threads busy for this time, so that other calls queue."""
    free = threading.Event()
    pool = site.server._executors.callers
    for _ in range(site.settings.threads):
        pool.submit(free.wait)
    yield
    free.set()


def test_calls_above_the_queue_limit_are_refused(make_site: MakeSite, sqlite_url: str, each_transport: str) -> None:
    """Calls above the maximum are refused, queued ones answered. On the standard transport grpc refuses them."""
    site = make_site(sqlite_url, limits=Limits(waiting_calls=20), threads=4)
    stub = site.channel().unary_unary(WHO_AM_I, request_serializer=bytes, response_deserializer=bytes)
    # grpc counts the calls that run, too; here none of those that keep the threads busy.
    queued = 20 if each_transport == "polling" else 24
    assert_serves(site)
    with all_threads_busy(site):
        metadata = (("authorization", bearer(site)),)
        asked = [stub.future(b"", timeout=30, metadata=metadata) for _ in range(50)]
        wait_until(lambda: sum(call.done() for call in asked) == 50 - queued)
    codes = [call.code() for call in asked]

    assert codes.count(grpc.StatusCode.OK) == queued
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 50 - queued
    assert_serves(site)


def test_more_calls_than_may_wait_for_a_credential_are_refused(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that share one look-up of a credential wait in the same bounded number; no other is kept in memory."""
    site = make_site(sqlite_url, limits=Limits(waiting_calls=20), transport="polling")
    load, free = site.core.authenticator._load, threading.Event()

    def hang(presented: Any) -> Any:
        assert free.wait(20)
        return load(presented)

    assert_serves(site)
    monkeypatch.setattr(site.core.authenticator.loader, "_load_batch", hang)
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", f"Bearer {token_format.mint(CredentialKind.PERSONAL).text}"),)
    asked = [stub.future(ALLOWED, timeout=30, metadata=metadata) for _ in range(50)]
    wait_until(lambda: sum(call.done() for call in asked) == 30, 4)
    free.set()
    codes = [call.code() for call in asked]

    assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == 20
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 30
    assert site.polling is not None
    assert not site.polling.limits.queued
    assert_serves(site)


def test_message_bytes_above_the_queue_limit_are_refused(make_site: MakeSite, sqlite_url: str) -> None:
    """While all threads are busy, large messages above the limit are refused; small ones are queued as usual."""
    site = make_site(sqlite_url, limits=Limits(waiting_bytes=50_000), transport="polling")
    stub = site.channel().unary_unary(WHO_AM_I, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", bearer(site)),)
    assert_serves(site)
    with all_threads_busy(site):
        large = [stub.future(b"\xff" * 10_000, timeout=30, metadata=metadata) for _ in range(20)]
        wait_until(lambda: sum(call.done() for call in large) == 15)
        small = stub.future(b"", timeout=30, metadata=metadata)

    assert [call.code() for call in large].count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 15
    assert small.code() is grpc.StatusCode.OK


def test_the_probe_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe calls this process itself, though a proxy is configured for other calls."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert probe.problem() == ""


def test_another_grpcio_falls_back_to_the_standard_transport(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` falls back to the standard transport with a warning; `polling` doesn't start."""
    monkeypatch.setattr(cygrpc, "cygrpc", None)
    site = make_site(sqlite_url)

    assert site.polling is None
    assert_serves(site)
    assert "polling transport doesn't work with this grpcio" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="set `transport = auto`"):
        build_server(site.settings.model_copy(update={"transport": "polling"}))
