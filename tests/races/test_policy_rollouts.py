"""Roll-outs of policies by several processes, beside members who change roles: one policy is in force for all."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from races.racing import POLICIES
from rolecall.audit import AuditLog
from rolecall.credentials import server_key
from rolecall.domain import Caller, CredentialKind, Member, now
from rolecall.errors import RolecallError
from rolecall.identity.authentication import Authenticator
from rolecall.identity.cache import RevisionCache
from rolecall.identity.change_feed import ChangeFeed
from rolecall.limits import Limits
from rolecall.policy import Build, Policy, PolicyFiles, read_and_index, reload
from rolecall.policy.reload import LivePolicy
from rolecall.services import organizations
from rolecall.services.members import Members
from rolecall.services.pagination import Pagination
from rolecall.services.sessions import open_session
from rolecall.services.unit_of_work import ChangeRequest, UnitOfWork
from rolecall.storage import Storage, Transaction
from rolecall.storage import members as member_rows
from rolecall.storage import organizations as organization_rows
from rolecall.storage import policies as policy_rows
from support.environment import CI
from support.waiting import wait_until

# Each roll-out in CI is a change of the folder of both processes.
ROLLOUTS = 500 if CI else 40

BOSS_ROWS = "g, BOSS, OWNER\n"
BOTH_OWN = "p, OWNER, owners, update, allow\n"
BOSS_OWNS = "p, BOSS, owners, update, allow\n"


class Process:
    """The parts of a server that serve one policy, with connections of their own, over a folder of their own."""

    def __init__(self, url: str, key_file: Path, folder: Path) -> None:
        self.folder = folder
        self.storage = Storage(url)
        self.live = LivePolicy(folder, self.storage, Limits(casbin_seconds=0))
        self.feed = ChangeFeed(self.storage, RevisionCache(), 10.0, self.live.note_sequence)
        key = server_key.read(key_file)
        authenticator = Authenticator(self.storage)
        unit_of_work = UnitOfWork(self.storage, authenticator, self.live, AuditLog(key))
        self.members = Members(unit_of_work, self.storage, self.live, Pagination(key))

    def __enter__(self) -> Self:
        self.live.start()
        self.feed.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.stop()
        self.live.stop()
        self.storage.close()

    def change_role(self, caller: Caller, user_id: str, role: str) -> bool:
        """Change a member's role; False where it is refused."""
        try:
            self.members.change_role(ChangeRequest(caller, "ChangeMemberRole", "call"), user_id, role, "")
        except RolecallError:
            return False
        return True


