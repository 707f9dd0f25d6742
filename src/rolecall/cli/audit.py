"""`rolecall audit`: list, export and verify the audit log, through a server."""

import itertools
import sys
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import Json, open_client, parse_time, to_dict
from rolecall.errors import InvalidField

__all__ = ["app"]

app = Commands("See what was changed by whom, and whether the log is intact.")

MAX_NUMBER = 2**63 - 1
# Maximum characters of an entry's details in a table: those of an invitation of 200 people have 30,000.
MAX_DETAILS = 120

Since = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time,
        metavar="TIME",
        help="Only entries from this time on, as in 2027-01-31 or 7d (ago).",
    ),
]
Until = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Only entries before this time.")
]
Actor = Annotated[str, typer.Option(help="Only entries of this actor: an address, user:ID, token:ID or operator.")]
Action = Annotated[str, typer.Option(help="Only entries of this action, as in CreatePersonalToken.")]
Object = Annotated[str, typer.Option("--object", help="Only entries about this object, as in token:ID, or an address.")]


class Outcome(StrEnum):
    """Outcome of the attempts that are shown."""

    ALL = "all"
    SUCCEEDED = "succeeded"
    DENIED = "denied"


class Format(StrEnum):
    """Format of an export."""

    CSV = "csv"
    JSONL = "jsonl"


OutcomeOption = Annotated[Outcome, typer.Option(help="Only entries with this outcome.")]


@app.command("list")
def list_entries(
    since: Since = None,
    until: Until = None,
    actor: Actor = "",
    action: Action = "",
    object_name: Object = "",
    outcome: OutcomeOption = Outcome.ALL,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of entries.")] = 50,
    json: Json = False,
) -> None:
    """List entries, the newest first."""
    with open_client() as client:
        entries_filter = _filter(since, until, actor, action, object_name, outcome)
        found = [to_dict(entry) for entry in itertools.islice(client.audit.list(entries_filter), limit)]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            str(entry["sequence"]),
            output.short_time(entry["time"]),
            f"{entry['actor']} {entry['actor_email']}".rstrip(),
            entry["action"],
            f"{entry['object']} {entry['object_email']}".rstrip(),
            entry["reason"] or "succeeded",
            output.shorten(output.compact(entry["details"]), MAX_DETAILS),
        )
        for entry in found
    ]
    output.print_table(("#", "time", "actor", "action", "object", "outcome", "details"), rows)


@app.command()
def export(
    form: Annotated[Format | None, typer.Option("--format", help="Format of the lines; default: jsonl.")] = None,
    since: Since = None,
    until: Until = None,
    actor: Actor = "",
    action: Action = "",
    object_name: Object = "",
    outcome: OutcomeOption = Outcome.ALL,
    json: Json = False,
) -> None:
    """Write entries to standard output, the oldest first."""
    output.require_no_other_format(form is not None, json)
    form = form or Format.JSONL
    with open_client() as client:
        entries_filter = _filter(since, until, actor, action, object_name, outcome)
        for part in client.audit.export(form.value, entries_filter):
            sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


@app.command()
def verify(
    first: Annotated[
        int,
        typer.Option(min=0, max=MAX_NUMBER, help="Sequence number of the first entry to verify; 0 for the beginning."),
    ] = 0,
    last: Annotated[
        int, typer.Option(min=0, max=MAX_NUMBER, help="Sequence number of the last entry; 0 for the end.")
    ] = 0,
    known: Annotated[
        str | None, typer.Option(metavar="NUMBER:HASH", help="An entry whose hash you have stored elsewhere.")
    ] = None,
    json: Json = False,
) -> None:
    """Verify that the log is intact. Exits with 0 if it is, with 1 if not."""
    with open_client() as client:
        verdict = to_dict(client.audit.verify(first=first, last=last, known=_mark(known) if known else None))
    intact = verdict["verdict"] == "intact"
    if json:
        output.print_json(verdict)
    elif intact:
        head = verdict["head"]
        output.print_value(f"INTACT: {verdict['entry_count']} entries. It ends at {head['sequence']}:{head['hash']}")
    else:
        output.print_value(f"TAMPERED: first bad entry {verdict['first_bad_sequence']}. {verdict['problem']}")
    raise typer.Exit(output.ALLOW if intact else output.DENY)


def _filter(
    since: datetime | None, until: datetime | None, actor: str, action: str, object_name: str, outcome: Outcome
) -> Any:
    from rolecall.client import audit_filter

    return audit_filter(
        since=since,
        until=until,
        actor=actor,
        action=action,
        object_name=object_name,
        outcome="" if outcome is Outcome.ALL else outcome.value,
    )


def _mark(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or int(number) > MAX_NUMBER:
        raise InvalidField(
            "--known is not NUMBER:HASH: copy it from the output of `rolecall audit verify`.", field="known"
        )
    return int(number), digest
