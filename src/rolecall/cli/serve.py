"""`rolecall serve`."""

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall.cli import output, running
from rolecall.cli.logs import configure_logs
from rolecall.cli.supervisor import supervise
from rolecall.config import Settings

__all__ = ["serve", "serve_worker"]


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
    workers: Annotated[str | None, typer.Option(help="How many processes share the port; auto: one a core.")] = None,
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
        workers=workers,
        threads=threads,
        decision_log=decision_log,
        log_level=log_level,
        log_format=log_format,
    )
    configure_logs(settings.log_level, settings.log_format)
    if settings.workers > 1:
        raise typer.Exit(supervise(settings, running.catch_signals()))
    server, signals = running.begin(settings)
    running.tell_start(settings, server.address, server.live.in_force.policy.version, server.mail)
    running.go_on(server, signals)
    running.tell(settings, "Stopping.")
    running.end(server)


def serve_worker() -> None:
    """Be one of several that share a port: told its settings on standard input, which ends with who started it."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    configure_logs(settings.log_level, settings.log_format)
    server, signals = running.begin(settings, shares_port=True)
    output.print_json({"policy_version": server.live.in_force.policy.version, "mail": server.mail})
    sys.stdout.flush()

    def stop_with_parent() -> None:
        sys.stdin.read()
        signals.put(signal.SIGTERM)

    threading.Thread(target=stop_with_parent, name="parent", daemon=True).start()
    running.go_on(server, signals)
    running.end(server)
