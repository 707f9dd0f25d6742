"""The commands of docs/maintenance.md: backups are made and restored, and the schema is upgraded."""

import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command

from rolecall.client import Client
from rolecall.errors import UnauthenticatedCredential
from rolecall.storage import Storage, schema
from rolecall.storage.engine import WRITES
from support.certificates import make_certificate
from support.commands import PROGRAM, Serving, Workspace, copy_policy, only_line
from support.engines import engine_of
from support.environment import POSTGRES_URL, ROOT
from support.postgres import find_postgres
from support.waiting import wait_until

DOCUMENT = ROOT / "docs" / "maintenance.md"


def blocks(heading: str) -> list[str]:
    """The shell blocks under a heading of the document, without their indentation."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [
        re.sub(r"^ {3}", "", block, flags=re.MULTILINE)
        for block in re.findall(r"^ *```sh\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    ]


def run(workspace: Workspace, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run blocks one after the other in one shell."""
    binaries = find_postgres()
    path = [str(PROGRAM.parent), *([str(binaries)] if binaries else []), os.environ["PATH"]]
    ran = subprocess.run(
        ["bash", "-ec", "\n".join(commands)],
        cwd=workspace.folder,
        env={**workspace.environment, "PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty folder with the shipped policy."""
    copy_policy(tmp_path)
    return Workspace(tmp_path)


@pytest.fixture
def serving(workspace: Workspace) -> Iterator[list[Serving]]:
    """Servers that a test has started; those that still run are ended."""
    started: list[Serving] = []
    yield started
    for each in started:
        stop(each)


def stop(server: Serving) -> None:
    """Stop a server."""
    server.process.terminate()
    server.process.wait(30)


def test_sqlite_backup_is_restored(workspace: Workspace, serving: list[Serving]) -> None:
    """A backup made beside a running server is served after the restore, as it was, and its audit log verifies."""
    back_up, restore, verify = blocks("SQLite")
    token = only_line(workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io"))
    serving.append(Serving(workspace))
    with Client(serving[0].address, token) as ann:
        kept = ann.tokens.create_personal("kept")
        ran = run(workspace, back_up)
        lost = ann.tokens.create_personal("made after the backup")
        ann.tokens.delete(kept.token.id)
    stop(serving[0])
    run(workspace, restore)
    serving.append(Serving(workspace))
    workspace.variables |= {"ROLECALL_ADDRESS": serving[1].address, "ROLECALL_TOKEN": token}
    verified = run(workspace, verify)
    with Client(serving[1].address, lost.secret) as nobody, pytest.raises(UnauthenticatedCredential):
        nobody.check("ann@acme.io", "view", "members")
    with Client(serving[1].address, kept.secret) as ann:
        allowed = bool(ann.check("ann@acme.io", "view", "members"))

    assert "the key file rolecall.key" in ran.stderr
    assert workspace.mode("backup/rolecall.db") == workspace.mode("rolecall.db") == 0o600
    assert "INTACT" in verified.stdout + verified.stderr
    assert allowed


@pytest.fixture
def role_with_password() -> Iterator[str]:
    """Create the role and the database `rolecall`, which needs a password; yields host and port."""
    if POSTGRES_URL not in os.environ:
        pytest.skip("PostgreSQL is not installed")
    with psycopg.connect(os.environ[POSTGRES_URL], autocommit=True) as admin:
        drop = [
            "DROP DATABASE IF EXISTS rolecall WITH (FORCE)",
            "DROP DATABASE IF EXISTS rolecall_restored WITH (FORCE)",
            "DROP ROLE IF EXISTS rolecall",
            "DROP ROLE IF EXISTS with_password",
        ]
        for statement in [
            *drop,
            "CREATE ROLE with_password",
            "CREATE ROLE rolecall LOGIN CREATEDB PASSWORD 'PASSWORD' IN ROLE with_password",
            "CREATE DATABASE rolecall OWNER rolecall TEMPLATE template0",
        ]:
            admin.execute(statement)
        yield f"{admin.info.host}:{admin.info.port}"
        for statement in drop:
            admin.execute(statement)


def test_postgresql_dump_is_restored(workspace: Workspace, serving: list[Serving], role_with_password: str) -> None:
    """With the password in a file, a dump of a database in use is served from another one; its audit log verifies."""
    init, dump, restore = (block.replace("db.acme.io:5432", role_with_password) for block in blocks("PostgreSQL"))
    token = run(workspace, init).stdout.strip()
    workspace.variables["ROLECALL_DATABASE"] = f"postgresql://rolecall@{role_with_password}/rolecall?passfile=pgpass"
    serving.append(Serving(workspace))
    with Client(serving[0].address, token) as ann:
        kept = ann.tokens.create_personal("kept")
        run(workspace, dump)
        ann.tokens.delete(kept.token.id)
    stop(serving[0])
    run(workspace, restore)
    restored = f"postgresql://rolecall@{role_with_password}/rolecall_restored?passfile=pgpass"
    workspace.variables["ROLECALL_DATABASE"] = restored
    serving.append(Serving(workspace))
    workspace.variables |= {"ROLECALL_ADDRESS": serving[1].address, "ROLECALL_TOKEN": token}
    verified = workspace.run("audit", "verify")
    with Client(serving[1].address, kept.secret) as ann:
        allowed = bool(ann.check("ann@acme.io", "view", "members"))
        made = ann.tokens.create_personal("made after the restore")
    (workspace.folder / "pgpass").write_text("")
    refused = workspace.run("operator", "organizations", "list")

    assert workspace.mode("pgpass") == 0o600
    assert "INTACT" in verified.stdout + verified.stderr
    assert allowed
    assert made.revision > 0
    assert refused.returncode == 2
    assert "no password supplied" in refused.stderr


def test_older_schema_is_backed_up_and_upgraded(workspace: Workspace) -> None:
    """With the new version installed already, the backup is still made; the upgrade brings the schema up to date."""
    workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")
    (workspace.folder / "rolecall.db").unlink()
    (workspace.folder / "backup").mkdir()
    url = f"sqlite:///{workspace.folder}/rolecall.db"
    storage = Storage(url)
    with engine_of(storage).connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        config = schema._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    storage.close()
    before = workspace.run("operator", "organizations", "list")
    run(workspace, *blocks("Upgrade"))
    after = workspace.run("operator", "organizations", "list")
    workspace.variables["ROLECALL_DATABASE"] = f"sqlite:///{workspace.folder}/backup/before-upgrade.db"
    backup = workspace.run("operator", "organizations", "list")

    assert "run `rolecall operator db upgrade`" in before.stderr
    assert after.returncode == 0, after.stderr
    assert "run `rolecall operator db upgrade`" in backup.stderr


def test_renewed_certificate_is_served(workspace: Workspace, serving: list[Serving]) -> None:
    """The commands put a renewed pair in place of the one in use, and new connections get it from the same process."""
    folder = workspace.folder
    (folder / "renewed").mkdir()
    for into, name in ((folder, "old"), (folder / "renewed", "new")):
        made = make_certificate(into, name)
        made.cert.rename(into / "chain.pem")
        made.key.rename(into / "key.pem")
    workspace.run("init", "--organization", "acme", "--owner", "ann@acme.io")
    serving.append(Serving(workspace, "--tls-cert", "chain.pem", "--tls-key", "key.pem"))
    host, _, port = serving[0].address.rpartition(":")

    def served() -> str:
        return ssl.get_server_certificate((host, int(port)), timeout=10)

    before = served()
    workspace.variables["SERVER_PID"] = str(serving[0].process.pid)
    run(workspace, *blocks("Certificates"))
    renewed = (folder / "chain.pem").read_text()
    wait_until(lambda: served() == renewed)

    assert before != renewed
    assert serving[0].process.poll() is None
