"""`rolecall serve`."""

import gc
import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

import structlog
import typer

from rolecall import __version__, config
from rolecall.cli import output
from rolecall.cli.logs import configure_logs

__all__ = ["serve"]

# How long one thread may hold the interpreter before others get their turn: the default, 5 ms, is fifty Checks.
SWITCH_SECONDS = 0.0005


def serve(
    config_file: Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")] = None,
    listen: Annotated[str | None, typer.Option(help="host:port. Beyond loopback, TLS is needed.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The folder with the policy's files.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The server's key, made by init.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    plaintext_exposes_tokens: Annotated[
        bool | None, typer.Option("--plaintext-exposes-tokens", help="Listen beyond loopback without TLS all the same.")
    ] = None,
    reflection: Annotated[bool | None, typer.Option(help="Tell grpcurl what the API is.")] = None,
    threads: Annotated[int | None, typer.Option(help="How many calls are worked on at once.")] = None,
    decision_log: Annotated[str | None, typer.Option(help="Which decisions to note: off, denies or all.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, text or json.")] = None,
) -> None:
    """Answer calls until SIGTERM or SIGINT. SIGHUP reads the policy folder again."""
    settings = config.load(
        config_file,
        database=database,
        listen=listen,
        policy=policy,
        key_file=key_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        plaintext_exposes_tokens=plaintext_exposes_tokens,
        reflection=reflection,
        threads=threads,
        decision_log=decision_log,
        log_level=log_level,
        log_format=log_format,
    )
    configure_logs(settings.log_level, settings.log_format)
    output.quiet_grpc()
    from rolecall.server import build_server

    # While there is no policy to read again, a hang-up must not end us; an interrupt may, as nothing is served yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = build_server(settings)
    # The handler is one call into C, so that no flood of signals can nest in it: put(signal, block=frame).
    signals: SimpleQueue[Any] = SimpleQueue()
    put: Any = signals.put
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, put)
    sys.setswitchinterval(SWITCH_SECONDS)
    server.start()
    # What is there now stays: collecting garbage among it would stop all calls for nothing.
    gc.freeze()
    how = "TLS" if settings.tls else "plain text"
    version = server.live.in_force.policy.version
    tell = structlog.get_logger("rolecall").info if settings.log_format == "json" else output.say
    tell(
        f"Rolecall {__version__} answers on {server.address} ({how}), policy {version} from {settings.policy}."
        f" {server.mail}"
    )
    while signals.get() == signal.SIGHUP:
        server.live.wake()
    tell("Stopping.")
    server.stop()
    sys.stderr.flush()
    # A thread that a hanging database holds would keep the process for ever.
    os._exit(0)
