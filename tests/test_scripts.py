"""`make run`: the script starts a server, and every line that it prints to be pasted does what it says."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolecall.credentials import token_format
from support.environment import CI, ROOT

PROGRAMS = Path(sys.executable).parent


class Running:
    """`scripts/run.sh` in a clone, as `make run` starts it."""

    def __init__(self, clone: Path, environment: dict[str, str]) -> None:
        self._clone = clone
        self._environment = environment
        self._output, self._log = clone / "output.txt", clone / "log.txt"
        with self._output.open("w") as output, self._log.open("w") as log:
            self.process = subprocess.Popen(
                ["sh", "scripts/run.sh"],
                cwd=clone,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                umask=0o022,
            )

    @property
    def output(self) -> str:
        """The output for its user, once it answers."""
        until = time.monotonic() + 60
        while "server started" not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.02)
        return self._output.read_text()

    def lines(self, start: str) -> list[str]:
        """The lines to be pasted that begin with `start`."""
        return [line.strip() for line in self.output.splitlines() if line.startswith(f"  {start}")]

    def paste(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in another terminal, in another folder, without the settings of the first."""
        environment = {name: value for name, value in self._environment.items() if not name.startswith("ROLECALL_")}
        return subprocess.run(
            ["sh", "-c", line], cwd="/", env=environment, capture_output=True, text=True, timeout=30, check=False
        )

    def stop(self) -> int:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=20)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a clone that the script needs, in a folder whose name has a space."""
    clone = tmp_path / "a clone"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "run.sh", clone / "scripts")
    shutil.copytree(ROOT / "policies", clone / "policies")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


def go_bin() -> str:
    """The folder where Go installs programs; empty without Go."""
    if shutil.which("go") is None:
        return ""
    found = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True)
    return f"{found.stdout.strip()}/bin"


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment that `make run` gives the script, with a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ROLECALL_")}
    path = os.pathsep.join([str(PROGRAMS), ours["PATH"], go_bin()])
    # A token of some other server in the user's shell must not get in the way.
    return {**ours, "PATH": path, "ROLECALL_LISTEN": f"127.0.0.1:{port}", "ROLECALL_TOKEN": "rcp_other"}


@pytest.fixture
def start(clone: Path, environment: dict[str, str]) -> Iterator[Callable[[], Running]]:
    """Starts the script; ends what a test has left running."""
    started: list[Running] = []

    def run() -> Running:
        started.append(Running(clone, environment))
        return started[-1]

    yield run
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


def mode(path: Path) -> int:
    """The permission bits of the file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_printed_lines_run_and_stay_the_same(
    clone: Path, environment: dict[str, str], start: Callable[[], Running]
) -> None:
    """The printed commands work as they are; a second start prints the same ones, with the same token."""
    first = start()
    printed = first.output
    token = (clone / ".run" / "token").read_text().strip()
    grpcurl_lines = first.lines("ROLECALL_TOKEN=")
    rolecall_lines = first.lines("ROLECALL_ADDRESS=")

    assert first.lines("rcp_") == [token]
    assert token_format.parse(token) is not None
    assert len(grpcurl_lines) == 2
    assert len(rolecall_lines) == 1

    pasted = first.paste(rolecall_lines[0])
    assert pasted.returncode == 1, pasted.stderr
    assert pasted.stdout.startswith("DENY: ")
    assert "nearest miss: p, VIEWER, secrets, view, allow" in pasted.stdout

    has_grpcurl = shutil.which("grpcurl", path=environment["PATH"]) is not None
    assert has_grpcurl or not CI
    if has_grpcurl:
        allow, deny = (first.paste(line) for line in grpcurl_lines)
        assert allow.returncode == 0, allow.stderr
        assert deny.returncode == 0, deny.stderr
        assert json.loads(allow.stdout)["decision"] == "DECISION_ALLOW"
        assert json.loads(deny.stdout)["decision"] == "DECISION_DENY"
        assert json.loads(deny.stdout)["explanation"]["nearestMiss"] == "p, VIEWER, secrets, view, allow"

    assert first.stop() == 0
    second = start()
    assert second.output == printed
    assert (clone / ".run" / "token").read_text().strip() == token
    pasted = second.paste(rolecall_lines[0].replace("viewernosecrets@acme.io", "ann@acme.io"))
    assert pasted.returncode == 0, pasted.stderr
    assert second.stop() == 0


def test_state_is_readable_by_its_user_only(clone: Path, start: Callable[[], Running]) -> None:
    """Token, key and database are readable by their user only, whatever the umask."""
    running = start()
    announced = re.search(r"is in (.+):$", running.output, re.MULTILINE)
    modes = {path.name: mode(path) for path in (clone / ".run").iterdir()}

    assert announced is not None
    assert announced[1] == str(clone / ".run" / "token")
    assert mode(clone / ".run") == 0o700
    assert {"token", "rolecall.key", "rolecall.db"} <= modes.keys()
    assert {mode for name, mode in modes.items() if name != "mail"} == {0o600}
    assert modes["mail"] == 0o700


def test_interrupted_start_is_completed(clone: Path, environment: dict[str, str], start: Callable[[], Running]) -> None:
    """Where the first start created the organization and lost its token, the next one issues a new token."""
    state = clone / ".run"
    state.mkdir(0o700)
    settings = {"ROLECALL_DATABASE": f"sqlite:///{state}/rolecall.db", "ROLECALL_KEY_FILE": f"{state}/rolecall.key"}
    subprocess.run(
        ["rolecall", "init", "--organization", "acme", "--owner", "ann@acme.io", "--demo"],
        cwd=clone,
        env={**environment, **settings},
        check=True,
        capture_output=True,
    )
    (state / "token").touch(0o600)

    running = start()
    pasted = running.paste(running.lines("ROLECALL_ADDRESS=")[0])

    assert pasted.returncode == 1, pasted.stderr
    assert pasted.stdout.startswith("DENY: ")


def test_edited_policy_is_in_force(clone: Path, start: Callable[[], Running]) -> None:
    """The policy that the script says to edit is the one that answers, without a restart."""
    running = start()
    line = running.lines("ROLECALL_ADDRESS=")[0]
    named = f"Edit {clone}/policies/policy.csv while it runs" in running.output

    with (clone / "policies" / "policy.csv").open("a") as file:
        file.write("p, VIEWERNOSECRETS, secrets/billing, view, allow\n")
    test_file = clone / "policies" / "policy_test.csv"
    kept = [row for row in test_file.read_text().splitlines() if "VIEWERNOSECRETS,secrets" not in row]
    test_file.write_text("\n".join(kept) + "\n")
    until = time.monotonic() + 20
    while (pasted := running.paste(line)).returncode == 1 and time.monotonic() < until:
        time.sleep(0.05)

    assert named
    assert pasted.returncode == 0, pasted.stdout
    assert pasted.stdout.startswith("ALLOW: ")


def test_start_that_fails_says_why(clone: Path, start: Callable[[], Running]) -> None:
    """With a policy that can't go live nothing is started, and the finding is shown."""
    with (clone / "policies" / "policy.csv").open("a") as file:
        file.write("p, VIEWER, secrets, view, alow\n")

    running = start()
    code = running.process.wait(timeout=60)

    log = (clone / "log.txt").read_text()
    assert code == 2
    assert re.search(r"policy\.csv:\d+:27: error: The effect `alow` is unknown", log)
    assert "Traceback" not in log
    assert not (clone / ".run" / "token").exists()
