"""Benchmark of the start: `.venv/bin/python benchmarks/start.py [PROGRAM ...]`.

Measures the time from the start of `rolecall serve` to the first answered Check, on an SQLite database: with a policy
that was never compared with Casbin, and with the one that it served before. PROGRAM: another `rolecall`, measured in
turns with this one.
"""

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from rolecall.v1 import authorization_pb2 as pb

METHOD = "/rolecall.v1.AuthorizationService/Check"
POLICIES = Path(__file__).parents[1] / "policies"
ROUNDS = 5
# How often the port is tried.
POLL_SECONDS = 0.005
# Bars, in seconds.
BARS = {"new": 2.0, "known": 1.0}


def main() -> None:
    """Print the median of each program and case; exit with 1 if this program misses a bar."""
    programs = [str(Path(sys.executable).parent / "rolecall"), *sys.argv[1:]]
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for program in programs:
            for case, seconds in _measure(program).items():
                times.setdefault((program, case), []).append(seconds)
    missed = False
    for (program, case), measured in times.items():
        median, bar = statistics.median(measured), BARS[case]
        verdict = "ok" if median <= bar else "MISSED"
        print(f"first answer with a {case} policy  {median:5.2f} s (fastest {min(measured):.2f})", end="")
        print(f"   bar {bar} s  {verdict}" if program == programs[0] else f"   {program}")
        missed |= program == programs[0] and median > bar
    sys.exit(missed)


def _measure(program: str) -> dict[str, float]:
    """Start a server twice on a new database, and return the seconds to each first answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(POLICIES, folder / "policies")
        init = [program, "init", "--organization", "acme", "--owner", "ann@acme.io"]
        made = subprocess.run(init, cwd=folder, capture_output=True, text=True, check=True)
        return {case: _first_answer(program, folder, made.stdout.strip()) for case in BARS}


def _first_answer(program: str, folder: Path, token: str) -> float:
    """Start a server, and return the seconds until it has answered a Check."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    where = f"{address[0]}:{address[1]}"
    request = pb.CheckRequest(subject="ann@acme.io", action="view", resource="secrets").SerializeToString()
    began = time.perf_counter()
    server = subprocess.Popen([program, "serve", "--listen", where], cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while not _listens(address):
            if server.poll() is not None:
                raise SystemExit(f"{program} serve ended with {server.returncode}.")
            time.sleep(POLL_SECONDS)
        with grpc.insecure_channel(where) as channel:
            check: Any = channel.unary_unary(METHOD)
            answer = check(request, timeout=30, metadata=(("authorization", f"Bearer {token}"),), wait_for_ready=True)
        seconds = time.perf_counter() - began
        if pb.CheckResponse.FromString(answer).decision != pb.DECISION_ALLOW:
            raise SystemExit("The Check was denied.")
        return seconds
    finally:
        server.terminate()
        server.wait()


def _listens(address: tuple[str, int]) -> bool:
    with suppress(OSError), socket.create_connection(address):
        return True
    return False


if __name__ == "__main__":
    main()