class Site:
    """Organization `acme` on a new database: ann is OWNER, bea BOSS, cid VIEWER; two processes serve it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.key_file = folder / "rolecall.key"
        log = AuditLog(server_key.create(self.key_file))
        self.storage = Storage(url)
        self.storage.create()
        self.folders = [folder / name for name in ("one", "two")]
        for each in self.folders:
            write_policy(each, BOTH_OWN)
        loaded = build_here(self.folders[0]).policy
        assert loaded is not None
        self.ann = organizations.create(self.storage, log, loaded, "acme", "ann@acme.io").owner
        self.bea, self.cid = self._add("bea", "BOSS"), self._add("cid", "VIEWER")
        self.caller = self.storage.mutate("acme", self._session)
        self.processes = [Process(url, self.key_file, each) for each in self.folders]

    def _add(self, name: str, role: str) -> Member:
        at = now()
        member = Member("acme", name, f"{name}@acme.io", name, role, at, at)
        self.storage.mutate("acme", lambda tx: member_rows.add(tx, member, member.email))
        return member

    def _session(self, tx: Transaction) -> Caller:
        session = open_session(tx, self.ann, now()).session
        kind, digest = CredentialKind.SESSION, session.digest
        return Caller("acme", session.id, kind, self.ann.user_id, "ann@acme.io", "OWNER", digest=digest)

    def owners_in_force(self, policies: dict[str, Policy]) -> int:
        """The number of owners under the version that is in force, in one snapshot."""

        def work(tx: Transaction) -> int:
            activation = policy_rows.in_force(tx)
            assert activation is not None
            return organization_rows.owner_count(tx, "acme", policies[activation.version].owner_roles)

        return self.storage.read(work)

    def sequence(self) -> int:
        """The sequence number of the activation in force."""
        return self.storage.read(policy_rows.sequence_in_force)


def build_here(source: Path | PolicyFiles, _casbin_seconds: float = 0.0, _known_key: str = "") -> Build:
    """Build a policy in this process, without Casbin, which is not thread-safe."""
    parsed, built = read_and_index(source)
    return Build(None if parsed.errors else built, tuple(parsed.findings), parsed.files)


def write_policy(folder: Path, owner_row: str) -> Policy:
    """Write the shipped policy with a role BOSS above OWNER, and one row that says whose role owns."""
    folder.mkdir(exist_ok=True)
    text = (POLICIES / "policy.csv").read_text()
    assert BOTH_OWN in text
    if not (folder / "policy.csv").exists():
        (folder / "model.conf").write_text((POLICIES / "model.conf").read_text())
        (folder / "policy_test.csv").write_text("role,resource,action,expected,note\nBOSS,owners,update,allow,\n")
    # In one step: nothing in this test waits until a file has settled, and a reader could get parts of two writes.
    (folder / "policy.csv.new").write_text(text.replace(BOTH_OWN, owner_row) + BOSS_ROWS)
    (folder / "policy.csv.new").rename(folder / "policy.csv")
    built = build_here(folder)
    assert built.policy is not None, built.errors
    return built.policy


@pytest.fixture
def site(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose policies are built in this process, and watched closely."""
    monkeypatch.setattr(reload, "build_in_subprocess", build_here)
    monkeypatch.setattr(reload, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(reload, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(reload, "POLL_SECONDS", 0.005)
    made = Site(database_url, tmp_path)
    yield made
    made.storage.close()


@pytest.mark.timeout(600)
def test_no_roll_out_leaves_an_organization_without_an_owner(site: Site) -> None:
    """While policies are rolled out, members lose and get owner roles through both processes: an owner remains.

    Afterwards both processes serve the version in force within two seconds.
    """
    policies = {each.version: each for each in (write_policy(site.folders[0], row) for row in (BOSS_OWNS, BOTH_OWN))}
    stop = threading.Event()
    changed: list[bool] = []
    ownerless: list[int] = []

    def toggle(process: Process, user_id: str, roles: tuple[str, ...]) -> None:
        for role in itertools.cycle(roles):
            if stop.is_set():
                return
            changed.append(process.change_role(site.caller, user_id, role))

    def look() -> None:
        while not stop.is_set():
            if not site.owners_in_force(policies):
                ownerless.append(site.sequence())

    with ExitStack() as stack:
        one, two = (stack.enter_context(process) for process in site.processes)
        pool = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(stop.set)
        tasks = [
            pool.submit(toggle, one, "bea", ("ADMIN", "BOSS")),
            pool.submit(toggle, two, "bea", ("BOSS", "ADMIN")),
            pool.submit(toggle, two, "cid", ("BOSS", "VIEWER")),
            pool.submit(look),
        ]
        first = site.sequence()
        for number in range(ROLLOUTS):
            row = (BOSS_OWNS, BOTH_OWN)[number % 2]
            for folder in site.folders:
                write_policy(folder, row)
            time.sleep(0.03)
        stop.set()
        for task in tasks:
            task.result()
        began = time.monotonic()
        for folder in site.folders:
            write_policy(folder, BOTH_OWN)
        wait_until(
            lambda: all(
                process.live.in_force.activation.sequence == site.sequence()
                and set(process.live.in_force.policy.owner_roles) == {"OWNER", "BOSS"}
                for process in site.processes
            )
        )
        took = time.monotonic() - began

    assert ownerless == []
    assert took < (10 if CI else 4), "an idle machine takes 0.2 s"
    assert site.sequence() - first > ROLLOUTS / 8, "roll-outs took place"
    assert any(changed), "roles were changed"
    # A start with any of the folders succeeds, whatever the members have.
    with Process(site.storage._url.render_as_string(hide_password=False), site.key_file, site.folders[1]) as again:
        assert again.live.in_force.activation.sequence >= site.sequence()
