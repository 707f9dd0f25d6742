"""Real parts for the tests: databases, a policy folder, a server on a socket, clients of it."""

import atexit
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import grpc
import pytest
import structlog
from hypothesis import settings as hypothesis_settings
from postgres import PostgresServer, find_postgres

from rolecall import credentials, keys, live_policy, operator, organizations
from rolecall import policy as policies
from rolecall.audit import AuditLog
from rolecall.config import Settings
from rolecall.domain import Member, now
from rolecall.server import Server, build_server
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows

ROOT = Path(__file__).parent.parent
CI = os.environ.get("CI") == "true"
# Without this, each traceback is drawn with all its frames' variables, which takes a second.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S"),
        structlog.processors.ExceptionRenderer(),
        structlog.dev.ConsoleRenderer(colors=False),
    ]
)
POSTGRES_URL = "TEST_POSTGRES_URL"

hypothesis_settings.register_profile("default", deadline=None, print_blob=True, max_examples=100 if CI else 40)
hypothesis_settings.load_profile("default")

_started: list[PostgresServer] = []


def pytest_configure(config: pytest.Config) -> None:
    """Start one PostgreSQL server for all worker processes, where it is installed; CI must have it."""
    for name in [name for name in os.environ if name.startswith("ROLECALL_")]:
        del os.environ[name]
    if hasattr(config, "workerinput") or POSTGRES_URL in os.environ:
        return
    binaries = find_postgres()
    if binaries is None:
        if CI:
            pytest.exit("PostgreSQL is not installed: CI must test it.", returncode=1)
        return
    _started.append(PostgresServer(binaries))
    os.environ[POSTGRES_URL] = _started[0].url


def pytest_unconfigure() -> None:
    """Stop what was started."""
    while _started:
        _started.pop().stop()


@cache
def _shipped_policy() -> policies.Build:
    """The shipped policy, built aside once: what it takes to build one is tested with the policies."""
    return policies.build_aside(ROOT / "policies", 0.05)


def _is_shipped(folder: Path) -> bool:
    """Whether a folder holds the shipped policy."""
    shipped = ROOT / "policies"
    files = (policies.MODEL_FILE, policies.POLICY_FILE, policies.TEST_FILE)
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == (shipped / name).read_bytes() for name in files
    )


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start servers on the shipped policy without building it anew, and compare others with Casbin only briefly."""

    def build_aside(folder: Path, oracle_seconds: float) -> policies.Build:
        if _is_shipped(folder):
            return _shipped_policy()
        return policies.build_aside(folder, oracle_seconds)

    monkeypatch.setattr(live_policy, "build_aside", build_aside)
    monkeypatch.setattr(live_policy, "START_ORACLE_SECONDS", 0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database; one of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/rolecall.db"
        return
    if POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL is not installed")
    with PostgresServer.new_database(os.environ[POSTGRES_URL]) as url:
        yield url


@pytest.fixture(params=["fast", "standard"])
def each_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How calls come in, for the servers of a test."""
    monkeypatch.setenv("ROLECALL_LANE", request.param)
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
    return AuditLog(keys.read(key_file) if key_file.exists() else keys.create(key_file))


@pytest.fixture
def policy_folder(tmp_path: Path) -> Path:
    """A copy of the shipped policy, to be edited."""
    folder = tmp_path / "policies"
    shutil.copytree(ROOT / "policies", folder, ignore=shutil.ignore_patterns("variants"))
    return folder


@dataclass
class Site:
    """A running server with the organization `acme`: a member for each role, and a token for each member."""

    server: Server
    storage: Storage
    settings: Settings
    policy_folder: Path
    members: dict[str, Member]
    tokens: dict[str, str]
    channels: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.server.address

    @property
    def log(self) -> AuditLog:
        """The audit log, for who changes something past the server."""
        return AuditLog(keys.read(self.settings.key_file))

    def forget(self) -> None:
        """Have the server forget what it knows, after rows were changed as no change of ours does."""
        self.server._core.feed.remembered.clear()

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        return self.channels.enter_context(grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]))

    def call(
        self, method: str, request: bytes, *authorization: str | bytes, timeout: float = 10
    ) -> tuple[bytes, grpc.Call]:
        """The raw answer to raw bytes, presenting each of `authorization`. Raises `grpc.RpcError`."""
        multicallable = self.channel().unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        metadata = tuple(("authorization", value) for value in authorization)
        response, call = multicallable.with_call(request, timeout=timeout, metadata=metadata)
        return response, call


def add_member(storage: Storage, organization: str, email: str, role: str) -> Member:
    """Put a member straight into the database."""
    at = now()
    member = Member(organization, credentials.new_id(), email, email.partition("@")[0], role, at, at)

    def work(tx: Transaction) -> Member:
        member_rows.add(tx, member, email.lower())
        return member

    return storage.mutate(organization, work)


MakeSite = Callable[..., Site]


@dataclass(frozen=True)
class Beginning:
    """What a server starts with: the organization's members and a token of each, by role."""

    members: dict[str, Member]
    tokens: dict[str, str]


def _begin(storage: Storage, key_file: Path, folder: Path) -> Beginning:
    """Found the organization of a site in a new database."""
    policy = policies.build(folder, 0.0).policy
    assert policy is not None
    storage.create()
    if not key_file.exists():
        keys.create(key_file)
    log = AuditLog(keys.read(key_file))
    founded = organizations.found(storage, log, policy, "acme", "ann@acme.io", demo=True)
    members = {member.role: member for member in (founded.owner, *founded.others)}
    minted = {role: operator.issue(storage, log, "acme", member.email).text for role, member in members.items()}
    return Beginning(members, minted)


@cache
def _sqlite_beginning() -> tuple[Path, Beginning]:
    """A folder with a database and its key, made once for each worker; every site gets a copy of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rolecall-beginning-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    storage = Storage(f"sqlite:///{folder}/rolecall.db")
    beginning = _begin(storage, folder / "rolecall.key", ROOT / "policies")
    storage.close()
    return folder, beginning


@pytest.fixture
def make_site(policy_folder: Path, tmp_path: Path) -> Iterator[MakeSite]:
    """Starts servers; stops them at the end."""
    stack = ExitStack()

    def make(database_url: str, *, folder: Path = policy_folder, **settings: object) -> Site:
        key_file = tmp_path / "rolecall.key"
        file = Path(database_url.removeprefix("sqlite:///"))
        if database_url.startswith("sqlite") and not file.exists() and not key_file.exists() and _is_shipped(folder):
            made, beginning = _sqlite_beginning()
            shutil.copy(made / "rolecall.db", file)
            shutil.copy(made / "rolecall.key", key_file)
            storage = Storage(database_url)
        else:
            storage = Storage(database_url)
            beginning = _begin(storage, key_file, folder)
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
        server = build_server(configured)
        # What tests change past the server is known there at once; how soon it is otherwise has tests of its own.
        storage.on_change(server._core.feed._note_own)
        site = Site(server, storage, configured, folder, dict(beginning.members), dict(beginning.tokens))
        server.start()
        stack.callback(server.stop, 0)
        stack.callback(site.channels.close)
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


def keep_asking(ask: Callable[[], object], seconds: float = 5) -> None:
    """Ask again and again, for so long: what a server remembers for a moment is to make it raise before that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ask()
        time.sleep(0.02)


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until the condition holds, for so long at most."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def sqlite_file(url: str) -> sqlite3.Connection:
    """A connection past the server, to an SQLite database."""
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
