"""`rolecall db`."""

from pathlib import Path
from typing import Annotated

import typer

from rolecall import config
from rolecall.cli import output

__all__ = ["app"]

app = typer.Typer(help="Look after the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `upgrade` a command of its own, alone as it is."""


@app.command()
def upgrade(
    config_file: Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL of the database.")] = None,
) -> None:
    """Bring the schema to what this version needs; nothing where it is there already."""
    from rolecall.storage import Storage

    storage = Storage(config.load(config_file, database=database).database)
    storage.upgrade()
    storage.close()
    output.say("The schema is up to date.")
