"""The command `rolecall` as its users run it: a process of its own, its output and its exit code."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer
from conftest import ROOT, Site, keep_asking
from typer.testing import CliRunner

import rolecall
from rolecall import credentials, keys
from rolecall.cli import app
from rolecall.client import Client
from rolecall.errors import CallFailed, UnauthenticatedCredential

PROGRAM = Path(sys.executable).parent / "rolecall"
ROLES = ["OWNER", "ADMIN", "CONTRIBUTOR", "VIEWER", "VIEWERNOSECRETS"]

# The roles of the shipped policy with a few of their rules, so that a server starts sooner.
SMALL_POLICY = """\
g, OWNER, ADMIN
g, ADMIN, CONTRIBUTOR
g, CONTRIBUTOR, VIEWER
g, VIEWER, VIEWERNOSECRETS
p, VIEWERNOSECRETS, members, view, allow
p, VIEWER, secrets, view, allow
p, CONTRIBUTOR, authorization, check, allow
p, OWNER, owners, update, allow
"""
SMALL_POLICY_TEST = """\
role,resource,action,expected,note
VIEWER,secrets,view,allow,
VIEWERNOSECRETS,secrets,view,deny,
"""

Finished = subprocess.CompletedProcess[str]


@dataclass
class Workspace:
    """A folder that somebody works in, with the shipped policy; settings come from `variables`."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Ours, without settings that happen to be there."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("ROLECALL_")}
        return {**ours, "COLUMNS": "120", "ROLECALL_LISTEN": "127.0.0.1:0", **self.variables}

    def run(self, *arguments: str, umask: int = 0o022, stdin: str = "") -> Finished:
        """Run `rolecall` to its end, with this text piped in."""
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environment,
            umask=umask,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def database(self) -> sqlite3.Connection:
        """A connection past the program; close it."""
        return sqlite3.connect(self.folder / "rolecall.db")

    def dump(self) -> list[str]:
        """All that the database holds."""
        with closing(self.database()) as connection:
            return list(connection.iterdump())

    def mode(self, name: str) -> int:
        """Who may do what with a file."""
        return stat.S_IMODE((self.folder / name).stat().st_mode)

    def names(self) -> set[str]:
        """What is in the folder."""
        return {path.name for path in self.folder.iterdir()}

    def append(self, name: str, text: str) -> None:
        """Add to a file of the policy."""
        with (self.folder / "policies" / name).open("a", encoding="utf-8") as file:
            file.write(text)


def error_of(finished: Finished) -> str:
    """What a command that can't do its work says: exit code 2, no answer, one line, and one a finding in a policy."""
    first, *findings = finished.stderr.splitlines()
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert first.startswith("error: ")
    assert all(re.match(r"\S+:\d+:\d+: error: ", finding) for finding in findings), finished.stderr
    return finished.stderr.removeprefix("error: ").rstrip("\n")


def only_line(finished: Finished) -> str:
    """The one line on the standard output of a command that did its work."""
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("\n") == 1
    return finished.stdout.rstrip("\n")


def copy_policy(folder: Path) -> None:
    """Put the shipped policy where a server looks for it first."""
    shutil.copytree(ROOT / "policies", folder / "policies", ignore=shutil.ignore_patterns("variants"))


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    """A folder with nothing but a policy."""
    folder = tmp_path / "work"
    folder.mkdir()
    copy_policy(folder)
    return Workspace(folder)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Finished]:
    """A folder after `init --demo` on a small policy, under an open umask, and what that said. Not to be changed."""
    folder = tmp_path_factory.mktemp("founded")
    copy_policy(folder)
    (folder / "policies" / "policy.csv").write_text(SMALL_POLICY)
    (folder / "policies" / "policy_test.csv").write_text(SMALL_POLICY_TEST)
    workspace = Workspace(folder)
    return workspace, workspace.run("init", "--organization", "acme", "--owner", "Ann@acme.io", "--demo", umask=0)


@pytest.fixture
def workspace(founded: tuple[Workspace, Finished], tmp_path: Path) -> Workspace:
    """A copy of that folder, to be changed."""
    folder = tmp_path / "work"
    shutil.copytree(founded[0].folder, folder)
    return Workspace(folder)


@pytest.fixture
def token(founded: tuple[Workspace, Finished]) -> str:
    """The first owner's token."""
    return founded[1].stdout.strip()


