"""Benchmarks of several processes on one database: their cost, and the delay until one sees a change of another."""

import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from load import Serving, percentile
from report import Figure
from sites import check_requests, create_site

from rolecall import Client

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.postgres import PostgresServer, find_postgres

__all__ = ["revocation", "workers"]

MEMBERS = 10_000
ROUNDS, SECONDS = 5, 3.0
CONNECTIONS, STREAMS = 32, 4
REVOCATIONS, WITH_REVISION = 300, 2_000
PAUSE_SECONDS = 0.0005


def workers(folder: Path) -> list[Figure]:
    """Measure two workers on one port beside one worker, on any cores."""
    site = create_site(folder, MEMBERS)
    check = check_requests(1)[0]
    with ExitStack() as stack:
        alone = stack.enter_context(Serving("polling", folder, site.token, None))
        listen = f"127.0.0.1:{_free_port()}"
        pair = [
            stack.enter_context(Serving("polling", folder, site.token, None, listen=listen, shares_port=True))
            for _ in range(2)
        ]
        one, two = [], []
        for _ in range(ROUNDS):
            one.append(alone.load(check, SECONDS, CONNECTIONS, STREAMS).cpu)
            before = [each.counts() for each in pair]
            pair[0].load(check, SECONDS, CONNECTIONS, STREAMS)
            after = [each.counts() for each in pair]
            used = sum(late["cpu"] - early["cpu"] for early, late in zip(before, after, strict=True))
            answered = sum(late["answered"] - early["answered"] for early, late in zip(before, after, strict=True))
            two.append(used / answered)
    ratio = statistics.median(late / early for early, late in zip(one, two, strict=True))
    note = f"{1e6 * statistics.median(two):.1f} to {1e6 * statistics.median(one):.1f} µs"
    return [Figure("server's CPU for a Check with 2 workers, to 1", ratio, 1.1, at_least=False, note=note)]


def revocation(folder: Path) -> list[Figure]:
    """Measure the delay from a role that is lowered in one process to Checks in another, on both databases."""
    figures = []
    for name, database in _databases(folder):
        with database as url:
            site = create_site(folder / name, MEMBERS, database=url)
            with (
                Serving("polling", site.folder, site.token, None) as here,
                Serving("polling", site.folder, site.token, None) as there,
                Client(here.address, site.token) as changing,
                Client(there.address, site.token) as asking,
            ):
                seconds, stale = _lags(changing, asking), _stale(changing, asking)
        late = 1000 * percentile(seconds, 0.99)
        note = f"p50 {1000 * statistics.median(seconds):.0f} ms"
        what = f"a role lowered, until another process sees it, p99, {name}"
        figures.append(Figure(what, late, 100, at_least=False, unit="ms", note=note))
        what = f"stale answers with at_least_revision, of {WITH_REVISION:,}, {name}"
        figures.append(Figure(what, stale, 0, at_least=False, unit=""))
    return figures


def _lags(changing: Client, asking: Client) -> list[float]:
    """Measure the seconds until each of REVOCATIONS changes is seen."""
    user = next(iter(changing.members.list(text="user1@acme.io"))).user_id
    lags = []
    for number in range(REVOCATIONS):
        lowered = number % 2 == 0
        changing.members.change_role(user, "VIEWERNOSECRETS" if lowered else "VIEWER")
        began = time.monotonic()
        while bool(asking.check(f"user:{user}", "view", "secrets")) is lowered:
            time.sleep(PAUSE_SECONDS)
        lags.append(time.monotonic() - began)
    return lags


def _stale(changing: Client, asking: Client) -> int:
    """Count Checks that carry a change's revision, but are answered from before the change."""
    user = next(iter(changing.members.list(text="user2@acme.io"))).user_id
    stale = 0
    for number in range(WITH_REVISION):
        lowered = number % 2 == 0
        changed = changing.members.change_role(user, "VIEWERNOSECRETS" if lowered else "VIEWER")
        result = asking.check(f"user:{user}", "view", "secrets", at_least_revision=changed.revision)
        stale += bool(result) is lowered
    return stale


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/rolecall.db"


@contextmanager
def _postgresql(binaries: Path) -> Iterator[str]:
    server = PostgresServer(binaries)
    try:
        with PostgresServer.new_database(server.url) as url:
            yield url
    finally:
        server.stop()


def _databases(folder: Path) -> Iterator[tuple[str, AbstractContextManager[str]]]:
    (folder / "SQLite").mkdir(parents=True)
    yield "SQLite", _sqlite(folder / "SQLite")
    if binaries := find_postgres():
        yield "PostgreSQL", _postgresql(binaries)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
