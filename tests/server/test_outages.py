"""The database goes away under a running server: UNAVAILABLE, never an allow, and back again by itself."""

import json
import os
import threading

import psycopg
import pytest
from conftest import POSTGRES_URL, MakeSite, Site, sqlite_file
from grpc_health.v1 import health_pb2
from postgres import PostgresServer

from rolecall import Client
from rolecall.errors import StorageUnavailable


def ask(site: Site) -> bool:
    """Whether the owner may see the members, asked once."""
    with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
        return bool(client.check("ann@acme.io", "view", "members"))


def test_a_locked_sqlite_file_is_unavailable(sqlite_site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """Another program holds the file; when it lets go, answers go on."""
    with sqlite_file(sqlite_site.settings.database) as other:
        # A locked WAL keeps readers out only when another program leaves WAL mode behind.
        sqlite_site.server.storage.close()
        sqlite_site.storage.close()
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageUnavailable) as caught:
            ask(sqlite_site)
        other.execute("ROLLBACK")

    assert "try again" in caught.value.message
    assert "sqlite" not in caught.value.message.lower()
    assert "database unavailable" in capfd.readouterr().out, "the operator is told"
    assert ask(sqlite_site)


def test_a_dropped_postgresql_connection_is_replaced(make_site: MakeSite) -> None:
    """Connections that the database closed are noticed; a database that takes no more is UNAVAILABLE."""
    if POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer.new_database(os.environ[POSTGRES_URL]) as url:
        site = make_site(url)
        assert ask(site)
        name = url.rpartition("/")[2]
        with psycopg.connect(os.environ[POSTGRES_URL], autocommit=True) as admin:
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            admin.execute(kill, [name])
            assert ask(site)

            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            admin.execute(kill, [name])
            with pytest.raises(StorageUnavailable) as caught:
                ask(site)
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        assert "try again" in caught.value.message
        assert name not in json.dumps(caught.value.metadata) + caught.value.message
        assert ask(site)
        site.storage.close()
        site.server.stop(0)


def test_health_says_when_the_server_stops(sqlite_site: Site) -> None:
    """A watcher is told NOT_SERVING before the server goes."""
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
        except Exception:  # noqa: BLE001 - how the stream ends is not what is tested
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert serving.wait(5)

    sqlite_site.server.stop(1)
    watcher.join(10)

    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
