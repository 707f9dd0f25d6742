"""`rolecall operator backup`: a whole copy of an SQLite database, made while others write to it."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rolecall.audit import verify
from rolecall.cli import app
from rolecall.client import Client
from rolecall.storage import Storage
from support.commands import Workspace, error_of
from support.sites import Site

BACKUPS = 5


def test_backup_beside_writers_is_whole(sqlite_site: Site, tmp_path: Path) -> None:
    """While callers change members and tokens, each copy is the state after some commit, and its audit log verifies."""
    stop = threading.Event()

    def work() -> None:
        with Client(sqlite_site.address, sqlite_site.tokens["OWNER"], timeout=20) as owner:
            while not stop.is_set():
                made = owner.tokens.create_personal("laptop")
                owner.tokens.delete(made.token.id)

    writer = threading.Thread(target=work)
    writer.start()
    found = []
    for number in range(BACKUPS):
        file = tmp_path / f"backup-{number}.db"
        ran = CliRunner().invoke(app, ["operator", "backup", str(file), "--database", sqlite_site.settings.database])
        assert ran.exit_code == 0, ran.output
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        copy = Storage(f"sqlite:///{file}")
        found.append(copy.read(lambda tx: verify(tx, sqlite_site.log, "acme")))
        copy.close()
    stop.set()
    writer.join()

    assert all(verdict.intact for verdict in found), [verdict.problem for verdict in found]
    counts = [verdict.entries for verdict in found]
    assert counts == sorted(set(counts)), "others wrote between the copies"


def test_backup_is_readable_by_its_user_only(workspace: Workspace) -> None:
    """Under an open umask too; the command says what else to keep, and its output has nothing for programs."""
    ran = workspace.run("operator", "backup", "copy.db", umask=0)

    assert ran.returncode == 0, ran.stderr
    assert workspace.mode("copy.db") == 0o600
    assert ran.stdout == ""
    for part in ("copy.db", "the key file rolecall.key", "the policy folder policies"):
        assert part in ran.stderr


@pytest.mark.parametrize("name", ["rolecall.db", "rolecall.key", "policies"])
def test_existing_file_is_not_overwritten(workspace: Workspace, name: str) -> None:
    """A file, the database itself, or a folder of this name stays as it is."""
    before = workspace.dump(), (workspace.folder / "rolecall.key").read_bytes(), workspace.names()

    assert "exists already" in error_of(workspace.run("operator", "backup", name))
    assert (workspace.dump(), (workspace.folder / "rolecall.key").read_bytes(), workspace.names()) == before


def test_missing_database_is_not_created(empty: Workspace) -> None:
    """A mistyped database is an error, and leaves no empty file, nor a backup of one."""
    error = error_of(empty.run("operator", "backup", "copy.db"))

    assert "does not exist" in error
    assert empty.names() == {"policies"}


def test_failed_backup_leaves_no_file(workspace: Workspace) -> None:
    """Where the database can't be read, or the folder can't be written, no file is left that looks like a backup."""
    missing = error_of(workspace.run("operator", "backup", "nowhere/copy.db"))
    (workspace.folder / "rolecall.db").write_bytes(b"\0garbage" * 4096)
    damaged = error_of(workspace.run("operator", "backup", "copy.db"))

    assert "nowhere/copy.db can't be created" in missing
    assert "can't be copied" in damaged
    assert "copy.db" not in workspace.names()


def test_postgresql_database_is_left_to_pg_dump(workspace: Workspace) -> None:
    """The error names the program to use, without the password of the URL."""
    error = error_of(
        workspace.run("operator", "backup", "copy.db", "--database", "postgresql://ann:hunter2@127.0.0.1/rolecall")
    )

    assert "pg_dump" in error
    assert "hunter2" not in error
    assert "copy.db" not in workspace.names()
