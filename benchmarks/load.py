"""Servers under load: each on one core, the load on another, the counts from the servers."""

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

from rolecall.cli.output import GRPC_EXPERIMENTS

__all__ = ["Flow", "Measured", "Serving", "in_turns", "median", "p50", "p99", "percentile", "rate"]

CHECK = "rolecall.v1.AuthorizationService/Check"
BATCH = "rolecall.v1.AuthorizationService/BatchCheck"
PROTOS = Path(__file__).parents[1] / "protos"
ROUNDS = 5

K = TypeVar("K")


def rate(found: "Measured") -> float:
    """Calls a second."""
    return found.rate


def p50(found: "Measured") -> float:
    """The median of the times."""
    return found.p50


def p99(found: "Measured") -> float:
    """What 99 of 100 calls take at most."""
    return found.p99


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all lies below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True)
class Measured:
    """What a server answered under load: calls a second, its own CPU seconds a call, and each call's microseconds."""

    rate: float
    cpu: float
    latencies: list[float]

    @property
    def p50(self) -> float:
        """The median, in microseconds."""
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """What 99 of 100 calls take at most, in microseconds."""
        return percentile(self.latencies, 0.99)


@dataclass(frozen=True)
class Flow:
    """Calls to be spaced evenly: `rate` a second in all, of the messages in turn."""

    messages: list[bytes]
    rate: float
    connections: int = 32
    path: str = CHECK
    tokens: tuple[str, ...] = ()


class Serving:
    """A server of a kind, as `serving.py` has them, on a core of its own."""

    def __init__(self, kind: str, folder: Path, token: str = "", core: int | None = 0, **settings: object) -> None:
        """Start it, on this core or on whichever; with settings that differ from the folder's."""
        self._token = token
        cores = os.sched_getaffinity(0)
        self._load_core = None if core is None else max(cores - {core}, default=core)
        began = time.monotonic()
        # As `rolecall serve` does; the public lane has grpc's defaults.
        hurry = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} if "fast" in kind else {}
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
            env={**os.environ, **hurry},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.address = self._stdout.readline().strip()
        if not self.address:
            raise SystemExit(f"The server `{kind}` didn't start.")
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Self:
        """Hold it for a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._stdin.close()
        self._process.wait(10)

    def counts(self) -> dict[str, float]:
        """What it answered and used so far."""
        self._stdin.write("\n")
        self._stdin.flush()
        found: dict[str, float] = json.loads(self._stdout.readline())
        return found

    def load(self, message: bytes, seconds: float, connections: int, streams: int, *, path: str = CHECK) -> Measured:
        """Put load on it, as fast as it goes."""
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
        """Put load on it that is spaced evenly in time. Answers what was measured of each flow; the rate is of all."""
        with tempfile.TemporaryDirectory() as name:
            file = Path(name, "flows")
            told = [
                asdict(flow)
                | {
                    "name": called,
                    "tokens": flow.tokens or [self._token],
                    "messages": [base64.b64encode(each).decode() for each in flow.messages],
                }
                for called, flow in flows.items()
            ]
            file.write_text(json.dumps(told))
            program = Path(__file__).with_name("pacing.py")
            command = [*_pinned(self._load_core), sys.executable, str(program), self.address, str(file), str(seconds)]
            rate, cpu, said = self._counted(command)
        return {called: Measured(rate, cpu, latencies) for called, latencies in json.loads(said).items()}

    def ghz(self, seconds: float) -> Measured:
        """The same by ghz, with one call in flight."""
        told = json.dumps({"authorization": f"Bearer {self._token}"})
        asked = json.dumps({"subject": "user0@acme.io", "action": "view", "resource": "members"})
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
            told,
        ]
        command += ["-d", asked, "--import-paths", str(PROTOS), "--proto", "rolecall/v1/authorization.proto"]
        rate, cpu, said = self._counted([*command, "--call", CHECK.replace("/", "."), self.address])
        return Measured(rate, cpu, [each["latency"] / 1000 for each in json.loads(said)["details"]])

    def _counted(self, command: list[str]) -> tuple[float, float, str]:
        """What the server answered a second while the command ran, its CPU seconds for each, and what it printed."""
        before, began = self.counts(), time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        after, took = self.counts(), time.monotonic() - began
        answered = after["answered"] - before["answered"]
        if ended.returncode or not answered:
            raise SystemExit(f"{command} failed, {answered} answers: {ended.stderr or ended.stdout[:1000]}")
        return answered / took, (after["cpu"] - before["cpu"]) / answered, ended.stdout


def in_turns(serving: dict[str, Serving], once: Callable[[Serving], K]) -> dict[str, list[K]]:
    """What was found in so many rounds of all servers, one after the other."""
    found: dict[str, list[K]] = {kind: [] for kind in serving}
    for _ in range(ROUNDS):
        for kind, each in serving.items():
            found[kind].append(once(each))
    return found


def median(found: list[K], of: Callable[[K], float]) -> float:
    """The median of a figure of each."""
    return statistics.median(of(each) for each in found)


def _pinned(core: int | None) -> list[str]:
    """To run what follows on one core, where there are several."""
    several = core is not None and len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset")
    return ["taskset", "-c", str(core)] if several else []
