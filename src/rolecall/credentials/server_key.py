"""Server key: 32 random bytes in a file outside the database, with a derived sub-key for each use."""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.credentials.private_files import exposure, how_to_protect
from rolecall.errors import ConfigError

__all__ = ["ServerKey", "create", "read"]

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ServerKey:
    """Secret key, and an id that distinguishes it from its successors."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that identify the key without disclosing it."""
        return hashlib.sha256(b"rolecall key id" + self.secret).hexdigest()[:8]

    def derive(self, use: str) -> bytes:
        """Derive the 32-byte sub-key for `use`; knowing one discloses nothing about the others."""
        return hmac.digest(self.secret, b"rolecall sub-key " + use.encode(), "sha256")


def create(path: Path) -> ServerKey:
    """Create a key file that only this user may read. Raises `ConfigError` where it exists or can't be written."""
    secret = os.urandom(KEY_BYTES)
    # Written under another name and then linked, so that a key file is complete or absent.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except OSError as error:
        raise ConfigError(f"The key file {path} can't be created: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return ServerKey(secret)


def read(path: Path) -> ServerKey:
    """Read the key in `path`. Raises `ConfigError` where it is missing, of another size, or open to other users."""
    try:
        # Without blocking on a FIFO, or reading an endless device.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            secret = file.read(KEY_BYTES) if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError:
        raise ConfigError(
            f"The key file {path} does not exist: run `rolecall init`, or set ROLECALL_KEY_FILE to the one it created."
        ) from None
    except PermissionError as error:
        raise ConfigError(
            f"The key file {path} can't be read by this user ({os.geteuid()}): run `chown {os.geteuid()} {path}`; for a"
            f" Kubernetes Secret, set `fsGroup` in the pod's `securityContext` to the group of this process."
        ) from error
    except OSError as error:
        raise ConfigError(f"The key file {path} can't be read: {error.strerror}.") from error
    if len(secret) != KEY_BYTES or status.st_size != KEY_BYTES:
        raise ConfigError(
            f"The key file {path} holds {status.st_size} bytes, not {KEY_BYTES}: restore it from a backup."
        )
    if exposed := exposure(status):
        raise ConfigError(f"The key file {path} is open to other users ({exposed}): {how_to_protect(path)}.")
    return ServerKey(secret)
