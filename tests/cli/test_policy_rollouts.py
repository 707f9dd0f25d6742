"""Roll-outs of policies by two real servers of two workers each, beside callers who change roles through them."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from rolecall import Client
from rolecall.errors import RolecallError
from rolecall.policy import read_and_index
from rolecall.storage import Storage, Transaction
from rolecall.storage import organizations as organization_rows
from rolecall.storage import policies as policy_rows
from support.commands import SMALL_POLICY, SMALL_POLICY_TEST, Serve, Serving, Workspace, copy_policy
from support.environment import CI

# Each is a change of the folder of both servers.
ROLLOUTS = 20 if CI else 4
# Time in which a server reads its folder, builds the policy and activates it, on a busy machine.
ROLLOUT_SECONDS = 1.0
# New connections to a server: all go to one of its two workers with a probability of 1 in 2 ** 15.
CONNECTIONS = 16
# After the last change, all processes serve the version in force; an idle machine takes 0.7 s.
FOLLOWED_SECONDS = 10 if CI else 6

ROWS = "g, BOSS, OWNER\np, OWNER, members, update, allow\np, VIEWER, policy, view, allow\n"
BOTH_OWN = SMALL_POLICY + ROWS
BOSS_OWNS = BOTH_OWN.replace("p, OWNER, owners, update, allow", "p, BOSS, owners, update, allow")


def write_policy(workspace: Workspace, text: str) -> None:
    """Replace the policy in the workspace's folder, in one step."""
    new = workspace.folder / "policies" / "policy.csv.new"
    new.write_text(text)
    new.rename(new.with_suffix(""))


def versions_served(serving: Serving, token: str) -> set[str]:
    """The versions that the workers of a server serve."""
    served = set()
    for _ in range(CONNECTIONS):
        with Client(serving.address, token) as client:
            served.add(client.policy().policy.policy_version)
    return served


@pytest.mark.timeout(300)
def test_servers_agree_on_one_policy_under_which_an_owner_remains(
    database_url: str, tmp_path: Path, serve: Serve
) -> None:
    """While two servers roll out policies, members lose and get owner roles: an owner remains, and all follow."""
    first = Workspace(tmp_path / "first", {"ROLECALL_DATABASE": database_url})
    first.folder.mkdir()
    copy_policy(first.folder)
    write_policy(first, BOTH_OWN)
    (first.folder / "policies" / "policy_test.csv").write_text(SMALL_POLICY_TEST)
    made = first.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--demo")
    token = made.stdout.strip()
    second = Workspace(tmp_path / "second", first.variables)
    shutil.copytree(first.folder, second.folder)
    workspaces = (first, second)
    servers = [serve(each, "--workers", "2") for each in workspaces]
    stop = threading.Event()
    changes: list[str] = []
    owner_counts: list[int] = []

    def toggle(serving: Serving, roles: tuple[str, str]) -> None:
        while not stop.is_set():
            # A connection each, so that all workers are asked.
            with Client(serving.address, token) as client:
                for role in roles:
                    with suppress(RolecallError):
                        changes.append(client.members.change_role(subject, role).member.role)

    def look(storage: Storage) -> None:
        def owners(tx: Transaction) -> int:
            activation = policy_rows.in_force(tx)
            assert activation is not None
            stored = policy_rows.get(tx, activation.version)
            assert stored is not None
            roles = ("BOSS",) if "p, BOSS, owners" in stored.policy else ("BOSS", "OWNER")
            return organization_rows.owner_count(tx, "acme", roles)

        while not stop.is_set():
            owner_counts.append(storage.read(owners))
            time.sleep(0.002)

    with ExitStack() as stack:
        with Client(servers[0].address, token) as client:
            subject = next(each.user_id for each in client.members.list() if each.role == "VIEWER")
        storage = Storage(database_url)
        stack.callback(storage.close)
        pool = stack.enter_context(ThreadPoolExecutor(5))
        stack.callback(stop.set)
        tasks = [
            pool.submit(toggle, each, roles) for each in servers for roles in (("BOSS", "ADMIN"), ("ADMIN", "BOSS"))
        ]
        tasks.append(pool.submit(look, storage))
        before = storage.read(policy_rows.sequence_in_force)
        for number in range(ROLLOUTS):
            for workspace in workspaces:
                write_policy(workspace, (BOSS_OWNS, BOTH_OWN)[number % 2])
            time.sleep(ROLLOUT_SECONDS)
        stop.set()
        for task in tasks:
            task.result()
        activated = storage.read(policy_rows.sequence_in_force) - before
        # Only in one folder: the processes of the other server must follow.
        write_policy(first, BOTH_OWN + "# the last version\n")
        last = read_and_index(first.folder / "policies")[0].files.version
        changed_at = time.monotonic()
        while any(versions_served(each, token) != {last} for each in servers):
            assert time.monotonic() < changed_at + FOLLOWED_SECONDS, "a process serves another version"
        in_force = storage.read(policy_rows.version_in_force)
        for server in servers:
            server.process.terminate()
            assert server.process.wait(timeout=20) == 0

    assert owner_counts
    assert 0 not in owner_counts
    assert in_force == last
    assert activated > 0
    assert "BOSS" in changes
    # A start succeeds, whatever the members have and the folder says.
    write_policy(first, BOSS_OWNS)
    assert serve(first).address
