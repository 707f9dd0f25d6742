"""The command `rolecall`: one module for each group of commands."""

import os
import sys
import traceback

from rolecall.environment import SERVER_EXTRA_MISSING, lacks_server_extra

if lacks_server_extra():
    raise ImportError(SERVER_EXTRA_MISSING)

import typer

from rolecall import __version__
from rolecall.cli import (
    audit,
    check,
    init,
    invitations,
    members,
    operator,
    output,
    policy,
    serve,
    sign_in,
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
app.command()(check.resources)
app.command()(check.subjects)
app.command()(whoami.whoami)
app.command()(sign_in.accept)
app.command("sign-in")(sign_in.sign_in)
app.add_typer(policy.app, name="policy")
app.add_typer(members.app, name="members")
app.add_typer(invitations.app, name="invitations")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(operator.app, name="operator")


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
                " Has ROLECALL_TOKEN expired, or was it deleted? `rolecall sign-in ADDRESS` opens a"
                " session; the operator can print a token"
                " with `rolecall operator tokens issue`."
            )
        if error.all:
            output.say(f"error: {len(error.all)} problems, nothing was changed:")
            for problem in error.all:
                output.say(f"  {output.with_command_names(problem.message)}")
        else:
            output.say(f"error: {output.with_command_names(error.message)}{hint}")
        sys.exit(output.ERROR)
    except BrokenPipeError:
        # The reader of standard output closed it; Python must not report that when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(output.ERROR)
    except UnicodeEncodeError:
        # Not quoted, as it may be a secret with a stray byte.
        output.say("error: an argument or the input is not valid UTF-8.")
        sys.exit(output.ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - a defect must not exit with Python's 1, which means deny
        traceback.print_exc()
        sys.exit(output.ERROR)
