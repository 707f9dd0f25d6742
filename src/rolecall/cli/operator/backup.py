"""`rolecall operator backup`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall.cli import output
from rolecall.cli.connect import ConfigFile, Database, Json

__all__ = ["backup"]


def backup(
    file: Annotated[Path, typer.Argument(help="New file for the copy.")],
    config_file: ConfigFile = None,
    database: Database = None,
    json: Json = False,
) -> None:
    """Copy an SQLite database to a new file, while servers run. The copy has no key and no settings."""
    from rolecall.storage import Storage

    settings = config.load(config_file, database=database)
    storage = Storage(settings.database, password=settings.database_password)
    try:
        storage.back_up(file)
    finally:
        storage.close()
    if json:
        output.print_json({"backup": str(file), "key_file": str(settings.key_file), "policy": str(settings.policy)})
        return
    output.say(f"{file} is a copy of the database. Anyone who can read it can read all members and audit logs.")
    output.say(
        f"Keep as well: the key file {settings.key_file}, in another place, as no server starts with another key;"
        f" the policy folder {settings.policy}; your settings."
    )
