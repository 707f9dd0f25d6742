"""Output of the commands: answers and secrets on standard output, everything else on standard error."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rolecall.domain import Explanation
from rolecall.errors import CallFailed

__all__ = [
    "ALLOW",
    "DENY",
    "ERROR",
    "compact",
    "confirm",
    "day",
    "print_csv",
    "print_explanation",
    "print_json",
    "print_table",
    "print_value",
    "progress",
    "say",
    "short_time",
    "silence_grpc_logs",
    "with_command_names",
]

T = TypeVar("T")

_COMMANDS = {
    "ChangeMemberRole": "members set-role",
    "AcceptInvitation": "accept",
    "DeleteInvitation": "invitations delete",
    "DeleteToken": "tokens delete",
    "GetMember": "members list",
    "LeaveOrganization": "members leave",
    "ListInvitations": "invitations list",
    "ListMembers": "members list",
    "ListRoles": "policy matrix",
    "ListTokens": "tokens list",
    "RemoveMember": "members remove",
    "RequestSignIn": "sign-in ADDRESS",
    "ResendInvitation": "invitations resend",
    "RotateToken": "tokens rotate",
    "SignIn": "sign-in",
}
_RPC = re.compile(rf"\b({'|'.join(_COMMANDS)})\b")

# Exit codes of everything that decides.
ALLOW, DENY, ERROR = 0, 1, 2


def say(text: str) -> None:
    """Print a message for the person at the terminal, on standard error."""
    print(text, file=sys.stderr)  # noqa: T201 - all output passes here


def with_command_names(text: str) -> str:
    """Replace the names of RPCs in a server's text by the commands that call them."""
    return _RPC.sub(lambda found: f"`rolecall {_COMMANDS[found[0]]}`", text)


def print_value(text: str) -> None:
    """Print an answer or a secret, alone, so that it can be piped."""
    print(text)  # noqa: T201 - as above


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print_value(json.dumps(value, ensure_ascii=False))


def print_explanation(explanation: Explanation) -> None:
    """Print the rule that decided, or the nearest one."""
    print_value(explanation.summary)
    if explanation.rule:
        print_value(f"  rule: {explanation.rule}  ({explanation.file}:{explanation.line})")
    if explanation.nearest_miss:
        where = f"  (line {explanation.nearest_miss_line})" if explanation.nearest_miss_line else ""
        print_value(f"  nearest miss: {explanation.nearest_miss}{where}")


def print_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as CSV."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table for people; in a terminal that is too narrow for it, one block a row."""
    kept = [tuple(row) for row in rows]
    terminal = sys.stdout.isatty()
    table = Table(title=title or None, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in kept:
        table.add_row(*row)
    # A file or pipe has no width: nothing is folded there.
    console = Console(markup=False, emoji=False, highlight=False, width=None if terminal else 10_000)
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


def silence_grpc_logs() -> None:
    """Silence grpc's own log; has an effect before grpc is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