@pytest.fixture
def asking(sqlite_site: Site, tmp_path: Path) -> Workspace:
    """A shell that is set up to ask a running server, as its owner."""
    variables = {"ROLECALL_ADDRESS": sqlite_site.address, "ROLECALL_TOKEN": sqlite_site.tokens["OWNER"]}
    return Workspace(tmp_path, variables)


# init


def test_init_prints_only_the_token(founded: tuple[Workspace, Finished]) -> None:
    """Standard output can be piped into a file: it holds the secret and nothing else."""
    _, finished = founded

    printed = only_line(finished)

    assert credentials.parse(printed) is not None
    assert printed not in finished.stderr
    assert "The token of Ann@acme.io, shown this once, is valid for 90 days" in finished.stderr


def test_init_makes_files_for_its_user_only(founded: tuple[Workspace, Finished]) -> None:
    """Key and database have mode 0600, whatever the umask."""
    workspace, _ = founded

    modes = {name: workspace.mode(name) for name in ("rolecall.key", "rolecall.db")}

    assert modes == {"rolecall.key": 0o600, "rolecall.db": 0o600}


def test_init_stores_the_token_nowhere(founded: tuple[Workspace, Finished]) -> None:
    """Neither the token nor its secret part is in any file."""
    workspace, finished = founded
    secret = finished.stdout.strip().rpartition("_")[2].encode()

    contents = [path.read_bytes() for path in workspace.folder.rglob("*") if path.is_file()]

    assert not any(secret in content for content in contents)


def test_demo_adds_one_member_for_each_other_role(founded: tuple[Workspace, Finished]) -> None:
    """Next to the owner there is one member a role, named after it, at the owner's domain."""
    workspace, finished = founded

    with closing(workspace.database()) as connection:
        members = dict(connection.execute("SELECT role, email FROM members").fetchall())
        count = connection.execute("SELECT count(*) FROM members").fetchone()[0]

    assert members == {"OWNER": "Ann@acme.io", **{role: f"{role.lower()}@acme.io" for role in ROLES[1:]}}
    assert count == len(ROLES)
    for role, email in members.items():
        assert f"{email} is {role} of acme." in finished.stderr


def test_second_init_changes_nothing(workspace: Workspace) -> None:
    """An organization that is there already stays as it is: rows, key, and no new token."""
    before = workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()

    finished = workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")

    said = error_of(finished)
    assert "There is an organization `acme` already" in said
    assert (workspace.dump(), (workspace.folder / "rolecall.key").read_bytes()) == before


