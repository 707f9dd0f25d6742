"""Serving process: starts a server, handles signals, and stops it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog
import typer

from rolecall import __version__
from rolecall.cli import logs, output
from rolecall.config import Settings, socket_path
from rolecall.credentials.private_files import warn_if_exposed
from rolecall.errors import RolecallError

if TYPE_CHECKING:
    from rolecall.server.build import Server

__all__ = [
    "announce_start",
    "announce_stop",
    "catch_signals",
    "errors_logged",
    "next_event",
    "serve_until_stopped",
    "start_server",
    "stop_server",
    "warn_of_exposed_files",
]

# How often the main thread wakes up to run the handlers of signals that another thread received.
WAKE_SECONDS = 0.5

_log = structlog.get_logger("rolecall")


def catch_signals() -> "SimpleQueue[Any]":
    """Return a queue that gets the numbers of SIGTERM, SIGINT and SIGHUP, instead of their default actions."""
    # The handler is one call into C, so that many signals can't nest in it: put(signal, block=frame).
    signals: SimpleQueue[Any] = SimpleQueue()
    put: Any = signals.put
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, put)
    return signals


def start_server(settings: Settings, *, shares_port: bool = False) -> "tuple[Server, SimpleQueue[Any]]":
    """Start a server, and return it with the queue of its signals.

    Raises `ConfigError`, `PolicyError`, `StorageUnavailable`.
    """
    from rolecall.server import build_server

    # Before a policy is loaded, SIGHUP must not end the process; SIGINT may, as no call is served yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = build_server(settings, shares_port=shares_port)
    signals = catch_signals()
    server.start()
    return server, signals


def next_event(events: "SimpleQueue[Any]") -> Any:
    """Wait for the next item in the queue, a signal's number or another event, and return it."""
    while True:
        # The kernel may deliver a signal to any thread, which doesn't wake the main thread, where its handler runs.
        with suppress(Empty):
            return events.get(timeout=WAKE_SECONDS)


def serve_until_stopped(server: "Server", signals: "SimpleQueue[Any]") -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the policy folder and the TLS files again."""
    while next_event(signals) == signal.SIGHUP:
        server.reload()


def stop_server(server: "Server") -> None:
    """Stop the server, and end the process."""
    server.stop()
    # A thread that waits for a hanging database would keep the process from ending.
    os._exit(0)


def announce_start(settings: Settings, address: str, policy_version: str, mail: str, workers: int = 1) -> None:
    """Announce that the server answers calls: its address, processes, policy and mail transport."""
    if not logs.is_text(settings.log_format):
        _log.info(
            "server started",
            version=__version__,
            address=address,
            tls=settings.tls,
            workers=workers,
            policy_version=policy_version,
            policy=str(settings.policy),
            mail=mail,
        )
        return
    kind = "TLS" if settings.tls else f"mode {settings.socket_mode}" if socket_path(address) else "plain text"
    how = kind + (f", {workers} workers" if workers > 1 else "")
    where = f"Rolecall {__version__} answers on {address} ({how})"
    logs.write_message(f"{where}, policy {policy_version} from {settings.policy}. {mail}")


def announce_stop(settings: Settings) -> None:
    """Announce that the server stops."""
    if logs.is_text(settings.log_format):
        logs.write_message("Stopping.")
    else:
        _log.info("server stopping")


@contextmanager
def errors_logged(log_format: str) -> Iterator[None]:
    """Log the error that ends the server as an event, where its log is JSON by setting; else pass it on."""
    try:
        yield
    except RolecallError as error:
        if log_format != "json":
            raise
        logs.configure_logs(form=log_format)
        _log.error("server can't run", problem=error.message)
        raise typer.Exit(output.ERROR) from error


def warn_of_exposed_files(settings: Settings) -> None:
    """Warn of files with passwords that other users may access. A TLS key is warned of whenever it is read."""
    for file in settings.private_files:
        # A file that is missing is an error of its own.
        with suppress(OSError):
            warn_if_exposed(file)
