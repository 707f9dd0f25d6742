"""What goes where: answers and secrets on standard output, everything said about them on standard error."""

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
    "GRPC_EXPERIMENTS",
    "compact",
    "confirm",
    "day",
    "hurry_grpc",
    "in_commands",
    "print_csv",
    "print_explanation",
    "print_json",
    "print_table",
    "print_value",
    "progress",
    "quiet_grpc",
    "say",
    "short_time",
]

# The thread that polls reads the sockets itself, which nearly doubles its calls; and what a call passes through is put
# together into one part, which is worth another seventh.
GRPC_EXPERIMENTS = "-event_engine_listener,fuse_filters"

T = TypeVar("T")

_COMMANDS = {
    "ChangeMemberRole": "members role",
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
    """Tell the person at the terminal."""
    print(text, file=sys.stderr)  # noqa: T201 - this module is where printing happens


def in_commands(text: str) -> str:
    """A server's text with its RPCs as the commands that call them."""
    return _RPC.sub(lambda found: f"`rolecall {_COMMANDS[found[0]]}`", text)


def print_value(text: str) -> None:
    """Print an answer or a secret, alone, so that it can be piped."""
    print(text)  # noqa: T201 - as above


def print_json(value: object) -> None:
    """Print a value for programs."""
    print_value(json.dumps(value, ensure_ascii=False))


def print_explanation(said: Explanation) -> None:
    """Print why a decision came out as it did."""
    print_value(said.summary)
    if said.rule:
        print_value(f"  rule: {said.rule}  ({said.file}:{said.line})")
    if said.nearest_miss:
        where = f"  (line {said.nearest_miss_line})" if said.nearest_miss_line else ""
        print_value(f"  nearest miss: {said.nearest_miss}{where}")


def print_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table for programs."""
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
    """The items one by one, with a bar on standard error where a person looks on and there are several."""
    if len(items) < 2 or not sys.stderr.isatty():
        return items
    return track(items, description=what, console=Console(stderr=True))


def confirm(question: str) -> None:
    """Ask the person. Raises `CallFailed` where they, or a program, don't say yes."""
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        # Nobody is there to answer, or they pressed Ctrl-C.
        agreed = False
        say("")
    if not agreed:
        raise CallFailed("Nothing was done. A program says --yes.")


def short_time(text: str | None) -> str:
    """A moment for people, to the second; empty for none."""
    return f"{text[:10]} {text[11:19]}Z" if text else ""


def day(text: str | None) -> str:
    """The day of a moment, in UTC; empty for none."""
    return text[:10] if text else ""


def compact(value: object) -> str:
    """A value of JSON on one line, without the marks that people don't need."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {compact(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return "[" + ", ".join(compact(item) for item in value) + "]"
    return str(value)


def quiet_grpc() -> None:
    """Keep grpc from writing its own lines beside ours. It looks when it is first imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def hurry_grpc() -> None:
    """Have grpc do with less of itself for each call; as `quiet_grpc`. A version that lacks a name ignores it."""
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
