"""Permissions of files and folders that hold secrets."""

import os
import stat
from pathlib import Path

import structlog

__all__ = ["exposure", "how_to_protect", "warn_if_exposed"]

_log = structlog.get_logger("rolecall")


def exposure(status: os.stat_result) -> str:
    """Describe who else may access a file or folder than its owner and root; empty where that is as it should be.

    A group may, if root or this user owns the file and so chose the group: Kubernetes mounts a Secret for the pod's
    `fsGroup` in this way, and makes a writable volume writable for that group at each mount.
    """
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    if status.st_mode & 0o007:
        return mode
    if status.st_mode & 0o070 and status.st_uid not in (0, os.geteuid()):
        return f"{mode}, owned by user {status.st_uid}"
    return ""


def how_to_protect(file: Path) -> str:
    """Return what to do about a file that others may access."""
    return (
        f"run `chmod 600 {file}`; mount a Kubernetes Secret with `defaultMode: 0400`, and set `fsGroup` in the pod's"
        " `securityContext` to the group of this process"
    )


def warn_if_exposed(file: Path) -> None:
    """Log a warning if others may access the file. Raises `OSError` where it is missing."""
    if exposed := exposure(file.stat()):
        _log.warning(
            "file with a secret is open to other users",
            file=str(file),
            problem=exposed,
            fix=f"{how_to_protect(file)}.",
        )
