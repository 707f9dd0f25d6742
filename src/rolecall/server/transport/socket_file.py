"""The file of a Unix socket: a dead server's is replaced, a live server's never."""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rolecall.errors import ConfigError

__all__ = ["claim"]

# Seconds to wait for another server that binds a socket in the same folder.
LOCK_SECONDS = 5.0
# Maximum seconds to connect to the server that may listen there.
CONNECT_SECONDS = 1.0


@contextmanager
def claim(path: Path, mode: int) -> Iterator[None]:
    """Claim the path for a server, which binds and listens within the block; then the file gets its mode.

    Without it, a second server would silently replace the first one's file: grpc removes what is there. Raises
    `ConfigError` where a server listens there, or a file is there that is no socket.
    """
    try:
        with _folder_locked(path.parent):
            _remove_stale(path)
            # Until its mode is set, only this user may connect.
            umask = os.umask(0o177)
            try:
                yield
            finally:
                os.umask(umask)
            path.chmod(mode)
    except OSError as error:
        raise ConfigError(f"unix:{path} can't be listened on: {error.strerror or error}.") from error


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one server at a time looks for another and binds. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    give_up_at = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead server. Raises `OSError`, or `ConfigError` where the file isn't one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"unix:{path} can't be listened on: there is a file that is no socket. Choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except (BlockingIOError, TimeoutError):
            # Its queue of connections is full.
            pass
    raise ConfigError(
        f"unix:{path} can't be listened on: another server does so already. Stop that one, or choose another path with"
        " --listen or ROLECALL_LISTEN."
    )
