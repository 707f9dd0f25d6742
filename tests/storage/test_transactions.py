"""A transaction is committed as a whole or not at all, whatever others do in the database at the same time."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound, SQLAlchemyError

from rolecall import policy as policies
from rolecall.audit import AuditLog
from rolecall.domain import Organization
from rolecall.errors import OrganizationExists, OrganizationNotFound, RolecallError, StorageUnavailable, WriteConflict
from rolecall.limits import Limits
from rolecall.policy import Policy
from rolecall.services import organizations
from rolecall.storage import TRIES, Rollback, Storage, Transaction, tables
from rolecall.storage import organizations as rows
from rolecall.storage.changes import record_change
from support.databases import POSTGRESQL_KINDS, direct_url
from support.engines import engine_of

CI = os.environ.get("CI") == "true"
THREADS = 8
WRITES = 15 if CI else 6
ROUNDS = 20 if CI else 4
only_postgresql = pytest.mark.parametrize("database_url", POSTGRESQL_KINDS, indirect=True)

# Program that makes the given number of writes, and prints the revisions that it made.
WRITER = """
import sys
from rolecall.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*[storage.mutate("acme", lambda tx: tx.revision) for _ in range(int(sys.argv[2]))])
storage.close()
"""


# A tenth of a second for others, instead of two.
IMPATIENT = Limits(database_seconds=0.1)


@pytest.fixture
def acme(database_url: str) -> Iterator[Storage]:
    """A database with short timeouts and the organizations `acme` and `other`, both at revision 0."""
    storage = Storage(database_url, limits=IMPATIENT)
    storage.create()
    _add_organizations(storage)
    yield storage
    storage.close()


@pytest.fixture
def policy(policy_folder: Path) -> Policy:
    """The shipped policy."""
    policy = policies.build(policy_folder, 0.0).policy
    assert policy is not None
    return policy


def _add_organizations(storage: Storage) -> None:
    def work(tx: Transaction) -> None:
        for name in ("acme", "other"):
            rows.add(tx, Organization(name, name, 0, 1))

    storage.write(work)


def _revisions(storage: Storage) -> dict[str, int]:
    return storage.read(
        lambda tx: {
            row.id: row.revision
            for row in tx.connection.execute(select(tables.organizations.c.id, tables.organizations.c.revision))
        }
    )


def _rename(tx: Transaction, name: str) -> None:
    tx.connection.execute(
        update(tables.organizations).where(tables.organizations.c.id == "acme").values(display_name=name)
    )


def _name(tx: Transaction) -> str:
    found = rows.get(tx, "acme")
    assert found is not None
    return found.display_name


def _require_plain(error: RolecallError) -> None:
    """Assert that a client sees nothing of a driver's message."""
    assert error.message in (
        "All database connections are in use: try again in a moment.",
        "The database can't be reached: try again in a moment.",
        "Other writers kept the database busy: try again in a moment.",
    )
    assert str(error) == error.message
    assert (error.field, error.metadata) == ("", {})


def _refused(work: Callable[[], object], kind: type[RolecallError]) -> float:
    """Require that `work` raises just `kind`, in plain words; answer after how many seconds."""
    began = time.monotonic()
    with pytest.raises(RolecallError) as caught:
        work()
    assert type(caught.value) is kind
    _require_plain(caught.value)
    return time.monotonic() - began


@contextmanager
def _holding(url: str, *statements: str) -> Iterator[None]:
    """Hold the locks of `statements` on an SQLite file in another connection."""
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    try:
        for statement in statements:
            other.execute(statement)
        yield
    finally:
        other.close()


def _create_twice(storage: Storage, log: AuditLog, policy: Policy, name: str) -> set[str]:
    """The results of two that create `name` at the same moment: the owner, or the error's reason."""
    both_about_to_insert = threading.Barrier(2)

    def meet(*arguments: object) -> None:
        # SQLite has only one writer at a time, which doesn't wait here for another.
        if "INSERT INTO organizations" in str(arguments[2]):
            with suppress(threading.BrokenBarrierError):
                both_about_to_insert.wait(0.1)

    def found(owner: str) -> str:
        try:
            return organizations.create(storage, log, policy, name, owner).owner.email
        except OrganizationExists as error:
            return error.reason

    event.listen(engine_of(storage), "before_cursor_execute", meet)
    with ThreadPoolExecutor(2) as pool:
        outcomes = set(pool.map(found, ["ann@acme.io", "bob@acme.io"]))
    event.remove(engine_of(storage), "before_cursor_execute", meet)
    return outcomes


