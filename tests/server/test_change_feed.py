"""Two servers on one database: each sees the other's commits soon, and at once with `at_least_revision`."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select

from rolecall import Client
from rolecall.errors import UnauthenticatedCredential
from rolecall.limits import Limits
from rolecall.server import build_server
from rolecall.server.build import Server
from rolecall.services.cleanup import Cleanup
from rolecall.storage import Transaction, tables
from rolecall.v1 import authorization_pb2 as pb
from rolecall.v1 import member_pb2 as members
from support.environment import CI
from support.server_calls import SiteCalls
from support.sites import MakeSite, Site, add_member, sqlite_file
from support.waiting import wait_until

ROUNDS = 200 if CI else 12
GRANTED = pb.REASON_GRANTED


@pytest.fixture
def two_servers(make_site: MakeSite, database_url: str) -> Iterator[tuple[Site, Server]]:
    """A site, and another server on its database."""
    site = make_site(database_url)
    other = build_server(site.settings)
    other.start()
    yield site, other
    other.stop(0)


def allowed(client: Client, subject: str, at_least_revision: int = 0) -> bool:
    """Whether the subject may manage the account."""
    return bool(client.check(subject, "manage", "account", at_least_revision=at_least_revision))


def test_a_lowered_role_is_seen_by_the_other_server(two_servers: tuple[Site, Server]) -> None:
    """Within a tenth of a second in the ordinary case; with the revision of the answer, at once, always."""
    site, other = two_servers
    calls = SiteCalls(site)
    user = site.members["ADMIN"].user_id
    late: list[float] = []
    with Client(other.address, site.tokens["OWNER"]) as elsewhere:
        for number in range(ROUNDS):
            role = "OWNER" if number % 2 == 0 else "VIEWER"
            answer = calls.send("OWNER", members.ChangeMemberRoleRequest(user_id=user, role=role))
            began = time.monotonic()
            assert allowed(elsewhere, f"user:{user}", answer.revision) == (role == "OWNER"), number
            while allowed(elsewhere, f"user:{user}") != (role == "OWNER"):
                assert time.monotonic() < began + 5
            late.append(time.monotonic() - began)

    late.sort()
    # The bar is 0.1 s where nothing else runs; benchmarks measure that.
    assert late[len(late) // 2] < 0.5


def test_revoked_token_is_refused_by_the_other_server(two_servers: tuple[Site, Server]) -> None:
    """Presented as a credential, and asked about."""
    site, other = two_servers
    with Client(site.address, site.tokens["OWNER"]) as here, Client(other.address, site.tokens["OWNER"]) as elsewhere:
        made = here.tokens.create_personal("laptop")
        with Client(other.address, made.secret) as holder:
            assert allowed(holder, "ann@acme.io")
            assert elsewhere.check_token(made.secret, "manage", "account")
            here.tokens.delete(made.token.id)
            wait_until(lambda: not elsewhere.check_token(made.secret, "manage", "account"), 5)
            wait_until(lambda: not _is_allowed(holder), 5)


def test_new_member_replaces_a_cached_absence(two_servers: tuple[Site, Server]) -> None:
    """A cached absence of a member ends when the member joins."""
    site, other = two_servers
    with Client(other.address, site.tokens["OWNER"]) as elsewhere:
        for _ in range(3):
            assert not elsewhere.check("zoe@x.io", "view", "members")
        add_member(site.storage, "acme", "zoe@x.io", "ADMIN")
        wait_until(lambda: bool(elsewhere.check("zoe@x.io", "view", "members")), 5)


def test_old_changes_are_deleted(two_servers: tuple[Site, Server]) -> None:
    """Old changes are deleted, not those of the last minutes; followers continue, after few changes or many."""
    site, other = two_servers
    user = site.members["ADMIN"].user_id
    cleanup = Cleanup(site.storage, Limits(cleanup_seconds=0.0))

    def count_after_cleanup() -> int:
        cleanup.run()
        return site.storage.read(_count_changes)

    with Client(other.address, site.tokens["OWNER"]) as elsewhere:
        for changes_between in (3, 5, 1):
            for number in range(changes_between):
                role = "VIEWER" if number % 2 else "OWNER"
                SiteCalls(site).send("OWNER", members.ChangeMemberRoleRequest(user_id=user, role=role))
                wait_until(partial(_has_role, elsewhere, user, role), 5)
            # PostgreSQL keeps the changes since the oldest transaction of the whole server, other databases' included.
            wait_until(lambda: count_after_cleanup() <= 2)


def test_restored_database_clears_the_cache(make_site: MakeSite, sqlite_url: str, tmp_path: Path) -> None:
    """After a backup with lower revisions is restored in place, a revocation is still effective at once."""
    site = make_site(sqlite_url)
    with Client(site.address, site.tokens["OWNER"]) as owner:
        made = owner.tokens.create_personal("laptop")
        with closing(sqlite_file(sqlite_url)) as file, closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
            file.backup(backup)
            for number in range(5):
                owner.tokens.create_personal(f"filler {number}")
            with Client(site.address, made.secret) as holder:
                assert allowed(holder, "ann@acme.io")
                assert allowed(owner, f"token:{made.token.id}")
                backup.backup(file)
                owner.tokens.delete(made.token.id)

                assert not _is_allowed(holder)
        assert not allowed(owner, f"token:{made.token.id}")


def _has_role(client: Client, user: str, role: str) -> bool:
    return allowed(client, f"user:{user}") == (role == "OWNER")


def _count_changes(tx: Transaction) -> int:
    return int(tx.connection.scalar(select(func.count()).select_from(tables.changes)) or 0)


def _is_allowed(client: Client) -> bool:
    try:
        return allowed(client, "ann@acme.io")
    except UnauthenticatedCredential:
        return False
