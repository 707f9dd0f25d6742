"""PgBouncer in front of the PostgreSQL server of the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from sqlalchemy import make_url

__all__ = ["PgBouncer", "find_pgbouncer"]

# In transaction mode, each transaction of a client gets another session of PostgreSQL, as under load: what a client
# leaves in a session is missed, or in the way, at once.
CONFIG = """
[databases]
* = host={host} port={server_port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
server_round_robin = 1
min_pool_size = 3
default_pool_size = {pool_size}
max_client_conn = 1000
server_idle_timeout = 20
admin_users = {user}
logfile = {folder}/log
"""


def find_pgbouncer() -> Path | None:
    """The installed program; Debian's is where only root looks."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    return Path(found) if found else None


class PgBouncer:
    """PgBouncer. Runs as the user `postgres` where the tests run as root, which it refuses."""

    def __init__(self, program: Path, server_url: str, pool_mode: str = "transaction", pool_size: int = 20) -> None:
        server = make_url(server_url)
        user = "postgres" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="rolecall-pgbouncer-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(
                host=server.host,
                server_port=server.port,
                user=server.username,
                port=port,
                folder=self._folder,
                pool_mode=pool_mode,
                pool_size=pool_size,
            )
        )
        if user:
            shutil.chown(self._folder, user)
            shutil.chown(config, user)
        self.url = server.set(port=port).render_as_string(hide_password=False)
        self._process = subprocess.Popen([program, "--quiet", config], user=user, cwd=self._folder)
        until = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert self._process.poll() is None, "PgBouncer has ended"
            assert time.monotonic() < until, "PgBouncer doesn't listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, and remove its folder."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)
