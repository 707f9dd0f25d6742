"""Outages of the database under a running server: UNAVAILABLE, never an allow, and recovery without a restart."""

import json
import os
import threading
import time
from pathlib import Path

import psycopg
import pytest
from grpc_health.v1 import health_pb2

from rolecall import Client
from rolecall.errors import Stale, StorageUnavailable
from rolecall.limits import Limits
from support.environment import POSTGRES_URL
from support.postgres import PostgresServer
from support.sites import MakeSite, Site, sqlite_file
from support.waiting import wait_until


def ask(site: Site) -> bool:
    """Check once whether the owner may see the members."""
    with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
        return bool(client.check("ann@acme.io", "view", "members"))


def list_subjects(site: Site) -> list[str]:
    """ListSubjects, which the cache can't answer."""
    with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
        return [member.email for member in client.subjects("view", "members")]


def test_a_locked_sqlite_file_is_unavailable(
    make_site: MakeSite, sqlite_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another program locks the file; after it releases the lock, calls are answered again."""
    sqlite_site = make_site(sqlite_url, limits=Limits(database_seconds=0.2), max_staleness=60)
    list_subjects(sqlite_site)
    # A locked WAL keeps readers out only when another program leaves WAL mode behind.
    core = sqlite_site.core
    # Connections are made one after the other: nobody else is to wait for one.
    for busy in (core.feed, core.sender, core.background):
        busy.stop()
    with sqlite_file(sqlite_site.settings.database) as other:
        sqlite_site.server.storage.close()
        sqlite_site.storage.close()
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageUnavailable) as caught:
            list_subjects(sqlite_site)
        other.execute("ROLLBACK")

    assert "try again" in caught.value.message
    assert "sqlite" not in caught.value.message.lower()
    assert "database unavailable" in capfd.readouterr().out, "the operator is told"
    assert list_subjects(sqlite_site)


def test_a_dropped_postgresql_connection_is_replaced(make_site: MakeSite) -> None:
    """Connections that the database closed are noticed; a database that takes no more is UNAVAILABLE."""
    if POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer.new_database(os.environ[POSTGRES_URL]) as url:
        site = make_site(url)
        assert list_subjects(site)
        name = url.rpartition("/")[2]
        with psycopg.connect(os.environ[POSTGRES_URL], autocommit=True) as admin:
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(kill, [name])
            assert list_subjects(site)

            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            try:
                admin.execute(kill, [name])
                with pytest.raises(StorageUnavailable) as caught:
                    list_subjects(site)
            finally:
                admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        assert "try again" in caught.value.message
        assert name not in json.dumps(caught.value.metadata) + caught.value.message
        wait_until(lambda: bool(list_subjects(site)))
        site.storage.close()
        site.server.stop(0)


def test_cache_answers_for_max_staleness_without_the_database(make_site: MakeSite, sqlite_url: str) -> None:
    """Cached Checks are answered for `max_staleness`, then all are UNAVAILABLE, until the database is back."""
    site = make_site(sqlite_url, max_staleness=2.0)
    assert ask(site)
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    away = file.with_suffix(".away")
    file.rename(away)
    gone = time.monotonic()
    answers = []
    while time.monotonic() < gone + 1.5:
        answers.append(bool(ask(site)))
        time.sleep(0.05)
    with Client(site.address, site.tokens["OWNER"]) as client, pytest.raises(StorageUnavailable):
        client.check("somebody@else.io", "view", "members")
    time.sleep(max(0.0, gone + 2.3 - time.monotonic()))
    with pytest.raises(Stale):
        ask(site)
    away.rename(file)
    wait_until(lambda: _answers(site))

    assert answers
    assert all(answers)


def _answers(site: Site) -> bool:
    try:
        return bool(ask(site))
    except StorageUnavailable:
        return False


def test_health_says_when_the_server_stops(sqlite_site: Site) -> None:
    """A watcher gets NOT_SERVING before the server goes."""
    seen: list[int] = []
    stub = sqlite_site.channel().unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    serving = threading.Event()

    def watch() -> None:
        try:
            for answer in stub(health_pb2.HealthCheckRequest(service="")):
                seen.append(answer.status)
                serving.set()
        except Exception:  # noqa: BLE001 - how the stream ends isn't tested here
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert serving.wait(5)

    sqlite_site.server.stop(1)
    watcher.join(10)

    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
