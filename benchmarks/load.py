"""Servers under load: each on one core, h2load on another, the counts from the servers."""

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Measured", "Serving", "framed", "percentile"]

CHECK = "rolecall.v1.AuthorizationService/Check"
BATCH = "rolecall.v1.AuthorizationService/BatchCheck"


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message


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


class Serving:
    """A server of a kind, as `serving.py` has them, on a core of its own."""

    def __init__(self, kind: str, folder: Path, token: str = "", core: int = 0) -> None:
        """Start it."""
        self._token = token
        self._load_core = max(os.sched_getaffinity(0) - {core}, default=core)
        # As `rolecall serve` does; the public reference has grpc's defaults.
        hurry = {} if kind == "empty-public" else {"GRPC_EXPERIMENTS": "-event_engine_listener"}
        self._process = subprocess.Popen(
            [*_pinned(core), sys.executable, Path(__file__).with_name("serving.py"), kind, folder],
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

    def load(
        self, message: bytes, seconds: float, connections: int, streams: int, *, path: str = CHECK, rate: float = 0.0
    ) -> Measured:
        """Put load on it: as fast as it goes, or `rate` calls a second in all, paced evenly."""
        with tempfile.TemporaryDirectory() as name:
            body, log = Path(name, "body"), Path(name, "log")
            body.write_bytes(framed(message))
            headers = {"content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {self._token}"}
            command = [*_pinned(self._load_core), "h2load", "-D", f"{seconds * 1000:.0f}ms", "-c", str(connections)]
            command += ["-m", str(streams), "--warm-up-time=200ms", "-d", str(body), f"--log-file={log}"]
            command += [f"--rps={rate / connections:.2f}"] if rate else []
            command += [part for key, value in headers.items() for part in ("-H", f"{key}: {value}")]
            before, began = self.counts(), time.monotonic()
            ended = subprocess.run(
                [*command, f"http://{self.address}/{path}"], capture_output=True, text=True, check=False
            )
            after, took = self.counts(), time.monotonic() - began
            if ended.returncode:
                raise SystemExit(f"h2load failed: {ended.stderr or ended.stdout}")
            latencies = [float(line.rsplit("\t", 1)[1]) for line in log.read_text().splitlines()]
        answered = after["answered"] - before["answered"]
        if not answered:
            raise SystemExit(f"Nothing was answered: {ended.stdout}")
        return Measured(answered / took, (after["cpu"] - before["cpu"]) / answered, latencies)


def _pinned(core: int) -> list[str]:
    """To run what follows on one core, where there are several."""
    several = len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset")
    return ["taskset", "-c", str(core)] if several else []
