"""`rolecall init` as its users run it: a process of its own, its output and its exit code."""

import re
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from rolecall.credentials import token_format
from support.broken_workspaces import break_policy, delete_key, foreign_database, newer_schema, open_key
from support.commands import Finished, Serve, Workspace, error_of, only_line
from support.environment import ROOT
from support.roles import ROLES


def test_init_prints_only_the_token(initialized: tuple[Workspace, Finished]) -> None:
    """Standard output can be piped into a file: it holds the secret and nothing else."""
    _, finished = initialized

    printed = only_line(finished)

    assert token_format.parse(printed) is not None
    assert printed not in finished.stderr
    assert "The token of Ann@acme.io, shown this once, is valid for 90 days" in finished.stderr


def test_init_creates_files_readable_by_its_user_only(initialized: tuple[Workspace, Finished]) -> None:
    """Key and database have mode 0600, whatever the umask."""
    workspace, _ = initialized

    modes = {name: workspace.mode(name) for name in ("rolecall.key", "rolecall.db")}

    assert modes == {"rolecall.key": 0o600, "rolecall.db": 0o600}


def test_init_stores_the_token_nowhere(initialized: tuple[Workspace, Finished]) -> None:
    """Neither the token nor its secret part is in any file."""
    workspace, finished = initialized
    secret = finished.stdout.strip().rpartition("_")[2].encode()

    contents = [path.read_bytes() for path in workspace.folder.rglob("*") if path.is_file()]

    assert not any(secret in content for content in contents)


def test_demo_adds_one_member_for_each_other_role(initialized: tuple[Workspace, Finished]) -> None:
    """The demo has one member for each role beside the owner, named after it, at the owner's domain."""
    workspace, finished = initialized

    with closing(workspace.database()) as connection:
        members = dict(connection.execute("SELECT role, email FROM members").fetchall())
        count = connection.execute("SELECT count(*) FROM members").fetchone()[0]

    assert members == {"OWNER": "Ann@acme.io", **{role: f"{role.lower()}@acme.io" for role in ROLES[1:]}}
    assert count == len(ROLES)
    for role, email in members.items():
        assert f"{email} is {role} of acme." in finished.stderr


def test_second_init_changes_nothing(workspace: Workspace) -> None:
    """An organization that already exists isn't changed: same rows, same key, no new token."""
    before = workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()

    finished = workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")

    message = error_of(finished)
    assert "The organization `acme` exists already" in message
    assert (workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()) == before


def test_second_init_with_if_missing_succeeds(workspace: Workspace) -> None:
    """An init container runs at each start of a pod: where the organization exists, it exits with 0 and no token."""
    before = workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()

    finished = workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--if-missing")

    assert (finished.returncode, finished.stdout) == (0, "")
    assert finished.stderr == "The organization acme exists already: nothing was changed.\n"
    assert (workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()) == before


@pytest.mark.parametrize("break_workspace", [break_policy, delete_key, open_key])
def test_second_init_with_if_missing_needs_only_the_database(
    workspace: Workspace, break_workspace: Callable[[Workspace], None]
) -> None:
    """A policy that can't go live doesn't stop a pod whose server would serve the one in force."""
    break_workspace(workspace)
    names = workspace.names()

    finished = workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--if-missing")

    assert finished.returncode == 0, finished.stderr
    assert workspace.names() == names


def test_first_init_with_if_missing_is_an_init(empty: Workspace) -> None:
    """Without a database, or without the organization in it, `--if-missing` creates them as always."""
    first = empty.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--if-missing")
    other = empty.run("init", "--organization", "beta", "--owner", "bob@beta.io", "--if-missing")

    assert token_format.parse(only_line(first)) is not None
    assert token_format.parse(only_line(other)) is not None


def test_init_containers_of_two_pods_agree(empty: Workspace) -> None:
    """Of several that start together beside an older organization, one creates the new one; all exit with 0."""
    only_line(empty.run("init", "--organization", "acme", "--owner", "ann@acme.io"))
    command = ("init", "--organization", "beta", "--owner", "bob@beta.io", "--if-missing")
    with ThreadPoolExecutor(3) as pods:
        finished = list(pods.map(lambda _: empty.run(*command), range(3)))

    assert [each.returncode for each in finished] == [0, 0, 0], finished
    assert sorted(bool(each.stdout) for each in finished) == [False, False, True]


