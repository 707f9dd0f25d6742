"""grpc.health: right, and never in the way of anything else, whatever those who watch do."""

import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conftest import MakeSite, Site
from grpc_errors import told
from grpc_health.v1 import health_pb2 as pb
from raw_calls import SETTINGS, RawConnection

from rolecall import Client

HEALTH = "/grpc.health.v1.Health"
INITIAL_WINDOW_SIZE = 4
SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def site(each_lane: str, make_site: MakeSite, sqlite_url: str) -> Site:
    """A server of each lane."""
    site = make_site(sqlite_url, connection_seconds=600)
    assert bool(site.server._fast) is (each_lane == "fast")
    return site


def watch(site: Site, service: str = "") -> Any:
    """What a client is told that watches."""
    stub = site.channel().unary_stream(
        f"{HEALTH}/Watch", pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
    )
    return stub(pb.HealthCheckRequest(service=service), timeout=30)


def status(site: Site, service: str = "") -> int:
    """What a client is told that asks once."""
    raw, _ = site.call(f"{HEALTH}/Check", pb.HealthCheckRequest(service=service).SerializeToString(), timeout=5)
    return pb.HealthCheckResponse.FromString(raw).status


def assert_well(site: Site) -> None:
    """Calls are answered, and health's too."""
    with Client(site.address, site.tokens["OWNER"], timeout=5) as client:
        assert client.check("ann@acme.io", "view", "members")
    assert status(site) == SERVING


@pytest.fixture
def takes_nothing(site: Site) -> Iterator[list[RawConnection]]:
    """Strangers who watch and leave no room for what they are told."""
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


def test_those_who_watch_and_leave_halt_nobody(site: Site) -> None:
    """They come and go at the same time, beside others who ask once."""
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
        assert_well(site)
    for thread in threads:
        thread.join(10)

    assert len(left) > 60
    assert set(left) == {SERVING}
    assert_well(site)


@pytest.mark.usefixtures("takes_nothing")
def test_those_who_take_nothing_halt_nobody(site: Site) -> None:
    """Neither other calls nor the stop."""
    for _ in range(5):
        assert_well(site)

    began = time.monotonic()
    site.server.stop(1.0)

    assert time.monotonic() - began < 6


def test_watchers_are_told_of_the_stop_and_keep_it_from_nothing(site: Site) -> None:
    """Each is told NOT_SERVING, then its stream ends."""
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
        assert told(ended.value).code is grpc.StatusCode.UNAVAILABLE


def test_who_watches_what_is_not_there_learns_that(site: Site) -> None:
    """As the protocol has it: the stream goes on, as the service may come."""
    stream = watch(site, "no.Such")

    assert next(stream).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    stream.cancel()


def test_list_has_each_service(site: Site) -> None:
    """And the server itself, by the empty name."""
    if not hasattr(pb, "HealthListRequest"):
        pytest.skip("the lowest grpcio has no List")
    raw, _ = site.call(f"{HEALTH}/List", b"")
    kind: Any = pb
    statuses = kind.HealthListResponse.FromString(raw).statuses

    assert {"", "grpc.health.v1.Health", "rolecall.v1.AuthorizationService"} <= set(statuses)
    assert {each.status for each in statuses.values()} == {SERVING}


def test_unknown_service_is_told_apart(site: Site) -> None:
    """By the status that the protocol wants, and with a reason; a secret-looking name isn't repeated."""
    for name in ("no.Such", "x" * 5000, "a\nb", site.tokens["OWNER"]):
        with pytest.raises(grpc.RpcError) as refused:
            status(site, name)
        said = told(refused.value)
        assert (said.code, said.reason, said.field) == (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN", "service")
        assert site.tokens["OWNER"] not in said.message
        assert len(said.message) < 300
