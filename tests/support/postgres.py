"""A PostgreSQL server of the tests' own, in a temporary folder, on a Unix socket and a free port."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

__all__ = ["PostgresServer", "dump_database", "find_postgres"]


# Databases of this process that a test has finished with.
_used: list[str] = []


def _create(server_url: str) -> str:
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    return name


def find_postgres() -> Path | None:
    """The folder with the newest installed server's programs."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), key=lambda path: int(path.parent.name), default=None)


def dump_database(url: str) -> str:
    """The statements that make an empty database what this one is."""
    binaries = find_postgres()
    assert binaries is not None
    command = [str(binaries / "pg_dump"), "--inserts", "--rows-per-insert=1000", "--no-owner", "--dbname", url]
    dumped = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    # Newer versions write commands for psql around it, which aren't SQL.
    return "\n".join(line for line in dumped.splitlines() if not line.startswith("\\"))


class PostgresServer:
    """PostgreSQL server. Runs as the user `postgres` where the tests run as root, which PostgreSQL refuses."""

    def __init__(self, binaries: Path) -> None:
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        user = "postgres" if self._as else pwd.getpwuid(os.geteuid()).pw_name
        self._folder = Path(tempfile.mkdtemp(prefix="rolecall-postgres-"))
        if self._as:
            shutil.chown(self._folder, "postgres")
        data = self._folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._run(str(binaries / "initdb"), "-D", str(data), "--auth=trust", "-U", user, "-E", "UTF8", "--no-sync")
        # Roles in the role `with_password` need one; others don't.
        rules = data / "pg_hba.conf"
        rules.write_text(f"host all +with_password all scram-sha-256\n{rules.read_text()}")
        self._stop = [str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
        options = f"-p {port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
        self._run(
            str(binaries / "pg_ctl"), "-D", str(data), "-l", str(self._folder / "log"), "-o", options, "-w", "start"
        )
        self.url = f"postgresql://{user}@127.0.0.1:{port}/postgres"

    @staticmethod
    @contextmanager
    def new_database(server_url: str) -> Iterator[str]:
        """Yield the URL of an empty database; one of an earlier test is emptied, as dropping takes seconds."""
        name = _used.pop() if _used else _create(server_url)
        url = f"{server_url.rpartition('/')[0]}/{name}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        try:
            yield url
        finally:
            # Not emptied yet: a server of the test that is over may still be at work in it.
            _used.append(name)

    def stop(self) -> None:
        """End the server and remove its folder."""
        self._run(*self._stop)
        time.sleep(0.1)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, *command: str) -> None:
        subprocess.run([*self._as, *command], check=True, stdout=subprocess.DEVNULL, cwd=self._folder)
