"""`rolecall operator audit`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from rolecall.cli import output
from rolecall.cli.commands import Commands
from rolecall.cli.connect import ConfigFile, Database, Json, KeyFile, Organization, open_database, parse_time
from rolecall.errors import ConfigError

__all__ = ["app"]

app = Commands("Erase a person's values from an audit log, prune it, restart it.")


@app.command()
def erase(
    organization: Organization,
    person: Annotated[str, typer.Option(help="The person's user id, address or external id, present or former.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Erase a person's addresses, names and external ids from the log. It still verifies."""
    from rolecall import audit

    with open_database(config_file, database, key_file) as (storage, log):
        count = audit.erase(storage, log, organization, person)
        if not storage.scrub():
            output.say("A server is reading: SQLite's -wal file holds the values until its next checkpoint.")
    if json:
        output.print_json({"erased_values": count})
        return
    output.say(f"{count} values of {person} were erased.")


@app.command()
def prune(
    organization: Organization,
    before: Annotated[
        datetime,
        typer.Option(parser=parse_time, metavar="TIME", help="Delete the entries before this time, as in 2027-01-31."),
    ],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Delete the oldest entries. The rest still verifies."""
    from rolecall import audit

    at = int(before.timestamp() * 1_000_000)
    with open_database(config_file, database, key_file) as (storage, log):
        pruned = audit.prune(storage, log, organization, at)
    if json:
        output.print_json({"pruned_entries": pruned.entries, "last_pruned_sequence": pruned.last_sequence})
        return
    output.say(f"{pruned.entries} entries were deleted; the log begins after entry {pruned.last_sequence}.")


@app.command()
def restart(
    organization: Organization,
    archive: Annotated[Path, typer.Option(help="New file for the entries of the old log, as JSON lines.")],
    config_file: ConfigFile = None,
    database: Database = None,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Archive a log that was tampered with or whose key is lost, and start a new one.

    The first entry of the new log records that.
    """
    from rolecall import audit

    with open_database(config_file, database, key_file, intact=False) as (storage, log):
        try:
            file = archive.open("x", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The archive {archive} can't be created: {error.strerror}.") from error
        with file:
            count = audit.restart(storage, log, organization, file)
    if json:
        output.print_json({"archived_entries": count, "archive": str(archive)})
        return
    output.say(f"{count} entries are in {archive}; the audit log of {organization} starts again.")
