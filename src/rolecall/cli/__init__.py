"""The command `rolecall`: one module for each group of commands."""

import os
import sys
import traceback

import typer

from rolecall import __version__
from rolecall.cli import (
    audit,
    check,
    db,
    entering,
    init,
    invitations,
    members,
    organizations,
    output,
    policy,
    serve,
    tokens,
    whoami,
)
from rolecall.cli.logs import configure_logs
from rolecall.cli.supervisor import WORKER_COMMAND
from rolecall.errors import RolecallError, UnauthenticatedCredential

__all__ = ["app", "main"]

app = typer.Typer(
    name="rolecall",
    help="An authorization service: may this subject do this action on this resource?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(init.init)
app.command()(serve.serve)
app.command(WORKER_COMMAND, hidden=True)(serve.serve_worker)
app.command()(check.check)
app.command()(check.permissions)
app.command()(check.subjects)
app.command()(whoami.whoami)
app.command()(entering.accept)
app.command("sign-in")(entering.sign_in)
app.add_typer(policy.app, name="policy")
app.add_typer(members.app, name="members")
app.add_typer(invitations.app, name="invitations")
app.add_typer(tokens.app, name="tokens")
app.add_typer(organizations.app, name="organizations")
app.add_typer(audit.app, name="audit")
app.add_typer(db.app, name="db")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_show_version, is_eager=True),
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line. Exits with 2 on errors."""
    configure_logs()
    try:
        app()
    except RolecallError as error:
        hint = ""
        if isinstance(error, UnauthenticatedCredential) and not error.field:
            hint = (
                " Is ROLECALL_TOKEN live? `rolecall sign-in ADDRESS` opens a session; the operator can print a token"
                " with `rolecall tokens issue`."
            )
        if error.all:
            output.say(f"error: {len(error.all)} things are wrong, so nothing was done:")
            for problem in error.all:
                output.say(f"  {output.in_commands(problem.message)}")
        else:
            output.say(f"error: {output.in_commands(error.message)}{hint}")
        sys.exit(output.ERROR)
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python must not complain when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(output.ERROR)
    except UnicodeEncodeError:
        # Not repeated, as it may be a secret with a stray byte.
        output.say("error: what was given is no UTF-8 text.")
        sys.exit(output.ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - a defect must not end with Python's 1, which says deny
        traceback.print_exc()
        sys.exit(output.ERROR)
