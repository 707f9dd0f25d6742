"""Both lanes behave alike, and neither hangs nor answers wrongly, whatever clients do."""

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
from conftest import CI, MakeSite, Site, wait_until
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_errors import told
from grpc_status import rpc_status
from raw_calls import RawConnection

from rolecall import Client, credentials
from rolecall.authorizer import Authorizer
from rolecall.directory import Directory
from rolecall.domain import CredentialKind
from rolecall.errors import ConfigError, StorageUnavailable
from rolecall.server import (
    OPEN_METHODS,
    Server,
    build_server,
    calls,
    fastcall,
    fastlane,
    lane_probe,
    native,
    together,
    unheard,
    waiting,
)
from rolecall.server.calls import Calls
from rolecall.server.threads import STRANGERS
from rolecall.server.waiting import Waiting
from rolecall.storage import Storage
from rolecall.v1 import (
    audit_pb2,
    invitation_pb2,
    member_pb2,
    organization_pb2,
    policy_pb2,
    session_pb2,
    token_pb2,
)
from rolecall.v1 import authorization_pb2 as pb

FILES = [pb, audit_pb2, invitation_pb2, member_pb2, organization_pb2, policy_pb2, session_pb2, token_pb2]
UNARY = [
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
]
CHECK = "/rolecall.v1.AuthorizationService/Check"
BATCH = "/rolecall.v1.AuthorizationService/BatchCheck"
STRANGERS_MAY = tuple(OPEN_METHODS)
HEALTH = "/grpc.health.v1.Health/Check"
WHO_AM_I = "/rolecall.v1.SessionService/WhoAmI"
ALLOWED = pb.CheckRequest(subject="ann@acme.io", action="view", resource="members").SerializeToString()
DENIED = pb.CheckRequest(subject="viewer@acme.io", action="manage", resource="account").SerializeToString()
READ = pb.CheckResponse.FromString
ROUNDS = 2_000 if CI else 300

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def site(each_lane: str, make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of each lane, with few threads."""
    site = make_site(sqlite_url, threads=4, connection_seconds=600)
    assert bool(site.server._fast) is (each_lane == "fast")
    return site


@pytest.fixture
def fast_site(make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of the fast lane."""
    return make_site(sqlite_url, threads=4, lane="fast")


def bearer(site: Site, role: str = "OWNER") -> str:
    """What a caller presents."""
    return f"Bearer {site.tokens[role]}"


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_well(site: Site) -> None:
    """The server answers, at once and rightly."""
    with Client(site.address, site.tokens["OWNER"], timeout=10) as client:
        assert client.check("ann@acme.io", "view", "members")
        assert not client.check("viewer@acme.io", "manage", "account")
        assert client.session.who_am_i().role == "OWNER"


@dataclass(frozen=True)
class Outcome:
    """What a client sees of a call, without the ids that differ."""

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
            said = told(error)
            return Outcome(b"", said.code, said.reason, said.field, said.message, tuple(sorted(said.trailers)))
        trailers = dict(call.trailing_metadata() or ())
        assert trailers["x-request-id"] == "the-same"
        # When a policy was read, and the like, differs.
        return Outcome(answer if method == CHECK else b"", grpc.StatusCode.OK, "", "", "", tuple(sorted(trailers)))


@pytest.fixture
def two(make_site: MakeSite, sqlite_url: str) -> Iterator[tuple[Site, Server]]:
    """Two servers of one database: the fast lane's, and the public one."""
    site = make_site(sqlite_url, lane="fast")
    other = build_server(site.settings.model_copy(update={"lane": "standard"}))
    other.start()
    yield site, other
    other.stop(0)


def test_strangers_asked_about_together_are_read_together(fast_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query for many that miss at once, by one thread; and one failure for all while the database is away."""
    channel = fast_site.channel()
    stub = channel.unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(fast_site)),)
    assert_well(fast_site)
    read, reads = Storage.read, []

    def counted(self: Storage, work: Any) -> Any:
        self.require_patience()
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
        patch.setattr(fastcall.FastCall, "_given_up", broken)
        cancelled = {call.code() for call in ask("somebody")}

    assert cancelled <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
    # None of those that failed counts as waiting any more.
    assert not cast("Any", fast_site.server._fast).waiting._sizes
    assert {answer.reason for answer in answers} == {pb.REASON_NOT_A_MEMBER}
    assert several < 100
    assert set(failed) == {grpc.StatusCode.UNAVAILABLE}
    assert_well(fast_site)


def test_both_lanes_say_the_same(two: tuple[Site, Server]) -> None:
    """Of every RPC, whatever is wrong with a call: status, reason, field, message, and which trailers there are."""
    site, other = two
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
    """The answer comes too late, to nobody."""
    answer = Calls.answer

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Calls, "answer", slow)
        for method in (CHECK, BATCH, WHO_AM_I):
            with pytest.raises(grpc.RpcError) as caught:
                site.call(method, ALLOWED, bearer(site), timeout=0.01)
            assert told(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_well(site)


def test_calls_cancelled_at_any_moment(site: Site) -> None:
    """Those that aren't are answered rightly."""
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
    assert_well(site)


def test_streams_broken_off_and_clients_that_vanish(site: Site) -> None:
    """After the headers, within the message, behind it; threads and file descriptors don't grow."""
    chance = random.Random(11)
    assert_well(site)
    threads, files = threading.active_count(), descriptors()
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
    assert_well(site)
    # The pool's threads start when they are first needed.
    wait_until(lambda: threading.active_count() <= threads + site.settings.threads + STRANGERS)
    wait_until(lambda: descriptors() <= files + 4)


def test_resets_at_random_under_load(site: Site) -> None:
    """Others' calls are answered rightly and soon while callers break theirs off, half-way too."""
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
    assert_well(site)
    for _ in range(8):
        assert site.call(HEALTH, b"", timeout=5)[0] == b"\x08\x01"


def test_half_open_calls_hold_nobody_up(site: Site, each_lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the fast lane at all; on the public one a caller's do until they are cut off, after a while."""
    monkeypatch.setattr(unheard, "MESSAGE_SECONDS", 1.0)
    connections = [RawConnection(site.address) for _ in range(8)]
    token = site.tokens["OWNER"]
    for connection in connections:
        for method in (CHECK, WHO_AM_I, BATCH):
            connection.begin(method, token)

    began = time.monotonic()
    assert_well(site)

    assert time.monotonic() - began < (5 if each_lane == "fast" else 15)
    if site.server._fast:
        fast = site.server._fast
        wait_until(lambda: not len(fast.unheard), 5)
    for connection in connections:
        connection.close()
    assert_well(site)


@pytest.mark.parametrize("token", ["", "nonsense", "forged"])
def test_nobodys_message_is_waited_for(site: Site, token: str) -> None:
    """Whoever isn't known is refused by the headers alone."""
    text = credentials.mint(CredentialKind.PERSONAL).text if token == "forged" else token
    for method in (CHECK, WHO_AM_I):
        connection = RawConnection(site.address)
        connection.begin(method, text)
        said = b""
        while b"x-request-id" not in said:
            more = connection.socket.recv(4096)
            assert more, "the server closed the connection"
            said += more
        connection.close()


def test_a_thousand_connections(site: Site) -> None:
    """Each makes its call, and all stay."""
    connections = []
    for _ in range(1000):
        connection = RawConnection(site.address)
        connection.send(connection.begin(CHECK, site.tokens["OWNER"]), ALLOWED)
        connections.append(connection)
    for connection in connections:
        said = b""
        # The request's id stands in the trailers, in plain letters.
        while b"x-request-id" not in said and b"grpc-status" not in said:
            more = connection.socket.recv(4096)
            assert more, "the server closed the connection"
            said += more
    assert_well(site)
    for connection in connections:
        connection.close()
    assert_well(site)


def test_garbage_instead_of_http(site: Site) -> None:
    """Whoever speaks something else is cut off, alone."""
    host, _, port = site.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(4096), os.urandom(4096), preface + b"\xff" * 4096):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    assert_well(site)


def test_exceptions_anywhere_end_one_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the thread that polls for all: the client is told, and soon."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")

    class Lacking:
        """The module of grpcio's private names, without one of them."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, name: str) -> object:
            if name == self.name:
                raise AttributeError(name)
            return getattr(cygrpc, name)

    places: list[tuple[object, str]] = [
        (Calls, "_authenticate"),
        (Calls, "read"),
        (calls, "_parse"),
        (Calls, "_status"),
    ]
    if site.server._fast:
        places += [(fastcall.FastCall, name) for name in ("__init__", "_send", "_is_given_up")]
        places += [(native.Queue, "request"), (native, "watch"), (Waiting, "take_in"), (Waiting, "let_go")]
        places += [(rpc_status, "to_status"), (site.server._fast.threads.callers, "submit")]
    ways = [(owner, name, cast("object", broken)) for owner, name in places]
    if site.server._fast:
        operations = ("ReceiveMessage", "ReceiveCloseOnServer", "SendInitialMetadata", "SendStatusFromServer")
        ways += [(native, "cygrpc", Lacking(f"{name}Operation")) for name in operations]
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
            assert_well(site)


def test_stopping_with_calls_in_flight(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those under way are answered or told so; none hangs, and stopping takes no longer than it may."""
    read = Storage.read

    def slow(self: Storage, work: Any) -> Any:
        self.require_patience()
        time.sleep(0.5)
        return read(self, work)

    assert_well(site)
    monkeypatch.setattr(Storage, "read", slow)
    listing = member_pb2.ListMembersRequest().SerializeToString()
    channel = site.channel()
    outcomes: list[grpc.StatusCode] = []

    def ask(method: str, request: bytes) -> None:
        stub = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            stub(request, timeout=20, metadata=(("authorization", bearer(site)),))
        except grpc.RpcError as error:
            outcomes.append(told(error).code)
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


def test_no_call_is_asked_for_while_a_stop_begins(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc looks whether it stops before it notes what is asked for, and ends the process if that came in between.

    So it must be asked under the lock under which it begins to stop.
    """
    monkeypatch.setenv("ROLECALL_LANE", "fast")
    held: list[bool] = []
    request = native.Queue.request

    def watched(self: native.Queue, method: str, tag: object) -> None:
        lock, server = self._state.lock, self._server

        class Watched:
            def request_registered_call(self, *arguments: object) -> None:
                held.append(lock._is_owned())
                server.request_registered_call(*arguments)

        monkeypatch.setattr(self, "_server", Watched())
        request(self, method, tag)
        monkeypatch.setattr(self, "_server", server)

    monkeypatch.setattr(native.Queue, "request", watched)
    site = make_site(sqlite_url)
    asked_at_start = len(held)
    for _ in range(40):
        site.call(CHECK, ALLOWED, bearer(site))

    assert len(held) > asked_at_start > 0
    assert all(held)


def test_a_stopped_server_leaves_no_thread(site: Site) -> None:
    """Whoever embeds one may start and stop it as often as they like."""
    before = set(threading.enumerate())
    for method in UNARY:
        with suppress(grpc.RpcError):
            site.call(method, b"", bearer(site))
    its_own = {thread for thread in threading.enumerate() if thread.name.startswith(("call", *STRANGERS_MAY))} - before
    assert its_own

    site.server.stop(1.0)

    wait_until(lambda: not any(thread.is_alive() for thread in its_own))


def test_thousands_that_come_while_it_is_busy_are_all_answered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc would cancel some of more than a thousand that wait to be taken in."""
    assert_well(site)
    check, halts = Authorizer.check, iter([2.0])

    def halting(self: Authorizer, *arguments: Any, **named: Any) -> Any:
        time.sleep(next(halts, 0.0))
        return check(self, *arguments, **named)

    monkeypatch.setattr(Authorizer, "check", halting)
    metadata = (("authorization", bearer(site)),)
    calls = []
    for _ in range(5):
        stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
        calls += [stub.future(ALLOWED, timeout=30, metadata=metadata) for _ in range(800)]

    assert {call.result().decision for call in calls} == {pb.DECISION_ALLOW}


def strangers(number: int, first: int = 0) -> list[bytes]:
    """Questions about people whom nobody knows."""
    return [
        pb.CheckRequest(subject=f"nobody{first + place}@x.io", action="view", resource="members").SerializeToString()
        for place in range(number)
    ]


def test_a_reading_that_hangs_is_given_up(fast_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait for it are told so, and whoever comes next is read for by others; it comes back to nothing."""
    site = fast_site
    monkeypatch.setattr(together, "READ_SECONDS", 1.0)
    remember, hangs, released = Directory.remember, iter([True]), threading.Event()

    def hang_once(self: Directory, lacking: Any) -> None:
        if next(hangs, False):
            released.wait(30)
        remember(self, lacking)

    assert_well(site)
    monkeypatch.setattr(Directory, "remember", hang_once)
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(site)),)
    began = time.monotonic()
    first = [stub.future(message, timeout=20, metadata=metadata) for message in strangers(1)]
    time.sleep(0.2)
    behind = [stub.future(message, timeout=20, metadata=metadata) for message in strangers(40, 1)]
    try:
        for call in first + behind:
            with pytest.raises(grpc.RpcError) as failed:
                call.result()
            said = told(failed.value)
            assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
        assert time.monotonic() - began < 5
        for message in strangers(10):
            assert stub(message, timeout=5, metadata=metadata).decision == pb.DECISION_DENY
        assert_well(site)
    finally:
        released.set()
    assert_well(site)
    assert not site.server._fast.waiting._sizes  # type: ignore[union-attr]


def test_a_reading_is_for_so_many_at_most(fast_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many gather behind one that takes long, others don't wait until all of them are answered."""
    site, remember = fast_site, Directory.remember
    slow, read = iter([1.5]), []
    answered_at_once: list[int] = []
    prepare_due = fastlane.FastLane._answer_due

    def slowly_once(self: Directory, lacking: Any) -> None:
        read.append(len(lacking))
        time.sleep(next(slow, 0.0))
        remember(self, lacking)

    def noted(self: fastlane.FastLane) -> None:
        before = len(self._due) + len(self._given_back)
        prepare_due(self)
        answered_at_once.append(before - len(self._due) - len(self._given_back))

    assert_well(site)
    monkeypatch.setattr(Directory, "remember", slowly_once)
    monkeypatch.setattr(fastlane.FastLane, "_answer_due", noted)
    metadata = (("authorization", bearer(site)),)
    asked = strangers(3000)
    stubs = [site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ) for _ in range(4)]
    calls = [stubs[number % 4].future(message, timeout=30, metadata=metadata) for number, message in enumerate(asked)]

    assert {call.result().decision for call in calls} == {pb.DECISION_DENY}
    assert sum(read) == len(asked)
    assert max(read) <= together.MOST
    assert max(answered_at_once) <= 2 * fastlane.TOGETHER
    assert_well(site)


def test_more_calls_at_once_than_are_ready(site: Site) -> None:
    """None is lost, and none gets another one's answer."""
    stub = site.channel().unary_unary(CHECK, request_serializer=bytes, response_deserializer=READ)
    metadata = (("authorization", bearer(site)),)
    asked = [ALLOWED if number % 3 else DENIED for number in range(500)]
    calls = [stub.future(request, timeout=30, metadata=metadata) for request in asked]

    for request, call in zip(asked, calls, strict=True):
        assert call.result().decision == (pb.DECISION_ALLOW if request is ALLOWED else pb.DECISION_DENY)


def test_what_takes_long_holds_nobody_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Explanations, long batches and large messages are worked on by the pool's threads."""
    threads: list[str] = []
    check, batch = Authorizer.check, Authorizer.batch_check

    def noted_check(self: Authorizer, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread().name)
        return check(self, *args, **kwargs)

    def noted_batch(self: Authorizer, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread().name)
        return batch(self, *args, **kwargs)

    monkeypatch.setattr(Authorizer, "check", noted_check)
    monkeypatch.setattr(Authorizer, "batch_check", noted_batch)
    item = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="members")
    long = pb.BatchCheckItem(subject="ann@acme.io", action="view", resource="members/" + "x" * 1000)
    explained = pb.CheckRequest.FromString(ALLOWED)
    explained.explain = True
    assert_well(site)
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
    assert threads[-1].startswith("call") is not bool(site.server._fast)


@contextmanager
def all_threads_busy(site: Site) -> Iterator[None]:
    """For as long, whatever must wait waits."""
    free = threading.Event()
    pool = cast("Any", site.server._fast).threads.callers
    for _ in range(site.settings.threads):
        pool.submit(free.wait)
    yield
    free.set()


def test_more_calls_than_may_wait_are_refused(fast_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait are answered in the end. On the public lane that is grpc's own limit."""
    monkeypatch.setattr(waiting, "MAX_CALLS", 20)
    stub = fast_site.channel().unary_unary(WHO_AM_I, request_serializer=bytes, response_deserializer=bytes)
    assert_well(fast_site)
    with all_threads_busy(fast_site):
        metadata = (("authorization", bearer(fast_site)),)
        asked = [stub.future(b"", timeout=30, metadata=metadata) for _ in range(50)]
        wait_until(lambda: sum(call.done() for call in asked) == 30)
    codes = [call.code() for call in asked]

    assert codes.count(grpc.StatusCode.OK) == 20
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 30
    assert_well(fast_site)


def test_more_bytes_than_may_wait_are_refused(fast_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages fill no memory while all threads are busy; small ones wait as ever."""
    monkeypatch.setattr(waiting, "MAX_BYTES", 50_000)
    stub = fast_site.channel().unary_unary(WHO_AM_I, request_serializer=bytes, response_deserializer=bytes)
    metadata = (("authorization", bearer(fast_site)),)
    assert_well(fast_site)
    with all_threads_busy(fast_site):
        large = [stub.future(b"\xff" * 10_000, timeout=30, metadata=metadata) for _ in range(20)]
        wait_until(lambda: sum(call.done() for call in large) == 15)
        small = stub.future(b"", timeout=30, metadata=metadata)

    assert [call.code() for call in large].count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 15
    assert small.code() is grpc.StatusCode.OK


def test_the_probe_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls this very process, wherever other calls are to go."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert lane_probe.problem() == ""


def test_a_grpcio_that_differs_is_told_and_served_without(
    make_site: MakeSite, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` falls back to the public lane with a warning; `fast` doesn't start."""
    monkeypatch.setattr(native, "cygrpc", None)
    site = make_site(sqlite_url)

    assert site.server._fast is None
    assert_well(site)
    assert "the fast lane doesn't work with this grpcio" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="set lane to `auto`"):
        build_server(site.settings.model_copy(update={"lane": "fast"}))
