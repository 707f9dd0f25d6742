"""Supervisor of several worker processes on one port or socket: starts them, and restarts those that die.

The kernel distributes new connections among them (SO_REUSEPORT); those of a Unix socket are forwarded. Each is a fresh
process, as grpc can't be forked. It reads its settings from standard input, which closes with the supervisor, and
writes a line when it is ready.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import structlog

from rolecall.cli import output, process
from rolecall.config import Settings, check_listening, socket_path, split_address
from rolecall.errors import ConfigError

__all__ = ["WORKER_COMMAND", "supervise"]

WORKER_COMMAND = "serve-worker"

# Pause before a worker is restarted: doubled each time, and reset once a worker has run for 30 s.
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 10.0
HEALTHY_SECONDS = 30.0
# How long all workers may take to stop before they are killed.
STOP_SECONDS = 10.0

_log = structlog.get_logger("rolecall.supervisor")


class _Ready(NamedTuple):
    """Event: a worker answers calls, with the policy and the mail transport that it reported."""

    worker: "_Worker"
    policy_version: str
    mail: str


class _Failed(NamedTuple):
    """Event: a worker ended with this exit code before it answered calls; it has logged why."""

    code: int


def supervise(settings: Settings, signals: "SimpleQueue[Any]") -> int:
    """Serve until SIGTERM or SIGINT is in `signals`; pass SIGHUP on to the workers. Returns the exit code.

    Raises `ConfigError`.
    """
    check_listening(settings)
    with _address_held(settings) as (address, listens):
        workers = [
            _Worker(number, _settings_of(number, listen, settings), signals) for number, listen in enumerate(listens, 1)
        ]
        try:
            # Only the first at first: it reports wrong settings, once.
            workers[0].start()
            return _watch(settings, address, workers, signals)
        finally:
            _stop(workers)


def _watch(settings: Settings, address: str, workers: "list[_Worker]", signals: "SimpleQueue[Any]") -> int:
    ready: set[_Worker] = set()
    while True:
        match process.next_event(signals):
            case _Failed(code) if not ready:
                return max(code, output.ERROR)
            case _Failed():
                # The others serve; this one is restarted.
                pass
            case _Ready(worker) if worker in ready:
                _log.info("worker answers again", worker=worker.number)
            case _Ready(worker, policy_version, mail):
                ready.add(worker)
                if len(ready) == 1:
                    for other in workers[1:]:
                        other.start()
                if len(ready) == len(workers):
                    process.announce_start(settings, address, policy_version, mail, len(workers))
            case signal.SIGHUP:
                # Workers that are starting read the policy anyway, and may not handle the signal yet.
                for worker in workers:
                    worker.hang_up()
            case signal.SIGTERM | signal.SIGINT:
                process.announce_stop(settings)
                return 0


def _stop(workers: "list[_Worker]") -> None:
    for worker in workers:
        worker.stop()
    give_up_at = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0.0, give_up_at - time.monotonic()))


def _settings_of(number: int, listen: str, settings: Settings) -> str:
    """Return a worker's settings as JSON, with a decision log of its own, as `decisions.1.jsonl`."""
    file = settings.decision_log_file
    own: dict[str, object] = {
        "listen": listen,
        "decision_log_file": file.with_name(f"{file.stem}.{number}{file.suffix}"),
    }
    if path := socket_path(settings.listen):
        # The worker's socket is the supervisor's only.
        own |= {"socket_mode": "0600", "public_address": settings.public_address or f"unix:{Path(path).absolute()}"}
    return settings.model_copy(update=own).model_dump_json()


@contextmanager
def _address_held(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Reserve the address that the workers share; yield it, and what each worker listens on. Raises `ConfigError`."""
    if path := socket_path(settings.listen):
        from rolecall.cli.socket_forwarder import forwarding

        own = [f"{path}.{number}" for number in range(1, settings.workers + 1)]
        with forwarding(Path(path), int(settings.socket_mode, 8), own):
            yield f"unix:{path}", [f"unix:{each}" for each in own]
    else:
        with _port_held(settings.listen) as address:
            yield address, [address] * settings.workers


@contextmanager
def _port_held(listen: str) -> Iterator[str]:
    """Reserve the port that the workers share, also while they restart. Raises `ConfigError` where it is in use."""
    host, port = split_address(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            # Without SO_REUSEPORT: binding fails where other processes share the port already.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
        with socket.socket(family, socket.SOCK_STREAM) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
            port = held.getsockname()[1]
            yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    except OSError as error:
        raise ConfigError(
            f"{listen} can't be listened on ({error.strerror}): perhaps another server uses it. Stop that one, or"
            " choose another address with --listen or ROLECALL_LISTEN."
        ) from error


class _Worker:
    """Worker with a number: one process after the other, each restarted by a thread."""

    def __init__(self, number: int, settings: str, events: "SimpleQueue[Any]") -> None:
        self._settings = settings
        self.number = number
        self._events = events
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_ready = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name=f"worker-{number}", daemon=True)

    def start(self) -> None:
        """Start a process, and restart it when it ends."""
        self._thread.start()

    def send(self, number: int) -> None:
        """Send a signal to the process, if one runs."""
        with self._lock:
            if self._process:
                self._process.send_signal(number)

    def hang_up(self) -> None:
        """Have the process reload the policy, if it answers calls."""
        if self._is_ready:
            self.send(signal.SIGHUP)

    def stop(self) -> None:
        """Have the process stop, and restart it no more."""
        self._stopping.set()
        self.send(signal.SIGTERM)

    def join(self, seconds: float) -> None:
        """Wait at most this time for the process to stop; then kill it."""
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("worker did not stop in time, killed", worker=self.number)
            self.send(signal.SIGKILL)
            self._thread.join(1.0)

    def _keep_running(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code, was_ready = -1, False
            try:
                code, was_ready = self._run()
            except Exception as error:  # noqa: BLE001 - whatever failed, the next start may succeed
                _log.error("worker can't be started", worker=self.number, error=str(error))
            if self._stopping.is_set():
                return
            if not was_ready:
                self._events.put(_Failed(code))
            if time.monotonic() - began > HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            _log.error("worker ended, restarting", worker=self.number, code=code, again_in=pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def _run(self) -> tuple[int, bool]:
        """Run one process to its end. Returns its exit code, and whether it was ever ready."""
        with self._lock:
            if self._stopping.is_set():
                return 0, False
            # A terminal's interrupt reaches only the supervisor, which stops the workers in order.
            process = self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-P", "-m", "rolecall", WORKER_COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert process.stdin and process.stdout  # noqa: S101, PT018 - for the type checker
        with process.stdin, process.stdout:
            try:
                process.stdin.write(self._settings + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                # The process has ended already.
                pass
            report = process.stdout.readline()
            if report:
                self._is_ready = True
                self._events.put(_Ready(self, **json.loads(report)))
            code = process.wait()
            self._is_ready = False
        with self._lock:
            self._process = None
        return code, bool(report)
