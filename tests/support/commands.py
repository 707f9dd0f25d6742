"""The command `rolecall` in a process of its own: its folder, its output, and servers that it runs."""

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from support.environment import ROOT

PROGRAM = Path(sys.executable).parent / "rolecall"

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
    """Working folder of a user, and the command that they run there; settings come from `variables`."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    program: Path = PROGRAM

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands: this process's without ROLECALL_ variables, plus `variables`."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("ROLECALL_")}
        return {**ours, "COLUMNS": "120", "ROLECALL_LISTEN": "127.0.0.1:0", **self.variables}

    def run(self, *arguments: str, umask: int = 0o022, stdin: str = "") -> Finished:
        """Run `rolecall` to its end, with this text piped in."""
        return subprocess.run(
            [self.program, *arguments],
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
        """Connect directly to the database. The caller closes the connection."""
        return sqlite3.connect(self.folder / "rolecall.db")

    def dump(self) -> list[str]:
        """All rows of the database, as SQL."""
        with closing(self.database()) as connection:
            return list(connection.iterdump())

    def mode(self, name: str) -> int:
        """The permission bits of a file."""
        return stat.S_IMODE((self.folder / name).stat().st_mode)

    def names(self) -> set[str]:
        """The names in the folder."""
        return {path.name for path in self.folder.iterdir()}

    def append(self, name: str, text: str) -> None:
        """Append text to a file of the policy."""
        with (self.folder / "policies" / name).open("a", encoding="utf-8") as file:
            file.write(text)


def error_of(finished: Finished) -> str:
    """The error of a command that failed: exit code 2, no answer, one line, and one for each finding in a policy."""
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
    """Copy the shipped policy to the default place in this folder."""
    shutil.copytree(ROOT / "policies", folder / "policies", ignore=shutil.ignore_patterns("variants"))


class Serving:
    """A `rolecall serve` that runs in the background."""

    def __init__(self, workspace: Workspace, *arguments: str) -> None:
        self.log = workspace.folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [workspace.program, "serve", *arguments],
                cwd=workspace.folder,
                env=workspace.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Wait until the pattern occurs in the server's log; return the match."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in: {self.log.read_text()}")

    @property
    def address(self) -> str:
        """The address at which it answers, from its log."""
        return self.wait_for(r'"address": "([^"]+)"|answers on (\S+)').expand(r"\1\2")

    @property
    def workers(self) -> list[int]:
        """The ids of its workers' processes."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sorted(int(each) for thread in threads for each in (thread / "children").read_text().split())


Serve = Callable[..., Serving]


def cells(finished: Finished) -> list[list[str]]:
    """The rows of a table, the header first."""
    return [line.split("\t") for line in finished.stdout.splitlines() if "\t" in line]


def usage_of(finished: Finished) -> str:
    """The usage error of a command with bad arguments: exit code 2, no answer, a text of a few lines."""
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.stderr