def _bump_after_losses(storage: Storage, tx: Transaction, lost: list[int], losses: int) -> int:
    """Bump the revision on top of a snapshot that another transaction made stale, for the first `losses` calls."""
    tx.connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    rows.revision_of(tx, "acme")
    if len(lost) < losses:
        lost.append(storage.mutate("acme", lambda tx: tx.revision))
    return rows.bump(tx, "acme")


def _kill_all(url: str) -> None:
    """End every other connection to this PostgreSQL database, and wait until they are gone."""
    with psycopg.connect(direct_url(url), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


# No write is lost


def test_threads_lose_no_revision(storage: Storage) -> None:
    """Writes of 8 threads at once get the revisions 1 to n, each once."""
    _add_organizations(storage)
    start = threading.Barrier(THREADS)

    def write(_: int) -> list[int]:
        start.wait()
        return [storage.mutate("acme", lambda tx: tx.revision) for _ in range(WRITES)]

    with ThreadPoolExecutor(THREADS) as pool:
        made = [revision for part in pool.map(write, range(THREADS)) for revision in part]

    assert sorted(made) == list(range(1, THREADS * WRITES + 1))
    assert _revisions(storage) == {"acme": THREADS * WRITES, "other": 0}


def test_read_modify_write_of_threads_loses_no_update(storage: Storage) -> None:
    """A value read and written back in `mutate` is not lost: 8 threads count to n together."""
    _add_organizations(storage)
    storage.write(lambda tx: _rename(tx, "0"))

    def count(_: int) -> None:
        for _ in range(WRITES):
            storage.mutate("acme", lambda tx: _rename(tx, str(int(_name(tx)) + 1)))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(count, range(THREADS)))

    assert storage.read(_name) == str(THREADS * WRITES)


def test_sqlite_writer_holds_the_lock_from_the_start(sqlite_url: str) -> None:
    """A write's rows can't change after it read them: it has the file's write lock before its first statement."""
    storage = Storage(sqlite_url)
    storage.create()

    def work(_: Transaction) -> None:
        with _holding(sqlite_url, "PRAGMA busy_timeout = 0", "BEGIN IMMEDIATE"):
            pass

    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        storage.write(work)
    storage.read(work)
    storage.close()


def test_processes_lose_no_revision(sqlite_url: str) -> None:
    """Writes of several processes to one SQLite file get the revisions 1 to n, each once."""
    storage = Storage(sqlite_url)
    storage.create()
    _add_organizations(storage)
    processes, writes = (4, 30) if CI else (3, 20)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, sqlite_url, str(writes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    made = [int(revision) for writer in writers for revision in writer.communicate(timeout=60)[0].split()]

    assert sorted(made) == list(range(1, processes * writes + 1))
    assert _revisions(storage)["acme"] == processes * writes
    storage.close()


def test_organizations_have_revisions_of_their_own(acme: Storage) -> None:
    """A mutation bumps its own organization's revision and no other."""
    made = [acme.mutate(name, lambda tx: tx.revision) for name in ("acme", "acme", "other", "acme")]

    assert made == [1, 2, 1, 3]


def test_missing_organization_cannot_be_mutated(acme: Storage) -> None:
    """`work` isn't called where the organization is missing."""
    calls: list[int] = []
    with pytest.raises(OrganizationNotFound) as caught:
        acme.mutate("nowhere", lambda tx: calls.append(tx.revision))

    assert calls == []
    assert caught.value.metadata == {"organization": "nowhere"}


def test_only_mutations_have_a_revision(acme: Storage) -> None:
    """Reads and plain writes make none."""
    assert acme.read(lambda tx: tx.revision) == 0
    assert acme.write(lambda tx: tx.revision) == 0


def test_concurrent_creations_of_one_organization_make_one(storage: Storage, log: AuditLog, policy: Policy) -> None:
    """One of two that create the same organization at once succeeds, and the other gets that it exists."""
    names = [f"acme-{number}" for number in range(ROUNDS)]
    outcomes = [_create_twice(storage, log, policy, name) for name in names]
    owners = storage.read(
        lambda tx: {row.organization: row.email for row in tx.connection.execute(select(tables.members))}
    )

    assert _revisions(storage) == dict.fromkeys(names, 1)
    assert outcomes == [{owners[name], "ORGANIZATION_EXISTS"} for name in names]


def test_concurrent_creations_of_different_organizations_succeed(
    storage: Storage, log: AuditLog, policy: Policy
) -> None:
    """Concurrent creations of different organizations all succeed."""
    names = [f"acme-{number}" for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: organizations.create(storage, log, policy, name, "ann@acme.io"), names))

    assert _revisions(storage) == dict.fromkeys(names, 1)


