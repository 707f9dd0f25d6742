"""The program grpcurl, where it is installed."""

import os
import shutil
import subprocess
from pathlib import Path


def find_grpcurl() -> str | None:
    """The path of grpcurl: on PATH, or where `go install` puts it."""
    return shutil.which("grpcurl") or shutil.which("grpcurl", path=os.fspath(Path.home() / "go" / "bin"))


GRPCURL = find_grpcurl()


def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in plain text; a failed call exits with another code than 0."""
    assert GRPCURL is not None
    command = [GRPCURL, "-plaintext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
