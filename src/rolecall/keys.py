"""The server's key: 32 random bytes in a file of its own, outside the database, with a sub-key for each use."""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.errors import ConfigError

__all__ = ["ServerKey", "create", "read"]

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ServerKey:
    """The key with an id that tells it from its successors."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Identifies the key without giving it away."""
        return hashlib.sha256(b"rolecall key id" + self.secret).hexdigest()[:8]

    def derive(self, use: str) -> bytes:
        """The 32-byte sub-key for `use`; knowing one tells nothing of the others."""
        return hmac.digest(self.secret, b"rolecall sub-key " + use.encode(), "sha256")


def create(path: Path) -> ServerKey:
    """Make a key file that only this user may read. Raises `ConfigError` where there is one, or it can't be written."""
    secret = os.urandom(KEY_BYTES)
    # Written aside and then linked, so that a key file is whole or not there.
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except OSError as error:
        raise ConfigError(f"The key file {path} can't be made: {error.strerror}.") from error
    finally:
        aside.unlink(missing_ok=True)
    return ServerKey(secret)


def read(path: Path) -> ServerKey:
    """The key in `path`. Raises `ConfigError` where it is missing, of another size, or open to other users."""
    try:
        # Not to wait for a FIFO, nor read a device without end.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            mode = status.st_mode
            secret = file.read(KEY_BYTES) if stat.S_ISREG(mode) else b""
    except FileNotFoundError:
        raise ConfigError(
            f"There is no key file {path}: run `rolecall init`, or set ROLECALL_KEY_FILE to the one it made."
        ) from None
    except OSError as error:
        raise ConfigError(f"The key file {path} can't be read: {error.strerror}.") from error
    if len(secret) != KEY_BYTES or status.st_size != KEY_BYTES:
        raise ConfigError(
            f"The key file {path} holds {status.st_size} bytes, not {KEY_BYTES}: restore it from a backup."
        )
    if mode & 0o077:
        raise ConfigError(
            f"The key file {path} is open to other users (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`."
        )
    return ServerKey(secret)
