"""`rolecall serve --workers`: several processes on one port, as seen from outside."""

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rolecall import Client
from rolecall.errors import CallFailed, RolecallError, StorageUnavailable
from support.commands import PROGRAM, Serve, Workspace, error_of
from support.environment import CI
from support.waiting import wait_until

KILLS = 4 if CI else 2


def is_running(process: int) -> bool:
    """Whether the process runs, and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answers(address: str, token: str) -> Callable[[], bool]:
    """Whether a new connection gets the right answer."""

    def ask() -> bool:
        try:
            with Client(address, token, timeout=5) as client:
                return bool(client.check("ann@acme.io", "view", "secrets"))
        except CallFailed:
            return False

    return ask


def test_workers_share_a_port_and_stop_together(workspace: Workspace, token: str, serve: Serve) -> None:
    """Workers share one address in one line of the log, all answer calls, and one signal ends them all."""
    workspace.variables["ROLECALL_DECISION_LOG"] = "all"
    serving = serve(workspace, "--workers", "2")
    started = json.loads(serving.wait_for(".*server started.*")[0])
    address = started["address"]
    workers = serving.workers
    logs = [workspace.folder / f"decisions.{number}.jsonl" for number in (1, 2)]

    def ask_until_both() -> bool:
        assert answers(address, token)()
        return all(log.read_text() for log in logs)

    wait_until(ask_until_both)
    serving.process.terminate()

    assert serving.process.wait(timeout=20) == 0
    assert len(workers) == 2
    assert not any(is_running(worker) for worker in workers)
    log = serving.log.read_text()
    assert (started["workers"], started["policy"]) == (2, "policies")
    assert log.count("server started") == 1
    assert log.count("server stopping") == 1
    assert "Traceback" not in log


def test_a_worker_that_is_killed_is_started_again(workspace: Workspace, token: str, serve: Serve) -> None:
    """While one worker is restarted, the other answers."""
    serving = serve(workspace, "--workers", "2")
    address = serving.address
    first = serving.workers
    outcomes: list[bool] = []
    stopped = threading.Event()

    def ask_on() -> None:
        while not stopped.is_set():
            outcomes.append(answers(address, token)())

    with ThreadPoolExecutor(2) as callers:
        client_workspace = [callers.submit(ask_on) for _ in range(2)]
        for number, worker in enumerate(first, 1):
            os.kill(worker, signal.SIGKILL)
            serving.wait_for(rf"(?s)(worker answers again.*){{{number}}}")
        stopped.set()
        for each in client_workspace:
            each.result()

    # Only calls that the killed worker had accepted, or that waited on its socket, fail.
    assert outcomes.count(False) <= 4
    assert outcomes.count(True) > 20
    assert len(serving.workers) == 2
    assert not set(first) & set(serving.workers)
    assert answers(address, token)()


def test_a_worker_killed_under_load_answers_nothing_wrongly(workspace: Workspace, token: str, serve: Serve) -> None:
    """Calls in the killed worker fail as unanswered; none hangs, and all others are answered correctly."""
    serving = serve(workspace, "--workers", "2")
    address = serving.address
    stop = threading.Event()
    wrong: list[object] = []
    counts = {"answered": 0, "failed": 0, "slow": 0}

    def ask(number: int) -> None:
        # A connection of its own each, so that both workers have some.
        while not stop.is_set():
            with Client(address, token, timeout=10) as client:
                for _ in range(50):
                    began = time.monotonic()
                    try:
                        allowed = bool(client.check("ann@acme.io", "view", "secrets"))
                        denied = bool(client.check("viewernosecrets@acme.io", "view", "secrets"))
                    except (CallFailed, StorageUnavailable):
                        counts["failed"] += 1
                    else:
                        counts["answered"] += 1
                        if (allowed, denied) != (True, False):
                            wrong.append((number, allowed, denied))
                    counts["slow"] += time.monotonic() - began > 9

    with ThreadPoolExecutor(8) as threads:
        client_workspace = [threads.submit(ask, number) for number in range(8)]
        for _ in range(KILLS):
            time.sleep(1.0)
            os.kill(serving.workers[0], signal.SIGKILL)
            wait_until(lambda: len(serving.workers) == 2, 20)
        before = counts["answered"]
        wait_until(lambda: counts["answered"] > before + 100, 20)
        stop.set()
    for each in client_workspace:
        each.result()

    assert not wrong
    assert not counts["slow"]
    assert counts["answered"] > counts["failed"]


def test_workers_end_with_their_supervisor(workspace: Workspace, serve: Serve) -> None:
    """Workers end, and free the port, when the first process is killed."""
    serving = serve(workspace, "--workers", "2")
    assert serving.address
    workers = serving.workers

    serving.process.kill()

    wait_until(lambda: not any(is_running(worker) for worker in workers), 20)


def test_sighup_reaches_all_workers(workspace: Workspace, token: str, serve: Serve) -> None:
    """Each reads the policy again."""
    serving = serve(workspace, "--workers", "2", "--log-format", "json")
    serving.wait_for("server started")
    before = serving.log.read_text().count("policy in force")

    serving.process.send_signal(signal.SIGHUP)

    wait_until(lambda: serving.log.read_text().count("policy in force") == before + 2)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1000"])
def test_invalid_numbers_of_workers_are_refused(workspace: Workspace, workers: str) -> None:
    """The error names the setting."""
    assert "`workers` (ROLECALL_WORKERS)" in error_of(workspace.run("serve", "--workers", workers))


def test_wrong_settings_are_reported_once(workspace: Workspace) -> None:
    """A bad setting is reported once, however many workers it would stop."""
    (workspace.folder / "rolecall.key").chmod(0o644)

    finished = workspace.run("serve", "--workers", "3")

    assert finished.returncode == 2
    assert finished.stderr.count("rolecall.key") == finished.stderr.count("chmod 600 rolecall.key") + 1 == 2


@pytest.mark.parametrize("second", ["1", "2"])
def test_a_port_in_use_is_not_shared_with_others(workspace: Workspace, second: str, serve: Serve) -> None:
    """Two servers on one port would share its calls silently."""
    serving = serve(workspace, "--workers", "2")

    message = error_of(workspace.run("serve", "--workers", second, "--listen", serving.address))

    assert f"{serving.address} can't be listened on" in message


@pytest.mark.parametrize("workers", [1, 3])
def test_sighup_while_workers_start_ends_none(workspace: Workspace, token: str, serve: Serve, workers: int) -> None:
    """A SIGHUP while workers start ends no worker, the first or another."""
    serving = serve(workspace, "--workers", "3")
    wait_until(lambda: len(serving.workers) >= workers, 20)

    for _ in range(10):
        serving.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)

    assert answers(serving.address, token)()
    assert "ended" not in serving.log.read_text()


def test_workers_run_the_installed_code(workspace: Workspace, serve: Serve) -> None:
    """A file in the working folder isn't imported instead of a library."""
    (workspace.folder / "structlog.py").write_text("raise SystemExit(3)")

    assert serve(workspace, "--workers", "2").address


