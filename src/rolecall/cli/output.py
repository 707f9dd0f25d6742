"""Output of the commands: answers and secrets on standard output, everything else on standard error.

With `--json` both are JSON.
"""

import csv
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import TypeVar

import typer

from rolecall.credentials.token_format import redact
from rolecall.domain import Explanation
from rolecall.errors import CallFailed, Internal, InvalidField, RolecallError

__all__ = [
    "ALLOW",
    "DENY",
    "ERROR",
    "compact",
    "confirm",
    "day",
    "print_csv",
    "print_defect",
    "print_error",
    "print_explanation",
    "print_json",
    "print_table",
    "print_usage_error",
    "print_value",
    "progress",
    "require_no_other_format",
    "say",
    "short_time",
    "shorten",
    "silence_grpc_logs",
    "wants_json",
    "with_command_names",
]

T = TypeVar("T")

_COMMANDS = {
    "AcceptInvitation": "accept",
    "AddTeamMembers": "teams add",
    "ChangeMemberExternalId": "members set-external-id",
    "ChangeMemberRole": "members set-role",
    "CreateRoleAssignments": "assignments create",
    "CreateTeam": "teams create",
    "DeleteInvitation": "invitations delete",
    "DeleteRoleAssignment": "assignments delete",
    "DeleteTeam": "teams delete",
    "DeleteToken": "tokens delete",
    "GetMember": "members list",
    "GetRoleAssignment": "assignments list",
    "GetTeam": "teams show",
    "LeaveOrganization": "members leave",
    "ListInvitations": "invitations list",
    "ListMembers": "members list",
    "ListRoleAssignments": "assignments list",
    "ListRoles": "policy matrix",
    "ListTeamMembers": "teams members",
    "ListTeams": "teams list",
    "ListTokens": "tokens list",
    "MoveMembers": "members move",
    "RemoveMember": "members remove",
    "RemoveTeamMembers": "teams remove",
    "RequestSignIn": "sign-in ADDRESS",
    "ResendInvitation": "invitations resend",
    "RotateToken": "tokens rotate",
    "SignIn": "sign-in",
    "UpdateInvitation": "invitations set-role",
    "UpdateRoleAssignment": "assignments update",
    "UpdateTeam": "teams rename",
}
_RPC = re.compile(rf"\b({'|'.join(_COMMANDS)})\b")

# Typer's message about an option that a command doesn't have.
_NO_SUCH_OPTION = re.compile(r"No such option: (\S+)(?: \(Possible options: ([^)]*)\))?")

# Exit codes of everything that decides.
ALLOW, DENY, ERROR = 0, 1, 2

# Maximum characters of a cell, so that no line of a table is unbounded. As long as the longest address.
MAX_CELL = 254


def wants_json() -> bool:
    """Whether the command line has `--json`. Not a parsed option, as errors in options are reported in JSON, too."""
    arguments = sys.argv[1:]
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def say(text: str) -> None:
    """Print a message for the person at the terminal, on standard error; with `--json`, as `{"message": ...}`."""
    _print_to_stderr(_json({"message": text}) if wants_json() else text)


def print_error(error: RolecallError, hint: str = "") -> None:
    """Print an error on standard error; with `--json`, as one object on one line."""
    if wants_json():
        problems = [_problem(problem) for problem in error.all]
        # Those of a `PolicyError`, whose module is imported where a policy is read only.
        for finding in getattr(error, "findings", ()):
            place = f"{finding.file}:{finding.line}:{finding.column}"
            problems.append({"reason": error.reason, "field": place, "message": finding.message, "fix": finding.fix})
        call_id = error.metadata.get("call_id", "")
        _print_to_stderr(_json({**_problem(error, hint), "call_id": call_id, "problems": problems}))
    elif error.all:
        say(f"error: {len(error.all)} problems, nothing was changed:")
        for problem in error.all:
            say(f"  {with_command_names(problem.message)}")
    else:
        say(f"error: {with_command_names(error.message)}{hint}")