@pytest.mark.parametrize("break_workspace", [newer_schema, foreign_database])
def test_if_missing_hides_no_error(workspace: Workspace, break_workspace: Callable[[Workspace], None]) -> None:
    """A database that can't be used is an error, not an organization that exists."""
    break_workspace(workspace)

    message = error_of(workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io", "--if-missing"))

    assert "rolecall.db" in message


def test_second_init_names_the_command_that_helps(workspace: Workspace) -> None:
    """The message of a second `init` holds a command that can be pasted to issue a new token."""
    message = error_of(workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io"))

    command = shlex.split(message.split("`")[-2].replace("ADDRESS", "ann@acme.io"))
    finished = workspace.run(*command[1:])

    assert command[0] == "rolecall"
    assert token_format.parse(only_line(finished)) is not None


def test_another_organization_joins_the_same_database(workspace: Workspace) -> None:
    """One server serves many organizations with one key; without `--demo`, a new one has just its owner."""
    key = (workspace.folder / "rolecall.key").read_bytes()

    finished = workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io")

    with closing(workspace.database()) as connection:
        members = connection.execute("SELECT email, role FROM members WHERE organization = 'beta'").fetchall()
    assert token_format.parse(only_line(finished)) is not None
    assert members == [("bob@beta.io", "OWNER")]
    assert (workspace.folder / "rolecall.key").read_bytes() == key


@pytest.mark.parametrize(
    ("organization", "owner", "hint"),
    [
        ("Acme_2", "ann@acme.io", "lower-case letters, digits and inner hyphens"),
        ("beta", "bob", "must have an @-sign"),
        ("beta", "viewer@beta.io", "name another owner"),
    ],
)
def test_init_refuses_bad_names_and_addresses(workspace: Workspace, organization: str, owner: str, hint: str) -> None:
    """Bad names and addresses are refused with a hint of what is allowed, and nothing is written."""
    before = workspace.dump()

    message = error_of(workspace.run("init", "--organization", organization, "--owner", owner, "--demo"))

    assert hint in message
    assert workspace.dump() == before


def test_init_never_replaces_a_lost_key(workspace: Workspace) -> None:
    """With a new key, all old signatures would be invalid: the message says to restore the old key."""
    (workspace.folder / "rolecall.key").unlink()
    before = workspace.dump()

    message = error_of(workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io"))

    assert "key file rolecall.key is missing: restore it" in message
    assert "rolecall.key" not in workspace.names()
    assert workspace.dump() == before


def test_init_refuses_a_key_that_others_may_read(workspace: Workspace) -> None:
    """A key that is open to others isn't used; the message holds the command that closes it."""
    (workspace.folder / "rolecall.key").chmod(0o644)
    before = workspace.dump()

    message = error_of(workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io"))

    assert "`chmod 600 rolecall.key`" in message
    assert workspace.dump() == before


def test_init_creates_nothing_for_a_broken_policy(empty: Workspace) -> None:
    """With a policy that can't go live, neither a database nor a key is created."""
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\n")

    message = error_of(empty.run("init", "--organization", "acme", "--owner", "ann@acme.io"))

    assert re.search(r"policy\.csv:\d+:27: error: The effect `alow` is unknown", message)
    assert empty.names() == {"policies"}


def test_init_writes_the_shipped_policy_where_there_is_none(tmp_path: Path) -> None:
    """An empty folder needs nothing but `init`, which says where the policy is."""
    workspace = Workspace(tmp_path)

    finished = workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")

    assert token_format.parse(only_line(finished)) is not None
    assert "The shipped policy is in policies" in finished.stderr
    for name in ("model.conf", "policy.csv", "policy_test.csv"):
        assert (tmp_path / "policies" / name).read_bytes() == (ROOT / "policies" / name).read_bytes()


def test_init_completes_no_policy(empty: Workspace) -> None:
    """A folder that lacks a file of the policy is an error that names it: the files of two policies are never mixed."""
    (empty.folder / "policies" / "policy_test.csv").unlink()

    finished = empty.run("init", "--organization", "acme", "--owner", "ann@acme.io")

    assert finished.returncode == 2
    assert "The policy folder has no policy_test.csv" in finished.stderr
    assert empty.names() == {"policies"}
    assert not (empty.folder / "policies" / "policy_test.csv").exists()


def test_init_takes_the_policy_in_force_of_a_database_that_has_one(workspace: Workspace, serve: Serve) -> None:
    """Another organization gets its first owner by the policy that is served, and no policy is written beside it."""
    serving = serve(workspace)
    assert serving.address
    serving.process.terminate()
    serving.process.wait(10)
    shutil.rmtree(workspace.folder / "policies")

    finished = workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io")

    assert "bob@beta.io is OWNER of beta." in finished.stderr
    assert finished.returncode == 0
    assert "policies" not in workspace.names()