def test_closed_log_pipe_is_harmless(workspace: Workspace, token: str) -> None:
    """A server whose log's reader has ended, as in `rolecall serve 2>&1 | head -1`, continues to answer calls."""
    variables = {**workspace.environment, "ROLECALL_MAX_STALENESS": "0.5"}
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [PROGRAM, "serve"], cwd=workspace.folder, env=variables, stderr=writer, stdout=subprocess.DEVNULL
    )
    os.close(writer)
    with os.fdopen(reader) as log_pipe:
        found = re.search(r'"address": "([^"]+)"', log_pipe.readline())
    assert found
    away = workspace.folder / "away.db"
    try:
        with Client(found[1], token, timeout=5) as client:
            assert client.check("ann@acme.io", "view", "secrets")
            database = (workspace.folder / "rolecall.db").rename(away)
            time.sleep(1)
            with pytest.raises(StorageUnavailable):
                client.check("ann@acme.io", "view", "secrets")
            database.rename(workspace.folder / "rolecall.db")
            wait_until(answers(found[1], token))
    finally:
        process.terminate()

    assert process.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_blocked_log_pipe_is_harmless(workspace: Workspace, token: str, workers: str) -> None:
    """A server whose log's pipe is full, as after Ctrl-S in a terminal, answers calls until a signal ends it."""
    variables = {**workspace.environment, "ROLECALL_LOG_LEVEL": "debug"}
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [PROGRAM, "serve", "--workers", workers],
        cwd=workspace.folder,
        env=variables,
        stderr=writer,
        stdout=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as log_pipe:
        found = next(match for line in log_pipe if (match := re.search(r'"address": "([^"]+)"', line)))
        # From here on nothing is read.
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        try:
            with Client(found[1], token, timeout=5) as client:
                for _ in range(200):
                    # Each is a line of more than a hundred characters.
                    with pytest.raises(RolecallError):
                        client.check("", "view", "secrets")
                assert client.check("ann@acme.io", "view", "secrets")
        finally:
            process.terminate()
        assert process.wait(20) == 0
