"""Real parts for the tests: databases, a policy folder, a server on a socket, clients of it."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import psycopg
import pytest
import structlog
from hypothesis import settings as hypothesis_settings

from rolecall import policy as policies
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.credentials import server_key
from rolecall.domain import Member
from rolecall.limits import Limits
from rolecall.policy import reload
from rolecall.server import build_server
from rolecall.services import operator_tokens, organizations
from rolecall.storage import Storage
from support.databases import direct_url, new_database
from support.environment import CI, PGBOUNCER_URL, POSTGRES_URL, ROOT
from support.lossy_proxy import LossyProxy, OpenProxy
from support.pgbouncer import PgBouncer, find_pgbouncer
from support.postgres import PostgresServer, dump_database, find_postgres
from support.sites import QUICK_LIMITS, MakeSite, Site

# Without this, each traceback is drawn with all its frames' variables, which takes a second.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S"),
        structlog.processors.ExceptionRenderer(),
        structlog.dev.ConsoleRenderer(colors=False),
    ]
)

hypothesis_settings.register_profile("default", deadline=None, print_blob=True, max_examples=100 if CI else 40)
hypothesis_settings.load_profile("default")

_started: list[PostgresServer | PgBouncer] = []


def pytest_configure(config: pytest.Config) -> None:
    """Start PostgreSQL and PgBouncer for all worker processes, where they are installed; CI must have them."""
    for name in [name for name in os.environ if name.startswith("ROLECALL_")]:
        del os.environ[name]
    if hasattr(config, "workerinput") or POSTGRES_URL in os.environ:
        return
    binaries, pgbouncer = find_postgres(), find_pgbouncer()
    if CI and not (binaries and pgbouncer):
        pytest.exit("PostgreSQL or PgBouncer is not installed: CI must test both.", returncode=1)
    if binaries is None:
        return
    server = PostgresServer(binaries)
    _started.append(server)
    os.environ[POSTGRES_URL] = server.url
    if pgbouncer is not None:
        pooler = PgBouncer(pgbouncer, server.url)
        _started.append(pooler)
        os.environ[PGBOUNCER_URL] = pooler.url


def pytest_unconfigure() -> None:
    """Stop what this process started."""
    while _started:
        _started.pop().stop()


@cache
def _shipped_policy() -> policies.Build:
    """Build the shipped policy, once: tests/policy tests the build itself."""
    return policies.build_in_subprocess(ROOT / "policies", 0.05)


def _is_shipped(source: Path | policies.PolicyFiles) -> bool:
    """Whether a folder, or the texts of its files, are the shipped policy."""
    if isinstance(source, policies.PolicyFiles):
        return source == _shipped_policy().files
    folder, shipped = source, ROOT / "policies"
    files = (policies.MODEL_FILE, policies.POLICY_FILE, policies.TEST_FILE)
    return not (folder / policies.CONDITIONS_FILE).exists() and all(
        (folder / name).is_file() and (folder / name).read_bytes() == (shipped / name).read_bytes() for name in files
    )


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start servers on the shipped policy without building it again."""

    def build_in_subprocess(source: Path | policies.PolicyFiles, seconds: float, known_key: str) -> policies.Build:
        if _is_shipped(source):
            return _shipped_policy()
        return policies.build_in_subprocess(source, seconds, known_key)

    monkeypatch.setattr(reload, "build_in_subprocess", build_in_subprocess)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database; one of each kind."""
    with new_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=["polling", "standard"])
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport of the servers of a test."""
    monkeypatch.setenv("ROLECALL_TRANSPORT", request.param)
    return str(request.param)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a new SQLite database, for what doesn't differ between databases."""
    return f"sqlite:///{tmp_path}/rolecall.db"


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    """A database with its tables."""
    storage = Storage(database_url)
    storage.create()
    yield storage
    storage.close()


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """An audit log, signed with the key in `rolecall.key`."""
    key_file = tmp_path / "rolecall.key"
    return AuditLog(server_key.read(key_file) if key_file.exists() else server_key.create(key_file))


@pytest.fixture
def policy_folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy, to be edited."""
    folder = tmp_path / "policies"
    shutil.copytree(ROOT / "policies", folder, ignore=shutil.ignore_patterns("variants"))
    return folder


@dataclass(frozen=True)
class InitialState:
    """The state that a server starts with: the organization's members and a token of each, by role."""

    members: dict[str, Member]
    tokens: dict[str, str]