def print_usage_error(error: typer.TyperException) -> None:
    """Print an error in the options or arguments as `print_error` does."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    see = f" See `{context.command_path} --help`." if context else ""
    message = _NO_SUCH_OPTION.sub(_unknown_option, " ".join(error.format_message().split()))
    # What follows may be a password: a blank in it would end a URL too early.
    message, is_url, _ = redact(message).partition("://")
    message += "… (a URL, not shown, as it may hold a password)." if is_url else ""
    # A sentence, behind which the advice begins.
    message += "" if message.endswith((".", "?", "!")) else "."
    print_error(InvalidField(f"{message}{see}", field=parameter.name if parameter else ""))


def _unknown_option(found: re.Match[str]) -> str:
    return f"No such option {found[1]}." + (f" Did you mean {found[2].replace(', ', ' or ')}?" if found[2] else "")


def print_defect(error: Exception) -> None:
    """Print a defect of the command: its traceback; with `--json`, what it is."""
    if not wants_json():
        traceback.print_exc()
        return
    print_error(
        Internal(f"The command failed ({type(error).__name__}): run it without --json to see where, and report it.")
    )


def _problem(error: RolecallError, hint: str = "") -> dict[str, str]:
    return {
        "reason": error.reason,
        "field": error.field,
        "message": with_command_names(error.message) + hint,
        "fix": with_command_names(error.fix) + hint,
    }


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - all output passes here


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def require_no_other_format(given: bool, json: bool) -> None:
    """Raise `InvalidField` where another format is given besides `--json`."""
    if given and json:
        raise InvalidField("--format and --json name two formats: leave one out.", field="format")


def with_command_names(text: str) -> str:
    """Replace the names of RPCs in a server's text by the commands that call them."""
    return _RPC.sub(lambda found: f"`rolecall {_COMMANDS[found[0]]}`", text)


def print_value(text: str) -> None:
    """Print an answer or a secret, alone, so that it can be piped."""
    print(text)  # noqa: T201 - as above


def print_json(value: object) -> None:
    """Print a value as JSON, on one line."""
    print_value(_json(value))


def print_explanation(explanation: Explanation) -> None:
    """Print the rule that decided, or the nearest one; and the subject's roles, where it has several."""
    print_value(explanation.summary)
    if explanation.rule:
        print_value(f"  rule: {explanation.rule}  ({explanation.file}:{explanation.line})")
    if explanation.nearest_miss:
        where = f"  (line {explanation.nearest_miss_line})" if explanation.nearest_miss_line else ""
        print_value(f"  nearest miss: {explanation.nearest_miss}{where}")
    if explanation.missing_values:
        print_value(f"  missing values: {', '.join(explanation.missing_values)}")
    if len(explanation.roles) > 1:
        for role in explanation.roles:
            place = f" at {role.scope}" if role.scope else ""
            by = f" (assignment {role.assignment_id})" if role.assignment_id else ""
            print_value(f"  role {role.role}{place}{by}: {role.summary}")


def print_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as CSV."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: for people as a box, or as one block a row where the terminal is too narrow for that.

    In a file or pipe a row is one line, with tabs between the cells; the first line is the header. Cells have no
    character that isn't printable, and are shortened where they are too long.
    """
    kept = [tuple(shorten(value, MAX_CELL) for value in row) for row in rows]
    if not sys.stdout.isatty():
        for row in (header, *kept):
            print_value("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in header:
        table.add_column(name, overflow="fold")
    for row in kept:
        table.add_row(*row)
    console = Console(markup=False, emoji=False, highlight=False)
    # A console measures no wider than itself.
    if Console(width=10_000).measure(table).maximum <= console.width:
        console.print(table)
        return
    for row in kept:
        for name, value in zip(header, row, strict=True):
            print_value(f"{name + ':':<15}{value}")
        print_value("")


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Yield the items, with a progress bar on standard error if that is a terminal."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True))


def confirm(question: str) -> None:
    """Ask for a confirmation. Raises `CallFailed` unless the answer is yes."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        # Nobody is there to answer, or they pressed Ctrl-C.
        agreed = False
        say("")
    if not agreed:
        raise CallFailed("Cancelled. Programs pass --yes.")


def short_time(text: str | None) -> str:
    """Format a time, to the second; empty for none."""
    return f"{text[:10]} {text[11:19]}Z" if text else ""


def day(text: str | None) -> str:
    """Return the date of a time, in UTC; empty for none."""
    return text[:10] if text else ""


def compact(value: object) -> str:
    """Format a JSON value on one line, without quotation marks."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {compact(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return "[" + ", ".join(compact(item) for item in value) + "]"
    return str(value)


def shorten(text: str, maximum: int) -> str:
    """Return a text of at most `maximum` characters, all of them printable."""
    visible = text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
    return visible if len(visible) <= maximum else f"{visible[: maximum - 1]}…"


def silence_grpc_logs() -> None:
    """Silence grpc's own log; has an effect before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
