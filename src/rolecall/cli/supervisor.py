"""Several serving processes on one port: started, watched, and started again when they die.

The kernel shares new connections out among them (SO_REUSEPORT). Each is a fresh process, as grpc can't be forked, is
given its settings on standard input, which ends when we do, and answers a line when it is ready.
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
from queue import SimpleQueue
from typing import Any, NamedTuple

import structlog

from rolecall.cli import output, running
from rolecall.config import Settings, check_listening, split_address
from rolecall.errors import ConfigError

__all__ = ["WORKER_COMMAND", "supervise"]

WORKER_COMMAND = "serve-worker"

# Between a worker's death and its next start: twice as long each time, until one has lived for a while.
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 10.0
LONG_LIFE_SECONDS = 30.0
# How long all of them may take to stop, before they are killed.
STOP_SECONDS = 10.0

_log = structlog.get_logger("rolecall.supervisor")


class _Ready(NamedTuple):
    """A worker answers calls; what it says of itself."""

    worker: "_Worker"
    policy_version: str
    mail: str


class _Failed(NamedTuple):
    """A worker ended with this code before it ever answered, and has said why."""

    code: int


def supervise(settings: Settings, signals: "SimpleQueue[Any]") -> int:
    """Serve until SIGTERM or SIGINT come by `signals`; SIGHUP is passed on. Answers the code to exit with.

    Raises `ConfigError`.
    """
    check_listening(settings)
    with _port_held(settings.listen) as address:
        numbers = range(1, settings.workers + 1)
        workers = [_Worker(number, _settings_of(number, address, settings), signals) for number in numbers]
        try:
            # The first tells what is wrong with the settings, once.
            workers[0].start()
            return _watch(settings, address, workers, signals)
        finally:
            _stop(workers)


def _watch(settings: Settings, address: str, workers: "list[_Worker]", signals: "SimpleQueue[Any]") -> int:
    ready: set[_Worker] = set()
    while True:
        match running.next_of(signals):
            case _Failed(code) if not ready:
                return max(code, output.ERROR)
            case _Failed():
                # The others serve; it is tried again.
                pass
            case _Ready(worker) if worker in ready:
                _log.info("a worker answers again", worker=worker.number)
            case _Ready(worker, policy_version, mail):
                ready.add(worker)
                if len(ready) == 1:
                    for other in workers[1:]:
                        other.start()
                if len(ready) == len(workers):
                    running.tell_start(settings, address, policy_version, mail, len(workers))
            case signal.SIGHUP:
                # Those that are starting read the policy anyway, and may not know the signal yet.
                for each in workers:
                    each.hang_up()
            case signal.SIGTERM | signal.SIGINT:
                running.tell(settings, "Stopping.")
                return 0


def _stop(workers: "list[_Worker]") -> None:
    for worker in workers:
        worker.end()
    give_up_at = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.join(max(0.0, give_up_at - time.monotonic()))


def _settings_of(number: int, address: str, settings: Settings) -> str:
    """A worker's settings as JSON: each has a decision log of its own, as `decisions.1.jsonl`."""
    file = settings.decision_log_file
    own = file.with_name(f"{file.stem}.{number}{file.suffix}")
    return settings.model_copy(update={"listen": address, "decision_log_file": own}).model_dump_json()


@contextmanager
def _port_held(listen: str) -> Iterator[str]:
    """Hold the port, which workers share: nobody else gets it while they start anew. Raises `ConfigError`."""
    host, port = split_address(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            # Others that share the port are found only by somebody who doesn't want to.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
        with socket.socket(family, socket.SOCK_STREAM) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
            port = held.getsockname()[1]
            yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    except OSError as error:
        raise ConfigError(
            f"{listen} can't be listened on ({error.strerror}): perhaps another server does so already. End that one,"
            " or choose another address with --listen or ROLECALL_LISTEN."
        ) from error


class _Worker:
    """One process after the other."""

    def __init__(self, number: int, settings: str, tell: "SimpleQueue[Any]") -> None:
        self._settings = settings
        self.number = number
        self._tell = tell
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"worker-{number}", daemon=True)

    def start(self) -> None:
        """Keep a process running from now on."""
        self._thread.start()

    def send(self, number: int) -> None:
        """Send the process a signal, if there is one."""
        with self._lock:
            if self._process:
                self._process.send_signal(number)

    def hang_up(self) -> None:
        """Have the process read the policy again, if it answers calls."""
        if self._answers:
            self.send(signal.SIGHUP)

    def end(self) -> None:
        """Have the process stop, and start no other."""
        self._ending.set()
        self.send(signal.SIGTERM)

    def join(self, seconds: float) -> None:
        """Wait for the end, and kill what takes longer."""
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("a worker didn't stop and is killed", worker=self.number)
            self.send(signal.SIGKILL)
            self._thread.join(1.0)

    def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._ending.is_set():
            began = time.monotonic()
            code, answered = -1, False
            try:
                code, answered = self._run()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next start may go well
                _log.error("a worker can't be started", worker=self.number, error=str(error))
            if self._ending.is_set():
                return
            if not answered:
                self._tell.put(_Failed(code))
            if time.monotonic() - began > LONG_LIFE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            _log.error("a worker ended and is started again", worker=self.number, code=code, seconds=pause)
            self._ending.wait(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    def _run(self) -> tuple[int, bool]:
        """Run a process to its end: its exit code, and whether it ever answered."""
        with self._lock:
            if self._ending.is_set():
                return 0, False
            # A terminal's interrupt comes to us alone: we stop them in order.
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
                # It is dead already.
                pass
            said = process.stdout.readline()
            if said:
                self._answers = True
                self._tell.put(_Ready(self, **json.loads(said)))
            code = process.wait()
            self._answers = False
        with self._lock:
            self._process = None
        return code, bool(said)