def _make_initial_state(storage: Storage, key_file: Path, folder: Path) -> InitialState:
    """Create the organization of a site in a new database."""
    policy = policies.build(folder, 0.0).policy
    assert policy is not None
    storage.create()
    if not key_file.exists():
        server_key.create(key_file)
    log = AuditLog(server_key.read(key_file))
    founded = organizations.create(storage, log, policy, "acme", "ann@acme.io", demo=True)
    members = {member.role: member for member in (founded.owner, *founded.others)}
    minted = {role: operator_tokens.issue(storage, log, "acme", member.email).text for role, member in members.items()}
    return InitialState(members, minted)


@dataclass(frozen=True)
class InitialDatabase:
    """Database with its key, created once for each worker; every site gets a copy of it."""

    key_file: Path
    initial_state: InitialState
    # The file of an SQLite database, or the statements that make a PostgreSQL database what it was.
    file: Path | None = None
    statements: str = ""


def _initial_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rolecall-beginning-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _initial_sqlite() -> InitialDatabase:
    key_file, file = _initial_folder() / "rolecall.key", _initial_folder() / "rolecall.db"
    storage = Storage(f"sqlite:///{file}")
    initial_state = _make_initial_state(storage, key_file, ROOT / "policies")
    storage.close()
    return InitialDatabase(key_file, initial_state, file=file)


@cache
def _initial_postgres() -> InitialDatabase:
    key_file = _initial_folder() / "rolecall.key"
    with PostgresServer.new_database(os.environ[POSTGRES_URL]) as url:
        storage = Storage(url)
        initial_state = _make_initial_state(storage, key_file, ROOT / "policies")
        storage.close()
        return InitialDatabase(key_file, initial_state, statements=dump_database(url))


def _copy_initial_state(database_url: str, key_file: Path) -> InitialState | None:
    """Copy the initial database into an empty one; None where that isn't empty."""
    if database_url.startswith("sqlite"):
        file = Path(database_url.removeprefix("sqlite:///"))
        if file.exists():
            return None
        initial = _initial_sqlite()
        assert initial.file is not None
        shutil.copy(initial.file, file)
    else:
        url = direct_url(database_url)
        if not url.startswith(os.environ[POSTGRES_URL].rpartition("/")[0]):
            return None
        initial = _initial_postgres()
        # The statements set the session's search path.
        with psycopg.connect(url, autocommit=True) as connection:
            if connection.execute("SELECT to_regclass('public.alembic_version')").fetchone() != (None,):
                return None
            connection.execute(initial.statements)
    shutil.copy(initial.key_file, key_file)
    return initial.initial_state


@pytest.fixture
def limits() -> Limits:
    """The limits of the servers of a test, unless it passes others."""
    return QUICK_LIMITS


@pytest.fixture
def make_site(policy_folder: Path, tmp_path: Path, limits: Limits) -> Iterator[MakeSite]:
    """Return a function that starts a server; all are stopped at the end."""
    stack = ExitStack()

    def make(database_url: str, *, folder: Path = policy_folder, limits: Limits = limits, **settings: object) -> Site:
        key_file = tmp_path / "rolecall.key"
        is_new = not key_file.exists() and _is_shipped(folder)
        initial_state = _copy_initial_state(database_url, key_file) if is_new else None
        storage = Storage(database_url)
        if initial_state is None:
            initial_state = _make_initial_state(storage, key_file, folder)
        stack.callback(storage.close)
        values = {
            "database": database_url,
            "policy": folder,
            "key_file": key_file,
            "listen": "127.0.0.1:0",
            "mail_folder": tmp_path / "mail",
            **settings,
        }
        configured = Settings(**values)  # type: ignore[arg-type]
        server = build_server(configured, limits=limits)
        # Changes that tests make in the database are known to the server at once; the usual delay has its own tests.
        storage.on_change(server._core.feed.apply_own)
        site = Site(
            server, storage, configured, limits, folder, dict(initial_state.members), dict(initial_state.tokens)
        )
        server.start()
        stack.callback(site.stop)
        return site

    with stack:
        yield make


@pytest.fixture
def site(make_site: MakeSite, database_url: str) -> Site:
    """A running server over each kind of database."""
    return make_site(database_url)


@pytest.fixture
def sqlite_site(make_site: MakeSite, sqlite_url: str) -> Site:
    """A running server over SQLite, for what doesn't differ between databases."""
    return make_site(sqlite_url)


@pytest.fixture
def open_proxy() -> Iterator[OpenProxy]:
    """Put a lossy proxy in front of a server; returns it, and the address to call instead of the server's."""
    with ExitStack() as stack:

        def open_one(site: Site) -> tuple[LossyProxy, str]:
            proxy = LossyProxy(site.channel())
            server = grpc.server(stack.enter_context(futures.ThreadPoolExecutor(4)), handlers=[proxy])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(0).wait())
            return proxy, f"127.0.0.1:{port}"

        yield open_one
