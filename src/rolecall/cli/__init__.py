"""The command `rolecall`: one module for each group of commands."""

import os
import sys

from rolecall.environment import SERVER_EXTRA_MISSING, lacks_server_extra

if lacks_server_extra():
    raise ImportError(SERVER_EXTRA_MISSING)

import typer

from rolecall import __version__
from rolecall.cli import (
    assignments,
    audit,
    check,
    health,
    init,
    invitations,
    members,
    operator,
    output,
    policy,
    serve,
    sign_in,
    teams,
    tokens,
    whoami,
)
from rolecall.cli.commands import Commands
from rolecall.cli.logs import configure_logs
from rolecall.cli.supervisor import WORKER_COMMAND
from rolecall.errors import CallFailed, InvalidField, RolecallError, UnauthenticatedCredential

__all__ = ["app", "main"]

app = Commands(
    "An authorization service: may this subject do this action on this resource?", name="rolecall", completion=True
)
app.command()(init.init)
app.command()(serve.serve)
app.command(WORKER_COMMAND, hidden=True)(serve.serve_worker)
app.command()(health.health)
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
app.add_typer(assignments.app, name="assignments")
app.add_typer(teams.app, name="teams")
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
    """Run the command line. Exits with 2 on errors, which are JSON on standard error where `--json` is given."""
    configure_logs()
    try:
        # Typer's own report of an error in options repeats what was given, which may hold a secret.
        sys.exit(app(standalone_mode=False))
    except RolecallError as error:
        output.print_error(error, _hint(error))
    except typer.Abort:
        output.print_error(CallFailed("Cancelled: run it again."))
    except typer.TyperException as error:
        output.print_usage_error(error)
    except BrokenPipeError:
        # The reader of standard output closed it; Python must not report that when it flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeEncodeError:
        # Not quoted, as it may be a secret with a stray byte.
        output.print_error(InvalidField("An argument or the input is not valid UTF-8: correct it."))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - a defect must not exit with Python's 1, which means deny
        output.print_defect(error)
    sys.exit(output.ERROR)


def _hint(error: RolecallError) -> str:
    """Return what else helps a person at the terminal."""
    if isinstance(error, UnauthenticatedCredential) and not error.field:
        return (
            " Has ROLECALL_TOKEN expired, or was it deleted? `rolecall sign-in ADDRESS` opens a session; the operator"
            " can print a token with `rolecall operator tokens issue`."
        )
    return ""
