"""What callers, changes and the audit log cost, beside their bars: `.venv/bin/python benchmarks/management.py`."""

import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import structlog

from rolecall import keys, operator, organizations, policy
from rolecall.audit import AuditLog, Event, verify
from rolecall.config import Settings
from rolecall.credentials import mint
from rolecall.directory import Directory
from rolecall.domain import CredentialKind
from rolecall.feed import Feed
from rolecall.remembered import Remembered
from rolecall.storage import Storage, Transaction
from rolecall.v1 import token_pb2, token_pb2_grpc

POLICIES = Path(__file__).parents[1] / "policies"
CALLERS = 1_000
ENTRIES = 50_000
MUTATIONS = 500
REFUSALS_A_MINUTE = 10_000
ROUNDS = 5

# Bars.
MAX_CALLER_NS = 2_000
MIN_VERIFIED_A_SECOND = 30_000
MIN_MUTATIONS_A_SECOND = 200
MAX_SLOWED_BY_REFUSALS = 1.5


def main() -> None:
    """Print the figures; exit with 1 where a bar isn't reached."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder))
    missed = False
    for what, figure, bar, reached in results:
        print(f"{what:<62} {figure:>18}   bar {bar:<14} {'ok' if reached else 'MISSED'}")
        missed |= not reached
    sys.exit(missed)


def measure(folder: Path) -> list[tuple[str, str, str, bool]]:
    """All figures, over one SQLite database with a server beside."""
    settings = Settings(
        database=f"sqlite:///{folder}/rolecall.db",
        key_file=folder / "key",
        policy=POLICIES,
    )
    log = AuditLog(keys.create(settings.key_file))
    storage = Storage(settings.database)
    storage.create()
    founded = organizations.found(storage, log, policy.load(POLICIES, 0.0), "acme", "ann@acme.io", demo=True)
    caller_ns = cached_caller(storage, founded.token.text)
    with serving(settings) as address:
        rate = changes_a_second(address, founded.token.text)
        alone, beside = mutations(address, founded.token.text, viewer_token(storage, log))
    verified = verified_a_second(storage, log)
    fsync = fsyncs_a_second(folder)
    storage.close()
    slowed = statistics.median(beside) / statistics.median(alone)
    return [
        (
            "a caller that is remembered, p50",
            f"{caller_ns:.0f} ns",
            f"<= {MAX_CALLER_NS} ns",
            caller_ns <= MAX_CALLER_NS,
        ),
        (
            f"audit entries verified a second, of {ENTRIES:,}",
            f"{verified:,.0f}",
            f">= {MIN_VERIFIED_A_SECOND:,}",
            verified >= MIN_VERIFIED_A_SECOND,
        ),
        (
            f"tokens created a second over gRPC, 4 clients (this disk syncs {fsync:,.0f}/s)",
            f"{rate:,.0f}",
            f">= {MIN_MUTATIONS_A_SECOND}",
            rate >= MIN_MUTATIONS_A_SECOND,
        ),
        (
            f"a change's p50 beside {REFUSALS_A_MINUTE:,} refusals a minute, to alone",
            f"{slowed:.2f} x",
            f"<= {MAX_SLOWED_BY_REFUSALS} x",
            slowed <= MAX_SLOWED_BY_REFUSALS,
        ),
    ]


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """A server in a process of its own, as users have it; its address."""
    command = [str(Path(sys.executable).with_name("rolecall")), "serve", "--listen", "127.0.0.1:0"]
    environment = {
        "ROLECALL_DATABASE": settings.database,
        "ROLECALL_KEY_FILE": str(settings.key_file),
        "ROLECALL_POLICY": str(settings.policy),
        "ROLECALL_MAIL_FOLDER": str(settings.mail_folder),
        "ROLECALL_LOG_LEVEL": "error",
    }
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            announced = next(filter(None, (re.search(r"answers on (\S+)", line) for line in process.stderr)))
            yield announced[1]
        finally:
            process.terminate()


def cached_caller(storage: Storage, text: str) -> float:
    """Nanoseconds that it takes to find a remembered caller; the median of single calls."""
    feed = Feed(storage, Remembered(CALLERS), max_staleness=10.0)
    directory = Directory(storage, feed)
    feed.start()
    times = []
    for _ in range(ROUNDS):
        assert directory.caller(text)
        for _ in range(20_000):
            # A text of its own, as each call brings one: Python keeps the hash of one that it has seen.
            presented = text[:40] + text[40:]
            began = time.perf_counter_ns()
            directory.caller(presented)
            times.append(time.perf_counter_ns() - began)
    feed.stop()
    return statistics.median(times)


def viewer_token(storage: Storage, log: AuditLog) -> str:
    """A token of somebody who may not create any."""
    return operator.issue(storage, log, "acme", "viewer@acme.io").text


def mutations(address: str, owner: str, viewer: str) -> tuple[list[float], list[float]]:
    """Seconds of single creations of a token, alone and beside refusals, in turns."""
    alone: list[float] = []
    beside: list[float] = []
    with grpc.insecure_channel(address) as channel:
        stub = token_pb2_grpc.TokenServiceStub(channel)
        create(stub, owner, 50)
        for _ in range(ROUNDS):
            alone += create(stub, owner, MUTATIONS // ROUNDS)
            # In a process of its own: its work must not take this one's turn at the interpreter.
            refused = subprocess.Popen([sys.executable, __file__, "--refused", address, viewer])
            time.sleep(1.0)
            beside += create(stub, owner, MUTATIONS // ROUNDS)
            refused.terminate()
            refused.wait()
    return alone, beside


def changes_a_second(address: str, owner: str) -> float:
    """Tokens created a second by four clients at once."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(4) as clients:
        stub = token_pb2_grpc.TokenServiceStub(channel)
        create(stub, owner, 50)
        began = time.perf_counter()
        list(clients.map(lambda _: create(stub, owner, MUTATIONS // 4), range(4)))
        return MUTATIONS / (time.perf_counter() - began)


def create(stub: token_pb2_grpc.TokenServiceStub, token: str, count: int) -> list[float]:
    """Create tokens one after the other; the seconds that each took."""
    times = []
    for number in range(count):
        began = time.perf_counter()
        stub.CreatePersonalToken(
            token_pb2.CreatePersonalTokenRequest(name=f"token {number}"),
            metadata=(("authorization", f"Bearer {token}"),),
        )
        times.append(time.perf_counter() - began)
    return times


def be_refused(address: str, token: str) -> None:
    """Ask for what is refused, evenly, until somebody ends this process."""
    pause = 60 / REFUSALS_A_MINUTE
    with grpc.insecure_channel(address) as channel:
        stub = token_pb2_grpc.TokenServiceStub(channel)
        due = time.perf_counter()
        while True:
            try:
                create(stub, token, 1)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
            due += pause
            time.sleep(max(0.0, due - time.perf_counter()))


def verified_a_second(storage: Storage, log: AuditLog) -> float:
    """Fill a log, and check it; the median of the rounds."""

    def fill(tx: Transaction) -> None:
        for number in range(ENTRIES // 50):
            minted = mint(CredentialKind.PERSONAL)
            details = {"after": {"kind": "personal", "name": f"token {number}", "expire_time": "2027-01-01T00:00:00Z"}}
            log.record(
                tx, Event("acme", "user:1234567890123456789012", "CreatePersonalToken", f"token:{minted.id}", details)
            )

    for _ in range(50):
        storage.mutate("acme", fill)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        verdict = storage.read(lambda tx: verify(tx, log, "acme"))
        times.append((time.perf_counter() - began) / verdict.entries)
        assert verdict.whole
    return 1 / statistics.median(times)


def fsyncs_a_second(folder: Path) -> float:
    """How often this disk makes a small write lasting; what bounds every durable database on it."""
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        os.write(descriptor, b"x" * 4096)
        os.fsync(descriptor)
        times.append(time.perf_counter() - began)
    os.close(descriptor)
    return 1 / statistics.median(times)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--refused"]:
        be_refused(*sys.argv[2:4])
    main()
