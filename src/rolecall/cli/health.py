"""`rolecall health`: for probes that run a command, as those of Kubernetes and Docker."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli import output
from rolecall.cli.connect import Json, open_probe
from rolecall.errors import CallFailed

__all__ = ["health"]

READY, NOT_READY = 0, 1


def health(
    service: Annotated[
        str, typer.Argument(help='What to ask about: rolecall.ready, whether Checks are answered; "", the process.')
    ] = "rolecall.ready",
    address: Annotated[str, typer.Option(help="host:port or unix:path; default: ROLECALL_ADDRESS.")] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS, to a loopback address as well.")] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option(help="PEM file with the server's authority, or its certificate; default: ROLECALL_CA_FILE."),
    ] = None,
    server_name: Annotated[
        str, typer.Option(help="The name in the server's certificate; default: the host of the address.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds to wait for the answer.")] = 2.0,
    json: Json = False,
) -> None:
    """Is the server ready? Exits with 0 if it is, 1 if it isn't or doesn't answer. Needs no token."""
    plaintext = False if tls or ca_file or server_name else None
    with open_probe(address, ca_file, server_name, timeout, plaintext=plaintext) as client:
        try:
            is_serving = client.is_serving(service)
        except CallFailed as error:
            is_serving = False
            output.say(error.message)
    status = "SERVING" if is_serving else "NOT_SERVING"
    if json:
        output.print_json({"service": service, "status": status})
    else:
        output.print_value(status)
    raise typer.Exit(READY if is_serving else NOT_READY)
