"""`rolecall audit`: through a server for those who may, and at the database for the operator."""

import itertools
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rolecall.cli import output
from rolecall.cli.opening import (
    ConfigFile,
    Database,
    Json,
    KeyFile,
    Organization,
    moment,
    open_client,
    open_database,
    plain,
)
from rolecall.errors import ConfigError, InvalidField

__all__ = ["app"]

app = typer.Typer(help="See what was changed by whom, and whether the log is whole.", no_args_is_help=True)

MAX_NUMBER = 2**63 - 1

Since = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="MOMENT", help="From this moment on, as in 2027-01-31.")
]
Until = Annotated[datetime | None, typer.Option(parser=moment, metavar="MOMENT", help="Before this moment.")]
Actor = Annotated[str, typer.Option(help="By this actor: user:ID, token:ID or operator.")]
Action = Annotated[str, typer.Option(help="Of this action, as in CreatePersonalToken.")]
Object = Annotated[str, typer.Option("--object", help="Done to this, as in token:ID.")]


class Outcome(StrEnum):
    """What came of the attempts that are shown."""

    ALL = "all"
    DONE = "done"
    DENIED = "denied"


class Format(StrEnum):
    """How an export is written."""

    CSV = "csv"
    JSONL = "jsonl"


OutcomeOption = Annotated[Outcome, typer.Option(help="With this outcome.")]


@app.command("list")
def list_entries(
    since: Since = None,
    until: Until = None,
    actor: Actor = "",
    action: Action = "",
    done_to: Object = "",
    outcome: OutcomeOption = Outcome.ALL,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    json: Json = False,
) -> None:
    """List entries, the newest first."""
    with open_client() as client:
        wanted = _filter(since, until, actor, action, done_to, outcome)
        found = [plain(entry) for entry in itertools.islice(client.audit.list(wanted), limit)]
    if json:
        output.print_json(found)
        return
    rows = [
        (
            str(entry["sequence"]),
            output.short_time(entry["time"]),
            entry["actor"],
            entry["action"],
            entry["object"],
            entry["reason"] or "done",
            output.compact(entry["details"]),
        )
        for entry in found
    ]
    output.print_table(("#", "time", "actor", "action", "object", "outcome", "details"), rows)


@app.command()
def export(
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.JSONL,
    since: Since = None,
    until: Until = None,
    actor: Actor = "",
    action: Action = "",
    done_to: Object = "",
    outcome: OutcomeOption = Outcome.ALL,
) -> None:
    """Write entries to standard output, the oldest first."""
    with open_client() as client:
        wanted = _filter(since, until, actor, action, done_to, outcome)
        for part in client.audit.export(form.value, wanted):
            sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


@app.command()
def verify(
    first: Annotated[
        int, typer.Option(min=0, max=MAX_NUMBER, help="The first entry's number; 0 for the beginning.")
    ] = 0,
    last: Annotated[int, typer.Option(min=0, max=MAX_NUMBER, help="The last entry's number; 0 for the end.")] = 0,
    known: Annotated[
        str | None, typer.Option(metavar="NUMBER:HASH", help="An entry that you know from elsewhere.")
    ] = None,
    json: Json = False,
) -> None:
    """Say whether the log is as it was written. Exits with 0 if it is, with 1 if not."""
    with open_client() as client:
        verdict = plain(client.audit.verify(first=first, last=last, known=_mark(known) if known else None))
    whole = verdict["verdict"] == "whole"
    if json:
        output.print_json(verdict)
    elif whole:
        head = verdict["head"]
        output.print_value(f"WHOLE: {verdict['entry_count']} entries. It ends at {head['sequence']}:{head['hash']}")
    else:
        output.print_value(f"TAMPERED: first bad entry {verdict['first_bad_sequence']}. {verdict['problem']}")
    raise typer.Exit(output.ALLOW if whole else output.DENY)


@app.command()
def erase(
    organization: Organization,
    person: Annotated[str, typer.Option(help="The person's user id, or the address as it was.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """For the operator, at the database: erase a person's addresses and names from the log. It still verifies."""
    from rolecall import audit

    with open_database(config_file, database, key_file) as (storage, log):
        count = audit.erase(storage, log, organization, person)
        if not storage.scrub():
            output.say("A server is reading: SQLite's -wal file holds the values until its next checkpoint.")
    output.say(f"{count} values of {person} are erased.")


@app.command()
def prune(
    organization: Organization,
    before: Annotated[
        datetime, typer.Option(parser=moment, metavar="MOMENT", help="Entries before it go, as in 2027-01-31.")
    ],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """For the operator, at the database: drop the oldest entries. What is left still verifies."""
    from rolecall import audit

    at = int(before.timestamp() * 1_000_000)
    with open_database(config_file, database, key_file) as (storage, log):
        pruned = audit.prune(storage, log, organization, at)
    output.say(f"{pruned.entries} entries are gone; the log begins behind {pruned.last_sequence}.")


@app.command()
def restart(
    organization: Organization,
    archive: Annotated[Path, typer.Option(help="A new file for the entries of the log that ends, as JSON lines.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
) -> None:
    """For the operator, at the database: give up a log that was tampered with or whose key is lost, and begin anew.

    The new log's first entry says so.
    """
    from rolecall import audit

    with open_database(config_file, database, key_file, sound=False) as (storage, log):
        try:
            file = archive.open("x", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The archive {archive} can't be made: {error.strerror}.") from error
        with file:
            count = audit.restart(storage, log, organization, file)
    output.say(f"{count} entries are in {archive}; the audit log of {organization} begins anew.")


def _filter(
    since: datetime | None, until: datetime | None, actor: str, action: str, done_to: str, outcome: Outcome
) -> Any:
    from rolecall.client import audit_filter

    return audit_filter(
        since=since,
        until=until,
        actor=actor,
        action=action,
        done_to=done_to,
        outcome="" if outcome is Outcome.ALL else outcome.value,
    )


def _mark(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isascii() or not number.isdigit() or int(number) > MAX_NUMBER:
        raise InvalidField("--known is no NUMBER:HASH, as `rolecall audit verify` prints it.", field="known")
    return int(number), digest