def test_second_init_names_the_command_that_helps(workspace: Workspace) -> None:
    """Whoever lost the first token can paste the command from the message, and has a new one."""
    said = error_of(workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io"))

    command = shlex.split(said.split("`")[-2].replace("ADDRESS", "ann@acme.io"))
    finished = workspace.run(*command[1:])

    assert command[0] == "rolecall"
    assert credentials.parse(only_line(finished)) is not None


def test_another_organization_joins_the_same_database(workspace: Workspace) -> None:
    """One server serves many organizations with one key; without `--demo`, a new one has just its owner."""
    key = (workspace.folder / "rolecall.key").read_bytes()

    finished = workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io")

    with closing(workspace.database()) as connection:
        members = connection.execute("SELECT email, role FROM members WHERE organization = 'beta'").fetchall()
    assert credentials.parse(only_line(finished)) is not None
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
    """What can't be an organization or its owner is refused with what would do, and nothing is written."""
    before = workspace.dump()

    said = error_of(workspace.run("init", "--organization", organization, "--owner", owner, "--demo"))

    assert hint in said
    assert workspace.dump() == before


def test_init_never_replaces_a_lost_key(workspace: Workspace) -> None:
    """With a new key, all that the old one signed would be void: the message says to restore the old one."""
    (workspace.folder / "rolecall.key").unlink()
    before = workspace.dump()

    said = error_of(workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io"))

    assert "key file rolecall.key is missing: restore it" in said
    assert "rolecall.key" not in workspace.names()
    assert workspace.dump() == before


def test_init_refuses_a_key_that_others_may_read(workspace: Workspace) -> None:
    """A key that is open to others isn't used; the message holds the command that closes it."""
    (workspace.folder / "rolecall.key").chmod(0o644)
    before = workspace.dump()

    said = error_of(workspace.run("init", "--organization", "beta", "--owner", "bob@beta.io"))

    assert "`chmod 600 rolecall.key`" in said
    assert workspace.dump() == before


def test_init_makes_nothing_for_a_broken_policy(empty: Workspace) -> None:
    """With a policy that can't go live, neither database nor key is made."""
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\n")

    said = error_of(empty.run("init", "--organization", "acme", "--owner", "ann@acme.io"))

    assert re.search(r"policy\.csv:\d+:27: error: The effect `alow` is unknown", said)
    assert empty.names() == {"policies"}


# tokens


def test_issued_token_opens_the_door_until_it_is_revoked(sqlite_site: Site, empty: Workspace) -> None:
    """The operator hands a member a new token, and kills it, while the server runs: it learns so within a second."""
    empty.variables["ROLECALL_DATABASE"] = sqlite_site.settings.database
    empty.variables["ROLECALL_KEY_FILE"] = str(sqlite_site.settings.key_file)

    issued = only_line(empty.run("tokens", "issue", "--organization", "acme", "--email", "VIEWER@acme.io"))
    with Client(sqlite_site.address, issued) as client:
        before = client.check("viewer@acme.io", "view", "secrets")
        revoked = empty.run("tokens", "revoke", "--organization", "acme", "--id", issued.split("_")[1])
        with pytest.raises(UnauthenticatedCredential):
            keep_asking(lambda: client.check("viewer@acme.io", "view", "secrets"))

    assert before
    assert revoked.returncode == 0
    assert revoked.stdout == ""


def test_operators_commands_are_in_the_audit_log(workspace: Workspace, token: str) -> None:
    """Who issues and revokes at the database leaves an entry for each, as the operator, without the secret."""
    issued = only_line(workspace.run("tokens", "issue", "--organization", "acme", "--email", "viewer@acme.io"))
    workspace.run("tokens", "revoke", "--organization", "acme", "--id", token.split("_")[1])

    with closing(workspace.database()) as connection:
        query = "SELECT action, actor, object, reason FROM audit_entries ORDER BY sequence"
        entries = connection.execute(query).fetchall()
    assert entries == [
        ("CreateOrganization", "operator", "organization:acme", ""),
        ("IssueToken", "operator", f"token:{issued.split('_')[1]}", ""),
        ("RevokeToken", "operator", f"token:{token.split('_')[1]}", ""),
    ]
    assert issued.split("_")[2] not in "".join(workspace.dump())


@pytest.mark.parametrize(
    "arguments",
    [
        ("tokens", "issue", "--organization", "acme", "--email", "ann@acme.io"),
        ("tokens", "revoke", "--organization", "acme", "--id", "0" * 22),
        ("organizations", "create", "--organization", "beta", "--owner", "bob@beta.io"),
        ("init", "--organization", "beta", "--owner", "bob@beta.io"),
        ("audit", "erase", "--organization", "acme", "--person", "ann@acme.io"),
        ("audit", "prune", "--organization", "acme", "--before", "2020-01-01"),
        ("serve",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_another_key_is_refused(workspace: Workspace, arguments: tuple[str, ...]) -> None:
    """Where the audit log was signed with another key, nothing goes on with it: the message names both."""
    before = workspace.dump()
    _another_key(workspace)

    message = error_of(workspace.run(*arguments))

    assert re.search(r"signed with the key \S+, and this key file's is \S+: restore the key file", message), message
    assert workspace.dump() == before


@pytest.mark.parametrize("command", ["issue", "revoke"])
def test_operators_commands_need_the_key(workspace: Workspace, command: str) -> None:
    """Without the key nothing could be written to the audit log, and so nothing is."""
    before = workspace.dump()
    _lose_key(workspace)
    about = ("--email", "ann@acme.io") if command == "issue" else ("--id", "0" * 22)

    message = error_of(workspace.run("tokens", command, "--organization", "acme", *about))

    assert "There is no key file rolecall.key" in message
    assert workspace.dump() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("issue", "--organization", "acme", "--email", "bob@acme.io"), "bob@acme.io is no member of `acme`"),
        (("issue", "--organization", "beta", "--email", "ann@acme.io"), "There is no organization `beta`"),
        (("revoke", "--organization", "acme", "--id", "0" * 22), f"`acme` has no token `{'0' * 22}`"),
        (("revoke", "--organization", "acme", "--id", "rcp_pasted_whole"), "just the 22 characters"),
    ],
)
def test_tokens_of_nobody_are_refused(workspace: Workspace, arguments: tuple[str, ...], said: str) -> None:
    """A member, organization or token that isn't there is named, and nothing is written."""
    before = workspace.dump()

    message = error_of(workspace.run("tokens", *arguments))

    assert said in message
    assert workspace.dump() == before


def test_token_is_revoked_once(workspace: Workspace, token: str) -> None:
    """A second `revoke` says that the token is dead already."""
    arguments = ("tokens", "revoke", "--organization", "acme", "--id", token.split("_")[1])

    first = workspace.run(*arguments)
    second = workspace.run(*arguments)

    assert first.returncode == 0
    assert "dead already" in error_of(second)


# db


def test_upgrade_changes_nothing_that_is_up_to_date(workspace: Workspace) -> None:
    """`db upgrade` leaves a database that is up to date alone."""
    before = workspace.dump()

    finished = workspace.run("db", "upgrade")

    assert finished.returncode == 0
    assert workspace.dump() == before


def test_upgrade_of_a_mistyped_database_makes_none(workspace: Workspace) -> None:
    """`db upgrade` looks after databases, and makes none."""
    message = error_of(workspace.run("db", "upgrade", "--database", "sqlite:///rolecal.db"))

    assert "There is no database" in message
    assert "rolecal.db" not in workspace.names()


def test_upgrade_makes_no_key(workspace: Workspace) -> None:
    """Audit logs begun with a new key would be void once the old one is back."""
    before = workspace.dump()
    _lose_key(workspace)

    message = error_of(workspace.run("db", "upgrade"))

    assert "There is no key file rolecall.key" in message
    assert "rolecall.key" not in workspace.names()
    assert workspace.dump() == before


def test_upgrade_signs_no_log_that_is_gone(workspace: Workspace) -> None:
    """Whoever wiped a log must not have the operator sign an empty one by an upgrade."""
    with closing(workspace.database()) as connection, connection:
        for table in ("audit_values", "audit_entries", "audit_heads"):
            connection.execute(f"DELETE FROM {table}")
    issue = ("tokens", "issue", "--organization", "acme", "--email", "ann@acme.io")

    refused = error_of(workspace.run(*issue))
    upgrade_refused = error_of(workspace.run("db", "upgrade"))

    assert "Somebody removed it" in refused
    assert "Somebody removed it" in upgrade_refused


def test_mistyped_variable_of_the_asking_commands_is_refused(asking: Workspace) -> None:
    """A question to the wrong server would look like an answer."""
    asking.variables["ROLECALL_ADRESS"] = "127.0.0.1:1"

    message = error_of(asking.run("check", "ann@acme.io", "view", "secrets"))

    assert "ROLECALL_ADRESS is unknown" in message


# serve: what it refuses


def _lose_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").unlink()


def _empty_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").write_bytes(b"")


def _foreign_database(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.db").write_bytes(b"no database\n" * 100)


def _newer_schema(workspace: Workspace) -> None:
    with closing(workspace.database()) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def _lose_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").unlink()


def _open_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").chmod(0o640)


def _another_key(workspace: Workspace) -> None:
    (workspace.folder / "rolecall.key").unlink()
    keys.create(workspace.folder / "rolecall.key")


def _break_policy(workspace: Workspace) -> None:
    workspace.append("policy.csv", "p, VIEWER, secrets, view, alow\n")


def _break_promise(workspace: Workspace) -> None:
    workspace.append("policy_test.csv", "VIEWER,secrets,fly,allow,\n")


def _other_model(workspace: Workspace) -> None:
    model = workspace.folder / "policies" / "model.conf"
    model.write_text(model.read_text().replace(" && !some(where (p.eft == deny))", ""))


def _closed_port(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    workspace.variables["ROLECALL_DATABASE"] = f"postgresql://ann:hunter2@127.0.0.1:{port}/rolecall"


def _setting(name: str, value: str) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.variables.update({f"ROLECALL_{name}": value})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(_lose_database, r"There is no database rolecall\.db: run `rolecall init`", id="no database"),
        pytest.param(_empty_database, r"rolecall\.db is empty: run `rolecall init`", id="empty database"),
        pytest.param(_foreign_database, r"rolecall\.db can't be used: file is not a database", id="foreign file"),
        pytest.param(_newer_schema, "newer than this Rolecall: install a newer Rolecall", id="newer schema"),
        pytest.param(_closed_port, r"at 127\.0\.0\.1 can't be used: .*Connection refused", id="PostgreSQL is down"),
        pytest.param(_lose_key, r"no key file rolecall\.key: run `rolecall init`", id="no key"),
        pytest.param(_open_key, r"\(mode 0640\): run `chmod 600 rolecall\.key`", id="open key"),
        pytest.param(_break_policy, r"policy\.csv:\d+:27: error: The effect `alow` is unknown", id="broken policy"),
        pytest.param(
            _break_promise, r"policy_test\.csv:\d+:1: error: .* should be allow, but is deny", id="failing test"
        ),
        pytest.param(_other_model, r"model\.conf:\d+:\d+: error: .* but Rolecall serves only", id="other model"),
        pytest.param(_setting("LISTN", "x"), "The variable ROLECALL_LISTN is unknown", id="unknown variable"),
        pytest.param(_setting("LISTEN", "0.0.0.0:0"), "Give --tls-cert and --tls-key", id="no TLS beyond loopback"),
    ],
)
def test_serve_refuses(workspace: Workspace, spoil: Callable[[Workspace], None], said: str) -> None:
    """What a server can't run with ends it at once, with one line that says what is wrong and what to do."""
    spoil(workspace)

    message = error_of(workspace.run("serve"))

    assert re.search(said, message), message
    assert "hunter2" not in message


def test_serve_refuses_a_locked_database(workspace: Workspace) -> None:
    """A database that another program holds is told as that, within seconds."""
    with closing(workspace.database()) as connection:
        connection.isolation_level = None
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE organizations SET revision = revision")

        message = error_of(workspace.run("serve"))

    assert "rolecall.db can't be used: database is locked" in message


def test_serve_refuses_a_port_in_use(workspace: Workspace) -> None:
    """Two servers never share a port: the second says which, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        finished = workspace.run("serve", "--listen", address)

    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"error: {address} can't be listened on")
    assert "--listen" in last


def test_serve_refuses_tls_files_that_are_not_there(workspace: Workspace) -> None:
    """A missing certificate is named, rather than served without."""
    message = error_of(workspace.run("serve", "--tls-cert", "cert.pem", "--tls-key", "key.pem"))

    assert re.search(r"The TLS file (cert|key)\.pem can't be read: No such file or directory", message)


# serve: what it does


class Serving:
    """A `rolecall serve` that runs in the background."""

    def __init__(self, workspace: Workspace, *arguments: str) -> None:
        self.log = workspace.folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", *arguments],
                cwd=workspace.folder,
                env=workspace.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Wait until the server has said it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in: {self.log.read_text()}")

    @property
    def address(self) -> str:
        """Where it says that it answers."""
        return self.wait_for(r"answers on (\S+)")[1]


Serve = Callable[..., Serving]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers, and ends those that a test has left running."""
    started: list[Serving] = []

    def start(workspace: Workspace, *arguments: str) -> Serving:
        started.append(Serving(workspace, *arguments))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
        serving.process.wait()


def test_serve_says_where_it_answers_reloads_and_stops(workspace: Workspace, token: str, serve: Serve) -> None:
    """It names its address and policy, answers there, reads the policy again on SIGHUP, and ends well on SIGTERM."""
    serving = serve(workspace)
    said = serving.wait_for(
        r"Rolecall (\S+) answers on (127\.0\.0\.1:\d+) \(plain text\), policy (\w+) from policies\."
    )
    with Client(said[2], token) as client:
        before = client.check("viewernosecrets@acme.io", "view", "secrets")
        workspace.append("policy.csv", "p, VIEWERNOSECRETS, secrets, fly, allow\n")
        serving.process.send_signal(signal.SIGHUP)
        reloaded = serving.wait_for(r'"policy_version": "(\w+)".*"policy in force"')
        after = client.check("viewernosecrets@acme.io", "fly", "secrets")
    stopping = time.monotonic()
    serving.process.terminate()
    code = serving.process.wait(timeout=20)

    assert said[1] == rolecall.__version__
    assert not before
    assert before.policy_version == said[3]
    assert after
    assert after.policy_version == reloaded[1] != said[3]
    assert code == 0
    assert time.monotonic() - stopping < 10
    assert "Traceback" not in serving.log.read_text()


def test_serve_reads_an_unchanged_policy_again_on_sighup(workspace: Workspace, serve: Serve) -> None:
    """SIGHUP works where nothing looks changed, and Ctrl-C ends a server as well as SIGTERM does."""
    serving = serve(workspace, "--log-format", "text")
    address = serving.address

    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("policy in force")
    serving.process.send_signal(signal.SIGINT)
    code = serving.process.wait(timeout=20)

    host, _, port = address.rpartition(":")
    assert code == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_flood_of_hangups_does_no_harm(workspace: Workspace, token: str, serve: Serve) -> None:
    """SIGHUP may come as often as somebody likes: the server answers, and stops as ever."""
    serving = serve(workspace)
    address = serving.address
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        serving.process.send_signal(signal.SIGHUP)
    with Client(address, token) as client:
        answer = client.check("ann@acme.io", "view", "secrets")
    serving.process.terminate()

    assert answer
    assert serving.process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=rolecall"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_server_answers_only_over_tls(
    workspace: Workspace, token: str, certificate: tuple[Path, Path], serve: Serve
) -> None:
    """With its certificate as CA the call goes through; in plain text, or trusting others, it doesn't."""
    cert, key = certificate
    serving = serve(workspace, "--tls-cert", str(cert), "--tls-key", str(key))
    address = serving.wait_for(r"answers on (\S+) \(TLS\)")[1]
    workspace.variables |= {"ROLECALL_ADDRESS": address, "ROLECALL_TOKEN": token, "ROLECALL_CA_FILE": str(cert)}

    with Client(address, token, ca_file=cert) as client:
        over_tls = client.check("ann@acme.io", "view", "secrets")
    with Client(address, token) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    with Client(address, token, plaintext=False) as client, pytest.raises(CallFailed):
        client.check("ann@acme.io", "view", "secrets")
    from_shell = workspace.run("check", "ann@acme.io", "view", "secrets")

    assert over_tls
    assert from_shell.returncode == 0, from_shell.stderr


# check, permissions, subjects


def test_check_tells_allow_deny_and_error_apart(asking: Workspace) -> None:
    """The exit code is the answer: 0 for allow, 1 for deny, 2 for an error."""
    allowed = asking.run("check", "ann@acme.io", "view", "secrets/billing")
    denied = asking.run("check", "viewernosecrets@acme.io", "view", "secrets/billing")
    wrong = asking.run("check", "ann", "view", "secrets/billing")

    assert only_line(allowed) == "ALLOW: an allow rule matches and no deny rule does (role OWNER)."
    assert (denied.returncode, denied.stdout) == (1, "DENY: no rule matches (role VIEWERNOSECRETS).\n")
    assert "subject `ann` has no known form" in error_of(wrong)


def test_check_explains_an_allow(asking: Workspace) -> None:
    """The rule is named with its file and line, and how the role came to it."""
    finished = asking.run("check", "ann@acme.io", "view", "secrets/billing", "--explain")

    assert finished.returncode == 0
    assert "through OWNER -> ADMIN -> CONTRIBUTOR -> VIEWER" in finished.stdout
    assert re.search(r"rule: p, VIEWER, secrets, view, allow  \(policy\.csv:\d+\)", finished.stdout)


def test_check_explains_a_deny_in_json(asking: Workspace, sqlite_site: Site) -> None:
    """Programs get one JSON value with the nearest miss and the roles that would pass; the exit code stays."""
    finished = asking.run("check", "viewernosecrets@acme.io", "view", "secrets", "--json", "--explain")

    answer = json.loads(finished.stdout)
    explanation = answer.pop("explanation")
    policy_version = sqlite_site.server.live.in_force.policy.version
    assert finished.returncode == 1
    assert answer.pop("revision") > 0
    assert answer == {
        "decision": "deny",
        "reason": "NOT_GRANTED",
        "role": "VIEWERNOSECRETS",
        "policy_version": policy_version,
    }
    assert explanation["nearest_miss"] == "p, VIEWER, secrets, view, allow"
    assert explanation["roles_that_pass"] == ROLES[:4]


def test_question_without_a_token_says_how_to_set_it(asking: Workspace) -> None:
    """Without ROLECALL_TOKEN nothing is asked."""
    del asking.variables["ROLECALL_TOKEN"]

    message = error_of(asking.run("check", "ann@acme.io", "view", "secrets"))

    assert "set ROLECALL_TOKEN" in message


def test_refused_token_is_not_repeated(asking: Workspace) -> None:
    """A token that the server doesn't take is an error, not a deny, and isn't shown."""
    asking.variables["ROLECALL_TOKEN"] = "rcp_secret_text"

    message = error_of(asking.run("check", "ann@acme.io", "view", "secrets"))

    assert "No valid credential was presented" in message
    assert "rcp_secret_text" not in message


def test_server_that_is_not_there_is_told_with_its_address(asking: Workspace) -> None:
    """The message says where no server was found."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    asking.variables["ROLECALL_ADDRESS"] = address

    message = error_of(asking.run("check", "ann@acme.io", "view", "secrets"))

    assert "is a server running there" in message
    assert address in message


def test_permissions_lists_the_rules_of_a_subject(asking: Workspace) -> None:
    """The table and the JSON hold the same rules."""
    table = asking.run("permissions", "role:VIEWER")
    machine = asking.run("permissions", "role:VIEWER", "--json")

    rules = json.loads(only_line(machine))
    assert {"resource": "secrets", "action": "view", "effect": "allow"} in rules
    assert len(rules) == 6
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.stdout.splitlines() if "│" in line]
    assert shown == [[rule["resource"], rule["action"], rule["effect"]] for rule in rules]


def test_subjects_lists_the_members_who_may(asking: Workspace, sqlite_site: Site) -> None:
    """The table and the JSON hold the same members, by address."""
    table = asking.run("subjects", "view", "secrets/billing")
    machine = asking.run("subjects", "view", "secrets/billing", "--json")

    expected = sorted((sqlite_site.members[role] for role in ROLES[:4]), key=lambda member: member.email)
    members = json.loads(only_line(machine))
    assert members == [
        {"user_id": m.user_id, "email": m.email, "display_name": m.display_name, "role": m.role} for m in expected
    ]
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.stdout.splitlines() if "│" in line]
    assert shown == [[m.email, m.display_name, m.role, m.user_id] for m in expected]


# policy


def test_lint_of_a_clean_policy_says_what_it_looked_at(empty: Workspace) -> None:
    """The shipped policy has nothing to complain of."""
    finished = empty.run("policy", "lint")

    assert (finished.returncode, finished.stdout) == (0, "")
    assert re.search(r"policies: 5 roles, 40 rules, \d+ tests, no error\. Compared [1-9]\d* answers", finished.stderr)


def test_lint_says_where_the_errors_are(empty: Workspace) -> None:
    """Every finding has file:line:column and a fix on its own line; the folder may be given."""
    lines = len((empty.folder / "policies" / "policy.csv").read_text().splitlines())
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\nq, VIEWER, secrets\n")
    folder = empty.folder / "policies"

    finished = empty.run("policy", "lint", str(folder))

    findings = finished.stdout.splitlines()
    assert finished.returncode == 1
    assert len(findings) == 2
    assert findings[0].startswith(f"{folder}/policy.csv:{lines + 1}:27: error: The effect `alow` is unknown")
    assert findings[1].startswith(f"{folder}/policy.csv:{lines + 2}:1: error: The row type `q` is unknown")
    assert all(" Fix: " in finding for finding in findings)


def test_policy_test_names_the_expectation_that_fails(empty: Workspace) -> None:
    """A policy that answers otherwise exits with 1, with the row of policy_test.csv and the rule."""
    lines = len((empty.folder / "policies" / "policy_test.csv").read_text().splitlines())
    empty.append("policy_test.csv", "VIEWER,secrets,view,deny,\n")

    finished = empty.run("policy", "test")

    assert finished.returncode == 1
    assert finished.stdout.startswith(f"policies/policy_test.csv:{lines + 1}:1: error: `VIEWER` `secrets view`")
    assert f"Tests: {lines}, failed: 1," in finished.stderr


def test_matrix_as_csv_is_the_permission_matrix(empty: Workspace) -> None:
    """Cell for cell, what the shipped policy says is what the product's matrix says."""
    with (ROOT / "tests" / "permissions.csv").open(newline="", encoding="utf-8") as file:
        expected = {(row["resource"], row["action"]): [row[role] for role in ROLES] for row in csv.DictReader(file)}

    finished = empty.run("policy", "matrix", "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(finished.stdout)))
    assert finished.returncode == 0
    assert finished.stdout.splitlines()[0] == ",".join(["resource", "action", *ROLES])
    assert len(rows) == len(expected)
    assert {(row["resource"], row["action"]): [row[role] for role in ROLES] for row in rows} == expected


def test_matrix_as_test_is_a_policy_test(empty: Workspace) -> None:
    """What `--format test` writes can stand as policy_test.csv, and holds every cell."""
    finished = empty.run("policy", "matrix", "--format", "test")
    (empty.folder / "policies" / "policy_test.csv").write_text(finished.stdout)
    tested = empty.run("policy", "test")

    assert finished.returncode == 0
    assert finished.stdout.startswith("role,resource,action,expected,note\n")
    assert tested.returncode == 0, tested.stdout
    assert tested.stderr == f"Tests: {40 * len(ROLES)}, all pass.\n"


def test_matrix_as_table_shows_who_may(empty: Workspace) -> None:
    """For people, there is one row a permission, with a tick for each role that may."""
    finished = empty.run("policy", "matrix")

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in finished.stdout.splitlines() if "│" in line]
    assert finished.returncode == 0
    assert len(rows) == 40
    assert ["secrets", "view", "✓", "✓", "✓", "✓", "·"] in rows


def test_policy_explain_answers_without_a_server(empty: Workspace) -> None:
    """The exit code is the answer; the rule, or what is missing, is named."""
    allowed = empty.run("policy", "explain", "ADMIN", "view", "secrets/billing")
    denied = empty.run("policy", "explain", "VIEWERNOSECRETS", "view", "secrets", "--policy", str(ROOT / "policies"))

    assert allowed.returncode == 0
    assert re.search(r"^ALLOW: .*\n.*ADMIN -> CONTRIBUTOR -> VIEWER: policy\.csv:\d+ allows it", allowed.stdout)
    assert denied.returncode == 1
    assert re.search(r"^DENY: .*\n.*Roles that may: OWNER, ADMIN, CONTRIBUTOR, VIEWER\.", denied.stdout)


def test_policy_explain_of_a_broken_policy_is_an_error(empty: Workspace) -> None:
    """Nothing is said about a policy that can't be read."""
    empty.append("policy.csv", "p, VIEWER, secrets, view, alow\n")

    message = error_of(empty.run("policy", "explain", "VIEWER", "view", "secrets"))

    assert re.search(r"policy\.csv:\d+:27: error", message)


# The command line itself


def test_version_is_printed(empty: Workspace) -> None:
    """`--version` prints the version alone."""
    assert only_line(empty.run("--version")) == rolecall.__version__


def test_unknown_command_is_an_error(empty: Workspace) -> None:
    """A mistyped command exits with 2, and a check can't be taken for an answer."""
    finished = empty.run("chek", "ann@acme.io", "view", "secrets")

    assert finished.returncode == 2
    assert finished.stdout == ""
    assert "chek" in finished.stderr


def test_reader_that_has_gone_leaves_no_traceback(empty: Workspace) -> None:
    """Output into a pipe that nobody reads any more, as with `| head`, is no success, and no noise either."""
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [PROGRAM, "policy", "matrix"],
        cwd=empty.folder,
        env=empty.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)

    assert finished.returncode != 0
    assert finished.stderr == ""


