"""`rolecall accept` and `rolecall sign-in`: from a mailed secret to a session. No secret is ever an argument."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.opening import Json, open_guest, plain
from rolecall.errors import UnauthenticatedCredential

if TYPE_CHECKING:
    from rolecall.client import Guest

__all__ = ["accept", "sign_in"]

# How often a person may paste a secret.
PASTES = 3


def accept(
    name: Annotated[str, typer.Option(help="Your name to show; without it, your address up to its @.")] = "",
    json: Json = False,
) -> None:
    """Accept an invitation: reads the mail's secret from standard input, and prints a session, once."""
    secret = _read_secret()
    with open_guest() as guest:
        _show(plain(guest.accept_invitation(secret, display_name=name)), json)


def sign_in(
    address: Annotated[str, typer.Argument(help="Have a mail sent to this address of yours first.")] = "",
    organization: Annotated[str, typer.Option(envvar="ROLECALL_ORGANIZATION", help="Where, with an address.")] = "",
    json: Json = False,
) -> None:
    """Sign in: reads the mail's secret from standard input, and prints a session, once."""
    with open_guest(organization) as guest:
        if address:
            guest.request_sign_in(address)
            output.say(f"If {address} is a member's, a mail is on its way; its secret works for 15 minutes.")
            if not sys.stdin.isatty():
                output.say("Give the secret to `rolecall sign-in`, without an address.")
                return
        _show(_signed_in(guest), json)


def _signed_in(guest: "Guest") -> dict[str, Any]:
    """The session. A person at a terminal may paste again where what they pasted signs nobody in."""
    for _ in range(PASTES - 1 if sys.stdin.isatty() else 0):
        try:
            return plain(guest.sign_in(_read_secret()))
        except UnauthenticatedCredential as error:
            output.say(f"{output.in_commands(error.message)} Or paste it once more.")
    return plain(guest.sign_in(_read_secret()))


def _read_secret() -> str:
    """The secret that is pasted at a prompt, which doesn't show it, or piped in."""
    if sys.stdin.isatty():
        secret: str = typer.prompt("The secret in the mail", hide_input=True, err=True)
        return secret.strip()
    return next((line.strip() for line in sys.stdin if line.strip()), "")


def _show(entered: dict[str, Any], json: bool) -> None:
    """The session alone on standard output; in JSON, all of it."""
    if json:
        output.print_json(entered)
        return
    member, session = entered["member"], entered["session"]
    output.say(f"You are {member['email']}, {member['role']} of {entered['organization']}.")
    until = output.short_time(session["expire_time"])
    output.say(f"The session, shown this once, works until {until}; set ROLECALL_TOKEN to it:")
    output.print_value(session["secret"])