# Wholly there or wholly absent


@pytest.mark.parametrize("kind", [RuntimeError, OrganizationNotFound, KeyboardInterrupt])
def test_failed_work_writes_nothing(acme: Storage, kind: type[BaseException]) -> None:
    """An exception of `work` is raised unchanged, after one attempt; neither the revision nor a row has changed."""
    raised = kind("broken off")
    calls: list[int] = []

    def work(tx: Transaction) -> None:
        calls.append(tx.revision)
        _rename(tx, "half done")
        raise raised

    with pytest.raises(kind) as caught:
        acme.mutate("acme", work)

    assert caught.value is raised
    assert calls == [1]
    assert acme.read(_name) == "acme"
    assert acme.mutate("acme", lambda tx: tx.revision) == 1


def test_rollback_answers_and_commits_nothing(acme: Storage) -> None:
    """The answer in a `Rollback` is returned, and the transaction is rolled back without a call of the listeners."""
    noted: list[object] = []
    done: list[str] = []
    acme.on_change(noted.append)

    def work(tx: Transaction) -> int | Rollback[int]:
        _rename(tx, "half done")
        record_change(tx, "acme", "member", "ann")
        tx.on_commit.append(lambda: done.append("committed"))
        return Rollback(tx.previous_revision)

    answer = acme.mutate("acme", work)

    assert answer == 0
    assert (noted, done) == ([], [])
    assert acme.read(_name) == "acme"
    assert acme.mutate("acme", lambda tx: tx.revision) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_listeners_get_what_was_committed(acme: Storage, fails: bool) -> None:
    """Listeners get the changes after the commit and before the writer continues; without a commit, nothing."""
    notified: list[tuple[list[str], str]] = []
    acme.on_change(lambda changes: notified.append(([change.key for change in changes or ()], acme.read(_name))))

    def work(tx: Transaction) -> None:
        _rename(tx, "renamed")
        record_change(tx, "acme", "member", "ann")
        record_change(tx, "acme", "credential", "laptop")
        if fails:
            raise KeyError

    with suppress(KeyError):
        acme.mutate("acme", work)
    acme.mutate("acme", lambda tx: None)
    acme.read(_name)

    assert notified == [([""], "acme")] if fails else [(["ann", "laptop"], "renamed"), ([""], "renamed")]


@pytest.mark.parametrize("fails", [False, True])
def test_on_commit_callbacks_run_only_after_a_commit(acme: Storage, fails: bool) -> None:
    """A callback for after the commit sees the committed rows; with a rolled-back transaction it is dropped."""
    seen: list[str] = []

    def work(tx: Transaction) -> None:
        _rename(tx, "renamed")
        tx.on_commit.append(lambda: seen.append(acme.read(_name)))
        if fails:
            raise KeyError

    with suppress(KeyError):
        acme.mutate("acme", work)

    assert seen == ([] if fails else ["renamed"])


def test_writes_are_invisible_until_commit(acme: Storage) -> None:
    """Another connection sees nothing of a transaction that is under way, and all of it afterwards."""

    def work(tx: Transaction) -> tuple[str, dict[str, int]]:
        _rename(tx, "new")
        return acme.read(_name), _revisions(acme)

    during = acme.mutate("acme", work)

    assert during == ("acme", {"acme": 0, "other": 0})
    assert (acme.read(_name), _revisions(acme)) == ("new", {"acme": 1, "other": 0})


def test_reader_sees_one_snapshot(acme: Storage) -> None:
    """A commit during a read is not in it, in rows already read or in others; the next read has it."""

    def work(tx: Transaction) -> list[int]:
        found = [rows.revision_of(tx, "acme")]
        acme.mutate("acme", lambda tx: None)
        acme.mutate("other", lambda tx: None)
        return [*found, rows.revision_of(tx, "acme"), rows.revision_of(tx, "other")]

    assert acme.read(work) == [0, 0, 0]
    assert _revisions(acme) == {"acme": 1, "other": 1}