def _command_lines() -> list[tuple[str, ...]]:
    """Every command that there is, as it is typed."""
    found: list[tuple[str, ...]] = [()]
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        found.append((name,))
        found += [(name, below) for below in getattr(command, "commands", {})]
    return found


def test_every_command_is_known_here() -> None:
    """The command line has these commands and no others; a new one belongs into the tests above."""
    assert {" ".join(line) for line in _command_lines()} == {
        "",
        "init",
        "serve",
        "serve-worker",
        "check",
        "permissions",
        "subjects",
        "whoami",
        "accept",
        "sign-in",
        "members",
        "members list",
        "members role",
        "members remove",
        "members leave",
        "invitations",
        "invitations create",
        "invitations list",
        "invitations resend",
        "invitations delete",
        "policy",
        "policy lint",
        "policy test",
        "policy matrix",
        "policy explain",
        "tokens",
        "tokens create",
        "tokens list",
        "tokens rotate",
        "tokens delete",
        "tokens issue",
        "tokens revoke",
        "organizations",
        "organizations create",
        "organizations list",
        "audit",
        "audit list",
        "audit export",
        "audit verify",
        "audit erase",
        "audit prune",
        "audit restart",
        "db",
        "db upgrade",
    }


@pytest.mark.parametrize("line", _command_lines(), ids=" ".join)
def test_every_command_has_help(line: tuple[str, ...]) -> None:
    """`--help` says what a command does, and exits with 0."""
    result = CliRunner().invoke(app, [*line, "--help"])

    assert result.exit_code == 0
    assert f"rolecall {' '.join(line)}".strip() in result.output
