"""`rolecall accept` and `rolecall sign-in`: from a mailed secret to a session. No secret is ever an argument."""

import sys
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.opening import Json, open_guest, plain

__all__ = ["accept", "sign_in"]


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
        _show(plain(guest.sign_in(_read_secret())), json)


def _read_secret() -> str:
    """The secret that is pasted at a prompt, which doesn't show it, or piped in."""
    if sys.stdin.isatty():
        secret: str = typer.prompt("The secret in the mail", hide_input=True, err=True)
        return secret.strip()
    return sys.stdin.readline().strip()


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
