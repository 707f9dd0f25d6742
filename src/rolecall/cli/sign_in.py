"""`rolecall accept` and `rolecall sign-in`: from a mailed secret to a session. No secret is ever an argument."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.connect import Json, open_unauthenticated_client, to_dict
from rolecall.errors import UnauthenticatedCredential

if TYPE_CHECKING:
    from rolecall.client import UnauthenticatedClient

__all__ = ["accept", "sign_in"]

# Attempts to paste a secret at the prompt.
ATTEMPTS = 3


def accept(
    name: Annotated[str, typer.Option(help="Your display name; default: your address up to its @.")] = "",
    json: Json = False,
) -> None:
    """Accept an invitation: reads the mail's secret from standard input, and prints a session, once."""
    secret = _read_secret()
    with open_unauthenticated_client() as client:
        _show(to_dict(client.accept_invitation(secret, display_name=name)), json)


def sign_in(
    address: Annotated[str, typer.Argument(help="Your address: a sign-in mail is sent to it first.")] = "",
    organization: Annotated[
        str,
        typer.Option(envvar="ROLECALL_ORGANIZATION", help="The organization to sign in to; needed with an address."),
    ] = "",
    json: Json = False,
) -> None:
    """Sign in: reads the mail's secret from standard input, and prints a session, once."""
    with open_unauthenticated_client(organization) as client:
        if address:
            client.request_sign_in(address)
            output.say(f"If {address} is a member's, a mail is on its way; its secret works for 15 minutes.")
            if not sys.stdin.isatty():
                output.say("Pipe the secret into `rolecall sign-in`, without an address.")
                return
        _show(_sign_in(client), json)


def _sign_in(client: "UnauthenticatedClient") -> dict[str, Any]:
    """Sign in; at a terminal, ask again where the secret is refused."""
    for _ in range(ATTEMPTS - 1 if sys.stdin.isatty() else 0):
        try:
            return to_dict(client.sign_in(_read_secret()))
        except UnauthenticatedCredential as error:
            output.say(f"{output.with_command_names(error.message)} Or paste it again.")
    return to_dict(client.sign_in(_read_secret()))


def _read_secret() -> str:
    """Read the secret from a prompt that doesn't echo it, or from standard input."""
    if sys.stdin.isatty():
        secret: str = typer.prompt("The secret in the mail", hide_input=True, err=True)
        return secret.strip()
    return next((line.strip() for line in sys.stdin if line.strip()), "")


def _show(response: dict[str, Any], json: bool) -> None:
    """Print the session's secret alone on standard output; with `json`, the whole response."""
    if json:
        output.print_json(response)
        return
    member, session = response["member"], response["session"]
    output.say(f"You are {member['email']}, {member['role']} of {response['organization']}.")
    until = output.short_time(session["expire_time"])
    output.say(f"The session, shown this once, works until {until}; set ROLECALL_TOKEN to it:")
    output.print_value(session["secret"])
