"""Servers behind PgBouncer: nothing depends on a session, and changes are noticed by polling.

In session mode PgBouncer gives each connection of a server a session of its own for as long as it lasts.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from rolecall import Client
from rolecall.errors import LastOwner
from rolecall.server import build_server
from rolecall.server.build import Server
from rolecall.v1 import audit_pb2
from support.databases import new_database
from support.environment import POSTGRES_URL
from support.pgbouncer import PgBouncer, find_pgbouncer
from support.sites import MakeSite, Site
from support.waiting import wait_until

WARNING = "no notifications through a connection pooler"
THREADS = 8
# Seconds between two polls of the change feed.
POLL = 0.5


@pytest.fixture(scope="module")
def session_mode() -> Iterator[str]:
    """The URL of the administrators' database at a PgBouncer in session mode."""
    program = find_pgbouncer()
    if program is None or POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL or PgBouncer is not installed")
    pooler = PgBouncer(program, os.environ[POSTGRES_URL], "session", pool_size=60)
    yield pooler.url
    pooler.stop()


@pytest.fixture
def transaction_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a new database at PgBouncer in transaction mode."""
    with new_database("pgbouncer", tmp_path) as url:
        yield url


@pytest.fixture
def session_url(session_mode: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a new database at PgBouncer in session mode."""
    with new_database("postgresql", tmp_path) as url:
        yield f"{session_mode.rpartition('/')[0]}/{url.rpartition('/')[2]}"


@pytest.fixture(params=["transaction", "session"])
def pooled_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new database at PgBouncer, in each mode."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def two_servers(make_site: MakeSite, pooled_url: str) -> Iterator[tuple[Site, Server]]:
    """A site, and another server on its database."""
    site = make_site(pooled_url)
    other = build_server(site.settings)
    other.start()
    yield site, other
    other.stop(0)


def _disconnect_clients(url: str) -> None:
    """Have PgBouncer close all connections of its clients to this database."""
    server, _, name = url.rpartition("/")
    with psycopg.connect(f"{server}/pgbouncer", autocommit=True) as console:
        console.execute(f"KILL {name}")
        console.execute(f"RESUME {name}")


def _sessions(url: str) -> dict[int, tuple[object, ...]]:
    """The state of each of PostgreSQL's sessions that a client gets in turn."""
    query = (
        "SELECT pg_backend_pid(), current_setting('lock_timeout'), current_setting('statement_timeout'),"
        " current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels())"
    )
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as client:
        return {row[0]: row[1:] for row in (client.execute(query).fetchone() for _ in range(20)) if row}


def test_changes_by_many_callers_succeed(two_servers: tuple[Site, Server]) -> None:
    """Callers of two servers change members and tokens at once, each in sessions that others have just used."""
    site, other = two_servers
    addresses = [site.address, other.address]

    def work(number: int) -> list[str]:
        done = []
        with Client(addresses[number % 2], site.tokens["OWNER"], timeout=20) as client:
            for turn in range(6):
                made = client.tokens.create_personal(f"laptop {number} {turn}")
                client.tokens.delete(made.token.id)
                client.invitations.create([(f"p{number}-{turn}@acme.io", "VIEWER")])
                done.append(made.token.id)
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        made = [token for part in pool.map(work, range(THREADS)) for token in part]
    with Client(site.address, site.tokens["OWNER"]) as owner:
        verdict = owner.audit.verify()
        with pytest.raises(LastOwner):
            owner.members.change_role(site.members["OWNER"].user_id, "VIEWER")

    assert len(set(made)) == THREADS * 6
    assert verdict.verdict == audit_pb2.AUDIT_VERDICT_INTACT


def test_other_server_notices_a_change_by_polling(two_servers: tuple[Site, Server]) -> None:
    """Within the interval of the poll, and at once for a Check that carries the new revision."""
    site, other = two_servers
    user = site.members["ADMIN"].user_id
    late = []
    with Client(site.address, site.tokens["OWNER"]) as here, Client(other.address, site.tokens["OWNER"]) as elsewhere:
        for number in range(6):
            role = "OWNER" if number % 2 == 0 else "VIEWER"
            revision = here.members.change_role(user, role).revision
            began = time.monotonic()
            at_once = bool(elsewhere.check(f"user:{user}", "manage", "account", at_least_revision=revision))
            assert at_once == (role == "OWNER"), number
            while bool(elsewhere.check(f"user:{user}", "manage", "account")) != (role == "OWNER"):
                assert time.monotonic() < began + 10
            late.append(time.monotonic() - began)

    late.sort()
    # On an idle machine none takes longer than the poll.
    assert late[len(late) // 2] < 2 * POLL


def test_lost_notifications_are_logged_once(
    make_site: MakeSite, pooled_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log says that changes of others are polled for; not again after the connection broke, and was replaced."""
    site = make_site(pooled_url)
    started = capfd.readouterr().out
    cleared = site.core.feed.cache.epoch
    _disconnect_clients(pooled_url)
    wait_until(lambda: site.core.feed.cache.epoch > cleared)

    assert started.count(WARNING) == 1
    assert "seconds=0.5" in started
    assert WARNING not in capfd.readouterr().out


def test_closed_connections_are_replaced(make_site: MakeSite, pooled_url: str) -> None:
    """After PgBouncer closed all connections, as when it is restarted, the next calls succeed, changes too."""
    site = make_site(pooled_url)

    def work(number: int) -> list[str]:
        with Client(site.address, site.tokens["OWNER"], timeout=20) as client:
            client.tokens.create_personal(f"laptop {number}")
            return [member.email for member in client.subjects("manage", "account")]

    with ThreadPoolExecutor(THREADS) as pool:
        before = list(pool.map(work, range(THREADS)))
        _disconnect_clients(pooled_url)
        after = list(pool.map(work, range(THREADS)))

    assert before == after == [["ann@acme.io"]] * THREADS


def test_direct_connection_is_not_called_pooled(
    make_site: MakeSite, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that PostgreSQL notifies doesn't say that it polls."""
    with new_database("postgresql", tmp_path) as url:
        make_site(url).stop()

    assert WARNING not in capfd.readouterr().out


def test_sessions_are_left_as_they_were(make_site: MakeSite, transaction_url: str) -> None:
    """A server leaves no setting, no prepared statement and no LISTEN in sessions that other clients get next."""
    site = make_site(transaction_url)
    # PgBouncer opens the third only after a while.
    wait_until(lambda: len(_sessions(transaction_url)) >= 3)
    with Client(site.address, site.tokens["OWNER"]) as owner:
        for number in range(10):
            owner.members.change_role(site.members["ADMIN"].user_id, "VIEWER" if number % 2 else "ADMIN")

    assert set(_sessions(transaction_url).values()) == {("0", "0", "read committed", "off", 0, 0)}
