"""`rolecall serve`."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall.cli import output, process
from rolecall.cli.logs import configure_logs
from rolecall.cli.supervisor import supervise
from rolecall.config import Settings
from rolecall.environment import PREFIX
from rolecall.errors import InvalidField

__all__ = ["serve", "serve_worker"]


def serve(
    config_file: Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")] = None,
    listen: Annotated[str | None, typer.Option(help="host:port, or unix:path. Beyond loopback, TLS is needed.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Folder with the policy files.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File with the server's key, created by init.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    plaintext_exposes_tokens: Annotated[
        bool | None, typer.Option("--plaintext-exposes-tokens", help="Allow listening beyond loopback without TLS.")
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option(help="Serve reflection, which describes the API to grpcurl.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Number of processes that share the port; auto: one per core.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of calls processed at the same time.")] = None,
    decision_log: Annotated[str | None, typer.Option(help="Decisions to log: off, denies or all.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, text or json.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Log in JSON, as --log-format json, and print errors as other commands do.")
    ] = False,
) -> None:
    """Answer calls until SIGTERM or SIGINT. SIGHUP reads the policy folder and the TLS files again."""
    if json:
        if log_format not in (None, "json"):
            message = f"--json and --log-format {log_format} name two formats: leave one out."
            raise InvalidField(message, field="log_format")
        log_format = "json"
    with process.errors_logged("" if json else log_format or os.environ.get(f"{PREFIX}LOG_FORMAT", "")):
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
    process.warn_of_exposed_files(settings)
    with process.errors_logged("" if json else settings.log_format):
        if settings.workers > 1:
            raise typer.Exit(supervise(settings, process.catch_signals()))
        server, signals = process.start_server(settings)
    process.announce_start(settings, server.address, server.live.in_force.policy.version, server.mail)
    process.serve_until_stopped(server, signals)
    process.announce_stop(settings)
    process.stop_server(server)


def serve_worker() -> None:
    """Serve as one of several workers on a port: reads its settings from standard input, whose end stops it."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    configure_logs(settings.log_level, settings.log_format)
    with process.errors_logged(settings.log_format):
        server, signals = process.start_server(settings, shares_port=True)
    output.print_json({"policy_version": server.live.in_force.policy.version, "mail": server.mail})
    sys.stdout.flush()

    def stop_with_parent() -> None:
        sys.stdin.read()
        signals.put(signal.SIGTERM)

    threading.Thread(target=stop_with_parent, name="parent", daemon=True).start()
    process.serve_until_stopped(server, signals)
    process.stop_server(server)
