"""grpc.health: right, and never delaying other calls, whatever watchers do."""

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb

from rolecall import Client
from rolecall.domain import now
from rolecall.errors import StorageUnavailable
from rolecall.server.servicers.health import READY
from rolecall.storage import policies as policy_rows
from rolecall.storage.policies import StoredPolicy
from support.raw_calls import SETTINGS, RawConnection
from support.server_calls import failure_of
from support.sites import MakeSite, Site
from support.waiting import wait_until

HEALTH = "/grpc.health.v1.Health"
INITIAL_WINDOW_SIZE = 4
SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def site(each_transport: str, make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of each transport."""
    site = make_site(sqlite_url, connection_seconds=600)
    assert bool(site.polling) is (each_transport == "polling")
    return site


def watch(site: Site, service: str = "") -> Any:
    """The statuses that a watching client gets."""
    stub = site.channel().unary_stream(
        f"{HEALTH}/Watch", pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
    )
    return stub(pb.HealthCheckRequest(service=service), timeout=30)


def status(site: Site, service: str = "") -> int:
    """The status that a single Check gets."""
    raw, _ = site.call(f"{HEALTH}/Check", pb.HealthCheckRequest(service=service).SerializeToString(), timeout=5)
    return pb.HealthCheckResponse.FromString(raw).status


def assert_serves(site: Site) -> None:
    """Assert that calls are answered, and health checks too."""
    with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
        assert client.check("ann@acme.io", "view", "members")
    assert status(site) == SERVING


@pytest.fixture
def watch_without_reading(site: Site) -> Iterator[list[RawConnection]]:
    """Connect unauthenticated watchers that read nothing."""
    connections = []
    for _ in range(6):
        connection = RawConnection(site.address)
        connection.frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
        connection.send(connection.begin(f"{HEALTH}/Watch", ""), b"")
        connections.append(connection)
    time.sleep(0.3)
    yield connections
    for connection in connections:
        connection.close()


def test_cancelled_watches_do_not_block_the_server(site: Site) -> None:
    """Watchers that come and go at the same time don't delay single Checks."""
    until = time.monotonic() + 3
    left: list[int] = []

    def come_and_go() -> None:
        while time.monotonic() < until:
            stream = watch(site)
            left.append(next(stream).status)
            stream.cancel()

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < until:
        assert_serves(site)
    for thread in threads:
        thread.join(10)

    assert len(left) > 60
    assert set(left) == {SERVING}
    assert_serves(site)


@pytest.mark.usefixtures("watch_without_reading")
def test_watchers_that_read_nothing_do_not_block_the_server(site: Site) -> None:
    """Watchers that read nothing delay neither other calls nor the stop."""
    for _ in range(5):
        assert_serves(site)

    began = time.monotonic()
    site.server.stop(1.0)

    assert time.monotonic() - began < 6


def test_watchers_are_notified_of_the_stop_and_do_not_delay_it(site: Site) -> None:
    """Each watcher gets NOT_SERVING, then its stream ends."""
    streams = [watch(site, name) for name in ("", "rolecall.v1.AuthorizationService") for _ in range(20)]
    assert {next(stream).status for stream in streams} == {SERVING}

    began = time.monotonic()
    site.server.stop(5.0)
    took = time.monotonic() - began

    assert took < 3
    for stream in streams:
        assert next(stream).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert failure_of(ended.value).code is grpc.StatusCode.UNAVAILABLE


def move_database(site: Site, back: bool = False) -> None:
    """Take the database away from a running server, or give it back."""
    file = Path(site.settings.database.removeprefix("sqlite:///"))
    away = file.with_suffix(".away")
    if back:
        away.rename(file)
    else:
        file.rename(away)


@pytest.fixture
def impatient(each_transport: str, make_site: MakeSite, sqlite_url: str) -> Site:
    """A server that answers from the cache for a second without its database."""
    return make_site(sqlite_url, connection_seconds=600, max_staleness=1.0)


def test_ready_turns_with_the_answers_to_checks(impatient: Site) -> None:
    """The name is NOT_SERVING while Checks are STALE, then SERVING again; the process is SERVING all the time."""
    site = impatient
    seen: list[tuple[bool, int]] = []

    def observe() -> tuple[bool, int]:
        try:
            with Client(site.address, site.tokens["OWNER"]) as client:
                answered = bool(client.check("ann@acme.io", "view", "members"))
        except StorageUnavailable:
            answered = False
        assert status(site) == SERVING
        assert status(site, "rolecall.v1.AuthorizationService") == SERVING
        seen.append((answered, status(site, READY)))
        return seen[-1]

    before = observe()
    move_database(site)
    wait_until(lambda: observe() == (False, NOT_SERVING))
    time.sleep(0.5)
    during = observe()
    move_database(site, back=True)
    wait_until(lambda: observe() == (True, SERVING))

    assert before == (True, SERVING)
    assert during == (False, NOT_SERVING)


def test_watchers_of_ready_get_each_turn(impatient: Site) -> None:
    """A balancer that watches gets NOT_SERVING and then SERVING; watchers of the process get nothing."""
    stream, of_process = watch(impatient, READY), watch(impatient)
    first = next(stream).status, next(of_process).status
    move_database(impatient)
    second = next(stream).status
    move_database(impatient, back=True)
    third = next(stream).status
    impatient.server.stop(1.0)

    assert first == (SERVING, SERVING)
    assert (second, third) == (NOT_SERVING, SERVING)
    assert next(of_process).status == NOT_SERVING


def test_watchers_that_read_nothing_do_not_block_notifications(impatient: Site) -> None:
    """A turn of the status reaches those who read, and Checks go on, beside some who don't."""
    connections = []
    for _ in range(6):
        connection = RawConnection(impatient.address)
        # Room for the first message only: a second one waits for ever.
        connection.frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 8))
        body = pb.HealthCheckRequest(service=READY).SerializeToString()
        connection.send(connection.begin(f"{HEALTH}/Watch", ""), body)
        connections.append(connection)
    stream = watch(impatient, READY)
    assert next(stream).status == SERVING
    for _ in range(3):
        move_database(impatient)
        assert next(stream).status == NOT_SERVING
        move_database(impatient, back=True)
        assert next(stream).status == SERVING
        assert_serves(impatient)
    for connection in connections:
        connection.close()