def test_connection_can_write_after_a_read(database_url: str) -> None:
    """With a single connection, reads and writes take turns on it."""
    storage = Storage(database_url, pool_size=1, limits=IMPATIENT)
    storage.create()
    _add_organizations(storage)
    made = []
    for _ in range(3):
        storage.read(_name)
        made.append(storage.mutate("acme", lambda tx: tx.revision))
    storage.close()

    assert made == [1, 2, 3]


# Locked files, and waits that end


def test_reads_continue_during_an_sqlite_write(sqlite_url: str) -> None:
    """While another program writes, reads are answered, and writes are refused as a conflict after a bounded wait."""
    storage = Storage(sqlite_url, limits=IMPATIENT)
    storage.create()
    _add_organizations(storage)
    with _holding(sqlite_url, "BEGIN IMMEDIATE", "UPDATE organizations SET revision = 99"):
        seen = _revisions(storage)
        waited = _refused(lambda: storage.mutate("acme", lambda tx: None), WriteConflict)

    assert seen == {"acme": 0, "other": 0}
    assert 0.1 <= waited < 5
    assert storage.mutate("acme", lambda tx: tx.revision) == 1
    storage.close()


def test_locked_sqlite_file_is_unavailable(sqlite_url: str) -> None:
    """While another program locks the file, reads and writes end within a bounded time; afterwards they work."""
    storage = Storage(sqlite_url, limits=IMPATIENT)
    storage.create()
    _add_organizations(storage)
    storage.close()
    with _holding(sqlite_url, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        waits = [
            _refused(lambda: storage.read(_name), StorageUnavailable),
            _refused(lambda: storage.write(_name), WriteConflict),
            _refused(lambda: storage.mutate("acme", _name), WriteConflict),
        ]

    assert max(waits) < 5
    assert storage.read(_name) == "acme"
    assert storage.mutate("acme", lambda tx: tx.revision) == 1
    storage.close()


def test_write_waits_for_a_lock_that_is_released(sqlite_url: str) -> None:
    """A writer that another program holds up for a moment is not refused."""
    storage = Storage(sqlite_url)
    storage.create()
    _add_organizations(storage)
    with ThreadPoolExecutor(1) as pool, _holding(sqlite_url, "BEGIN IMMEDIATE"):
        writing = pool.submit(storage.mutate, "acme", lambda tx: tx.revision)
        time.sleep(0.2)
        waited = not writing.done()
    made = writing.result()
    storage.close()

    assert waited
    assert made == 1


def test_writer_gives_up_after_a_bounded_wait(acme: Storage) -> None:
    """A second writer of an organization fails with a conflict after a bounded wait; later it succeeds."""

    def work(_: Transaction) -> float:
        return _refused(lambda: acme.mutate("acme", lambda tx: None), WriteConflict)

    waited = acme.mutate("acme", work)

    assert 0.1 <= waited < 5
    assert acme.mutate("acme", lambda tx: tx.revision) == 2


@only_postgresql
def test_writers_of_two_organizations_do_not_block_each_other(acme: Storage) -> None:
    """PostgreSQL's writers wait only for those of the same organization."""
    assert acme.mutate("acme", lambda _: acme.mutate("other", lambda tx: tx.revision)) == 1


def test_exhausted_pool_is_unavailable(database_url: str) -> None:
    """Where all connections are in use a call is refused after a short wait; one that is given back serves again."""
    storage = Storage(database_url, pool_size=2, limits=IMPATIENT)
    storage.create()
    _add_organizations(storage)

    def refused(_: Transaction) -> list[float]:
        return [
            _refused(lambda: storage.read(_name), StorageUnavailable),
            _refused(lambda: storage.mutate("acme", _name), StorageUnavailable),
        ]

    waits = storage.read(lambda _: storage.read(refused))

    assert max(waits) < 2
    assert storage.read(lambda _: storage.read(_name)) == "acme"
    storage.close()


# Conflicts are tried again


@only_postgresql
def test_deadlock_is_tried_again(storage: Storage) -> None:
    """Two transactions on two organizations in opposite orders deadlock; the one that PostgreSQL ends is retried."""
    _add_organizations(storage)
    both_have_one = threading.Barrier(2)
    tries = {"acme": 0, "other": 0}

    def take(first: str, second: str) -> tuple[int, int]:
        def work(tx: Transaction) -> tuple[int, int]:
            tx.connection.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
            tries[first] += 1
            taken = rows.bump(tx, first)
            if tries[first] == 1:
                both_have_one.wait(10)
            return taken, rows.bump(tx, second)

        return storage.write(work)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(take, "acme", "other")
        two = pool.submit(take, "other", "acme")
        made = {one.result(20), two.result(20)}

    assert made == {(1, 1), (2, 2)}
    assert sum(tries.values()) > 2
    assert _revisions(storage) == {"acme": 2, "other": 2}


@only_postgresql
@pytest.mark.parametrize("losses", [1, TRIES - 1])
def test_serialization_failure_is_tried_again(acme: Storage, database_url: str, losses: int) -> None:
    """A transaction that loses against others up to three times is written at the next try."""
    lost: list[int] = []
    with closing(Storage(database_url)) as patient:
        assert patient.write(lambda tx: _bump_after_losses(patient, tx, lost, losses)) == losses + 1

    assert lost == list(range(1, losses + 1))
    assert _revisions(acme)["acme"] == losses + 1


@only_postgresql
def test_serialization_failure_at_each_try_is_a_conflict(acme: Storage, database_url: str) -> None:
    """A transaction that loses four times is not written, and not tried a fifth time."""
    lost: list[int] = []
    with closing(Storage(database_url)) as patient:
        _refused(lambda: patient.write(lambda tx: _bump_after_losses(patient, tx, lost, TRIES + 1)), WriteConflict)

    assert lost == [1, 2, 3, 4]
    assert _revisions(acme)["acme"] == 4


# PostgreSQL's sessions


@only_postgresql
def test_every_transaction_has_timeouts(acme: Storage) -> None:
    """Reads and writes wait 0.1 s for a lock and 30 s for a statement, in any session; reads read one state."""
    query = ", ".join(
        f"current_setting('{name}')"
        for name in ("lock_timeout", "statement_timeout", "transaction_isolation", "transaction_read_only")
    )

    def settings(tx: Transaction) -> tuple[str, ...]:
        return tuple(tx.connection.execute(text(f"SELECT {query}")).one())

    reads, writes = ({getattr(acme, way)(settings) for _ in range(5)} for way in ("read", "write"))

    assert reads == {("100ms", "30s", "repeatable read", "on")}
    assert writes == {("100ms", "30s", "read committed", "off")}


@only_postgresql
def test_statements_are_prepared_only_without_a_pooler(acme: Storage, request: pytest.FixtureRequest) -> None:
    """A connection to PostgreSQL itself prepares what it runs often; one to PgBouncer prepares nothing."""

    def prepared(tx: Transaction) -> int:
        for _ in range(10):
            rows.revision_of(tx, "acme")
        return int(tx.connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one())

    found = acme.read(prepared)

    assert found == (0 if "pgbouncer" in request.node.name else 1)


@only_postgresql
def test_transaction_takes_one_round_trip_to_begin(acme: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeouts travel with BEGIN, and no ping goes before it."""
    sent: list[str] = []
    acme.read(_name)
    execute = psycopg.Cursor.execute

    def note(self: psycopg.Cursor[Any], query: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(str(query))
        return execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", note)
    acme.read(_name)

    assert [statement.partition(" ")[0] for statement in sent] == ["BEGIN", "SELECT"]
    assert "SET LOCAL lock_timeout" in sent[0]


# A database that goes away


@only_postgresql
def test_killed_idle_connections_are_replaced(acme: Storage, database_url: str) -> None:
    """After PostgreSQL ended all idle connections, the next read and write succeed."""
    acme.read(lambda _: acme.read(lambda _: acme.read(_name)))
    _kill_all(database_url)
    first = acme.read(_name)
    _kill_all(database_url)

    assert first == "acme"
    assert acme.mutate("acme", lambda tx: tx.revision) == 1


@only_postgresql
def test_connection_killed_during_a_read_is_unavailable(acme: Storage, database_url: str) -> None:
    """A read whose connection is ended raises `StorageUnavailable`; the next one is answered."""

    def work(tx: Transaction) -> str:
        _kill_all(database_url)
        return _name(tx)

    _refused(lambda: acme.read(work), StorageUnavailable)

    assert acme.read(_name) == "acme"


@only_postgresql
def test_connection_killed_before_commit_writes_nothing(acme: Storage, database_url: str) -> None:
    """A write whose connection is ended after its last statement writes nothing; the next one is answered."""

    def work(tx: Transaction) -> None:
        _rename(tx, "lost")
        _kill_all(database_url)

    _refused(lambda: acme.mutate("acme", work), StorageUnavailable)

    assert acme.read(_name) == "acme"
    assert acme.mutate("acme", lambda tx: tx.revision) == 1


def test_unreachable_server_is_unavailable() -> None:
    """Where no server listens, reads and writes fail at once, without the database's address in the error."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        storage = Storage(f"postgresql://rolecall:hunter2@127.0.0.1:{held.getsockname()[1]}/rolecall")
        waits = [
            _refused(lambda: storage.read(_name), StorageUnavailable),
            _refused(lambda: storage.mutate("acme", _name), StorageUnavailable),
        ]

    assert max(waits) < 2


def test_silent_server_is_unavailable() -> None:
    """A server that takes connections and never answers holds a read up for a bounded time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = Storage(f"postgresql://rolecall:hunter2@127.0.0.1:{silent.getsockname()[1]}/rolecall")
        waited = _refused(lambda: storage.read(_name), StorageUnavailable)

    assert waited < 5


def test_sqlite_file_in_a_vanished_folder_is_unavailable(tmp_path: Path) -> None:
    """A file that can't be opened raises `StorageUnavailable`, until it can be opened again."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    storage = Storage(f"sqlite:///{folder}/rolecall.db")
    storage.create()
    _add_organizations(storage)
    storage.close()
    folder.rename(tmp_path / "unmounted")
    _refused(lambda: storage.read(_name), StorageUnavailable)
    _refused(lambda: storage.mutate("acme", _name), StorageUnavailable)
    (tmp_path / "unmounted").rename(folder)

    assert storage.mutate("acme", lambda tx: tx.revision) == 1
    storage.close()


def test_damaged_sqlite_file_is_unavailable(sqlite_url: str) -> None:
    """A damaged file raises `StorageUnavailable`, not an internal error."""
    storage = Storage(sqlite_url)
    storage.create()
    storage.close()
    Path(sqlite_url.removeprefix("sqlite:///")).write_bytes(b"\0garbage" * 4096)

    _refused(lambda: storage.read(_name), StorageUnavailable)
    _refused(lambda: storage.mutate("acme", _name), StorageUnavailable)
    storage.close()


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT nothing FROM nowhere", DBAPIError),
        ("SELECT id FROM organizations WHERE id = 'nowhere'", NoResultFound),
        ("SELECT id FROM organizations", MultipleResultsFound),
    ],
)
def test_defect_is_not_reported_as_an_outage(acme: Storage, statement: str, kind: type[SQLAlchemyError]) -> None:
    """A wrong statement, or a wrong number of rows, is tried once, and the transaction is rolled back."""
    calls: list[int] = []

    def work(tx: Transaction) -> None:
        calls.append(tx.revision)
        tx.connection.execute(text(statement)).scalar_one()

    with pytest.raises(kind):
        acme.mutate("acme", work)

    assert calls == [1]
    assert _revisions(acme)["acme"] == 0


# The change feed


@only_postgresql
def test_follower_reads_the_changes_only_where_there_are_some(acme: Storage) -> None:
    """An idle server polls twice a second, by one statement past SQLAlchemy, until a transaction has committed."""
    statements: list[str] = []
    watched = engine_of(acme)

    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    with acme.follow() as follower:
        assert follower.read_committed().changes == []
        event.listen(watched, "before_cursor_execute", note)
        idle = [follower.read_committed().changes for _ in range(3)]
        assert statements == []
        acme.mutate("acme", lambda _: None)
        statements.clear()
        found = follower.read_committed().changes
        event.remove(watched, "before_cursor_execute", note)
        after = follower.read_committed().changes

    assert idle == [[], [], []]
    assert [(change.organization, change.revision) for change in found] == [("acme", 1)]
    assert len(statements) == 1
    assert after == []
