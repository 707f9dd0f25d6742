"""One serving process, from its settings to its end."""

import gc
import os
import signal
import sys
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog

from rolecall import __version__
from rolecall.cli import logs, output
from rolecall.config import Settings

if TYPE_CHECKING:
    from rolecall.server import Server

__all__ = ["begin", "catch_signals", "end", "go_on", "next_of", "tell", "tell_start"]

# How long one thread may hold the interpreter before others get their turn: the default, 5 ms, is fifty Checks.
SWITCH_SECONDS = 0.0001
# So many new objects before it is looked for garbage that goes in circles, of which there is little: the default, 700,
# is twenty Checks.
GARBAGE = 50_000
# How often the main thread wakes up while there is nothing to do.
AWAKE_SECONDS = 0.5


def catch_signals() -> "SimpleQueue[Any]":
    """Have SIGTERM, SIGINT and SIGHUP put their numbers into a queue, instead of what they do else."""
    # The handler is one call into C, so that no flood of signals can nest in it: put(signal, block=frame).
    signals: SimpleQueue[Any] = SimpleQueue()
    put: Any = signals.put
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, put)
    return signals


def begin(settings: Settings, *, shares_port: bool = False) -> "tuple[Server, SimpleQueue[Any]]":
    """A server that answers calls, and the queue that signals come in by.

    Raises `ConfigError`, `PolicyError`, `StorageUnavailable`.
    """
    output.quiet_grpc()
    if settings.lane != "standard":
        # With it, some connections that vanish are noticed only when their age ends them. There, calls hold threads.
        output.hurry_grpc()
    from rolecall.server import build_server

    # While there is no policy to read again, a hang-up must not end us; an interrupt may, as nothing is served yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = build_server(settings, shares_port=shares_port)
    signals = catch_signals()
    sys.setswitchinterval(SWITCH_SECONDS)
    server.start()
    # What is there now stays: collecting garbage among it would stop all calls for nothing.
    gc.freeze()
    if settings.lane != "standard":
        # There, grpc leaves garbage behind with each call that is broken off: 7 kB.
        gc.set_threshold(GARBAGE)
    return server, signals


def next_of(signals: "SimpleQueue[Any]") -> Any:
    """What is put into the queue next, waited for."""
    while True:
        # The kernel may give a signal to any thread, which doesn't wake this one, where its handler runs.
        with suppress(Empty):
            return signals.get(timeout=AWAKE_SECONDS)


def go_on(server: "Server", signals: "SimpleQueue[Any]") -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the policy folder again."""
    while next_of(signals) == signal.SIGHUP:
        server.live.wake()


def end(server: "Server") -> None:
    """Stop, and end the process."""
    server.stop()
    # A thread that a hanging database holds would keep the process for ever.
    os._exit(0)


def tell(settings: Settings, text: str) -> None:
    """Say what the server does; as a line of its log where programs read that."""
    say = structlog.get_logger("rolecall").info if settings.log_format == "json" else logs.say
    say(text)


def tell_start(settings: Settings, address: str, policy_version: str, mail: str, workers: int = 1) -> None:
    """Say where calls are answered, by how many processes and by which policy."""
    how = ("TLS" if settings.tls else "plain text") + (f", {workers} workers" if workers > 1 else "")
    where = f"Rolecall {__version__} answers on {address} ({how})"
    tell(settings, f"{where}, policy {policy_version} from {settings.policy}. {mail}")