def test_server_that_cannot_build_the_policy_in_force_is_not_ready(site: Site) -> None:
    """A server with an earlier policy isn't ready; once its own folder is in force, it is."""
    unknown = StoredPolicy("f" * 16, "[model]", "p, ALL, *", "tests", 0, "")
    site.storage.exclusive(lambda tx: policy_rows.activate(tx, unknown, "another version", now()))

    wait_until(lambda: status(site, READY) == NOT_SERVING)
    assert status(site) == SERVING
    with (site.policy_folder / "policy.csv").open("a") as file:
        file.write("p, VIEWER, secrets, fly, allow\n")
    wait_until(lambda: status(site, READY) == SERVING)


def test_watch_of_an_unknown_service_says_so(site: Site) -> None:
    """Watching an unknown service gets SERVICE_UNKNOWN and the stream stays open, as the protocol says."""
    stream = watch(site, "no.Such")

    assert next(stream).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    stream.cancel()


def test_list_has_each_service(site: Site) -> None:
    """List holds each service, and the server itself by the empty name."""
    if not hasattr(pb, "HealthListRequest"):
        pytest.skip("the lowest grpcio has no List")
    raw, _ = site.call(f"{HEALTH}/List", b"")
    kind: Any = pb
    statuses = kind.HealthListResponse.FromString(raw).statuses

    assert {"", READY, "grpc.health.v1.Health", "rolecall.v1.AuthorizationService"} <= set(statuses)
    assert {each.status for each in statuses.values()} == {SERVING}


def test_check_of_an_unknown_service_is_not_found(site: Site) -> None:
    """An unknown service gets the protocol's status and a reason; a secret-looking name isn't repeated."""
    for name in ("no.Such", "x" * 5000, "a\nb", site.tokens["OWNER"]):
        with pytest.raises(grpc.RpcError) as refused:
            status(site, name)
        failure = failure_of(refused.value)
        assert (failure.code, failure.reason, failure.field) == (
            grpc.StatusCode.NOT_FOUND,
            "SERVICE_UNKNOWN",
            "service",
        )
        assert site.tokens["OWNER"] not in failure.message
        assert len(failure.message) < 300
