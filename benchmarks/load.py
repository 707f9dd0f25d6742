"""Servers under load: each server on one core, the load on another; the servers count the answered calls."""

import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pacing import framed

from rolecall.server.transport.tuning import GRPC_EXPERIMENTS

__all__ = ["Flow", "Measured", "Serving", "in_turns", "median", "p50", "p99", "percentile", "rate"]

CHECK = "rolecall.v1.AuthorizationService/Check"
BATCH = "rolecall.v1.AuthorizationService/BatchCheck"
PROTOS = Path(__file__).parents[1] / "protos"
ROUNDS = 5

K = TypeVar("K")


def rate(found: "Measured") -> float:
    """Return the answered calls per second."""
    return found.rate


def p50(found: "Measured") -> float:
    """Return the median latency in microseconds."""
    return found.p50


def p99(found: "Measured") -> float:
    """Return the 99th percentile of the latency in microseconds."""
    return found.p99


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True)
class Measured:
    """Result of one load: calls per second, the server's CPU seconds per call, and the latencies in microseconds."""

    rate: float
    cpu: float
    latencies: list[float]

    @property
    def p50(self) -> float:
        """The median latency, in microseconds."""
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """The 99th percentile of the latency, in microseconds."""
        return percentile(self.latencies, 0.99)


@dataclass(frozen=True)
class Flow:
    """Flow of evenly spaced calls: `rate` per second in all connections together, with the messages in turn."""

    messages: list[bytes]
    rate: float
    connections: int = 32
    path: str = CHECK
    tokens: tuple[str, ...] = ()


class Serving:
    """Server process of one of the kinds of `serving.py`, on a core of its own."""

    def __init__(self, kind: str, folder: Path, token: str = "", core: int | None = 0, **settings: object) -> None:
        """Start the server on `core` (None: on any core), with `settings` that override those of the folder."""
        self._token = token
        cores = os.sched_getaffinity(0)
        self._load_core = None if core is None else max(cores - {core}, default=core)
        began = time.monotonic()
        # As `rolecall serve` does; the standard transport has grpc's defaults.
        experiments = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} if "polling" in kind else {}
        self._process = subprocess.Popen(
            [
                *_pinned(core),
                sys.executable,
                Path(__file__).with_name("serving.py"),
                kind,
                folder,
                json.dumps(settings),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **experiments},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.address = self._stdout.readline().strip()
        if not self.address:
            raise SystemExit(f"The server `{kind}` didn't start.")
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Self:
        """Return the running server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server."""
        self._stdin.close()
        self._process.wait(10)

    def counts(self) -> dict[str, float]:
        """Return the server's counters since its start: answered calls, reads, CPU seconds, memory, threads, files."""
        self._stdin.write("\n")
        self._stdin.flush()
        found: dict[str, float] = json.loads(self._stdout.readline())
        return found

    def load(self, message: bytes, seconds: float, connections: int, streams: int, *, path: str = CHECK) -> Measured:
        """Send the message as fast as the server answers, by h2load."""
        with tempfile.TemporaryDirectory() as name:
            body, log = Path(name, "body"), Path(name, "log")
            body.write_bytes(framed(message))
            headers = {"content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {self._token}"}
            command = [*_pinned(self._load_core), "h2load", "-D", f"{seconds * 1000:.0f}ms", "-c", str(connections)]
            command += ["-m", str(streams), "--warm-up-time=200ms", "-d", str(body), f"--log-file={log}"]
            command += [part for key, value in headers.items() for part in ("-H", f"{key}: {value}")]
            rate, cpu, _ = self._counted([*command, f"http://{self.address}/{path}"])
            latencies = [float(line.rsplit("\t", 1)[1]) for line in log.read_text().splitlines()]
        return Measured(rate, cpu, latencies)

    def pace(self, seconds: float, **flows: Flow) -> dict[str, Measured]:
        """Send evenly spaced calls. Returns the result of each flow; `rate` and `cpu` are of all flows together."""
        with tempfile.TemporaryDirectory() as name:
            file = Path(name, "flows")
            fields = [
                asdict(flow)
                | {
                    "name": called,
                    "tokens": flow.tokens or [self._token],
                    "messages": [base64.b64encode(each).decode() for each in flow.messages],
                }
                for called, flow in flows.items()
            ]
            file.write_text(json.dumps(fields))
            program = Path(__file__).with_name("pacing.py")
            command = [*_pinned(self._load_core), sys.executable, str(program), self.address, str(file), str(seconds)]
            rate, cpu, output = self._counted(command)
        return {called: Measured(rate, cpu, latencies) for called, latencies in json.loads(output).items()}

    def ghz(self, seconds: float) -> Measured:
        """Send Checks by ghz, with one call in flight."""
        metadata = json.dumps({"authorization": f"Bearer {self._token}"})
        request = json.dumps({"subject": "user0@acme.io", "action": "view", "resource": "members"})
        command = [
            *_pinned(self._load_core),
            "ghz",
            "--insecure",
            "-c",
            "1",
            "-z",
            f"{seconds}s",
            "-O",
            "json",
            "-m",
            metadata,
        ]
        command += ["-d", request, "--import-paths", str(PROTOS), "--proto", "rolecall/v1/authorization.proto"]
        rate, cpu, output = self._counted([*command, "--call", CHECK.replace("/", "."), self.address])
        return Measured(rate, cpu, [each["latency"] / 1000 for each in json.loads(output)["details"]])

    def _counted(self, command: list[str]) -> tuple[float, float, str]:
        """Run a load command. Returns the server's calls per second and CPU seconds per call, and the output."""
        before, began = self.counts(), time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        after, took = self.counts(), time.monotonic() - began
        answered = after["answered"] - before["answered"]
        if ended.returncode or not answered:
            raise SystemExit(f"{command} failed, {answered} answers: {ended.stderr or ended.stdout[:1000]}")
        return answered / took, (after["cpu"] - before["cpu"]) / answered, ended.stdout


def in_turns(serving: dict[str, Serving], once: Callable[[Serving], K]) -> dict[str, list[K]]:
    """Measure ROUNDS rounds of all servers in turns; returns the results by server."""
    found: dict[str, list[K]] = {kind: [] for kind in serving}
    for _ in range(ROUNDS):
        for kind, each in serving.items():
            found[kind].append(once(each))
    return found


def median(found: list[K], of: Callable[[K], float]) -> float:
    """Return the median of one figure of the results."""
    return statistics.median(of(each) for each in found)


def _pinned(core: int | None) -> list[str]:
    """Return the command prefix that pins a process to one core, if the machine has several."""
    several = core is not None and len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset")
    return ["taskset", "-c", str(core)] if several else []
